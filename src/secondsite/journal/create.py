"""Makes journals: a fresh one, all zeros, or one whose base is disk images that hold a point already.

What it promises: a journal's name appears when everything in it is durable, never before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.errors import ConflictError, InvalidInputError, NotFoundError
from secondsite.journal import documents
from secondsite.journal.apply import compute_unknown
from secondsite.journal.base import BaseSpec, OpenBase
from secondsite.journal.documents import BaseState, Identity
from secondsite.journal.removal import finish_deletes
from secondsite.journal.store import Store
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId
from secondsite.model.manifest import Manifest
from secondsite.model.units import SECTOR

_FOLDERS = ("base", "logs", "points", "incoming", "pins")


def create(
    path: Path, *, item: ItemId, name: str, epoch: Epoch, key: bytes, disks: Mapping[DiskKey, int]
) -> None:
    """Make a journal whose bases are sparse raw files of zeros.

    Raises:
        ConflictError: `path` exists.
    """
    for disk, size in disks.items():
        if size <= 0 or size % SECTOR:
            raise InvalidInputError(f"disk {disk}: the size {size} is not a multiple of {SECTOR}", disk=disk)
    if not disks:
        raise InvalidInputError("a journal needs at least one disk")
    with _new_folder(path) as folder:
        specs = {
            disk: BaseSpec("raw", folder / "base" / f"{disk}.raw", "raw", size)
            for disk, size in disks.items()
        }
        for disk, spec in specs.items():
            with spec.path.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(spec.size)
                durable.fsync_file(file.fileno())
            DigestTable.create(folder / "base" / f"{disk}.tbl", spec.size, key).close()
        _write_documents(folder, Identity(item, name, key, specs), epoch, BaseState())


def adopt(
    path: Path,
    *,
    manifest: bytes,
    epoch: Epoch,
    key: bytes,
    images: Mapping[DiskKey, Path],
    tables: Mapping[DiskKey, Path],
    formats: Mapping[DiskKey, str],
    open_base: OpenBase,
) -> None:
    """Make a journal on images that hold exactly the manifest's point. Repeating it is safe.

    Raises:
        ConflictError: `path` is a journal of something else.
    """
    point = Manifest.from_bytes(manifest)
    digest = Digest(blake3(manifest).hexdigest())
    if set(images) != set(point.disks) or set(tables) != set(point.disks):
        raise InvalidInputError("an image and a digest table are needed for each disk of the point")
    if not path.exists():
        with _new_folder(path, {image.absolute() for image in images.values()}) as folder:
            specs = {
                disk: BaseSpec("image", images[disk].absolute(), formats.get(disk, "qcow2"), content.size)
                for disk, content in point.disks.items()
            }
            identity = Identity(point.item, point.name, key, specs)
            for disk, table in tables.items():
                _take_table(table, folder / "base" / f"{disk}.tbl")
            store = Store(folder, identity, open_base)
            store.points.write(manifest, point.sequence)
            for disk in specs:
                _complete_table(store, disk)
            _write_documents(folder, identity, epoch, BaseState(point.sequence, digest))
    elif not _is_same(path, point.item, digest):
        raise ConflictError(f"{path} exists already", hint="remove it first", path=str(path))
    durable.fsync_name(path)  # before the tables' names go: who made it may have died before its sync
    for table in tables.values():
        table.unlink(missing_ok=True)


def _is_same(path: Path, item: ItemId, digest: Digest) -> bool:
    try:
        identity = documents.load_identity(path / "journal.json")
        state = documents.load_base_state(path / "base.json")
    except NotFoundError:
        return False
    return identity.item == item and state.manifest == digest


def _take_table(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise NotFoundError(f"the digest table {source.name} is missing", path=str(source)) from error
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            raise
        durable.copy_sparse(source, target)


def _complete_table(store: Store, disk: DiskKey) -> None:
    base = store.open_base(disk, writable=False)
    try:
        with store.open_table(disk, writable=True) as table:
            compute_unknown(base, table, store.key)
    finally:
        base.close()


@contextmanager
def _new_folder(path: Path, images: Collection[Path] = ()) -> Iterator[Path]:
    if path.exists():
        raise ConflictError(f"{path} exists already", hint="open it, or remove it first", path=str(path))
    durable.make_folders(path.parent)
    finish_deletes(path.parent, name=path.name, spare=images)
    for leftover in path.parent.glob(f"{path.name}{durable.TEMPORARY_MARK}*"):
        durable.remove_tree(
            leftover
        )  # of a create that was cut; one process at a time makes an item's journal
    folder = durable.temporary_path(path)
    with durable.naming_full_disk(path):
        try:
            folder.mkdir(mode=0o700)
            for name in _FOLDERS:
                (folder / name).mkdir(mode=0o700)
            (folder / "pins" / "lock").touch(mode=0o600)
            yield folder
            for name in (*_FOLDERS, "."):
                durable.fsync_dir(folder / name)
            durable.rename_durable(folder, path)
        except BaseException:
            if folder.exists():
                durable.remove_tree(folder)
            raise


def _write_documents(folder: Path, identity: Identity, epoch: Epoch, state: BaseState) -> None:
    documents.replace(folder / "journal.json", documents.encode_identity(identity, folder))
    documents.replace(folder / "epoch.json", documents.encode_epoch(epoch))
    documents.replace(folder / "base.json", documents.encode_base_state(state))
