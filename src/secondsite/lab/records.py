"""Judges copies of a lab guest's disks by what is on them. Independent of the product: it shares no code with it.

The rule (see guest/workload.c): with K the highest record number on any disk, every slot of every disk holds exactly
the last n <= K that maps to it, whole. A copy that mixes two moments, loses a block, or takes the disks at different
moments breaks it; one that is merely old does not, and says how old it is (`last`, `last_time`).

What it cannot see: whether K is as high as it should be. The caller knows what the guest had written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secondsite.errors import CorruptError
from secondsite.lab.guest.layout import BLOCK, LABEL_OFFSET, RECORDS_OFFSET, Layout
from secondsite.lab.images import ReadAt, Source, reader

Words = NDArray[np.uint64]

_WORDS: Final = BLOCK // 8
_MAGIC: Final = np.uint64(int.from_bytes(b"SSBREC01", "little"))
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_N, _SLOT, _DISK, _TIME, _CHECKSUM, _SEED, _PAYLOAD = 1, 2, 3, 4, 6, 7, 8
_CHUNK: Final = 256  # slots that are judged at once: 1 MiB stays in the processor's cache
_NUMBERS: Final = 1 << 20  # record numbers that are mapped to slots at once
_PROBLEMS_MAX: Final = 20
_INDEX: Final = np.arange(_WORDS, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """What was found. `problems` names the first ones, `bad_slots` counts all."""

    last: int
    """The highest record number; 0 if there is none."""
    last_time: datetime | None
    """When the guest wrote it, by the guest's clock."""
    records: tuple[int, ...]
    """How many slots of each disk hold a record."""
    slots: tuple[int, ...]
    bad_slots: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the disks are those of one moment."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _Disk:
    layout: Layout
    read_at: ReadAt

    def blocks(self, first: int, count: int) -> Words:
        data = self.read_at(RECORDS_OFFSET + first * BLOCK, count * BLOCK)
        return np.frombuffer(data, dtype="<u8").reshape(count, _WORDS)

    def chunks(self) -> list[tuple[int, int]]:
        return [
            (first, min(_CHUNK, self.layout.slots - first)) for first in range(0, self.layout.slots, _CHUNK)
        ]


def check_records(sources: Sequence[Source]) -> RecordCheck:
    """Judge the disks of one guest together; `sources` in the guest's order (vda, vdb, ...).

    A source is an image's path (raw, or qcow2 with any backing chain), an NBD URI, or a function (offset, length) -> bytes.
    Raises CorruptError if the disks are not the ones of one guest; wrong records are no exception but the result.
    """
    with tempfile.TemporaryDirectory(prefix="ss-check-") as work:
        disks = _open(sources, Path(work))
        last = max(_highest(disk) for disk in disks)
        expected = _expected(disks, last)
        problems: list[str] = []
        bad, counts, time_ns = 0, [], 0
        for disk, wanted in zip(disks, expected, strict=True):
            counts.append(int(np.count_nonzero(wanted)))
            for first, count in disk.chunks():
                blocks = disk.blocks(first, count)
                numbers = wanted[first : first + count]
                wrong = ~_right(blocks, numbers, disk.layout, first)
                bad += int(np.count_nonzero(wrong))
                problems += [
                    _describe(disk.layout, first + int(index), int(numbers[index]), blocks[index])
                    for index in np.flatnonzero(wrong)[: _PROBLEMS_MAX - len(problems)]
                ]
                if last and (place := np.flatnonzero(numbers == last)).size:
                    time_ns = int(blocks[place[0], _TIME])
    return RecordCheck(
        last,
        datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_ns // 1000) if last else None,
        tuple(counts),
        tuple(disk.layout.slots for disk in disks),
        bad,
        tuple(problems),
    )


def last_record(sources: Sequence[Source]) -> int:
    """Return the highest record number on the disks, without judging them."""
    with tempfile.TemporaryDirectory(prefix="ss-check-") as work:
        return max(_highest(disk) for disk in _open(sources, Path(work)))


