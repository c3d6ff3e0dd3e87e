"""Writes a lab guest's records without a guest: plain Python, from the words of guest/workload.c, sharing no code with it."""

from __future__ import annotations

import struct

from secondsite.lab.guest.layout import BLOCK, LABEL_OFFSET, RECORDS_OFFSET, Layout

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def empty_disks(seed: int, disks: int = 2, slots: int = 256) -> list[bytearray]:
    """Disks with a label and an empty record area (and no file system)."""
    made = []
    for disk in range(disks):
        content = bytearray(RECORDS_OFFSET + slots * BLOCK)
        content[LABEL_OFFSET : LABEL_OFFSET + BLOCK] = Layout(disk, disks, seed, slots, 0).label()
        made.append(content)
    return made


def write_record(disks: list[bytearray], seed: int, n: int, time_ns: int = 0) -> None:
    """Write record n where it belongs."""
    disk = n % len(disks)
    slots = (len(disks[disk]) - RECORDS_OFFSET) // BLOCK
    slot = place(seed, n, slots)
    words = [int.from_bytes(b"SSBREC01", "little"), n, slot, disk | len(disks) << 32, time_ns, 99, 0, seed]
    words += [_mix((seed + n * 512 + index) & _MASK) for index in range(8, 512)]
    words[6] = sum(_mix((word + index * _GOLDEN) & _MASK) for index, word in enumerate(words)) & _MASK
    offset = RECORDS_OFFSET + slot * BLOCK
    disks[disk][offset : offset + BLOCK] = struct.pack("<512Q", *words)


def place(seed: int, n: int, slots: int) -> int:
    """The slot of record n."""
    return _mix(n ^ seed) % slots


def _mix(x: int) -> int:
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31
