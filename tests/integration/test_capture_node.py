"""Items of machines that are not as plain as the demo's, over two real nodes: every byte is compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from secondsite.node.records import Role
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair, wait_until
from support.tracked_items import (
    disable,
    fail_over,
    hmp_write,
    machine_content,
    next_point,
    point_content,
    points_of,
    remove_domains,
    reverse,
)
from support.tracked_machines import TrackedMachine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
VDA, VDB, VDC = DiskKey("vda"), DiskKey("vdb"), DiskKey("vdc")
SIZES = {VDA: 8 * MIB, VDB: 4 * MIB + 512, VDC: 4 * MIB}
_names = (f"odd-{number}" for number in itertools.count())


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair
    remove_domains(*hypervisor_pair, prefix="odd-")


def start(machine: TrackedMachine) -> None:
    """Start it, running: it finds nothing to boot and idles."""
    machine.domain.create()


def test_a_machine_with_raw_disks_goes_there_and_comes_back(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    formats = {VDA: "qcow2", VDB: "raw", VDC: "block"}
    machine = TrackedMachine(hypervisor_pair.primary, short_path / "m", next(_names), SIZES, formats=formats)
    name, uuid = machine.name, machine.domain.UUIDString()
    try:
        start(machine)
        for key in SIZES:
            machine.write(key, MIB, b"a" * MIB)
        item = nodes.protect(uuid, SIZES)
        wait_until(lambda: points_of(nodes.recovery, item), what="the first point")
        for key in SIZES:
            machine.write(key, 3 * MIB, b"b" * (64 * KIB))
        next_point(nodes.primary, nodes.recovery, item)
        assert nodes.primary.daemon.items.get(item).counters.get("tracking_lost", 0) == 0

        # There: QEMU ended, so the raw disks are compared, and nothing is lost.
        machine.write(VDB, 4 * MIB, b"z" * 512)
        there = fail_over(nodes.primary, nodes.recovery, item, name, 1)
        before = machine_content(machine.domain, short_path)
        assert point_content(nodes.recovery, item, there["sequence"]) == before
        assert before[VDB][4 * MIB :] == b"z" * 512
        replica = hypervisor_pair.recovery.connect().lookupByName(name)
        for key in SIZES:
            hmp_write(replica, key, "write -P 99 2M 64k")

        # Reversed: the old disks, raw ones too, are the base of the journal, and only what changed is shipped.
        reverse(nodes.recovery, nodes.primary, item, 2)
        wait_until(
            lambda: points_of(nodes.primary, item)[-1:] > [there["sequence"]], what="a point in reverse"
        )
        record = nodes.recovery.daemon.items.get(item)
        assert record.role is Role.SOURCE
        assert record.counters.get("resyncs", 0) == 0
        wait_until(
            lambda: nodes.recovery.daemon.items.get(item).counters.get("bytes_changed") == 3 * 64 * KIB,
            what="exactly what was written since",
        )

        # And back.
        back = fail_over(nodes.recovery, nodes.primary, item, name, 2)
        away = machine_content(replica, short_path)
        assert away == {
            key: data[: 2 * MIB] + b"c" * (64 * KIB) + data[2 * MIB + 64 * KIB :]
            for key, data in before.items()
        }
        assert point_content(nodes.primary, item, back["sequence"]) == away
        reverse(nodes.primary, nodes.recovery, item, 3)
        wait_until(lambda: points_of(nodes.recovery, item)[-1:] > [back["sequence"]], what="a last point")
        disable(nodes, nodes.primary, nodes.recovery, item, 3)
        domain = hypervisor_pair.primary.connect().lookupByName(name)
        domain.destroy()
        assert machine_content(domain, short_path) == away
        assert machine.images[VDC].is_block_device()
    finally:
        remove_domains(hypervisor_pair.primary, hypervisor_pair.recovery, prefix=name)
        machine.detach()
