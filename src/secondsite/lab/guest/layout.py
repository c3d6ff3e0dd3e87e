"""Where things lie on a disk of the lab's guest, and the label that says so.

    0           MBR: partition 1 is the record area, partition 2 the file system (the guest uses only the second)
    512 KiB     label, 4 KiB: nine little-endian 64-bit words, then zeros
    1 MiB       record area: `slots` blocks of 4 KiB
    then        ext4, up to the end of the disk (at most 2 TiB behind the MBR's 32 bits)

    label       0      1                    2      3     4      5     6                      7                     8
                magic  record area, offset  slots  disk  disks  seed  file system, offset    file system, length   checksum

The label makes a disk judge itself: a checker needs nothing but the disks. The workload (workload.c) reads it too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from secondsite.errors import CorruptError, InvalidInputError

BLOCK: Final = 4096
SECTOR: Final = 512
LABEL_OFFSET: Final = 512 << 10
RECORDS_OFFSET: Final = 1 << 20
FILE_SYSTEM_MIN: Final = 8 << 20
_MAGIC: Final = int.from_bytes(b"SLABAL01", "little")
_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_SECTORS_MAX: Final = (1 << 32) - 1
_WORDS: Final = struct.Struct("<9Q")


@dataclass(frozen=True, slots=True)
class Layout:
    """One disk of a guest. Offsets and lengths in bytes; `seed` is the guest's own, equal on all of its disks."""

    disk: int
    disks: int
    seed: int
    slots: int
    file_system_length: int

    @classmethod
    def of_size(cls, size: int, *, disk: int, disks: int, seed: int, record_area: int) -> Layout:
        """Lay out a disk of `size` bytes; raise InvalidInputError if a file system does not fit behind the records."""
        length = size - RECORDS_OFFSET - record_area
        length = min(length // BLOCK * BLOCK, _SECTORS_MAX * SECTOR // BLOCK * BLOCK)
        if record_area % (1 << 20) or record_area <= 0 or length < FILE_SYSTEM_MIN:
            raise InvalidInputError(
                f"a disk of {size} bytes cannot hold {record_area} bytes of records and a file system",
                hint="the record area is whole MiB, and leaves at least 9 MiB of the disk",
            )
        return cls(disk, disks, seed, record_area // BLOCK, length)

    @property
    def file_system_offset(self) -> int:
        """Where the file system begins."""
        return RECORDS_OFFSET + self.slots * BLOCK

    def label(self) -> bytes:
        """Return the label's block."""
        words = (
            *(_MAGIC, RECORDS_OFFSET, self.slots, self.disk, self.disks, self.seed),
            *(self.file_system_offset, self.file_system_length),
        )
        return _WORDS.pack(*words, _sum(words)).ljust(BLOCK, b"\0")

    @classmethod
    def parse(cls, label: bytes) -> Layout:
        """Return what `label` wrote; raise CorruptError if it is none."""
        *words, checksum = _WORDS.unpack_from(label)
        magic, records, slots, disk, disks, seed, _, length = words
        if magic != _MAGIC or records != RECORDS_OFFSET or checksum != _sum(words):
            raise CorruptError("this is not a disk of the lab's guest: it has no label, or a damaged one")
        return cls(disk, disks, seed, slots, length)

    def boot_sector(self) -> bytes:
        """Return sector 0: an MBR with the two partitions (types 0xda, data without a file system, and 0x83, Linux)."""
        partitions = b"".join(
            struct.pack("<B3sB3sII", 0, b"\0\0\0", kind, b"\0\0\0", offset // SECTOR, length // SECTOR)
            for kind, offset, length in (
                (0xDA, RECORDS_OFFSET, self.slots * BLOCK),
                (0x83, self.file_system_offset, self.file_system_length),
            )
        )
        return bytes(446) + partitions.ljust(64, b"\0") + b"\x55\xaa"


def mix(number: int) -> int:
    """splitmix64's finaliser: the hash of records, slots and checksums."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def _sum(words: tuple[int, ...] | list[int]) -> int:
    return sum(mix((word + index * _GOLDEN) & _MASK) for index, word in enumerate(words)) & _MASK
