"""What a seed draws before its story begins: disks, sizes, frequencies, retention, and which troubles it has."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Final

from secondsite.model.ids import DiskKey
from secondsite.model.policy import COPY_FREQUENCIES_S, Policy
from secondsite.model.units import KIB

NAMES: Final = tuple(DiskKey(f"vd{letter}") for letter in "abcdefgh")
SECTOR: Final = 512
PARTS: Final = (8 * KIB, 16 * KIB, 64 * KIB)


@dataclass(frozen=True, slots=True)
class Geometry:
    """See the module's docstring. Sizes in bytes; `trouble`: the chance that a step meets a fault."""

    sizes: dict[DiskKey, int]
    policy: Policy
    part_size: int
    batch: int
    connections: int
    trouble: float

    def describe(self) -> str:
        """Return one line for the story's head."""
        sizes = ", ".join(f"{disk} {size // SECTOR} sectors" for disk, size in self.sizes.items())
        policy = self.policy
        ladder = f", all for {policy.keep_all_hours} h" if policy.keep_all_hours is not None else ""
        return (
            f"{sizes}; each {policy.copy_frequency_s} s, {policy.retention_points} points, "
            f"{policy.retention_hours} h{ladder}; parts of {self.part_size // KIB} KiB, "
            f"{self.connections} connections, trouble {self.trouble:.2f}"
        )


def draw(chance: Random) -> Geometry:
    """Draw the geometry of a story."""
    count = chance.choice((1, 1, 1, 2, 2, 2, 3, 4, 8))
    most = {1: 320 * KIB, 2: 200 * KIB, 3: 96 * KIB, 4: 64 * KIB, 8: 24 * KIB}[count]
    sizes = {name: _size(chance, most) for name in NAMES[:count]}
    return Geometry(
        sizes=sizes,
        policy=_policy(chance),
        part_size=chance.choice(PARTS),
        batch=chance.choice((1, 2, 4)),
        connections=chance.choice((1, 2, 2, 3)),
        trouble=chance.choice((0.0, 0.2, 0.4, 0.6)),
    )


def _size(chance: Random, most: int) -> int:
    """Whole blocks, or not; a disk may be smaller than a block."""
    if chance.random() < 0.1:
        return chance.randrange(1, 9) * SECTOR
    return max(1, chance.randrange(most // SECTOR)) * SECTOR


def _policy(chance: Random) -> Policy:
    every = chance.choice(COPY_FREQUENCIES_S)
    fields: dict[str, Any] = {
        "copy_frequency_s": every,
        "compression": chance.random() < 0.5,
        "resync_window": "always",
        "app_consistent_hours": chance.choice((None, 1)),
    }
    if chance.random() < 0.3:
        keep = chance.choice((0.1, 0.5, 1.0))
        hours = keep + chance.choice((1.0, 3.0))
        return Policy(**fields, retention_hours=hours, keep_all_hours=keep)
    return Policy(
        **fields,
        retention_points=chance.choice((2, 3, 4, 6)),
        retention_hours=chance.choice((0.1, 1.0, 24.0)),
    )
