"""Making points: parts of the initial replication into the base, the first seal, and every later one.

What it promises: what returned is durable; what raised left the points as they were. The order of steps is argued in
docs/design/journal.md. What it does not do: no locks; the journal calls these one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import ExitStack
from typing import Final

from blake3 import blake3

from secondsite.errors import (
    CorruptError,
    InvalidInputError,
    NotFoundError,
    OperationRefusedError,
    OutOfSequenceError,
    StaleEpochError,
)
from secondsite.hrl.index import ExtentIndex
from secondsite.journal import apply, resize
from secondsite.journal.documents import BaseState
from secondsite.journal.logs import FileKind, LogStore, StoredFile, files_of
from secondsite.journal.points import StoredPoint, follows
from secondsite.journal.store import Store, naming
from secondsite.model.ids import Digest, DiskKey, Epoch
from secondsite.model.manifest import FileRef, Manifest, PointKind

_KINDS: tuple[FileKind, ...] = ("hrl", "zeros")
_TABLE_LABEL: Final = "table."
PASSING_S: Final = 900.0
"""A part that has waited so long to be applied is a failed cycle's: the next one names its logs anew. If not, it is sent again."""


def table_label(disk: DiskKey) -> str:
    """Return the label of an initial point under which the source says what the disk's cells are at the point.

    Its value is `DigestTable.fingerprint()` of the source's own table.
    """
    return f"{_TABLE_LABEL}{disk}"


def check_epoch(store: Store, epoch: Epoch) -> None:
    """Raise unless `epoch` is the journal's."""
    current = store.epoch()
    if epoch < current:
        raise StaleEpochError(
            f"epoch {epoch} is older than the journal's {current}", epoch=epoch, current=current
        )
    if epoch > current:
        raise OperationRefusedError(
            f"epoch {epoch} is newer than the journal's {current}",
            hint="raise the journal's epoch first",
            epoch=epoch,
            current=current,
        )


def apply_parts(store: Store, disk: DiskKey, digests: Seq[Digest]) -> None:
    """Fold parts into the base before the first point; durable when it returns, and safe to repeat."""
    files: list[StoredFile] = []
    for digest in digests:
        found = [
            (kind, length) for kind in _KINDS if (length := store.parts.length(digest, kind)) is not None
        ]
        if found:
            files.append(StoredFile(FileRef(digest, found[0][1]), found[0][0]))
        elif not store.applied.has(disk, digest):
            raise NotFoundError(f"part {digest} was not received", hint="send it again", digest=digest)
    if not files:
        return
    # A list of zeros may be all that is left to say of what a grown disk gained.
    resize.grow(store, {disk: max(store.parts.least_size(file) for file in files)})
    try:
        _apply_files(store, disk, files)
    except CorruptError:
        for file in files:  # or it would be said to be here, and never sent again
            store.parts.unlink(file.name)
        raise
    store.applied.add(disk, [file.ref.digest for file in files])
    for file in files:
        store.parts.unlink(file.name)
    store.parts.remove_older(PASSING_S)


def seal_first(store: Store, manifest: Manifest, data: bytes) -> None:
    """Make the first point: the base, with what the manifest names laid over it."""
    if manifest.previous is not None or manifest.kind is not PointKind.INITIAL:
        raise OutOfSequenceError(
            "the journal has no point yet, so its first one is an initial replication's",
            hint="replicate initially",
            sequence=manifest.sequence,
        )
    _check_files(store.parts, manifest)
    resize.grow(store, _sizes(manifest))
    for disk, content in manifest.disks.items():
        if files := files_of(content):
            _apply_files(store, disk, files)
        with store.open_table(disk, writable=False) as table:
            if apply.has_unknown(table):
                raise OutOfSequenceError(
                    f"disk {disk}: a part of the initial replication was cut and not sent again",
                    hint="compare and send what differs",
                    disk=disk,
                )
            told = manifest.labels.get(table_label(disk))
            if told is not None and told != table.fingerprint():
                # A part that was given up for lost can be applied later than what the source sent in its place.
                raise OutOfSequenceError(
                    f"disk {disk}: the base is not what the source believes it to be",
                    hint="ask for the base's digests, compare with them and send what differs",
                    disk=disk,
                )
    store.points.write(data, manifest.sequence)
    finish_first(store)


