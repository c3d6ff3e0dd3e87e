"""Reads change logs, ours and those that Hyper-V wrote.

Two passes: from EOLLocation back over the metadata blocks, then forward over their entries, whose data lie one after the
other behind the header, the previous block or the previous entry's data.

What it promises: any bytes at all give a `Log` or one of CorruptError, NotClosedError and UnsupportedError, in time and memory
bounded by the file's length. Every position that a `Log` names lies within the file, and each byte of the file up
to its end belongs to exactly one of header, block and data. What it does not do: `read_log` never reads
data; `verify_data` does.

Ambiguities of the specification and our reading of them: docs/design/log-format.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secondsite.errors import CorruptError, Retry, UnsupportedError
from secondsite.hrl.format import (
    ENTRY,
    ENTRY_LENGTH,
    HEADER_LENGTH,
    METADATA_HEADER,
    METADATA_SIZE_MAX,
    METADATA_UNIT,
    WRITE,
    Header,
    checksum,
    entry_checksums,
    pack_metadata_header,
)
from secondsite.model.units import MIB, SECTOR, Buffer

ReadAt: TypeAlias = Callable[[int, int], Buffer]
"""(offset, length) -> exactly that many bytes; fewer only at the end of the file."""

_VERIFY_CHUNK: Final = 8 * MIB
_EMPTY_CHECKSUM: Final = np.uint64(0xFFFFFFFF)
_OFFSET_LIMIT: Final = 1 << 62


class NotClosedError(CorruptError):
    """The log was never closed (EOLLocation is 0): what its source holds is unknown until it is compared."""

    code = "log_not_closed"
    retry = Retry.COMPARE
    default_hint = "the writer was cut; resynchronise the disk by compare"


@dataclass(frozen=True, slots=True)
class Entries:
    """The writes of a log as parallel arrays, in order of application.

    offset, length: on the disk. location: position of the data in the file. data_checksum: 0 means absent.
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    location: NDArray[np.int64]
    checksum: NDArray[np.uint32]
    data_checksum: NDArray[np.uint32]
    timestamp: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Log:
    """What `read_log` returns."""

    header: Header
    entries: Entries

    @property
    def data_length(self) -> int:
        """Bytes of data in all entries."""
        return int(self.entries.length.sum())


def read_log(read_at: ReadAt, length: int) -> Log:
    """Read the header and all metadata of a log of `length` bytes.

    Raises:
        NotClosedError: the writer never closed it.
        CorruptError: the bytes are not what they claim to be.
        UnsupportedError: another version, file type or metadata operation.
    """
    if length < HEADER_LENGTH:
        raise CorruptError("the log is shorter than its header", length=length)
    header = Header.parse(_read(read_at, 0, HEADER_LENGTH))
    if header.end == 0:
        raise NotClosedError("the log was not closed")
    size = header.metadata_size
    if size % METADATA_UNIT or size < METADATA_UNIT:
        raise CorruptError(f"the log's metadata size {size} is not a multiple of {METADATA_UNIT}")
    if not HEADER_LENGTH + size <= header.end <= length:
        raise CorruptError(f"the log's end {header.end} lies outside of its {length} bytes")
    if size > METADATA_SIZE_MAX:
        raise UnsupportedError(f"the log's metadata size {size} is over {METADATA_SIZE_MAX}")
    positions, valid, blocks = _walk_back(read_at, header.end, size)
    return Log(header, _parse_entries(header, positions, valid, blocks))


def verify_data(log: Log, read_at: ReadAt) -> int:
    """Read all data, compare with the entries' data checksums, and return how many entries had one.

    Raises:
        CorruptError: names the first entry that differs.
    """
    entries = log.entries
    checked = 0
    for location, size, expected in zip(
        entries.location.tolist(), entries.length.tolist(), entries.data_checksum.tolist(), strict=True
    ):
        if expected == 0:
            continue
        total = 0
        for at in range(location, location + size, _VERIFY_CHUNK):
            total += ~checksum(_read(read_at, at, min(_VERIFY_CHUNK, location + size - at)))
        if ~total & 0xFFFFFFFF != expected:
            raise CorruptError(
                f"the data of {size} bytes at {location} of the log differ from their checksum",
                location=location,
                length=size,
            )
        checked += 1
    return checked


def _read(read_at: ReadAt, offset: int, length: int) -> bytes:
    data = read_at(offset, length)
    if len(data) != length:
        raise CorruptError(f"the log ends within [{offset}, {offset + length})")
    return bytes(data)


