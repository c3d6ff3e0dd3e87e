"""The fixed structures of a log file: header, metadata block, metadata entry, checksum ([MS-HRL] section 2).

All integers are little-endian and packed. A checksum is the bitwise NOT of the 32-bit sum of the bytes that it
covers, its own field taken as 0; it is weak, so whoever keeps a log also keeps a digest of the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from secondsite.errors import CorruptError, InvalidInputError, UnsupportedError
from secondsite.model.units import Buffer

HEADER_LENGTH: Final = 4096
COOKIE: Final = b"msctlog\0"
COOKIES: Final = frozenset({COOKIE, b"msctlog "})
"""The specification leaves the 8th byte of the cookie open."""
CREATOR: Final = b"ct\0\0"
CREATOR_VERSION: Final = 0x00010000
VERSIONS: Final = {1: 0x00010000, 2: 0x00020000}
"""By major version: 1 is local use on Windows Server 2012 and 2012 R2, 2 is everything else."""

METADATA_UNIT: Final = 512
METADATA_SIZE: Final = 4096
METADATA_SIZE_MAX: Final = 16 << 20
ENTRY_LENGTH: Final = 32
"""Also the length of a metadata block's header."""
ENTRY_DATA_MAX: Final = 1 << 31
WRITE: Final = 1
"""The only metadata operation."""

ENTRY: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("checksum", "<u4"),
        ("length", "<u4"),
        ("timestamp", "<u4"),
        ("operation", "u1"),
        ("data_checksum", "<u4"),
        ("location", "u1"),
        ("reserved", "V6"),
    ]
)
METADATA_HEADER: Final = struct.Struct("<QII16x")
"""Distance back to the previous block, number of valid entries, checksum."""

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_CHECKSUM_AT: Final = 40
_FIELDS: Final = struct.Struct("<8sII4sIQQIQiI16s16sIQI2s16s")
_DATA_WRITE_GUID_AT: Final = 110
_NO_GUID: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a log.

    end: EOLLocation, the position right behind the last metadata block; 0 while the log is being written.
    original_size, current_size: of the disk in bytes, when the log was begun and when it was closed.
    data_write_id: Vhd2DataWriteGuid; None in version 1, which has none.
    """

    version: int
    time: datetime
    original_size: int
    current_size: int
    end: int
    metadata_size: int
    unique_id: UUID
    previous_id: UUID | None
    modified: datetime
    total_entries: int
    data_write_id: UUID | None = None
    error_code: int = 0
    creator: bytes = CREATOR
    creator_version: int = CREATOR_VERSION
    file_type: int = 0
    flags: bytes = b"\0\0"

    def pack(self) -> bytes:
        """Return the 4096 bytes of the header, checksum filled in."""
        fields = bytearray(HEADER_LENGTH)
        _FIELDS.pack_into(
            fields,
            0,
            COOKIE,
            VERSIONS[self.version],
            to_timestamp(self.time),
            self.creator,
            self.creator_version,
            self.original_size,
            self.current_size,
            0,
            self.end,
            self.error_code,
            self.metadata_size,
            self.unique_id.bytes_le,
            _NO_GUID if self.previous_id is None else self.previous_id.bytes_le,
            to_timestamp(self.modified),
            self.total_entries,
            self.file_type,
            self.flags,
            _NO_GUID if self.data_write_id is None or self.version == 1 else self.data_write_id.bytes_le,
        )
        struct.pack_into("<I", fields, _CHECKSUM_AT, checksum(fields))
        return bytes(fields)

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Parse a header; says nothing yet on whether the log was closed.

        Raises:
            CorruptError: not a log, or its checksum is wrong.
            UnsupportedError: another version, or another type of file.
        """
        if len(data) != HEADER_LENGTH or data[:8] not in COOKIES:
            raise CorruptError("this is not a change log", hint="a log begins with the cookie msctlog")
        (
            _cookie, raw_version, time, creator, creator_version, original_size, current_size, found, end, error_code,
            metadata_size, unique_id, previous_id, modified, total_entries, file_type, flags, data_write_id,
        ) = _FIELDS.unpack_from(data)  # fmt: skip
        covered = data[:_CHECKSUM_AT] + bytes(4) + data[_CHECKSUM_AT + 4 :]
        if checksum(covered) != found:
            raise CorruptError("the checksum of the log's header is wrong")
        version = {raw: major for major, raw in VERSIONS.items()}.get(raw_version)
        if version is None or file_type != 0:
            raise UnsupportedError(
                f"log format version {raw_version:#x}, file type {file_type} is not known",
                hint="versions 0x10000 and 0x20000 with file type 0 are read",
            )
        return cls(
            version=version,
            time=from_timestamp(time),
            original_size=original_size,
            current_size=current_size,
            end=end,
            metadata_size=metadata_size,
            unique_id=UUID(bytes_le=unique_id),
            previous_id=None if previous_id == _NO_GUID else UUID(bytes_le=previous_id),
            modified=from_timestamp(modified),
            total_entries=total_entries,
            data_write_id=None if version == 1 or data_write_id == _NO_GUID else UUID(bytes_le=data_write_id),
            error_code=error_code,
            creator=creator,
            creator_version=creator_version,
            file_type=file_type,
            flags=flags,
        )


def checksum(data: Buffer) -> int:
    """Return the format's checksum of `data`; the caller has put 0 in the checksum's field."""
    # add.reduce with a 32-bit accumulator is exactly the sum modulo 2**32: 7 GiB/s, `sum(data)` 0.2
    return ~int(np.add.reduce(np.frombuffer(data, np.uint8), dtype=np.uint32)) & 0xFFFFFFFF


def entry_checksums(entries: NDArray[np.void]) -> NDArray[np.uint32]:
    """Return what the checksum of each entry should be, whatever its field holds now."""
    cleared = entries.copy()
    cleared["checksum"] = 0
    octets = cleared.view(np.uint8).reshape(len(entries), ENTRY_LENGTH)
    sums: NDArray[np.uint32] = ~np.add.reduce(octets, axis=1, dtype=np.uint32)
    return sums


def pack_metadata_header(distance: int, valid: int) -> bytes:
    """Return the 32 bytes that begin a metadata block. `distance` leads back to the block before; 0 in the first."""
    return METADATA_HEADER.pack(distance, valid, checksum(METADATA_HEADER.pack(distance, valid, 0)))


def to_timestamp(time: datetime) -> int:
    """Return an aware time as whole seconds since 2000-01-01 UTC."""
    if time.tzinfo is None:
        raise InvalidInputError("a time without a zone")
    seconds = (time - _EPOCH) // timedelta(seconds=1)
    if not 0 <= seconds < 1 << 32:
        raise InvalidInputError(f"the time {time.isoformat()} does not fit a log", hint="2000 to 2136 does")
    return seconds


def from_timestamp(seconds: int) -> datetime:
    """Return what `to_timestamp` packed."""
    return _EPOCH + timedelta(seconds=seconds)
