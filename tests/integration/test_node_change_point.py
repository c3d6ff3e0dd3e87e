"""Choosing another point, and giving the failover up, on two daemons and real QEMU: each start shows exactly its point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import ItemId
from secondsite.node.records import Role
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, PairNode, node_pair, wait_until
from support.tracked_machines import TrackedMachine
from support.two_sides import (
    MIB,
    PLAIN,
    SIZE,
    VDA,
    VDB,
    contents,
    destroy,
    equals_image,
    last_point,
    next_point,
    replica_io,
    replica_write,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

NAME = "choice-a"
WAIT_S = 120.0


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair


def points_of(node: PairNode, item: ItemId) -> list[int]:
    return [point.sequence for point in node.daemon.journals.get(item).points()]


def take_over(node: PairNode, item: ItemId, sequence: int, new_epoch: int) -> Any:
    args = {"sequence": sequence, "digest": None, "new_epoch": new_epoch, "name": NAME, "networks": {}}
    return node.call("target.failover", item, new_epoch - 1, args)


def shows_its_point(node: PairNode, there: Hypervisor, item: ItemId, sequence: int, folder: Path) -> bool:
    """When the replica stands alone, its images are the point's disks byte for byte."""

    def standalone() -> bool:
        failover = node.daemon.items.get(item).failover
        return failover is not None and failover.standalone

    wait_until(standalone, WAIT_S, "standing alone")
    for disk in (VDA, VDB):
        replica_io(
            there, NAME, disk, "flush"
        )  # what qemu-img does not see yet: QEMU keeps the image's tables in memory
    images = {disk.key: disk.path for disk in node.daemon.fabric.find(NAME).disks}
    return all(
        equals_image(held, images[disk], folder)  # type: ignore[arg-type]
        for disk, held in contents(node, item, sequence).items()
    )


def test_points_are_tried_one_after_the_other_beside_a_test_and_the_failover_is_given_up(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    here, there = hypervisor_pair
    machine = TrackedMachine(here, here.storage, NAME, {VDA: SIZE, VDB: SIZE})
    recovery = nodes.recovery
    try:
        machine.start()
        machine.write(VDA, 0, b"\x01" * (4 * MIB))
        item = nodes.protect(NAME, {VDA: SIZE, VDB: SIZE}, policy=PLAIN)
        replicas = there.storage / "secondsite" / "replicas" / item
        wait_until(lambda: last_point(recovery, item), WAIT_S, "the first point")
        machine.write(VDA, MIB, b"\x02" * MIB)
        machine.write(VDB, 0, b"\x03" * MIB)
        older = next_point(nodes.primary, recovery, item)
        machine.write(VDA, 2 * MIB, b"\x04" * MIB)
        newest = next_point(nodes.primary, recovery, item)
        recovery.call(
            "target.test_start", item, 1, {"sequence": newest, "name": f"{NAME}-test", "networks": {}}
        )
        demoted = nodes.primary.call("source.demote", item, 1, {"new_epoch": 2})
        assert demoted["ran"] is True
        newest = last_point(recovery, item)
        before = points_of(recovery, item)

        take_over(recovery, item, newest, 2)
        assert shows_its_point(recovery, there, item, newest, short_path)
        replica_write(there, NAME, VDA, 0, MIB, 9)
        epoch = 2
        for sequence in (older, newest, older):
            recovery.call("target.abandon", item, epoch, {"epoch": epoch, "next_epoch": epoch})
            recovery.daemon.upkeep.maintain(recovery.daemon.items.get(item))
            epoch += 1
            take_over(recovery, item, sequence, epoch)
            assert shows_its_point(recovery, there, item, sequence, short_path)
            replica_write(there, NAME, VDB, 8 * MIB, MIB, 9)
            names = {path.name for path in replicas.glob("replica-*.qcow2")}
            assert names == {f"replica-e{epoch}-{disk}.qcow2" for disk in (VDA, VDB)}
            assert points_of(recovery, item) == before

        recovery.call("target.abandon", item, epoch, {"epoch": epoch, "next_epoch": epoch + 1})
        recovery.call("target.test_cleanup", item, epoch + 1)
        nodes.primary.call("source.release", item, epoch + 1, {"epoch": epoch + 1})
        assert machine.domain.isActive()
        wait_until(lambda: last_point(recovery, item) > newest, WAIT_S, "a point after the cancelling")
        assert not list(replicas.glob("*.qcow2"))
        assert [vm.name for vm in recovery.daemon.fabric.inventory().vms if vm.name.startswith(NAME)] == []
        record = nodes.primary.daemon.items.get(item)
        assert (record.role, record.epoch, record.counters.get("resyncs", 0)) == (Role.SOURCE, epoch + 1, 0)
        held = contents(recovery, item, last_point(recovery, item))
        nodes.primary.call("source.stop", item, epoch + 1)
        machine.stop()
        for disk in (VDA, VDB):
            assert equals_image(held[disk], machine.images[disk], short_path)
        recovery.call("target.remove", item, epoch + 1, {"delete_replica": False})
    finally:
        for name in (NAME, f"{NAME}-test"):
            destroy(there, name)
        destroy(here, NAME)
