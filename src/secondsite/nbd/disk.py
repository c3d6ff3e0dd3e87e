"""What the NBD server needs of a disk, and the merging of its extents.

`ReadableDisk` is matched by structure: the journal's views fit without knowing this module. Implementations are
called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

FIRST_WINDOW: Final = 1 << 20
WINDOW_GROWTH: Final = 4


class ExtentLike(Protocol):
    """A range of a disk, in bytes. `zero`: it reads as zeros and nothing is stored for it."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def zero(self) -> bool: ...


class Extent(NamedTuple):
    """The plain `ExtentLike`."""

    offset: int
    length: int
    zero: bool


class ReadableDisk(Protocol):
    """A disk that can be read at any offset, by several threads at once."""

    @property
    def size(self) -> int:
        """Size in bytes; constant."""
        ...

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes from `offset`, or raise."""
        ...

    def extents(self, offset: int, length: int) -> Iterator[ExtentLike]:
        """Yield, in order and without gaps, extents that cover the range. Lazy: a caller may stop early."""
        ...


def merged_extents(disk: ReadableDisk, offset: int, length: int, limit: int) -> list[Extent]:
    """Return at most `limit` extents from `offset` on, clipped to the range, neighbours of one state merged.

    The last one is complete within the range even when the limit cut the list off, so a client that goes on
    behind it never sees one run as two.
    """
    result: list[Extent] = []
    end = offset + length
    position = offset
    zero = False
    start = offset
    for extent in _in_windows(disk, offset, length):
        stop = min(extent.offset + extent.length, end)
        if stop <= position:
            continue
        if extent.zero != zero and position > start:
            result.append(Extent(start, position - start, zero))
            if len(result) == limit:
                return result
            start = position
        zero = extent.zero
        position = stop
        if position == end:
            break
    if position > start:
        result.append(Extent(start, position - start, zero))
    return result


def _in_windows(disk: ReadableDisk, offset: int, length: int) -> Iterator[ExtentLike]:
    """Ask for the range in growing windows.

    qemu asks for 2 GiB and wants one extent. A disk that looks up more than is taken from it (an index of a million
    pieces, in one call) would make a walk over the whole disk quadratic.
    """
    window = FIRST_WINDOW
    while length:
        span = min(window, length)
        yield from disk.extents(offset, span)
        offset += span
        length -= span
        window *= WINDOW_GROWTH
