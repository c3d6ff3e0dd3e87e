"""The record of parts of the initial replication that are in the base already, so that a lost answer can be repeated.

Records of 91 bytes: digest, blank, disk key padded with blanks to 16, blank, CRC-32 of what is before it in 8 hex digits, newline.
What it promises: what `add` was given is there after a cut; a torn last record is ignored, and so is one of which a cut left
a whole sector unwritten (it reads as zeros); any other damage is CorruptError. It ends with the first point.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.errors import CorruptError
from secondsite.model.ids import Digest, DiskKey
from secondsite.model.units import SECTOR

RECORD: Final = 91
_FIELDS_LENGTH: Final = 82


class AppliedParts:
    """The file `applied`. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[tuple[DiskKey, Digest]] | None = None

    def has(self, disk: DiskKey, digest: Digest) -> bool:
        """Whether the part was applied to that disk; lists of zeros may be the same for several."""
        if self._known is None:
            self._known = set(self.load())
        return (disk, digest) in self._known

    def add(self, disk: DiskKey, digests: Iterable[Digest]) -> None:
        """Append records, durably."""
        self._known = None  # read again if this fails half-way
        data = b"".join(_encode(disk, digest) for digest in digests)
        existed = self.path.exists()
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with durable.naming_full_disk(self.path):
                at = os.fstat(fd).st_size // RECORD * RECORD  # over a torn record
                while data:
                    written = os.pwrite(fd, data, at)
                    data, at = data[written:], at + written
                os.fsync(fd)
        finally:
            os.close(fd)
        if not existed:
            durable.fsync_dir(self.path.parent)

    def load(self) -> list[tuple[DiskKey, Digest]]:
        """Read all records. Raises CorruptError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        parts: list[tuple[DiskKey, Digest]] = []
        for at in range(0, len(data) - RECORD + 1, RECORD):
            record = data[at : at + RECORD]
            text = record[:_FIELDS_LENGTH].decode("ascii", "replace")
            disk, digest = DiskKey(text[65:81].rstrip()), Digest(text[:64])
            if _unwritten(record, at):  # never acknowledged: the file got its size, and the data did not come
                continue
            if record != _encode(disk, digest):
                raise CorruptError(
                    f"record {at // RECORD} of {self.path.name} is damaged",
                    hint="start the initial replication again",
                    path=str(self.path),
                )
            parts.append((disk, digest))
        return parts

    def remove(self) -> None:
        """Remove the file; without one nothing happens."""
        self._known = None
        if self.path.exists():
            self.path.unlink()
            durable.fsync_dir(self.path.parent)


def _unwritten(record: bytes, at: int) -> bool:
    """Whether the record's part in one of the disk's sectors is zeros, which no record holds."""
    border = SECTOR - at % SECTOR
    return not any(record[:border]) or (border < RECORD and not any(record[border:]))


def _encode(disk: DiskKey, digest: Digest) -> bytes:
    fields = f"{digest} {disk:<16} ".encode("utf-8", "replace")
    return b"%s%08x\n" % (fields, zlib.crc32(fields))
