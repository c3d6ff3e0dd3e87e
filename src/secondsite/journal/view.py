"""Views: the disks of a point, readable at any offset.

What it promises: every byte is what the point holds, or the read raises; reads by several threads at once; what is
read is pinned until `close` or the end of the process, so folds, thinning and garbage collection go on beside it. With
`verify`, files were compared with their digests when the view was opened, and base blocks are compared with the digest table as they are
read (and no fold runs meanwhile). What it does not do: it never writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.errors import CorruptError, InvalidInputError, NotFoundError, UnavailableError
from secondsite.hrl.index import BASE, ZERO, ExtentIndex
from secondsite.journal.apply import partial_blocks
from secondsite.journal.base import Base, fill_zeros
from secondsite.journal.logs import OpenFiles, files_of
from secondsite.journal.pins import HeldPin
from secondsite.journal.points import StoredPoint
from secondsite.journal.prepared import Prepared
from secondsite.journal.store import Doubtful, Store, naming, points_after
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.manifest import Manifest
from secondsite.model.units import BLOCK

_LOOKUP_SPAN: Final = 1 << 30
"""`extents` asks the index for this many bytes at a time, so that a caller may stop early."""


class Extent(NamedTuple):
    """A range in bytes. `zero`: it reads as zeros and nothing is stored for it."""

    offset: int
    length: int
    zero: bool


class DiskView:
    """One disk of a view. Thread-safe."""

    def __init__(
        self,
        key: DiskKey,
        point: Sequence,
        base: Base,
        index: ExtentIndex,
        paths: list[Path],
        files: OpenFiles,
        proof: BaseProof | None,
        size: int,
    ) -> None:
        """`size`: the disk's at the point; the base may have grown since."""
        self.key = key
        self.index = index
        self._point = point
        self._base = base
        self._paths = paths
        self._files = files
        self._proof = proof
        self._size = size

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` from `offset`.

        Raises:
            InvalidInputError: the range is not within the disk.
            CorruptError: what is stored is damaged; names point, disk and offset. `buffer` may hold anything then.
        """
        buffer = buffer.cast("B")
        self._check(offset, len(buffer))
        for piece in self.index.lookup(offset, len(buffer)):
            target = buffer[piece.offset - offset : piece.offset - offset + piece.length]
            if piece.source == ZERO:
                fill_zeros(target)
                continue
            try:
                if piece.source != BASE:
                    self._files.readinto(self._paths[piece.source], piece.location, target)
                elif self._proof is None:
                    self._base.readinto(piece.offset, target)
                else:
                    self._proof.readinto(piece.offset, target)
            except CorruptError as error:
                raise naming(error, point=self._point, disk=self.key, offset=piece.offset) from error

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; see `readinto`."""
        data = bytearray(length)
        self.readinto(offset, memoryview(data))
        return bytes(data)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield, in order and without gaps, what covers the range; neighbours of one state are joined. Lazy."""
        self._check(offset, length)
        pending: Extent | None = None
        for extent in self._pieces(offset, length):
            if pending is None:
                pending = extent
            elif pending.zero == extent.zero:
                pending = Extent(pending.offset, pending.length + extent.length, pending.zero)
            else:
                yield pending
                pending = extent
        if pending is not None:
            yield pending

    def close(self) -> None:
        self._base.close()
        if self._proof is not None:
            self._proof.close()

    def _pieces(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        for at in range(offset, end, _LOOKUP_SPAN):
            for piece in self.index.lookup(at, min(_LOOKUP_SPAN, end - at)):
                if piece.source != BASE:
                    yield Extent(piece.offset, piece.length, piece.source == ZERO)
                    continue
                position, stop = piece.offset, piece.offset + piece.length
                for start, size in self._base_data(position, piece.length):
                    if start > position:
                        yield Extent(position, start - position, zero=True)
                    yield Extent(start, size, zero=False)
                    position = start + size
                if position < stop:
                    yield Extent(position, stop - position, zero=True)

    def _base_data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if self._proof is None:
            return self._base.data_extents(offset, length)
        return self._proof.data_extents(offset, length)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InvalidInputError(
                f"[{offset}, {offset + length}) is not within the disk of {self.size} bytes"
            )


class BaseProof:
    """Reads a base and compares each block with the digest table."""

    def __init__(self, base: Base, table: DigestTable, key: bytes, doubtful: Doubtful) -> None:
        """`doubtful`: blocks that a fold or a growth which is under way covers in part, so that the cell may be ahead or behind."""
        self._base = base
        self._size = min(base.size, table.disk_size)  # the table of a growing disk may be the old one
        self._doubtful = doubtful
        self._table = table
        self._key = key
        ranges = np.array(list(table.nonzero_ranges()), np.int64).reshape(-1, 2)
        self._starts = ranges[:, 0] * BLOCK
        self._ends = np.minimum((ranges[:, 0] + ranges[:, 1]) * BLOCK, self._size)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        first, last = offset // BLOCK, -(-end // BLOCK)
        start, stop = first * BLOCK, min(last * BLOCK, self._size)
        if (start, stop) == (offset, end):
            self._base.readinto(offset, buffer)
            self._compare(first, buffer)
            return
        whole = memoryview(bytearray(stop - start))
        self._base.readinto(start, whole)
        self._compare(first, whole)
        buffer[:] = whole[offset - start : end - start]

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What the base holds or the table has digests for: a hole where data should be must be noticed, not skipped."""
        end = offset + length
        ranges = [(start, start + size) for start, size in self._base.data_extents(offset, length)]
        at = int(np.searchsorted(self._ends, offset, side="right"))
        while at < len(self._starts) and self._starts[at] < end:
            ranges.append((max(offset, int(self._starts[at])), min(end, int(self._ends[at]))))
            at += 1
        position = offset
        for start, stop in sorted(ranges):
            if stop > position:
                yield max(start, position), stop - max(start, position)
                position = stop

    def close(self) -> None:
        self._table.close()

    def _compare(self, first: int, data: memoryview) -> None:
        found = block_digests(data, self._key)
        cells = self._table.get(first, len(found))
        wrong = np.flatnonzero((found != cells) | (cells == UNKNOWN))
        if len(wrong):
            offset = (first + int(wrong[0])) * BLOCK
            if first + int(wrong[0]) in self._doubtful:
                raise UnavailableError(
                    f"a fold or a growth is under way, or was, so the base at {offset} cannot be compared now",
                    hint="open the point again when it has ended; if nothing runs, open the journal for writing once",
                    offset=offset,
                )
            raise CorruptError(
                f"the base differs from its digest table at {offset}",
                hint="verify the journal to see all that is damaged",
                offset=offset,
            )


class View:
    """The disks of one point. A context manager that closes; must not be closed while it is read."""

    def __init__(
        self, point: StoredPoint, disks: Mapping[DiskKey, DiskView], files: OpenFiles, pin: HeldPin
    ) -> None:
        self.point = point
        self.disks = disks
        self._files = files
        self._pin = pin

    @property
    def sequence(self) -> Sequence:
        return self.point.sequence

    @property
    def manifest(self) -> Manifest:
        return self.point.manifest

    def close(self) -> None:
        """Give up files and pin; a second call does nothing."""
        for disk in self.disks.values():
            disk.close()
        self._files.close()
        self._pin.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_view(
    store: Store,
    sequence: Sequence | None,
    *,
    purpose: str,
    verify: bool,
    progress: Callable[[int], None] = lambda _: None,
    prepared: Prepared | None = None,
) -> View:
    """Open a point, the newest if `sequence` is None. `prepared` is used if it is this point's and still holds.

    Raises:
        NotFoundError: there is no such point (any more).
        CorruptError: the point, or a file that it needs, is damaged.
    """
    if prepared is not None and not verify and (found := _open_prepared(store, prepared, sequence, purpose)):
        return found
    with store.pins.reading() as reading:
        state, chain = store.chain()
        point = find(chain.offered, sequence, chain.damage)
        layers = points_after(chain, Sequence(state.sequence or 0), point.sequence)
        names = {
            file.name for layer in layers for disk in layer.manifest.disks.values() for file in files_of(disk)
        }
        folding = points_after(chain, Sequence(state.sequence or 0), Sequence(state.folding_to or 0))
        pin = reading.pin(point.sequence, purpose, names, still_base=verify)
    disks: dict[DiskKey, DiskView] = {}
    files = OpenFiles()
    try:
        for key in point.manifest.disks:
            if verify:
                _check_files(store, key, layers, progress)
            doubtful = doubtful_blocks(store, key, folding) if verify else None
            index, sources = store.merged_index(layers, key)
            paths = [store.logs.path(file) for file, _ in sources]
            disks[key] = _open_disk(store, key, point, index, paths, files, doubtful)
    except BaseException:
        for disk in disks.values():
            disk.close()
        pin.release()
        raise
    return View(point, disks, files, pin)


def find(offered: list[StoredPoint], sequence: Sequence | None, damage: CorruptError | None) -> StoredPoint:
    """Return the point of that sequence, or the newest; a damaged newest is refused, never skipped."""
    for point in reversed(offered):
        if point.sequence == sequence or (sequence is None and damage is None):
            return point
    if damage is not None and (sequence is None or sequence >= int(damage.attributes.get("point", 0))):
        raise naming(damage)  # a fresh one: the chain's is kept
    if sequence is None:
        raise NotFoundError("there is no recovery point yet", hint="wait for the initial replication to end")
    raise NotFoundError(
        f"there is no point {sequence}", hint="list the points that there are", point=sequence
    )


def doubtful_blocks(store: Store, key: DiskKey, folding: list[StoredPoint]) -> Doubtful:
    """Return the blocks that a fold of these points covers in part, and the one that a growth cuts through."""
    if not folding:
        return store.doubtful(key)
    return store.doubtful(key, partial_blocks(store.merged_index(folding, key)[0], store.size(key)))


def _check_files(
    store: Store, key: DiskKey, layers: list[StoredPoint], progress: Callable[[int], None]
) -> None:
    for point in layers:
        for file in files_of(point.manifest.disks[key]):
            try:
                store.logs.check_contents(file, progress)
            except CorruptError as error:
                raise naming(error, point=point.sequence, disk=key) from error


def _open_prepared(store: Store, prepared: Prepared, sequence: Sequence | None, purpose: str) -> View | None:
    with store.pins.reading() as reading:
        taken = prepared.take(store, reading, sequence, purpose)
    if taken is None:
        return None
    disks: dict[DiskKey, DiskView] = {}
    files = OpenFiles()
    try:
        for key, disk in prepared.disks.items():
            paths = [store.logs.path(file) for file in disk.files]
            disks[key] = _open_disk(store, key, taken.point, disk.index, paths, files, None)
    except BaseException:
        for view in disks.values():
            view.close()
        taken.pin.release()
        raise
    return View(taken.point, disks, files, taken.pin)


def _open_disk(
    store: Store,
    key: DiskKey,
    point: StoredPoint,
    index: ExtentIndex,
    paths: list[Path],
    files: OpenFiles,
    doubtful: Doubtful | None,
) -> DiskView:
    base = store.open_base(key, writable=False)
    proof = None
    try:
        if doubtful is not None:
            proof = BaseProof(base, store.open_table(key, writable=False), store.key, doubtful)
    except BaseException:
        base.close()
        raise
    size = point.manifest.disks[key].size
    return DiskView(key, point.sequence, base, index, paths, files, proof, size)
