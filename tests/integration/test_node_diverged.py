"""The way back after an unplanned failover, on two daemons and real QEMU: only what differs is shipped, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.model.ids import ItemId
from secondsite.model.manifest import PointKind
from secondsite.node.records import Role
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair, wait_until
from support.tracked_machines import TrackedMachine
from support.two_sides import (
    MIB,
    PLAIN,
    SIZE,
    VDA,
    VDB,
    contents,
    destroy,
    differing,
    equals_image,
    last_point,
    next_point,
    replica_write,
    reverse,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair


def take_over(nodes: NodePair, item: ItemId, sequence: int, name: str) -> dict[str, Any]:
    args = {"sequence": sequence, "digest": None, "new_epoch": 2, "name": name, "networks": {}}
    return dict(nodes.recovery.call("target.failover", item, 1, args))


def test_what_only_the_old_side_wrote_is_kept_and_only_what_differs_comes_back(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    machine = TrackedMachine(
        hypervisor_pair.primary, hypervisor_pair.primary.storage, "diverged-a", {VDA: SIZE, VDB: SIZE}
    )
    try:
        machine.start()
        machine.write(VDA, 0, b"\x01" * (8 * MIB))
        machine.write(VDB, 4 * MIB, b"\x02" * (2 * MIB))
        item = nodes.protect(machine.name, {VDA: SIZE, VDB: SIZE}, policy=PLAIN)
        wait_until(lambda: last_point(nodes.recovery, item), what="the first point")
        point = next_point(nodes.primary, nodes.recovery, item)

        # The link goes down, both sides write: here what no point has, there from the last point on.
        nodes.primary.daemon.replicators.stop(item)
        machine.write(VDA, MIB, b"\x03" * (2 * MIB))
        machine.write(VDB, 40 * MIB, b"\x04" * MIB)
        take_over(nodes, item, point, machine.name)
        demoted = nodes.primary.call("source.demote", item, 2, {"new_epoch": 2})
        assert demoted == {"ran": True, "diverged": True}
        assert not machine.domain.isActive()
        replica_write(hypervisor_pair.recovery, machine.name, VDA, 20 * MIB, 2 * MIB, 5)
        replica_write(hypervisor_pair.recovery, machine.name, VDB, 5 * MIB, MIB, 6)
        old = {disk: machine.content(disk, short_path) for disk in (VDA, VDB)}

        kept = reverse(nodes.recovery, nodes.primary, item, 2, after=point + 7)
        assert (kept["base"], kept["sequence"]) == ("diverged", point + 8)
        replicator = nodes.recovery.daemon.replicators.find(item)
        assert replicator is not None
        wait_until(lambda: replicator.outcomes, what="a point in reverse")
        record = nodes.recovery.daemon.items.get(item)
        assert (record.role, record.counters["relearned"]) == (Role.SOURCE, 1)
        first = contents(nodes.primary, item, kept["sequence"] + 1)
        divergent = differing(old, first)
        assert divergent == 6 * MIB
        outcome = replicator.outcomes[0]
        assert (outcome.kind, outcome.sequence) == (PointKind.RESYNC, kept["sequence"] + 1)
        assert outcome.shipped <= 1.1 * divergent, outcome

        # Later points and their folding take nothing from what was kept.
        for fill in (7, 8, 9):
            replica_write(hypervisor_pair.recovery, machine.name, VDA, MIB, MIB, fill)
            next_point(nodes.recovery, nodes.primary, item)
        journal = nodes.primary.daemon.journals.get(item)
        nodes.primary.daemon.upkeep.maintain(nodes.primary.daemon.items.get(item))
        assert journal.points()[0].sequence == kept["sequence"]
        held = contents(nodes.primary, item, kept["sequence"])
        for disk in (VDA, VDB):
            assert held[disk] == old[disk]
            copy = short_path / f"old-{disk}.raw"
            copy.write_bytes(old[disk])
            assert equals_image(held[disk], machine.images[disk], short_path)

        # Until an operator gives it up.
        nodes.primary.call("target.drop_diverged", item, 2)
        nodes.primary.daemon.upkeep.maintain(nodes.primary.daemon.items.get(item))
        assert journal.points()[0].sequence > kept["sequence"]
        assert list(journal.verify()) == []

        nodes.recovery.call("source.stop", item, 2)
        nodes.primary.call("target.remove", item, 2, {"delete_replica": False})
        assert all(image.exists() for image in machine.images.values())
    finally:
        destroy(hypervisor_pair.recovery, machine.name)
