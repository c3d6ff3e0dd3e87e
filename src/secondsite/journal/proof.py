"""Reads a base and compares what is read with the digest table beside it.

What it promises: a block that is returned has the digest that the table names, or the read raises. What it does not do: it knows
nothing of points and logs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from secondsite.blocks import UNKNOWN, DigestTable, block_digests
from secondsite.errors import CorruptError, UnavailableError
from secondsite.journal.base import Base
from secondsite.journal.store import Doubtful
from secondsite.model.units import BLOCK


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
