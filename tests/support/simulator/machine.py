"""A machine on one side: its disks in memory, tracked as a hypervisor tracks them, and what each snapshot held.

It outlives every crash of its node. `Record` is the judge's memory, shared by both sides: what the disks held at each time
that a point can carry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final

from secondsite.capture.fake import FakeCapture
from secondsite.capture.port import Snapshot
from secondsite.fabric.fake import FakeImage
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition

Contents = dict[DiskKey, bytes]
SECTOR: Final = 512


class Record:
    """What the disks held at the time of each snapshot. No two have the same time, whatever the clocks say."""

    def __init__(self) -> None:
        self.contents: dict[datetime, Contents] = {}


class SimMachine:
    """See the module's docstring. `images`: where the fabric keeps the disks' images; their time of change is kept right."""

    def __init__(
        self,
        sizes: Mapping[DiskKey, int],
        images: Mapping[DiskKey, Path],
        record: Record,
        clock: Callable[[], datetime],
        definition: Callable[[], VmDefinition],
    ) -> None:
        self.capture = FakeCapture(sizes, clock=clock)
        self.images = images
        self._record = record
        self._definition = definition
        self._writes = 0

    # -- the guest -----------------------------------------------------------------------------------------

    def now(self) -> Contents:
        """What the disks hold."""
        return {key: bytes(disk.content) for key, disk in self.capture.disks.items()}

    def load(self, contents: Mapping[DiskKey, bytes], checkpoint: str) -> None:
        """Hold what a replica's disks hold before its first boot, with its bitmap."""
        for key, data in contents.items():
            self.capture.disks[key].content[:] = data
            if checkpoint:
                self.capture.disks[key].changed = {checkpoint: set()}

    def write(self, chance: Random) -> str:
        """Write something somewhere, as guests do; return what was done."""
        key = chance.choice(sorted(self.capture.disks))
        size = len(self.capture.disks[key].content)
        unit = chance.choice((SECTOR, SECTOR, 4096))
        units = -(-size // unit)
        at = chance.choice((0, units - 1, chance.randrange(units), chance.randrange(units))) * unit
        length = min(chance.choice((1, 1, 2, 3, 8, 40, units)) * unit, size - at)
        fill = chance.choice((0, 0, 1, 255, chance.randrange(1, 256)))
        data = bytes([fill]) * length
        if fill > 1 and chance.random() < 0.5:
            data = chance.randbytes(length)
        self.capture.write(key, at, data)
        self._touched(key)
        return f"{key} [{at}, {at + length}) {'zeros' if not any(data) else 'data'}"

    def grow(self, chance: Random) -> str:
        """Make a disk larger; perhaps smaller first, which loses its end and leaves no mark."""
        key = chance.choice(sorted(self.capture.disks))
        disk = self.capture.disks[key]
        size = len(disk.content)
        if chance.random() < 0.4:
            disk.resize(chance.randrange(1, size // SECTOR + 1) * SECTOR)
        new = size + chance.choice((0, 1, 7, 8, 20)) * SECTOR
        disk.resize(new)
        FakeImage(new).write(self.images[key])
        self._touched(key)
        return f"{key} {size} -> {new}"

    def _touched(self, key: DiskKey) -> None:
        self._writes += 1
        os.utime(self.images[key], ns=(self._writes, self._writes))

    # -- the port ------------------------------------------------------------------------------------------

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See `capture.port.Capture`."""
        self.capture.definition = self._definition()
        snapshot = self.capture.snapshot(since=since, new=new)
        self._record.contents[snapshot.time] = self.now()
        return snapshot

    def forget(self, keep: Collection[str]) -> None:
        """See `capture.port.Capture`."""
        self.capture.forget(keep)

    def tidy(self) -> None:
        """See `capture.port.Capture`."""
        self.capture.tidy()
