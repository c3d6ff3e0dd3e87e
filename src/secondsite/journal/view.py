"""Views: the disks of a point, readable at any offset.

What it promises: every byte is what the point holds, or the read raises; reads by several threads at once; what is
read is pinned until `close` or the end of the process, so folds, thinning and garbage collection go on beside it. With
`verify`, files were compared with their digests when the view was opened, and base blocks are compared with the digest table as they are
read (and no fold runs meanwhile). What it does not do: it never writes.

Here are views themselves, and how one is opened that a node has prepared (journal/prepared.py): a machine waits for that, so
it needs neither numpy nor what changes a journal. Opening one in the ordinary way is journal/opening.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.hrl.lookup import BASE, ZERO, ExtentLookup
from secondsite.journal.base import Base, fill_zeros
from secondsite.journal.logs import LogStore, OpenFiles, StoredFile
from secondsite.journal.pins import HeldPin
from secondsite.journal.points import StoredPoint
from secondsite.journal.prepared import Prepared
from secondsite.journal.store import Doubtful, Store, naming
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.manifest import Manifest

if TYPE_CHECKING:
    from secondsite.journal.proof import BaseProof

_LOOKUP_SPAN: Final = 1 << 30
"""`extents` asks the index for this many bytes at a time, so that a caller may stop early."""


class Extent(NamedTuple):
    """A range in bytes. `zero`: it reads as zeros and nothing is stored for it."""

    offset: int
    length: int
    zero: bool


class Sources:
    """Where the files of an index lie, by its numbers. A path is made when it is first read: there may be thousands."""

    def __init__(self, logs: LogStore, files: Seq[StoredFile]) -> None:
        self._logs = logs
        self._files = files
        self._paths: dict[int, Path] = {}

    def path(self, source: int) -> Path:
        """Return where that file lies. Thread-safe: who comes second makes the same path."""
        path = self._paths.get(source)
        if path is None:
            path = self._paths[source] = self._logs.path(self._files[source])
        return path


class DiskView:
    """One disk of a view. Thread-safe."""

    def __init__(
        self,
        key: DiskKey,
        point: Sequence,
        base: Base,
        index: ExtentLookup,
        sources: Sources,
        files: OpenFiles,
        proof: BaseProof | None,
        size: int,
    ) -> None:
        """`size`: the disk's at the point; the base may have grown since."""
        self.key = key
        self.index = index
        self._point = point
        self._base = base
        self._sources = sources
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
                    self._files.readinto(self._sources.path(piece.source), piece.location, target)
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


def open_prepared(store: Store, path: Path, sequence: Sequence | None, purpose: str) -> View | None:
    """Open the point with what `Journal.prepare_view` wrote; None if that is not there or does not hold (any more).

    Raises:
        CorruptError: base.json, or the base that it needs, is damaged.
    """
    prepared = Prepared.load(path)
    if prepared is None:
        return None
    with store.pins.reading() as reading:
        taken = prepared.take(store, reading, sequence, purpose)
    if taken is None:
        return None
    disks: dict[DiskKey, DiskView] = {}
    files = OpenFiles()
    try:
        for key, disk in prepared.disks.items():
            sources = Sources(store.logs, disk.files)
            disks[key] = open_disk(store, key, taken.point, disk.index, sources, files)
    except BaseException:
        for view in disks.values():
            view.close()
        taken.pin.release()
        raise
    return View(taken.point, disks, files, taken.pin)


def open_disk(
    store: Store,
    key: DiskKey,
    point: StoredPoint,
    index: ExtentLookup,
    sources: Sources,
    files: OpenFiles,
    doubtful: Doubtful | None = None,
) -> DiskView:
    """Open one disk of a view; with `doubtful` (see `BaseProof`) what is read of the base is compared."""
    base = store.open_base(key, writable=False)
    proof = None
    try:
        if doubtful is not None:
            from secondsite.journal.proof import BaseProof  # with numpy: see the module's docstring

            proof = BaseProof(base, store.open_table(key, writable=False), store.key, doubtful)
    except BaseException:
        base.close()
        raise
    size = point.manifest.disks[key].size
    return DiskView(key, point.sequence, base, index, sources, files, proof, size)
