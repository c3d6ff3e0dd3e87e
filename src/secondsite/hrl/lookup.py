"""Which source holds each byte of a range: the lookup of an extent index, over the plain numbers of its extents.

For who only reads. It needs no numpy, whose import is half of what a view's process would take to start, and a machine waits
for that.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

BASE: Final = -1
ZERO: Final = -2


class Piece(NamedTuple):
    """One piece of a range. `location` is a position in the source's file; in the base that is `offset`, in zeros 0."""

    offset: int
    length: int
    source: int
    location: int


class ExtentLookup:
    """Sorted, disjoint extents as four parallel arrays of int64; see hrl/index.py. Never changes, so threads may share it."""

    __slots__ = ("_ends", "_locations", "_sources", "_starts")

    def __init__(
        self, starts: memoryview, ends: memoryview, sources: memoryview, locations: memoryview
    ) -> None:
        """The views of memory are kept, not copied."""
        self._starts = starts
        self._ends = ends
        self._sources = sources
        self._locations = locations

    @property
    def columns(self) -> tuple[memoryview, memoryview, memoryview, memoryview]:
        """The arrays: starts, ends, sources and locations."""
        return self._starts, self._ends, self._sources, self._locations

    def __len__(self) -> int:
        return len(self._starts)

    def lookup(self, offset: int, length: int) -> list[Piece]:
        """Return the pieces of [offset, offset + length), ascending, without gaps."""
        pieces: list[Piece] = []
        starts, ends, sources, locations = self._starts, self._ends, self._sources, self._locations
        stop = offset + length
        count = len(starts)
        i = bisect_right(ends, offset)
        while offset < stop:
            start = starts[i] if i < count else stop
            if start > offset:
                gap_end = min(start, stop)
                pieces.append(Piece(offset, gap_end - offset, BASE, offset))
                offset = gap_end
                continue
            end = min(ends[i], stop)
            source = sources[i]
            location = 0 if source == ZERO else locations[i] + offset - start
            pieces.append(Piece(offset, end - offset, source, location))
            offset = end
            i += 1
        return pieces
