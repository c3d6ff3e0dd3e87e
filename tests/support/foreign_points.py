"""A point in the target's journal that its source knows nothing of, as after a reversal: it differs where nothing was written."""

from __future__ import annotations

from dataclasses import replace

from secondsite.model.ids import Epoch, Sequence
from secondsite.model.manifest import DiskPoint, FileRef, PointKind
from support.cycle_world import SIZES, VDA, VDB, World
from support.journals import digest_of, log_bytes

WRITES = ((VDA, 73_728, b"o" * 12_288), (VDB, 4096, b"p" * 4096))


def diverge(world: World) -> None:
    """Seal it, and restart both nodes, as a reversal does."""
    journal, last = world.journal, world.journal.manifest()
    contents = {disk: bytearray(content) for disk, content in world.machine.contents[last.time].items()}
    disks = {}
    for disk, offset, fill in WRITES:
        contents[disk][offset : offset + len(fill)] = fill
        data = log_bytes(SIZES[disk], [(offset, fill)], unique=9)
        digest = digest_of(data)
        with journal.receive(digest, "hrl") as incoming:
            incoming.write(data)
            incoming.commit()
        disks[disk] = DiskPoint(SIZES[disk], (FileRef(digest, len(data)),), None, len(fill))
    time = world.machine.tick()
    world.machine.contents[time] = {disk: bytes(content) for disk, content in contents.items()}
    point = replace(
        last,
        sequence=Sequence(last.sequence + 5),
        time=time,
        kind=PointKind.DELTA,
        previous=digest_of(last.to_bytes()),
        disks=disks,
        labels={},
    )
    journal.seal(Epoch(1), point.to_bytes())
    world.restart()