def _walk_back(read_at: ReadAt, end: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bytes]:
    """Return position and number of valid entries of all blocks, first block first, and their bytes joined."""
    positions, valid, blocks = [], [], []
    position = end - size
    while True:
        block = _read(read_at, position, size)
        distance, count, _ = METADATA_HEADER.unpack_from(block)
        header = block[:ENTRY_LENGTH]
        # Reserved bytes may hold anything, so the sum is taken over what is there.
        if header != pack_metadata_header(distance, count) and not _header_holds(header):
            raise CorruptError(
                f"the checksum of the metadata block at {position} is wrong", location=position
            )
        positions.append(position)
        valid.append(count)
        blocks.append(block)
        if distance == 0:
            break
        # At least a block back each time, so the walk ends after at most length / 512 steps.
        if distance < size or position - distance < HEADER_LENGTH:
            raise CorruptError(
                f"the metadata block at {position} leads {distance} bytes back, out of the log"
            )
        position -= distance
    return np.array(positions[::-1], np.int64), np.array(valid[::-1], np.int64), b"".join(blocks[::-1])


def _header_holds(header: bytes) -> bool:
    found = int.from_bytes(header[12:16], "little")
    return checksum(header[:12] + bytes(4) + header[16:]) == found


def _parse_entries(
    header: Header, positions: NDArray[np.int64], valid: NDArray[np.int64], blocks: bytes
) -> Entries:
    slots = np.frombuffer(blocks, ENTRY).reshape(len(positions), -1)[:, 1:]
    used = ~_empty(slots)
    if not np.array_equal(used.sum(axis=1), valid):
        raise CorruptError("a metadata block holds another number of entries than it says")
    descending = _slots_descend(used)
    if descending:
        slots, used = slots[:, ::-1], used[:, ::-1]
    block_of = np.nonzero(used)[0]
    entries = slots[used]
    if not np.array_equal(entry_checksums(entries), entries["checksum"]):
        raise CorruptError("the checksum of a metadata entry is wrong")
    if descending and _goes_back(entries["timestamp"], block_of):
        raise UnsupportedError(
            "the order of the log's entries cannot be told",
            hint="its blocks are filled from the end, but its times do not ascend in that order",
        )
    if (entries["operation"] != WRITE).any() or entries["location"].any():
        raise UnsupportedError("the log holds a metadata operation that is not known")
    size = max(header.original_size, header.current_size)
    _check_ranges(entries, min(size, _OFFSET_LIMIT))
    lengths = entries["length"].astype(np.int64)
    return Entries(
        offset=entries["offset"].astype(np.int64),
        length=lengths,
        location=_locations(header, positions, block_of, lengths),
        checksum=entries["checksum"].astype(np.uint32),
        data_checksum=entries["data_checksum"].astype(np.uint32),
        timestamp=entries["timestamp"].astype(np.uint32),
    )


def _empty(slots: NDArray[np.void]) -> NDArray[np.bool_]:
    """An empty slot is all zero; its checksum may be that of 32 zeros."""
    words = np.ascontiguousarray(slots).view("<u8").reshape(*slots.shape, ENTRY_LENGTH // 8)
    # The checksum is the lower half of the second word.
    second = words[..., 1]
    empty: NDArray[np.bool_] = (second == 0) | (second == _EMPTY_CHECKSUM)
    empty &= (words[..., 0] | words[..., 2] | words[..., 3]) == 0
    return empty


def _slots_descend(used: NDArray[np.bool_]) -> bool:
    """Tell the order of slots: ascending, unless blocks are filled from the end, as the printed example shows."""
    partial = used.any(axis=1) & ~used.all(axis=1)
    from_end = partial & used[:, -1] & ~used[:, 0]
    if from_end.any() and (partial & ~from_end).any():
        raise UnsupportedError(
            "the order of the log's entries cannot be told: its blocks are filled in two ways"
        )
    return bool(from_end.any())


def _goes_back(times: NDArray[np.uint32], block_of: NDArray[np.int64]) -> bool:
    same_block = block_of[1:] == block_of[:-1]
    return bool((same_block & (times[1:] < times[:-1])).any())


def _check_ranges(entries: NDArray[np.void], size: int) -> None:
    offset, length = entries["offset"], entries["length"].astype(np.uint64)
    unaligned = (offset % np.uint64(SECTOR)).any() or (length % np.uint64(SECTOR)).any()
    if unaligned or (length == 0).any():
        raise CorruptError("a metadata entry is not a range of sectors")
    if (offset > size).any() or (offset + length > size).any():
        raise CorruptError(f"a metadata entry lies beyond the disk's {size} bytes")


def _locations(
    header: Header, positions: NDArray[np.int64], block_of: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Walk over the data: they fill exactly what lies between a block and the structure before it."""
    starts = np.concatenate(([HEADER_LENGTH], positions[:-1] + header.metadata_size))
    before = np.concatenate(([0], np.cumsum(lengths)))
    first = np.searchsorted(block_of, np.arange(len(positions) + 1))
    filled = before[first]
    if (filled[1:] - filled[:-1] != positions - starts).any():
        raise CorruptError("the data in the log do not fill the space between its metadata blocks")
    locations: NDArray[np.int64] = before[:-1] - filled[block_of] + starts[block_of]
    return locations