def _open(sources: Sequence[Source], work: Path) -> list[_Disk]:
    disks = []
    for place, source in enumerate(sources):
        label = Layout.parse(bytes(reader(source, work, RECORDS_OFFSET)(LABEL_OFFSET, BLOCK)))
        if (label.disk, label.disks) != (place, len(sources)):
            raise CorruptError(
                f"disk {place} of {len(sources)} says that it is disk {label.disk} of {label.disks}",
                hint="name all disks of the guest, in its order",
            )
        disks.append(_Disk(label, reader(source, work, label.file_system_offset)))
    if len({disk.layout.seed for disk in disks}) != 1:
        raise CorruptError("the disks belong to different guests")
    return disks


def _highest(disk: _Disk) -> int:
    highest = 0
    for first, count in disk.chunks():
        blocks = disk.blocks(first, count)
        ours = (blocks[:, 0] == _MAGIC) & (blocks[:, _SEED] == np.uint64(disk.layout.seed))
        if ours.any():
            highest = max(highest, int(blocks[ours, _N].max()))
    return highest


def _expected(disks: list[_Disk], last: int) -> list[Words]:
    """Return, for each disk, the record number that each slot must hold (0: never written)."""
    expected = [np.zeros(disk.layout.slots, dtype=np.uint64) for disk in disks]
    count = np.uint64(len(disks))
    for begin in range(1, last + 1, _NUMBERS):
        numbers = np.arange(begin, min(begin + _NUMBERS, last + 1), dtype=np.uint64)
        for place, disk in enumerate(disks):
            mine = numbers[numbers % count == np.uint64(place)]
            # Of several numbers that map to one slot the last assignment stays, and they ascend.
            expected[place][_slots(mine, disk.layout)] = mine
    return expected


def _right(blocks: Words, numbers: Words, layout: Layout, first: int) -> NDArray[np.bool_]:
    """Judge each block: whether it is wholly what belongs there."""
    right: NDArray[np.bool_] = (blocks == 0).all(axis=1)  # as it must be where nothing was ever written
    full = np.flatnonzero(numbers)
    if full.size:
        right[full] = _right_records(blocks[full], numbers[full], layout, (first + full).astype(np.uint64))
    return right


def _right_records(blocks: Words, numbers: Words, layout: Layout, slots: Words) -> NDArray[np.bool_]:
    seed = np.uint64(layout.seed)
    right: NDArray[np.bool_] = np.equal(blocks[:, 0], _MAGIC)
    right &= (blocks[:, _N] == numbers) & (blocks[:, _SLOT] == slots)
    right &= (blocks[:, _SEED] == seed) & (blocks[:, _DISK] == np.uint64(layout.disk | layout.disks << 32))
    payload = _mix(seed + numbers[:, None] * np.uint64(_WORDS) + _INDEX[None, _PAYLOAD:])
    right &= (blocks[:, _PAYLOAD:] == payload).all(axis=1)
    right &= blocks[:, _CHECKSUM] == _checksums(blocks)
    return right


def _checksums(blocks: Words) -> Words:
    words = blocks.copy()
    words[:, _CHECKSUM] = 0
    sums: Words = _mix(words + _INDEX * _GOLDEN).sum(axis=1, dtype=np.uint64)
    return sums


def _slots(numbers: Words, layout: Layout) -> NDArray[np.int64]:
    slots: NDArray[np.int64] = (_mix(numbers ^ np.uint64(layout.seed)) % np.uint64(layout.slots)).astype(
        np.int64
    )
    return slots


def _mix(numbers: Words) -> Words:
    """splitmix64's finaliser; products wrap at 64 bits."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _describe(layout: Layout, slot: int, wanted: int, block: Words) -> str:
    wish = f"record {wanted}" if wanted else "nothing"
    if not block.any():
        found = "zeros"
    elif block[0] != _MAGIC or block[_SEED] != np.uint64(layout.seed):
        found = "something foreign"
    elif int(block[_N]) != wanted:
        found = f"record {int(block[_N])}"
    else:
        found = "that record, damaged"
    return f"disk {layout.disk}, slot {slot}: expected {wish}, found {found}"
