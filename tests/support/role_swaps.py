"""Planned failovers back and forth under a writer, judged each time: nothing lost, and no more shipped than was changed.

What is judged in each swap: the disks of the old side when it was off and those that the new side came up from are the
same byte for byte, the guest goes on with the very next record, every point of the leg is the one before and what the
wire carried on top of it, and the sum of what was shipped is what differs. It does not judge how long anything takes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from secondsite.lab.records import check_records
from secondsite.model.units import BLOCK, MIB
from support.lab_story import LabGuest, LabStory, until

OTHER = {"primary": "secondary", "secondary": "primary"}
ALLOWED = 0.05
"""How far what was shipped may be from what was changed, as a share of it."""
FIXED_BYTES = 16 << 10
"""What every cycle ships besides: manifest, definition, frames."""


@dataclass(frozen=True)
class Swap:
    """What a swap has shown. Bytes."""

    number: int
    there: str
    points: int
    records: int
    changed: int
    shipped: int

    @property
    def ratio(self) -> float:
        """Shipped over changed."""
        return self.shipped / self.changed


class RoleSwaps:
    """Swaps the roles of a protected guest's sites again and again. `name`: the guest, which runs at the first site."""

    def __init__(self, lab: LabStory, guest: LabGuest, folder: Path) -> None:
        self._lab = lab
        self._guest = guest
        self._folder = folder
        self._last: list[Path] = []
        """The disks of the last swap's point: what the next leg's first delta is counted from."""
        self._counted: dict[str, int] = {}
        """What each side's node had shipped when its last leg ended."""
        self._legs = 0

    def swap(self, points: int = 2) -> Swap:
        """Let it replicate for at least so many points, fail over as planned, judge, commit and reverse."""
        lab, name = self._lab, self._guest.name
        here = "primary" if self._guest.active("primary") else "secondary"
        there = OTHER[here]
        until(lambda: len(self._leg(there)) > points, f"{points} points of the leg", 120)
        if not self._legs:  # the initial replication is no leg
            self._counted[here] = self._initial()
        images = self._guest.disks(here)
        job = lab.cli("item", "failover", name, "--planned", timeout_s=300)
        last = int(job["result"]["point"]["sequence"])
        assert not self._guest.active(here)
        left = self._raw(images)
        came = lab.extract(name, last, there)
        assert _digests(left) == _digests(came), f"point {last} is not what the old side was left with"
        records = check_records(left)
        assert records.ok, records.problems
        with self._guest.console(there) as console:
            first = console.first_record(120)
        assert first == records.last + 1, (
            f"the old side ended with {records.last}, the new one began with {first}"
        )
        swap = self._judge_leg(here, there, records.last)
        lab.cli("item", "commit", name, timeout_s=300)
        lab.cli("item", "reverse", name, timeout_s=300)
        _remove([*self._last, *left])
        self._last = came
        self._legs += 1
        return swap

    def _leg(self, site: str) -> list[Any]:
        """The points that the journal at a site got since the last swap; empty until it has one."""
        until(lambda: self._lab.journal(self._guest.name, site).exists(), "a journal", 60)
        return list(self._lab.points(self._guest.name, site))

    def _judge_leg(self, here: str, there: str, records: int) -> Swap:
        """Compare every point of the leg with the one before, and the sum with what the old side says that it shipped."""
        lab, name = self._lab, self._guest.name
        before, changed, judged = self._last, 0, 0
        for point in self._leg(there):
            disks = lab.extract(name, point.sequence, there)
            if before:
                found = check_records(disks)
                assert found.ok, f"point {point.sequence}: {found.problems}"
                changed += changed_bytes(before, disks)
                judged += 1
            if before is not self._last:
                _remove(before)
            before = disks
        _remove(before)
        shipped = self._shipped(here)
        assert abs(shipped - changed) <= ALLOWED * changed + FIXED_BYTES * judged, (shipped, changed)
        return Swap(self._legs + 1, there, judged, records, changed, shipped)

    def _shipped(self, here: str) -> int:
        """What the old side shipped in this leg, by its node's counter, once that has told that it stepped down."""

        def told() -> Any:
            report = self._lab.source(self._guest.name) or {}
            return report["counters"] if report.get("role") not in (None, "source") else None

        counted = int(until(told, "the old side's last figures", 60)["bytes_shipped"])
        before, self._counted[here] = self._counted.get(here, 0), counted
        return counted - before

    def _initial(self) -> int:
        cycles = (self._lab.source(self._guest.name) or {})["cycles"]
        return int(next(cycle["bytes_shipped"] for cycle in cycles if cycle["kind"] == "initial"))

    def _raw(self, images: Sequence[Path]) -> list[Path]:
        out = []
        for number, image in enumerate(images):
            raw = self._folder / f"left-{self._legs}-{number}.raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
            out.append(raw)
        return out


def changed_bytes(before: Sequence[Path], after: Sequence[Path]) -> int:
    """Bytes of the 4 KiB blocks that differ, less those that are all zeros afterwards: of these only the place is shipped."""
    total = 0
    for old, new in zip(before, after, strict=True):
        with old.open("rb") as left, new.open("rb") as right:
            while piece := right.read(4 * MIB):
                now = np.frombuffer(piece, np.uint8).reshape(-1, BLOCK)
                was = np.frombuffer(left.read(4 * MIB), np.uint8).reshape(-1, BLOCK)
                total += int(((now != was).any(axis=1) & now.any(axis=1)).sum()) * BLOCK
    return total


def prepared(lab: LabStory, name: str, *, size: int = 64 * MIB, rate: int = 100) -> LabGuest:
    """Return a protected guest that writes, in a lab whose policy does not compress: bytes on the wire are then bytes changed."""
    lab.policy(compression=False)
    guest = lab.guest(name, size=size, record_area=2 * MIB, rate=rate)
    guest.start().close()
    lab.protect(guest.name)
    return guest


def _digests(disks: Sequence[Path]) -> list[str]:
    return [blake2b(disk.read_bytes()).hexdigest() for disk in disks]


def _remove(disks: Sequence[Path]) -> None:
    for disk in disks:
        disk.unlink(missing_ok=True)
