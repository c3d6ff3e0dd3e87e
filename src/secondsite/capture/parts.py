"""From a snapshot to parts: reads what changed, drops what the other side holds already, writes files to ship.

- Mode CHANGED looks at what the snapshot says changed. Mode COMPARE looks at the whole disk: everything that is not
  a hole is read, and every block that lies in a hole although its cell is not zero becomes a zero extent.
- A block is dropped if its digest equals its cell in the table. A cell that is unknown never equals; in mode CHANGED
  that helps only where the snapshot looks, so a table with unknown cells elsewhere needs COMPARE.
- Blocks of zeros become zero extents, never data. They are collected over the whole disk and come last, as at most one
  `.zeros` part; extents of all parts of one run are disjoint.
- Neighbouring blocks that arrive in one piece (1 MiB) become one log entry. A log is closed at `part_size` bytes of data.

Promises: memory is bounded by the reader's buffers, the number of ranges (16 bytes each) and what a part's `pending`
holds; every byte of a part was read from the snapshot; a generator that is closed or fails leaves no unfinished
file and no budget behind. It does not advance the table: the caller does, with `pending`, after the acknowledgement.
The files are not synced: after a crash the cycle is repeated from its checkpoint.
"""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from secondsite import durable
from secondsite.blocks import ZERO_DIGEST, DigestTable, block_digests
from secondsite.capture.pending import PendingBlocks
from secondsite.capture.port import Cancelled, CancelledError, Extent, SnapshotDisk
from secondsite.capture.runs import (
    RunList,
    Runs,
    complement,
    intersect,
    length,
    merge,
    no_runs,
    true_runs,
)
from secondsite.capture.spool import SpoolBudget
from secondsite.errors import ConflictError, InvalidInputError
from secondsite.hrl.writer import LogWriter
from secondsite.hrl.zeros import encode_zeros
from secondsite.model.ids import Digest, DiskKey
from secondsite.model.units import BLOCK, KIB, MIB, PART_DATA_MAX

__all__ = ["Mode", "Part", "Progress", "SpoolBudget", "produce"]

Progress = Callable[[int, int], None]
"""Called with the bytes read and the bytes to read in total."""

_PROGRESS_STEP: Final = MIB
_LOOKUP_CELLS: Final = 1 << 16
_LOOKUP_MAX: Final = 1 << 22
"""Up to so many cells are looked up one by one; beyond, the table's holes are skipped by a scan of the whole table."""


class Mode(StrEnum):
    """See the module's docstring."""

    CHANGED = "changed"
    COMPARE = "compare"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One file to ship. `length` is the file's; `data_length` counts the disk's bytes that it changes."""

    disk: DiskKey
    kind: Literal["hrl", "zeros"]
    digest: Digest
    length: int
    data_length: int
    path: Path
    pending: PendingBlocks
    unique_id: uuid.UUID | None
    """The log's UniqueId: `previous_id` of what follows. None for zeros, which are not in the chain."""

    @property
    def changed(self) -> int:
        """Bytes of the disk that differ because of this part."""
        return self.data_length


