"""Items of machines that are not as plain as the demo's, over two real nodes: every byte is compared."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import libvirt
import pytest

from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from secondsite.node.records import Role
from secondsite.node.report import Reporter
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair, wait_until
from support.tracked_items import (
    disable,
    error_of,
    fail_over,
    hmp_write,
    machine_content,
    newest_is_the_machine,
    next_point,
    point_content,
    points_of,
    protect,
    remove_domains,
    reverse,
)
from support.tracked_machines import TrackedMachine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
VDA, VDB, VDC = DiskKey("vda"), DiskKey("vdb"), DiskKey("vdc")
SIZES = {VDA: 8 * MIB, VDB: 4 * MIB + 512, VDC: 4 * MIB}
_LIVE_AND_CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
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
        assert machine.kinds[VDC] == "raw" or machine.images[VDC].is_block_device()
    finally:
        remove_domains(hypervisor_pair.primary, hypervisor_pair.recovery, prefix=name)
        machine.detach()


@pytest.fixture
def machine(short_path: Path, hypervisor_pair: HypervisorPair) -> TrackedMachine:
    """A running machine with a qcow2 and a raw disk."""
    sizes = {VDA: 8 * MIB, VDB: 4 * MIB + 512}
    machine = TrackedMachine(
        hypervisor_pair.primary, short_path / "m", next(_names), sizes, formats={VDB: "raw"}
    )
    start(machine)
    for key in sizes:
        machine.write(key, 0, b"a" * (2 * MIB))
    return machine


def test_disks_that_grow_are_followed_and_older_points_keep_their_size(
    nodes: NodePair, machine: TrackedMachine, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    item = protect(nodes, machine)
    small = points_of(nodes.recovery, item)[0]
    machine.domain.blockResize("vda", 12 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    # Made smaller, then larger again: the guest's data at its end are gone, and no bitmap says so.
    machine.domain.blockResize("vdb", 1 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    machine.domain.blockResize("vdb", 6 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    machine.write(VDA, 11 * MIB, b"b" * (64 * KIB))
    grown = next_point(nodes.primary, nodes.recovery, item)
    content = point_content(nodes.recovery, item, grown)
    assert {key: len(data) for key, data in content.items()} == {VDA: 12 * MIB, VDB: 6 * MIB}
    assert content[VDB] == b"a" * MIB + bytes(5 * MIB)
    assert content[VDA] == b"a" * (2 * MIB) + bytes(9 * MIB) + b"b" * (64 * KIB) + bytes(MIB - 64 * KIB)
    before = point_content(nodes.recovery, item, small)
    assert {key: len(data) for key, data in before.items()} == {VDA: 8 * MIB, VDB: 4 * MIB + 512}
    assert before[VDB] == b"a" * (2 * MIB) + bytes(2 * MIB + 512)

    # Off, by an administrator's tool; then there and back, with growth on the side that keeps the old images.
    machine.stop()
    for key in SIZES.keys() & machine.images.keys():
        machine.io(key, f"truncate {16 * MIB}")
    newest_is_the_machine(nodes, item, machine, short_path)
    there = fail_over(nodes.primary, nodes.recovery, item, machine.name, 1)
    replica = hypervisor_pair.recovery.connect().lookupByName(machine.name)
    reverse(nodes.recovery, nodes.primary, item, 2)
    wait_until(lambda: points_of(nodes.primary, item)[-1:] > [there["sequence"]], what="a point in reverse")
    for key in machine.images:
        replica.blockResize(key, 20 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        hmp_write(replica, key, "write -P 100 18M 64k")
    back = fail_over(nodes.recovery, nodes.primary, item, machine.name, 2)
    away = machine_content(replica, short_path)
    assert {len(data) for data in away.values()} == {20 * MIB}
    assert point_content(nodes.primary, item, back["sequence"]) == away
    assert all(data[18 * MIB : 18 * MIB + 64 * KIB] == b"d" * (64 * KIB) for data in away.values())
    nodes.primary.call("target.remove", item, 3, {"delete_replica": True})
    nodes.recovery.call("standby.remove", item, 3, {"delete_replica": True})


def test_a_disk_that_shrank_is_refused_before_anything_is_shipped(
    nodes: NodePair, machine: TrackedMachine, short_path: Path
) -> None:
    item = protect(nodes, machine)
    points = points_of(nodes.recovery, item)
    machine.domain.blockResize("vda", 4 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    machine.write(VDB, MIB, b"b" * (64 * KIB))
    error = error_of(nodes, item, "disk_shrunk")
    assert "disk vda shrank from 8388608 to 4194304 bytes" in error.message
    assert "enlarge it again" in error.hint
    assert points_of(nodes.recovery, item)[: len(points)] == points
    machine.domain.blockResize("vda", 8 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    next_point(nodes.primary, nodes.recovery, item)
    newest_is_the_machine(nodes, item, machine, short_path)


def test_a_disk_that_was_cut_and_brought_back_to_its_size_unseen_has_lost_its_end_in_the_next_point_too(
    nodes: NodePair, machine: TrackedMachine, short_path: Path
) -> None:
    for key in machine.images:
        machine.write(key, 3 * MIB, b"e" * (64 * KIB))
    item = protect(nodes, machine)

    def cut_to(size: int, *, off: bool) -> None:
        nodes.primary.call("source.pause", item, 1)
        for key, image in machine.images.items():
            whole = machine.domain.blockInfo(key)[0]
            if off:
                form = machine.format_of(key)
                for to, shrink in ((size, ["--shrink"]), (whole, [])):
                    resize = ["qemu-img", "resize", "-q", "-f", form, *shrink, image, str(to)]
                    subprocess.run(resize, check=True)
            else:
                for to in (size, whole):
                    machine.domain.blockResize(key, to, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        nodes.primary.call("source.resume", item, 1)

    cut_to(2 * MIB + 512, off=False)
    machine.write(VDA, 8 * MIB - 64 * KIB, b"z" * (64 * KIB))  # as who partitions it anew
    now = point_content(nodes.recovery, item, next_point(nodes.primary, nodes.recovery, item))
    assert now == {
        VDA: b"a" * (2 * MIB) + bytes(6 * MIB - 64 * KIB) + b"z" * (64 * KIB),
        VDB: b"a" * (2 * MIB) + bytes(2 * MIB + 512),
    }
    newest_is_the_machine(nodes, item, machine, short_path)
    cut_to(1 * MIB, off=True)
    newest_is_the_machine(nodes, item, machine, short_path)
    assert nodes.primary.daemon.items.get(item).counters["resyncs"] >= 2


def test_a_disk_that_is_added_is_told_and_one_that_is_removed_stops_replication_until_it_is_back(
    nodes: NodePair, machine: TrackedMachine, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    item = protect(nodes, machine, VDA)  # vdb is excluded
    daemon = nodes.primary.daemon
    reporter = Reporter(
        daemon.items, daemon.replicators, daemon.journals, daemon.fabric, lambda: datetime.now(UTC)
    )

    def warnings() -> list[str]:
        (report,) = reporter.make(with_inventory=True)["items"]
        return [warning["message"] for warning in report["warnings"]]

    assert warnings() == []
    added = short_path / "m" / "added.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", added, "4M"], check=True)
    hypervisor_pair.primary.own(added)
    device = f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{added}'/><target dev='vdc' bus='virtio'/></disk>"
    machine.domain.attachDeviceFlags(device, _LIVE_AND_CONFIG)
    report = reporter.make(with_inventory=True)
    assert [event["code"] for event in report["events"]] == ["disk-unprotected"]
    assert warnings() == ["disk vdc is not protected"]
    assert reporter.make(with_inventory=True)["events"] == []  # told once
    machine.write(VDA, 4 * MIB, b"b" * (64 * KIB))
    next_point(nodes.primary, nodes.recovery, item)
    assert daemon.replicators.find(item).error is None
    machine.stop()
    machine.domain.detachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert warnings() == []

    image = machine.images[VDA]
    own = f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
    machine.domain.detachDeviceFlags(own, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    error = error_of(nodes, item, "disk_gone")
    assert "has no disk vda" in error.message
    assert "attach it again" in error.hint
    machine.write(VDA, 5 * MIB, b"c" * (64 * KIB))  # somebody writes to it meanwhile
    machine.domain.attachDeviceFlags(own, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    next_point(nodes.primary, nodes.recovery, item)
    newest_is_the_machine(nodes, item, machine, short_path)
