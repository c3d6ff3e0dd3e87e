"""Builds and reads small change logs in memory, and applies them the plain way: the model of every log test."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

from secondsite.hrl.format import HEADER_LENGTH, Header, checksum
from secondsite.hrl.reader import Log, ReadAt, read_log
from secondsite.hrl.writer import LogWriter

TIME = datetime(2026, 11, 23, 5, 0, 0, tzinfo=UTC)
LOG_ID = UUID("11111111-2222-3333-4444-555555555555")
PREVIOUS_ID = UUID("66666666-7777-8888-9999-aaaaaaaaaaaa")
DISK_SIZE = 1 << 20


def build_log(
    writes: Iterable[tuple[int, bytes]],
    *,
    disk_size: int = DISK_SIZE,
    metadata_size: int = 4096,
    version: int = 2,
) -> bytes:
    """Return the bytes of a closed log of `writes`."""
    file = io.BytesIO()
    writer = LogWriter(
        file,
        disk_size=disk_size,
        unique_id=LOG_ID,
        previous_id=PREVIOUS_ID,
        time=TIME,
        metadata_size=metadata_size,
        version=version,
    )
    for offset, data in writes:
        writer.write(offset, data)
    assert writer.close() == len(file.getvalue())
    return file.getvalue()


def reader_of(data: bytes) -> ReadAt:
    """Return a ReadAt over `data`."""
    return lambda offset, length: data[offset : offset + length]


def read(data: bytes) -> Log:
    """Read a log from memory."""
    return read_log(reader_of(data), len(data))


def apply(data: bytes, disk: bytearray) -> None:
    """Apply a log to a disk entry by entry, in the order that the reader gives."""
    entries = read(data).entries
    for offset, length, location in zip(entries.offset, entries.length, entries.location, strict=True):
        disk[offset : offset + length] = data[location : location + length]


def with_header(data: bytes, **changes: object) -> bytes:
    """Return the log with header fields replaced and the header's checksum right again."""
    header = Header.parse(data[:HEADER_LENGTH])
    fields = {name: getattr(header, name) for name in Header.__dataclass_fields__}
    return Header(**{**fields, **changes}).pack() + data[HEADER_LENGTH:]  # type: ignore[arg-type]


def patched_header(data: bytes, offset: int, patch: bytes) -> bytes:
    """Return the log with raw bytes of its header replaced and the header's checksum right again."""
    header = bytearray(data[:HEADER_LENGTH])
    header[offset : offset + len(patch)] = patch
    header[40:44] = bytes(4)
    header[40:44] = struct.pack("<I", checksum(header))
    return bytes(header) + data[HEADER_LENGTH:]


def patched_slot(data: bytes, at: int, offset: int, patch: bytes, *, checksum_at: int = 8) -> bytes:
    """Return the log with bytes of the 32-byte structure at `at` replaced and its checksum right again."""
    slot = bytearray(data[at : at + 32])
    slot[offset : offset + len(patch)] = patch
    slot[checksum_at : checksum_at + 4] = bytes(4)
    slot[checksum_at : checksum_at + 4] = struct.pack("<I", checksum(slot))
    return data[:at] + bytes(slot) + data[at + 32 :]
