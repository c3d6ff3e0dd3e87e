"""What an administrator does to a machine while it is protected: snapshots, new names, new definitions, a move away."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from secondsite.capture.bitmaps import image_info
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from support.capture_sites import Site, assert_same, commit_back, snapshot_disk_only
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair
from support.replicas import Replica
from support.tracked_items import (
    disable,
    error_of,
    newest_is_the_machine,
    next_point,
    point_content,
    points_of,
    protect,
    remove_domains,
)
from support.tracked_machines import TrackedMachine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
SIZES = {VDA: 8 * MIB, VDB: 4 * MIB + 512}
FORGET = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
_names = (f"admin-{number}" for number in itertools.count())


@pytest.fixture
def site(hypervisor: Hypervisor, short_path: Path) -> Iterator[Site]:
    """A machine with two qcow2 disks."""
    machine = TrackedMachine(hypervisor, short_path, next(_names), SIZES)
    try:
        yield Site(hypervisor, machine, short_path, SIZES)
    finally:
        machine.remove()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(SIZES, tmp_path)
    yield replica
    replica.close()


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair
    remove_domains(*hypervisor_pair, prefix="admin-")


@pytest.fixture
def machine(short_path: Path, hypervisor: Hypervisor) -> TrackedMachine:
    """A running machine with a qcow2 and a raw disk, for the nodes."""
    machine = TrackedMachine(hypervisor, short_path / "m", next(_names), SIZES, formats={VDB: "raw"})
    machine.domain.create()
    for key in SIZES:
        machine.write(key, 0, b"a" * MIB)
    return machine


# -- snapshots -----------------------------------------------------------------------------------------------


def test_external_snapshots_and_their_end_cost_a_tracked_machine_nothing(
    site: Site, replica: Replica
) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    for fill in (b"a", b"b"):
        site.machine.write(VDA, 0, fill * (64 * KIB))
        below = snapshot_disk_only(site, SIZES)
        site.machine.write(VDB, MIB, fill * (64 * KIB))
        replica.cycle(site.capture())
        assert not replica.compared  # libvirt carries our bitmaps into the overlay
        assert replica.shipped == {VDA: 64 * KIB, VDB: 64 * KIB}
        site.machine.write(VDA, 2 * MIB, fill * (64 * KIB))
        site.machine.io(VDB, f"discard {MIB} {4 * KIB}")
        commit_back(site, below)
        replica.cycle(site.capture())
        site.machine.write(VDA, 3 * MIB, fill * (64 * KIB))
        replica.cycle(site.capture())
        assert not replica.compared
        assert replica.shipped == {VDA: 64 * KIB, VDB: 0}
    site.machine.stop()
    assert_same(site, replica)


def test_an_overlay_that_was_put_on_a_machine_that_is_off_is_compared_and_read_through(
    site: Site, replica: Replica
) -> None:
    site.machine.write(VDA, 0, b"a" * MIB)
    replica.cycle(site.capture())
    overlay = site.folder / "by-hand.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", site.machine.images[VDA], "-F", "qcow2", overlay],
        check=True,
    )
    site.hypervisor.own(overlay)
    text = site.machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    site.machine.domain = site.machine.connection.defineXML(
        text.replace(str(site.machine.images[VDA]), str(overlay))
    )
    site.machine.images[VDA] = overlay
    site.machine.write(VDA, 2 * MIB, b"b" * (64 * KIB))
    replica.cycle(site.capture())
    assert replica.compared
    assert replica.shipped == {VDA: 64 * KIB, VDB: 0}
    site.machine.start()
    site.machine.write(VDA, 0, b"c" * (64 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    site.machine.stop()
    assert_same(site, replica)


def test_an_old_internal_snapshot_is_kept_and_cannot_be_gone_back_to_behind_our_back(
    site: Site, replica: Replica
) -> None:
    """Going back changes a disk without a write. QEMU refuses it while a bitmap of ours is there; so nothing is misread."""
    site.machine.write(VDA, 0, b"o" * MIB)
    site.machine.domain.snapshotCreateXML("<domainsnapshot><name>old</name></domainsnapshot>", 0)
    site.machine.start()
    site.machine.write(VDA, 0, b"a" * MIB)
    replica.cycle(site.capture())
    old = site.machine.domain.snapshotLookupByName("old")
    site.machine.stop()
    with pytest.raises(libvirt.libvirtError, match="active dirty bitmaps"):
        site.machine.domain.revertToSnapshot(old)
    apply = ["qemu-img", "snapshot", "-a", "old", site.machine.images[VDA]]
    assert "active dirty bitmaps" in subprocess.run(apply, capture_output=True, text=True).stderr
    with pytest.raises(libvirt.libvirtError, match="checkpoint exists"):
        site.machine.domain.snapshotCreateXML("<domainsnapshot><name>new</name></domainsnapshot>", 0)
    replica.cycle(site.capture())
    assert replica.shipped == dict.fromkeys(SIZES, 0)
    # The way round it: without our bitmaps, as `virsh checkpoint-delete` or a disabled item leaves them.
    site.capture().forget(keep=())
    site.machine.domain.revertToSnapshot(old)
    replica.cycle(site.capture())
    assert replica.compared
    assert replica.shipped == {VDA: MIB, VDB: 0}
    assert_same(site, replica)


# -- names and definitions -----------------------------------------------------------------------------------


def test_a_machine_that_is_renamed_is_replicated_on_under_its_new_name(
    nodes: NodePair, machine: TrackedMachine, short_path: Path
) -> None:
    item = protect(nodes, machine)
    machine.stop()
    machine.domain.rename(new := next(_names))
    machine.domain = machine.connection.lookupByName(new)
    machine.domain.create()
    machine.write(VDA, 2 * MIB, b"b" * (64 * KIB))
    next_point(nodes.primary, nodes.recovery, item)
    newest_is_the_machine(nodes, item, machine, short_path)
    newest = nodes.recovery.daemon.journals.get(item).manifest()
    assert f"<name>{new}</name>" in newest.vm.text


@pytest.mark.parametrize("back", ["running", "off"])
def test_a_machine_that_is_undefined_is_missed_and_found_again(
    nodes: NodePair, machine: TrackedMachine, short_path: Path, back: str
) -> None:
    """Also what a migration away and back looks like from here."""
    item = protect(nodes, machine)
    points = points_of(nodes.recovery, item)
    text = machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine.stop()
    machine.domain.undefineFlags(FORGET)
    error = error_of(nodes, item, "machine_gone")
    assert "migrated to another host" in error.hint
    kept = points_of(nodes.recovery, item)
    assert kept[: len(points)] == points
    assert point_content(nodes.recovery, item, kept[-1])[VDA][:MIB] == b"a" * MIB

    machine.domain = machine.connection.defineXML(text)
    for key in SIZES:
        machine.write(key, MIB, b"b" * (64 * KIB))  # somebody else's writes
    if back == "running":
        machine.domain.create()
        machine.write(VDB, 2 * MIB, b"c" * (64 * KIB))
    next_point(nodes.primary, nodes.recovery, item)
    newest_is_the_machine(nodes, item, machine, short_path)
    disable(nodes, nodes.primary, nodes.recovery, item, 1)
    assert not image_info(machine.images[VDA]).bitmaps  # also those that libvirt had forgotten
