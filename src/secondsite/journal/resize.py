"""A disk that has grown: the journal's base and digest table follow; older points keep the size that they have.

What it promises: a crash leaves a journal that says from which size it was growing, so that the next writer finishes it
before it writes; until then no point is of the new size, and readers need nothing behind the old end. What appears reads as zeros. Nothing
is given up: a disk never shrinks here. A fold that is writing a block at an old end is never waited for (it may take minutes): the
growth is refused, and asked for again.

Order: journal.json names the new size and the old one; base and table are extended, durably; journal.json forgets the old.
A block that the old end cut through had a digest of what was before the end; it gets one of the whole block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from secondsite import durable
from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.blocks.table import DISK_SIZE_MAX
from secondsite.errors import CorruptError, UnavailableError, UnsupportedError
from secondsite.journal import apply, documents
from secondsite.journal.base import BaseSpec
from secondsite.journal.documents import Identity
from secondsite.journal.store import Store
from secondsite.model.ids import DiskKey
from secondsite.model.units import BLOCK


def grow(store: Store, sizes: Mapping[DiskKey, int]) -> None:
    """Make the disks at least as large as `sizes` says, durably.

    Raises:
        UnsupportedError: a base is a block device, which cannot grow.
        UnsupportedError: no file here can be so large.
        UnavailableError: a fold is in the way. Nothing was changed.
        CorruptError: the block at the old end is not what its digest says. Nothing was changed.
    """
    grown = {disk: size for disk, size in sizes.items() if size > store.size(disk)}
    if not grown:
        return
    with _growing(store):
        _grow(store, grown)


def finish(store: Store) -> None:
    """Do what is left of a growth that was cut. Nothing happens if none was.

    Raises:
        UnavailableError: a fold is in the way.
    """
    if any(spec.grown_from is not None for spec in store.identity.disks.values()):
        with _growing(store):
            _finish(store)


@contextmanager
def _growing(store: Store) -> Iterator[None]:
    if not store.growth.acquire(blocking=False):
        raise UnavailableError(
            "a fold is writing a disk that ends within a block, so no disk can grow now",
            hint="the source tries again",
        )
    try:
        yield
    finally:
        store.growth.release()


def _grow(store: Store, grown: Mapping[DiskKey, int]) -> None:
    for disk, size in grown.items():
        spec = store.identity.disks[disk]
        if spec.kind == "image" and spec.path.is_block_device():
            raise UnsupportedError(
                f"disk {disk} has grown, but its copy is the block device {spec.path}, which cannot follow",
                hint="disable the item and protect its machine again",
                disk=disk,
            )
        _check_fits(store, disk, size)
        _check_tail(store, disk)
    disks = {
        disk: replace(spec, size=grown[disk], grown_from=spec.size) if disk in grown else spec
        for disk, spec in store.identity.disks.items()
    }
    _write(store, disks)
    _finish(store)


def _finish(store: Store) -> None:
    growing = {disk: spec for disk, spec in store.identity.disks.items() if spec.grown_from is not None}
    initial = store.base_state().sequence is None
    for disk, spec in growing.items():
        assert spec.grown_from is not None
        base = store.open_base(disk, writable=True)  # who opens a growing base for writing, extends it
        try:
            with DigestTable.open(store.table_path(disk), store.key, writable=True) as table:
                table.resize(spec.size)
                tail = spec.grown_from // BLOCK
                # While no point was sealed an unknown block is one that must come again.
                if not initial and spec.grown_from % BLOCK and int(table.get(tail, 1)[0]) == UNKNOWN:
                    table.put(tail, block_digests(apply.read(base, tail, 1), store.key))
                table.sync()
        finally:
            base.close()
    _write(store, {disk: replace(spec, grown_from=None) for disk, spec in store.identity.disks.items()})


def refuse_smaller(store: Store, sizes: Mapping[DiskKey, int]) -> None:
    """Raise UnsupportedError if the disks are others than the journal's, or one is smaller."""
    ours = {disk: spec.size for disk, spec in store.identity.disks.items()}
    if set(sizes) != set(ours) or any(sizes[disk] < size for disk, size in ours.items()):
        raise UnsupportedError(
            "the point's disks are others than the journal's, or smaller",
            hint="disable and enable replication of this item after its disks were changed",
            expected={str(disk): size for disk, size in ours.items()},
        )


def _check_fits(store: Store, disk: DiskKey, size: int) -> None:
    """Try the size on a file that is thrown away: once journal.json names it, the journal has to grow before it opens again."""
    if size > DISK_SIZE_MAX:
        raise _too_large(disk, size, "a digest table is for less")
    probe = durable.temporary_path(store.bases / f"{disk}.raw")
    try:
        with durable.naming_full_disk(probe), probe.open("xb") as file:
            os.ftruncate(file.fileno(), size)
    except OSError as error:
        raise _too_large(disk, size, error.strerror or str(error)) from error
    finally:
        probe.unlink(missing_ok=True)


def _too_large(disk: DiskKey, size: int, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"disk {disk} would have {size} bytes, and the journal can hold no such disk: {reason}",
        hint="keep the journal on a file system for larger files",
        disk=disk,
        size=size,
    )


def _check_tail(store: Store, disk: DiskKey) -> None:
    size = store.size(disk)
    if size % BLOCK == 0:
        return
    base = store.open_base(disk, writable=False)
    try:
        with store.open_table(disk, writable=False) as table:
            cell = int(table.get(size // BLOCK, 1)[0])
            if cell not in {UNKNOWN, int(block_digests(apply.read(base, size // BLOCK, 1), store.key)[0])}:
                if store.base_state().folding_to is not None:
                    raise UnavailableError(
                        f"disk {disk} cannot grow now: the digest at its end is one that a fold has still to write",
                        hint="the next maintenance finishes the fold; the source tries again",
                        disk=disk,
                    )
                raise CorruptError(
                    f"disk {disk}: the base differs from its digest table at its end",
                    hint="verify the journal; it does not grow while its base is damaged",
                    disk=disk,
                )
    finally:
        base.close()


def _write(store: Store, disks: dict[DiskKey, BaseSpec]) -> None:
    identity = Identity(store.identity.item, store.identity.name, store.key, disks)
    documents.replace(store.folder / "journal.json", documents.encode_identity(identity, store.folder))
    store.take_identity(identity)