def finish_first(store: Store) -> None:
    """If a first manifest is in place but not yet the base's, make it so; else nothing happens."""
    state = store.base_state()
    if state.sequence is None:
        for sequence in store.points.sequences():
            try:
                point = store.points.load(sequence)
            except CorruptError:  # never acknowledged: that comes after base.json
                store.points.remove([sequence])
                continue
            store.points.persist(sequence)
            store.write_base_state(BaseState(point.sequence, point.digest))
            break
        else:
            return
    store.applied.clear()
    store.parts.remove()


def seal_next(store: Store, manifest: Manifest, data: bytes, last: StoredPoint) -> None:
    """Add a point after `last`."""
    if manifest.kind is PointKind.MERGED or manifest.replaces:
        raise InvalidInputError("only the journal itself merges points")
    if manifest.sequence <= last.sequence or not follows(manifest, last):
        raise OutOfSequenceError(
            f"point {manifest.sequence} does not follow the last point {last.sequence}",
            hint="ask for the last point and go on from there, by compare if it is not known",
            sequence=manifest.sequence,
            last=last.sequence,
            last_digest=last.digest,
        )
    _check_files(store.logs, manifest)
    resize.grow(store, _sizes(manifest))
    store.points.write(data, manifest.sequence)


def parse(store: Store, data: bytes, epoch: Epoch) -> Manifest:
    """Return the manifest if it is one of this item with its disks, which may have grown."""
    manifest = Manifest.from_bytes(data)
    if manifest.item != store.identity.item:
        raise InvalidInputError(f"the point is one of item {manifest.item}, not {store.identity.item}")
    if manifest.epoch != epoch:
        raise InvalidInputError(f"the manifest says epoch {manifest.epoch}, the call {epoch}")
    resize.refuse_smaller(store, _sizes(manifest))
    return manifest


def _sizes(manifest: Manifest) -> dict[DiskKey, int]:
    return {disk: content.size for disk, content in manifest.disks.items()}


def digest_of(data: bytes) -> Digest:
    """Return the digest that names a manifest."""
    return Digest(blake3(data).hexdigest())


def _check_files(files: LogStore, manifest: Manifest) -> None:
    """Every named file is here, well-formed and of this disk, and they are disjoint."""
    for disk, content in manifest.disks.items():
        layers: list[ExtentIndex] = []
        for file in files_of(content):
            length = files.length(file.ref.digest, file.kind)
            if length is None:
                raise NotFoundError(
                    f"the point names file {file.name}, which was not received",
                    hint="send it again, then seal",
                    digest=file.ref.digest,
                    disk=disk,
                )
            try:
                layers.append(files.index(file, content.size, len(layers)))
                files.check_presence(file)
            except CorruptError as error:
                raise naming(error, point=manifest.sequence, disk=disk) from error
        if ExtentIndex.merge(layers).covered != sum(layer.covered for layer in layers):
            raise CorruptError(f"disk {disk}: files of one point overlap", disk=disk, point=manifest.sequence)


def _apply_files(store: Store, disk: DiskKey, files: Seq[StoredFile]) -> None:
    index = ExtentIndex.merge(
        [store.parts.index(file, store.size(disk), source) for source, file in enumerate(files)]
    )
    with ExitStack() as stack:
        base = store.open_base(disk, writable=True)
        stack.callback(base.close)
        table = stack.enter_context(store.open_table(disk, writable=True))
        apply.mark_unknown(table, index)
        apply.apply(base, table, store.key, index, files, store.parts)
