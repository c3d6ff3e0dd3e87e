"""Writes an index of changes into a base and its digest table: the work of a fold and of the initial replication.

What it promises: when `apply` returns, base and table are durable and agree; only bytes of files whose digest was compared
are written; a cell reaches the disk after the data it describes. Doing the same again gives the same. What it does not
do: a cut within it leaves a mixture, and the caller has made sure before that nobody reads the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.errors import CorruptError
from secondsite.hrl.index import ZERO, ExtentIndex
from secondsite.journal.base import Base
from secondsite.journal.logs import LogStore, StoredFile
from secondsite.model.units import BLOCK, MIB, Buffer

_CELLS_MAX: Final = 1 << 20
"""Digests kept in memory before base and table are synced: 4 GiB of data."""
_CHUNK: Final = 4 * MIB

Progress = Callable[[int], None]
"""Called with the bytes that were just done."""


def apply(
    base: Base,
    table: DigestTable,
    key: bytes,
    index: ExtentIndex,
    files: Sequence[StoredFile],
    logs: LogStore,
    progress: Progress = lambda _: None,
) -> None:
    """Write what `index` shows of `files` (its source numbers) and of zeros; base and table are durable afterwards.

    Raises:
        CorruptError: a file is damaged. What was written so far stays.
        NoSpaceError: likewise.
    """
    cells = _Cells(base, table)
    if len(index) == 0:
        return
    order = np.argsort(index.source, kind="stable")  # by source, each in order of offset
    sources, first = np.unique(index.source[order], return_index=True)
    for source, chosen in zip(sources.tolist(), np.split(order, first[1:]), strict=True):
        if source == ZERO:
            continue
        data = logs.proven(files[source])
        for start, end, location in zip(
            index.start[chosen].tolist(),
            index.end[chosen].tolist(),
            index.location[chosen].tolist(),
            strict=True,
        ):
            piece = data[location : location + end - start]
            base.write(start, piece)
            cells.of_data(start, piece, key)
            progress(end - start)
    for start, length in index.extents_of(ZERO).tolist():
        base.zero(start, length)
        cells.of_zeros(start, length)
    cells.of_partial(partial_blocks(index, base.size), key)
    cells.flush()


def mark_unknown(table: DigestTable, index: ExtentIndex) -> None:
    """Make the cells of all blocks that `index` touches unknown, durably."""
    for first, last in touched_blocks(index).tolist():
        table.mark_unknown(first, last - first)
    table.sync()


def has_unknown(table: DigestTable) -> bool:
    """Say whether any cell is unknown."""
    return any(True for _ in unknown_blocks(table))


def unknown_blocks(table: DigestTable) -> list[int]:
    """Return the blocks whose cell is unknown."""
    found: list[int] = []
    for first, count in table.nonzero_ranges():
        for at in range(first, first + count, _CELLS_MAX):
            cells = table.get(at, min(_CELLS_MAX, first + count - at))
            found.extend((np.flatnonzero(cells == UNKNOWN) + at).tolist())
    return found


def compute_unknown(base: Base, table: DigestTable, key: bytes) -> None:
    """Give unknown cells the digests of what the base holds, durably; for a base that is right by definition."""
    for block in unknown_blocks(table):
        table.put(block, block_digests(read(base, block, 1), key))
    table.sync()


def touched_blocks(index: ExtentIndex) -> NDArray[np.int64]:
    """Return the ranges of blocks [first, last) that `index` touches, ascending and disjoint, as an array (n, 2)."""
    if len(index) == 0:
        return np.empty((0, 2), np.int64)
    first = index.start // BLOCK
    last = -(-index.end // BLOCK)
    new = np.concatenate(([True], first[1:] > last[:-1]))
    at = np.flatnonzero(new)
    ends = np.concatenate((at[1:], [len(first)])) - 1
    return np.column_stack((first[at], last[ends]))


def partial_blocks(index: ExtentIndex, size: int) -> list[int]:
    """Return the blocks of which a boundary of an extent lies within, ascending."""
    heads = index.start[index.start % BLOCK != 0] // BLOCK
    tails = index.end[(index.end % BLOCK != 0) & (index.end != size)] // BLOCK
    return [int(block) for block in np.unique(np.concatenate((heads, tails)))]


def check_partial(base: Base, table: DigestTable, key: bytes, blocks: Sequence[int]) -> None:
    """Raise CorruptError if the base disagrees with its table in one of `blocks`."""
    for block in blocks:
        if int(table.get(block, 1)[0]) != int(block_digests(read(base, block, 1), key)[0]):
            raise CorruptError(
                f"the base differs from its digest table at {block * BLOCK}",
                hint="verify the journal; it is not folded while its base is damaged",
                offset=block * BLOCK,
            )


def read(base: Base, first: int, count: int) -> bytearray:
    """Return the contents of blocks; the disk's last one may be short."""
    offset = first * BLOCK
    data = bytearray(min(count * BLOCK, base.size - offset))
    base.readinto(offset, memoryview(data))
    return data


class _Cells:
    """Collects digests and writes them after the data are durable."""

    def __init__(self, base: Base, table: DigestTable) -> None:
        self._base = base
        self._table = table
        self._indices: list[NDArray[np.int64]] = []
        self._digests: list[NDArray[np.uint64]] = []
        self._zeros: list[tuple[int, int]] = []
        self._count = 0

    def of_data(self, start: int, data: memoryview, key: bytes) -> None:
        first, last = self._whole_blocks(start, len(data))
        for at in range(first, last, _CHUNK // BLOCK):
            stop = min(at + _CHUNK // BLOCK, last)
            part: Buffer = data[at * BLOCK - start : stop * BLOCK - start]
            self._indices.append(np.arange(at, stop, dtype=np.int64))
            self._digests.append(block_digests(part, key))
            self._count += stop - at
        if self._count >= _CELLS_MAX:
            self.flush()

    def of_zeros(self, start: int, length: int) -> None:
        first, last = self._whole_blocks(start, length)
        if first < last:
            self._zeros.append((first, last - first))

    def of_partial(self, blocks: Sequence[int], key: bytes) -> None:
        """The rest of such a block is the base's own: read back what is there now."""
        for block in blocks:
            self._indices.append(np.array([block], np.int64))
            self._digests.append(block_digests(read(self._base, block, 1), key))

    def flush(self) -> None:
        self._base.sync()
        if self._indices:
            indices, digests = np.concatenate(self._indices), np.concatenate(self._digests)
            self._table.put(indices, digests)
        for first, count in self._zeros:
            self._table.fill_zero(first, count)
        self._table.sync()
        self._indices, self._digests, self._zeros, self._count = [], [], [], 0

    def _whole_blocks(self, start: int, length: int) -> tuple[int, int]:
        """The blocks [first, last) that lie wholly in the range; the disk's short last block counts as whole."""
        end = start + length
        last = -(-end // BLOCK) if end == self._base.size else end // BLOCK
        return -(-start // BLOCK), last
