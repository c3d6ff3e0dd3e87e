"""Writes one change log, front to back.

```
header | metadata  # 1 (empty) | data ... | metadata #2 | data ... | metadata #3 | ... EOL
```
A metadata block follows the data that its entries describe. The header says EOLLocation 0 until `close`, so a log that
was cut is refused by every reader. What it does not do: it neither syncs nor renames nor closes the file, and it does not
join neighbouring writes.
"""

from __future__ import annotations

from datetime import datetime
from typing import BinaryIO
from uuid import UUID

import numpy as np

from secondsite.errors import InvalidInputError
from secondsite.hrl.format import (
    ENTRY,
    ENTRY_DATA_MAX,
    ENTRY_LENGTH,
    HEADER_LENGTH,
    METADATA_SIZE,
    METADATA_SIZE_MAX,
    METADATA_UNIT,
    VERSIONS,
    WRITE,
    Header,
    checksum,
    entry_checksums,
    pack_metadata_header,
    to_timestamp,
)
from secondsite.model.units import SECTOR, Buffer


class LogWriter:
    """See the module's docstring. `file` is seekable, empty and written by nobody else until `close` returned.

    data_checksums: False leaves those of the data out (0: absent), for a log that is not kept.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        disk_size: int,
        unique_id: UUID,
        previous_id: UUID | None,
        time: datetime,
        metadata_size: int = METADATA_SIZE,
        version: int = 2,
        data_write_id: UUID | None = None,
        data_checksums: bool = True,
    ) -> None:
        if version not in VERSIONS:
            raise InvalidInputError(f"log format version {version} is not known", hint="choose 1 or 2")
        if metadata_size % METADATA_UNIT or not METADATA_UNIT <= metadata_size <= METADATA_SIZE_MAX:
            raise InvalidInputError(
                "the metadata size must be a multiple of 512", metadata_size=metadata_size
            )
        if disk_size <= 0 or disk_size % SECTOR:
            raise InvalidInputError(f"the disk's size must be a multiple of {SECTOR}", disk_size=disk_size)
        self.data_length = 0
        """Bytes of data so far."""
        self.entry_count = 0
        self._file = file
        self._disk_size = disk_size
        self._unique_id = unique_id
        self._previous_id = previous_id
        self._time = time
        self._timestamp = to_timestamp(time)
        self._version = version
        self._data_write_id = data_write_id
        self._data_checksums = data_checksums
        self._metadata_size = metadata_size
        self._slots = metadata_size // ENTRY_LENGTH - 1
        self._entries: list[tuple[int, int, int]] = []  # offset, length, checksum of the data
        self._position = HEADER_LENGTH
        self._last_block_at: int | None = None
        self._closed = False
        file.seek(0)
        self._write_all(self._header(end=0))
        self._write_metadata()

    @property
    def length(self) -> int:
        """The file's length, were it closed now."""
        return self._position + (self._metadata_size if self._entries else 0)

    def write(self, offset: int, data: Buffer) -> None:
        """Append that `data` was written to the disk at `offset`; both in whole sectors, within the disk."""
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        if self._closed:
            raise InvalidInputError("the log is closed")
        if offset % SECTOR or size % SECTOR or size == 0 or offset < 0 or offset + size > self._disk_size:
            raise InvalidInputError(
                f"[{offset}, {offset + size}) is not a range of sectors within the disk of {self._disk_size} bytes"
            )
        if size <= ENTRY_DATA_MAX:
            self._append(offset, data, size)
            return
        view = memoryview(data).cast("B")
        for at in range(0, size, ENTRY_DATA_MAX):
            part = view[at : at + ENTRY_DATA_MAX]
            self._append(offset + at, part, len(part))

    def close(self) -> int:
        """Write the last metadata block, then the header with EOLLocation; return the file's length.

        The caller syncs the file. Closing twice is an error of the caller's.
        """
        if self._closed:
            raise InvalidInputError("the log is closed already")
        if self._entries:
            self._write_metadata()
        self._file.seek(0)
        self._write_all(self._header(end=self._position))
        self._file.seek(self._position)
        self._file.flush()
        self._closed = True
        return self._position

    def _append(self, offset: int, data: Buffer, size: int) -> None:
        self._write_all(data)
        self._entries.append((offset, size, checksum(data) if self._data_checksums else 0))
        self.data_length += size
        self.entry_count += 1
        self._position += size
        if len(self._entries) == self._slots:
            self._write_metadata()

    def _write_metadata(self) -> None:
        count = len(self._entries)
        entries = np.zeros(self._slots, ENTRY)
        if count:
            used = entries[:count]
            used["offset"], used["length"], used["data_checksum"] = np.array(self._entries, np.int64).T
            used["timestamp"] = self._timestamp
            used["operation"] = WRITE
            used["checksum"] = entry_checksums(used)
        distance = 0 if self._last_block_at is None else self._position - self._last_block_at
        block = pack_metadata_header(distance, count) + entries.tobytes()
        self._write_all(block.ljust(self._metadata_size, b"\0"))
        self._last_block_at = self._position
        self._position += self._metadata_size
        self._entries.clear()

    def _write_all(self, data: Buffer) -> None:
        written = self._file.write(data)
        view = memoryview(data).cast("B")
        while written < len(view):  # an unbuffered file may take less
            view = view[written:]
            written = self._file.write(view)

    def _header(self, *, end: int) -> bytes:
        return Header(
            version=self._version,
            time=self._time,
            original_size=self._disk_size,
            current_size=self._disk_size,
            end=end,
            metadata_size=self._metadata_size,
            unique_id=self._unique_id,
            previous_id=self._previous_id,
            modified=self._time,
            total_entries=self.entry_count,
            data_write_id=self._data_write_id,
        ).pack()
