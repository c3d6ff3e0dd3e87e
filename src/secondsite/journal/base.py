"""A base: one disk as it was at the journal's oldest point, and the sparse raw file that it usually is.

`Base` is the contract; `RawBase` is the file. An image (qcow2, reached through qemu-nbd) keeps the same contract in a
package above this one, so whoever opens a journal passes a factory, `OpenBase`.

What a base promises: reads by several threads at once; after `sync` what was written is on the disk. What it does
not do: it does not know what is right; the digest table beside it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from secondsite import durable
from secondsite.errors import CorruptError, NotFoundError, UnsupportedError
from secondsite.model.units import MIB, Buffer

ZEROS: Final = memoryview(bytes(MIB))


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Where a base is. `kind` raw: a file in the journal; image: a disk image that belonged to the machine. `size` in bytes.

    grown_from: the size that it may still have, while it is being enlarged. Who opens it for writing then enlarges it;
    who opens it for reading may find it as it was.
    """

    kind: Literal["raw", "image"]
    path: Path
    format: str
    size: int
    grown_from: int | None = None


class Base(Protocol):
    """A disk's contents, readable by several threads, writable by one."""

    @property
    def size(self) -> int:
        """Size in bytes; constant."""
        ...

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` from `offset`, or raise. What was never written reads as zeros."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`. Not durable before `sync`. Raises NoSpaceError."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros and give its space back where possible. Not durable before `sync`."""
        ...

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length), ascending, of what may hold anything but zeros, clipped to the range."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable."""
        ...

    def close(self) -> None:
        """Give up the file or connection; a second call does nothing."""
        ...


OpenBase: TypeAlias = Callable[[BaseSpec, bool], Base]
"""Opens a base, for writing if the second argument is true."""


def open_raw_base(spec: BaseSpec, writable: bool) -> Base:
    """The factory for journals whose bases are all raw files."""
    if spec.kind != "raw":
        raise UnsupportedError(
            f"the base {spec.path.name} is a {spec.format} image, which needs qemu-nbd",
            hint="open the journal with the factory for images of secondsite.nbd.image",
            path=str(spec.path),
        )
    return RawBase(spec.path, spec.size, writable=writable, grown_from=spec.grown_from)


class RawBase:
    """A sparse file."""

    def __init__(self, path: Path, size: int, *, writable: bool, grown_from: int | None = None) -> None:
        self.path = path
        self.size = size
        try:
            self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"the base {path.name} is missing", path=str(path)) from error
        actual = os.fstat(self._fd).st_size
        if writable and grown_from is not None and actual in {grown_from, size}:
            with durable.naming_full_disk(path):
                if actual != size:
                    os.ftruncate(self._fd, size)
                # Also if it has its size: a process that died after the line above had not synced it.
                durable.fsync_file(self._fd)
            actual = size
        self._end = actual
        if actual not in {size, grown_from}:
            self.close()
            raise CorruptError(f"the base {path.name} has {actual} bytes instead of {size}", path=str(path))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        beyond = max(0, offset + len(buffer) - max(self._end, offset))
        if beyond:
            fill_zeros(buffer[len(buffer) - beyond :])
            buffer = buffer[: len(buffer) - beyond]
        read_exactly(self._fd, offset, buffer, self.path)

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        start, length = offset, len(view)
        with durable.naming_full_disk(self.path):
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]
        if (
            length >= MIB
        ):  # the disk writes while the next piece is looked at; scattered blocks it orders better itself
            durable.begin_writing(self._fd, start, length)

    def zero(self, offset: int, length: int) -> None:
        with durable.naming_full_disk(self.path):
            durable.punch_hole(self._fd, offset, length)

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        return durable.allocated_ranges(self._fd, min(offset + length, self._end), offset)

    def sync(self) -> None:
        with durable.naming_full_disk(self.path):
            durable.fsync_file(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_exactly(fd: int, offset: int, buffer: memoryview, path: Path) -> None:
    """Fill `buffer` from a file; a file that ends too early is CorruptError."""
    while buffer:
        count = os.preadv(fd, [buffer], offset)
        if count == 0:
            raise CorruptError(f"{path.name} ends at {offset}, too early", path=str(path))
        offset += count
        buffer = buffer[count:]


def fill_zeros(buffer: memoryview) -> None:
    """Overwrite `buffer` with zeros."""
    for at in range(0, len(buffer), len(ZEROS)):
        part = buffer[at : at + len(ZEROS)]
        part[:] = ZEROS[: len(part)]
