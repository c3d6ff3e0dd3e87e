"""The digest table of a disk: one 64-bit cell per 4 KiB block in a sparse file.

```
0      8   magic "SSDIGTBL"
8      4   version, 1              (all integers little-endian)
12     4   block size, 4096
16     8   disk size in bytes
24     8   key id: first bytes of a digest of a constant under the table's key
32    32   BLAKE3 of the 32 bytes above
64  4032   zeros
4096   8   cell of block 0, then of block 1, ... : one per block, a short last block included
```
A block of zeros has the cell 0, so the table of a thin disk is mostly holes.

What it promises: a damaged header or another key is noticed when it is opened (CorruptError); changes are on the
disk when `sync` returns; memory is used for the cells that are touched only; threads of one process may share
it; a full disk is NoSpaceError. What it does not do: cells carry no checksum of their own, and nothing guards
against two processes that write: the owner of the folder holds a lock.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from secondsite import durable
from secondsite.blocks import syncing
from secondsite.blocks.digests import UNKNOWN, ZERO_DIGEST
from secondsite.errors import ConflictError, CorruptError, InvalidInputError, UnsupportedError
from secondsite.model.units import BLOCK, DIGEST_KEY_LENGTH

_MAGIC: Final = b"SSDIGTBL"
_FINGERPRINT_MAGIC: Final = b"SSDIGTBL cells 1"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sIIQ8s")
_CHECKSUM_LENGTH: Final = 32
_CELLS_AT: Final = 4096
_CELL: Final = 8
DISK_SIZE_MAX: Final = 1 << 56
_PAGE_CELLS: Final = 512
_PUNCH_MIN_CELLS: Final = 4096
_SCAN_CELLS: Final = 1 << 17


class DigestTable:
    """See the module's docstring. Made by `create` or `open`; a context manager that closes."""

    def __init__(self, path: Path, fd: int, disk_size: int, key_id: bytes, *, writable: bool) -> None:
        self.path = path
        self.disk_size = disk_size
        self.writable = writable
        self._key_id = key_id
        self._fd = fd
        self._changing = threading.Lock()

    # -- life ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, disk_size: int, key: bytes) -> Self:
        """Make the table of a disk of zeros and open it for writing.

        Raises:
            ConflictError: `path` exists.
        """
        if not 0 < disk_size <= DISK_SIZE_MAX:
            raise InvalidInputError(f"disk size {disk_size} is out of range")
        if path.exists():
            raise ConflictError(f"{path.name} exists already", path=str(path))
        temporary = durable.temporary_path(path)
        with durable.naming_full_disk(path):
            try:
                with temporary.open("xb") as file:
                    file.write(_pack_header(disk_size, _key_id(key)))
                    file.truncate(_length(disk_size))
                    durable.fsync_file(file.fileno())
                durable.rename_durable(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return cls.open(path, key, writable=True)

    @classmethod
    def open(cls, path: Path, key: bytes, *, writable: bool = False) -> Self:
        """Open a table.

        Raises:
            CorruptError: the header is damaged, the file is too short, or it was written with another key.
            UnsupportedError: a version that this one does not know.
        """
        key_id = _key_id(key)
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            disk_size = _parse_header(path, os.pread(fd, _CELLS_AT, 0), key_id)
            _check_length(path, fd, _length(disk_size), writable=writable)
            return cls(path, fd, disk_size, key_id, writable=writable)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close; does not sync. Closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return (self.disk_size + BLOCK - 1) // BLOCK

    # -- cells -----------------------------------------------------------------------------------------

    def get(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return a copy of the cells [first, first + count)."""
        self._check(first, count)
        return self._read(first, count)

    def put(self, where: int | NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        """Set cells: those from `where` on, or those with the indices in it (the last counts if one comes twice).

        Raises:
            NoSpaceError: some of the cells may be set; the same call may be repeated.
        """
        self._check_writable()
        if isinstance(where, int):
            self._check(where, len(digests))
            if len(digests) >= _PUNCH_MIN_CELLS and not digests.any():
                self.fill_zero(where, len(digests))
                return
            indices = np.arange(where, where + len(digests))
        else:
            if len(where) != len(digests):
                raise InvalidInputError("as many digests as indices are needed")
            order = np.argsort(where, kind="stable")
            indices, digests = where[order], digests[order]
            last = np.append(indices[1:] != indices[:-1], True) if len(indices) else np.empty(0, np.bool_)
            indices, digests = indices[last], digests[last]
        if len(indices):
            self._check(int(indices[0]), 1)
            self._check(int(indices[-1]), 1)
            with self._changing:
                self._put_sorted(indices, digests)

    def mark_unknown(self, first: int, count: int) -> None:
        """Set [first, first + count) to UNKNOWN: shipped at the next occasion, never trusted."""
        self._check_writable()
        self._check(first, count)
        with self._changing:
            for at in range(first, first + count, _SCAN_CELLS):
                self._write(at, np.full(min(_SCAN_CELLS, first + count - at), UNKNOWN, np.uint64))

    def fill_zero(self, first: int, count: int) -> None:
        """Set [first, first + count) to ZERO_DIGEST and give the space back; costs nothing per block."""
        self._check_writable()
        self._check(first, count)
        with self._changing:
            if count >= _PUNCH_MIN_CELLS:
                durable.punch_hole(self._fd, _CELLS_AT + first * _CELL, count * _CELL)
                return
            filled = np.flatnonzero(self._read(first, count))
            if len(filled):
                self._put_sorted(filled + first, np.full(len(filled), ZERO_DIGEST, np.uint64))

    def nonzero_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of all blocks whose cell is not zero, ascending, neighbours joined.

        Holes of the file are skipped unread, so a nearly empty table costs nearly nothing. What changes
        meanwhile may or may not be seen.
        """
        first = count = 0
        for start, length in self._filled_runs():
            if count and start == first + count:
                count += length
                continue
            if count:
                yield first, count
            first, count = start, length
        if count:
            yield first, count

    def windows_from_end(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield (first, cells) of aligned windows in which the file holds anything, the last first."""
        for first in range((len(self) - 1) // _SCAN_CELLS * _SCAN_CELLS, -1, -_SCAN_CELLS):
            count = min(_SCAN_CELLS, len(self) - first)
            at = _CELLS_AT + first * _CELL
            if next(durable.allocated_ranges(self._fd, at + count * _CELL, at), None) is not None:
                yield first, self._read(first, count)

    def fingerprint(self) -> str:
        """Return 64 hex digits that two tables share exactly if their disk sizes and all their cells are equal.

        However the file is laid out: a hole is a cell of zero. Unknown cells count as such. Takes about as long as it
        takes to read what is filled; the caller sees to it that nothing changes meanwhile.

        ```
        BLAKE3 of    "SSDIGTBL cells 1", u64 disk size,
                     then for every aligned window of 131,072 cells that are not all zero, ascending:
                     u64 number of its first cell, u64 count of runs,
                     the runs of cells that are not zero, as u64 first and u64 end within the window, and these cells
        ```
        """
        hasher = blake3(_FINGERPRINT_MAGIC + struct.pack("<Q", self.disk_size))
        for at in self._filled_windows():
            cells = self._read(at, min(_SCAN_CELLS, len(self) - at))
            filled = cells != ZERO_DIGEST
            edges = np.flatnonzero(np.diff(filled, prepend=False, append=False))
            if len(edges):
                hasher.update(struct.pack("<QQ", at, len(edges) // 2))
                hasher.update(edges.astype("<u8").tobytes())
                hasher.update(cells[filled].astype("<u8", copy=False).tobytes())
        return hasher.hexdigest()

    # -- the file --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make all changes durable. After an error, the same changes may be made again: nothing is taken for written."""
        if self.writable:
            with durable.naming_full_disk(self.path):
                self._sync()

    def resize(self, disk_size: int) -> None:
        """Follow the disk: blocks that appear are zeros; a last block that was or becomes short is unknown."""
        self._check_writable()
        if not 0 < disk_size <= DISK_SIZE_MAX:
            raise InvalidInputError(f"disk size {disk_size} is out of range")
        if disk_size == self.disk_size:
            return
        smaller = min(self.disk_size, disk_size)
        if smaller % BLOCK and self.get(smaller // BLOCK, 1)[0] != ZERO_DIGEST:
            self.mark_unknown(smaller // BLOCK, 1)
        self.sync()
        # The header names a size only while the file has the cells for it, and cells beyond it are cut off before
        # they could come back: grow the file, then the header; or the header, then cut.
        with durable.naming_full_disk(self.path):
            if disk_size > self.disk_size:
                os.ftruncate(self._fd, _length(self.disk_size))
                os.ftruncate(self._fd, _length(disk_size))
                self._sync()
            os.pwrite(self._fd, _pack_header(disk_size, self._key_id), 0)
            self._sync()
            self.disk_size = disk_size
            os.ftruncate(self._fd, _length(disk_size))
            self._sync()

    def copy_to(self, path: Path) -> None:
        """Copy the table to a new file, sparse and durable; the caller syncs the folder."""
        durable.copy_sparse(self.path, path)

    # -- inside ----------------------------------------------------------------------------------------

    def _sync(self) -> None:
        syncing.sync(self._fd, _length(self.disk_size), self._changing)

    def _put_sorted(self, indices: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        # Read and written in runs of touched pages. Only what differs is written: a page of zeros that is put into a hole must not
        # fill it, nor one in between that is not touched.
        for start, stop in _page_runs(indices):
            first = int(indices[start])
            cells = self._read(first, int(indices[stop - 1]) + 1 - first)
            at = indices[start:stop] - first
            differ = np.flatnonzero(cells[at] != digests[start:stop])
            if len(differ) == 0:
                continue
            at = at[differ]
            cells[at] = digests[start:stop][differ]
            for low, high in _page_runs(at + first):
                begin, end = int(at[low]), int(at[high - 1]) + 1
                self._write(first + begin, cells[begin:end])

    def _read(self, first: int, count: int) -> NDArray[np.uint64]:
        # Never mapped: pages that are touched through a mapping count as the process's memory (400 MiB for 100,000 extents
        # scattered over 1 TiB), and a hole that is written through one on a full disk ends it by SIGBUS.
        cells = np.empty(count, "<u8")
        view, offset = cells.data.cast("B"), _CELLS_AT + first * _CELL
        while view:
            done = os.preadv(self._fd, [view], offset)
            if done == 0:
                raise _damaged(self.path, "it was cut while it was open")
            view, offset = view[done:], offset + done
        return cells

    def _write(self, first: int, cells: NDArray[np.uint64]) -> None:
        data = cells.astype("<u8", copy=False).data.cast("B")
        offset = _CELLS_AT + first * _CELL
        with durable.naming_full_disk(self.path):
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written

    def _filled_runs(self) -> Iterator[tuple[int, int]]:
        end = _length(self.disk_size)
        for offset, length in durable.allocated_ranges(self._fd, end, _CELLS_AT):
            first = (offset - _CELLS_AT) // _CELL
            last = -(-(offset + length - _CELLS_AT) // _CELL)
            for at in range(first, last, _SCAN_CELLS):
                cells = self._read(at, min(_SCAN_CELLS, last - at))
                edges = np.flatnonzero(np.diff(cells != ZERO_DIGEST, prepend=False, append=False))
                for start, stop in edges.reshape(-1, 2).tolist():
                    yield at + start, stop - start

    def _filled_windows(self) -> Iterator[int]:
        """Yield the first cells of the aligned windows in which the file holds anything, each once, ascending."""
        following = 0
        for offset, length in durable.allocated_ranges(self._fd, _length(self.disk_size), _CELLS_AT):
            first = (offset - _CELLS_AT) // _CELL // _SCAN_CELLS * _SCAN_CELLS
            last = -(-(offset + length - _CELLS_AT) // _CELL)
            for at in range(max(first, following), last, _SCAN_CELLS):
                yield at
                following = at + _SCAN_CELLS

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidInputError(
                f"blocks {first} to {first + count} are not within the disk's {len(self)}"
            )

    def _check_writable(self) -> None:
        if not self.writable:
            raise ConflictError(f"{self.path.name} was opened for reading", path=str(self.path))


def _page_runs(indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of the ascending indices that lie in the same page of cells or in neighbouring ones."""
    breaks = np.flatnonzero(np.diff(indices // _PAGE_CELLS) > 1) + 1
    return itertools.pairwise([0, *breaks.tolist(), len(indices)])


def _length(disk_size: int) -> int:
    return _CELLS_AT + -(-disk_size // BLOCK) * _CELL


def _key_id(key: bytes) -> bytes:
    if len(key) != DIGEST_KEY_LENGTH:
        raise InvalidInputError(f"a digest key has {DIGEST_KEY_LENGTH} bytes, not {len(key)}")
    return blake3(b"secondsite digest table", key=key).digest(8)


def _pack_header(disk_size: int, key_id: bytes) -> bytes:
    fields = _FIELDS.pack(_MAGIC, _VERSION, BLOCK, disk_size, key_id)
    return (fields + blake3(fields).digest()).ljust(_CELLS_AT, b"\0")


def _parse_header(path: Path, header: bytes, key_id: bytes) -> int:
    fields, rest = header[: _FIELDS.size], header[_FIELDS.size :]
    if len(header) < _CELLS_AT or header[:8] != _MAGIC:
        raise _damaged(path, "it is no digest table")
    if blake3(fields).digest() != rest[:_CHECKSUM_LENGTH] or any(rest[_CHECKSUM_LENGTH:]):
        raise _damaged(path, "its header's checksum is wrong")
    _, version, block, disk_size, found_key_id = _FIELDS.unpack(fields)
    if version != _VERSION or block != BLOCK:
        raise UnsupportedError(
            f"digest table {path.name} has version {version} and blocks of {block} bytes",
            hint=f"this version reads version {_VERSION} with {BLOCK} bytes",
        )
    if found_key_id != key_id:
        raise _damaged(path, "it was written with another key")
    if not 0 < disk_size <= DISK_SIZE_MAX:
        raise _damaged(path, "its disk size is out of range")
    return int(disk_size)


def _check_length(path: Path, fd: int, expected: int, *, writable: bool) -> None:
    actual = os.fstat(fd).st_size
    if actual < expected:
        raise _damaged(path, f"it has {actual} bytes instead of {expected}")
    if actual > expected and writable:  # a resize was cut; what it left must not come back
        os.ftruncate(fd, expected)


def _damaged(path: Path, reason: str) -> CorruptError:
    return CorruptError(
        f"digest table {path.name} cannot be used: {reason}",
        hint="remove it and compare: the resynchronization builds a new one",
        path=str(path),
    )