@dataclass(frozen=True, slots=True)
class _Output:
    """What every part of one run has in common."""

    disk: DiskKey
    disk_size: int
    spool: Path
    part_size: Callable[[], int]
    time: datetime
    passing: bool
    new_id: Callable[[], uuid.UUID]
    budget: SpoolBudget | None
    cancelled: Cancelled | None

    def check_cancelled(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise CancelledError(f"the capture of {self.disk} was cancelled", disk=self.disk)

    def acquire(self, count: int) -> None:
        if self.budget is not None:
            self.budget.acquire(count, self.cancelled)

    def release(self, count: int) -> None:
        if self.budget is not None:
            self.budget.release(count)


def produce(
    disk: SnapshotDisk,
    key: DiskKey,
    table: DigestTable,
    mode: Mode,
    spool: Path,
    *,
    digest_key: bytes,
    time: datetime,
    part_size: int | Callable[[], int] = PART_DATA_MAX,
    passing: bool = False,
    previous_id: uuid.UUID | None = None,
    new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    budget: SpoolBudget | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Iterator[Part]:
    """Return the parts that bring the other side from what `table` says to what `disk` holds.

    digest_key: the key that the table was made with.
    part_size: most bytes of data in a log, a multiple of 4096; asked for each log if it is a function.
    passing: the logs go straight into a base and are not kept, so their entries need no checksums of their own.
    budget: the part's length is acquired before it is yielded; the caller releases `part.length`.

    The table may be advanced by the parts that were yielded while the rest is produced, in no other way.

    Raises (while iterating):
        CancelledError: `cancelled` said so.
        NoSpaceError: the spool's file system is full.
        SecondSiteError: as the snapshot's disk raises.
    """
    sizes = part_size if callable(part_size) else lambda: part_size
    if (asked := sizes()) <= 0 or asked % BLOCK:
        raise InvalidInputError(f"the part size must be a multiple of {BLOCK}", part_size=asked)
    if disk.size != table.disk_size:
        raise ConflictError(
            f"disk {key} has {disk.size} bytes, its digest table is for {table.disk_size}",
            hint="resize the table first",
            disk=key,
        )
    if mode is Mode.COMPARE and not disk.whole:
        raise InvalidInputError(
            f"disk {key} cannot be compared from a snapshot of changes", hint="take one with since=None"
        )
    output = _Output(key, disk.size, spool, sizes, time, passing, new_id, budget, cancelled)
    return _run(disk, table, mode, digest_key, output, previous_id, progress)


def _run(
    disk: SnapshotDisk,
    table: DigestTable,
    mode: Mode,
    digest_key: bytes,
    output: _Output,
    previous_id: uuid.UUID | None,
    progress: Progress | None,
) -> Iterator[Part]:
    count = -(-disk.size // BLOCK)
    data, holes = _blocks_of(disk.changed(), disk.size)
    ranges = _Ranges(data, disk.size)
    zeroed = RunList()
    done = told = 0
    with _Logs(output, previous_id) as logs, closing(disk.read(ranges)) as found:
        for offset, view in found:
            output.check_cancelled()
            first = offset // BLOCK
            digests = block_digests(view, digest_key)
            differ = digests != table.get(first, len(digests))
            if differ.any():
                zero = digests == ZERO_DIGEST
                if zero.any():
                    zeroed.extend(true_runs(differ & zero) + first)
                    differ &= ~zero
                for start, end in true_runs(differ).tolist():
                    yield from logs.write(
                        first + start, view[start * BLOCK : end * BLOCK], digests[start:end]
                    )
            done += len(view)
            if progress is not None and done - told >= _PROGRESS_STEP:
                told = done
                progress(done, ranges.total)
        yield from logs.finish()
    if progress is not None:
        progress(done, ranges.total)
    if mode is Mode.COMPARE:
        zeroed.extend(intersect(complement(data, count), _nonzero(table)))
    elif len(holes):
        zeroed.extend(_nonzero_within(table, holes))
    runs = zeroed.merged()
    if len(runs):
        yield _write_zeros(output, runs)


# -- what to look at ---------------------------------------------------------------------------------------


def _blocks_of(extents: Iterable[Extent], disk_size: int) -> tuple[Runs, Runs]:
    """Return the blocks to read and the blocks that are all zero.

    Extents may begin anywhere. A block is known to be zero only if zero extents cover all of it; every other
    block that an extent touches is read.
    """
    pairs = {False: array("q"), True: array("q")}
    for extent in extents:
        if extent.length > 0:
            pairs[extent.zero].extend((extent.offset, extent.offset + extent.length))
    data = np.frombuffer(pairs[False].tobytes(), np.int64).reshape(-1, 2).copy()
    data[:, 0] //= BLOCK
    data[:, 1] = -(-data[:, 1] // BLOCK)
    zero = merge(np.frombuffer(pairs[True].tobytes(), np.int64).reshape(-1, 2))
    if len(zero) == 0:
        return merge(data), no_runs()
    count = -(-disk_size // BLOCK)
    outer = np.column_stack((zero[:, 0] // BLOCK, -(-zero[:, 1] // BLOCK)))
    inner = np.column_stack(
        (-(-zero[:, 0] // BLOCK), np.where(zero[:, 1] == disk_size, count, zero[:, 1] // BLOCK))
    )
    whole = inner[inner[:, 1] > inner[:, 0]]
    edges = intersect(merge(outer), complement(whole, count))
    read = merge(np.concatenate((data, edges)))
    return read, intersect(whole, complement(read, count))


class _Ranges:
    """Runs of blocks as (offset, length) in bytes; the last block may be short."""

    def __init__(self, runs: Runs, disk_size: int) -> None:
        ends = np.minimum(runs[:, 1] * BLOCK, disk_size)
        self._pairs = np.column_stack((runs[:, 0] * BLOCK, ends - runs[:, 0] * BLOCK))
        self.total = int(self._pairs[:, 1].sum())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(0, len(self._pairs), _LOOKUP_CELLS):
            some = self._pairs[at : at + _LOOKUP_CELLS]
            yield from zip(some[:, 0].tolist(), some[:, 1].tolist(), strict=True)


def _nonzero(table: DigestTable) -> Runs:
    runs = RunList()
    for first, count in table.nonzero_ranges():
        runs.add(first, first + count)
    return runs.merged()


def _nonzero_within(table: DigestTable, blocks: Runs) -> Runs:
    """Return which of `blocks` have a cell that is not zero."""
    if length(blocks) > _LOOKUP_MAX:
        return intersect(blocks, _nonzero(table))
    found = RunList()
    for first, end in blocks.tolist():
        for at in range(first, end, _LOOKUP_CELLS):
            found.extend(true_runs(table.get(at, min(_LOOKUP_CELLS, end - at)) != ZERO_DIGEST) + at)
    return found.merged()


# -- files -------------------------------------------------------------------------------------------------


class _Logs:
    """The log that is being written, and the chain of those before it."""

    def __init__(self, output: _Output, previous_id: uuid.UUID | None) -> None:
        self._output = output
        self._previous_id = previous_id
        self._open: _OpenLog | None = None

    def __enter__(self) -> _Logs:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open is not None:
            self._open.abandon()

    def write(self, first: int, data: memoryview, digests: NDArray[np.uint64]) -> Iterator[Part]:
        """Append blocks from `first` on; yields each log that they fill."""
        while len(data):
            if self._open is None:
                self._open = _OpenLog(self._output, self._previous_id)
            room = self._open.size - self._open.writer.data_length
            blocks = min(len(digests), room // BLOCK)
            self._open.write(first, data[: blocks * BLOCK], digests[:blocks])
            first, data, digests = first + blocks, data[blocks * BLOCK :], digests[blocks:]
            if self._open.writer.data_length + BLOCK > self._open.size:
                yield from self.finish()

    def finish(self) -> Iterator[Part]:
        """Close the log, if there is one, and yield it."""
        if self._open is not None:
            part = self._open.close()
            self._open = None
            self._previous_id = part.unique_id
            yield part


class _OpenLog:
    """One log while it is written. Holds `size` bytes, the most that it may take, of the budget until its length is known."""

    def __init__(self, output: _Output, previous_id: uuid.UUID | None) -> None:
        self._output = output
        self._unique_id = output.new_id()
        self.size = output.part_size()
        self._path = output.spool / f"{output.disk}-{self._unique_id.hex}.hrl"
        self._runs = array("q")
        self._digests: list[NDArray[np.uint64]] = []
        output.acquire(self.size)
        try:
            with durable.naming_full_disk(self._path):
                self._file = self._path.open("xb", buffering=256 * KIB)
                self.writer = LogWriter(
                    self._file,
                    disk_size=output.disk_size,
                    unique_id=self._unique_id,
                    previous_id=previous_id,
                    time=output.time,
                    data_checksums=not output.passing,
                )
        except BaseException:
            output.release(self.size)
            raise

    def write(self, first: int, data: memoryview, digests: NDArray[np.uint64]) -> None:
        with durable.naming_full_disk(self._path):
            self.writer.write(first * BLOCK, data)
        self._runs.extend((first, first + len(digests)))
        self._digests.append(digests)

    def close(self) -> Part:
        with durable.naming_full_disk(self._path):
            size = self.writer.close()
            self._file.close()
        # The header is written last, so the digest cannot be had on the way. 5 GiB/s from the page cache.
        digest = blake3().update_mmap(self._path).hexdigest()
        runs = np.frombuffer(self._runs.tobytes(), np.int64).reshape(-1, 2)
        pending = PendingBlocks.of_data(runs, np.concatenate(self._digests))
        self._output.release(self.size - size)
        return Part(
            self._output.disk,
            "hrl",
            Digest(digest),
            size,
            self.writer.data_length,
            self._path,
            pending,
            self._unique_id,
        )

    def abandon(self) -> None:
        try:
            with durable.naming_full_disk(self._path):
                self._file.close()
        finally:
            self._path.unlink(missing_ok=True)
            self._output.release(self.size)


def _write_zeros(output: _Output, runs: Runs) -> Part:
    ranges = _Ranges(runs, output.disk_size)
    data = encode_zeros(ranges)
    path = output.spool / f"{output.disk}-{output.new_id().hex}.zeros"
    output.check_cancelled()
    output.acquire(len(data))
    try:
        with durable.naming_full_disk(path):
            path.write_bytes(data)
    except BaseException:
        path.unlink(missing_ok=True)
        output.release(len(data))
        raise
    return Part(
        output.disk,
        "zeros",
        Digest(blake3(data).hexdigest()),
        len(data),
        ranges.total,
        path,
        PendingBlocks.of_zeros(runs),
        None,
    )
