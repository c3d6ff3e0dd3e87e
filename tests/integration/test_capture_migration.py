"""A protected machine that is migrated to another host and back: nothing is misread, and nobody believes that it is protected.

What migrates here runs: QEMU opens the disks of a paused machine for writing when it is resumed, not when it has arrived.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from secondsite.capture.bitmaps import image_info
from secondsite.capture.elsewhere import MachineMovedError
from secondsite.errors import RemoteError
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from support.capture_sites import Site, assert_same
from support.hypervisors import HypervisorPair
from support.migrations import migrate
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
QCOW2 = {VDA: 8 * MIB}
_names = (f"moved-{number}" for number in itertools.count())


@pytest.fixture
def other(hypervisor_pair: HypervisorPair) -> Hypervisor:
    """The host that it is migrated to."""
    return hypervisor_pair.recovery


@pytest.fixture
def site(hypervisor_pair: HypervisorPair, short_path: Path) -> Iterator[Site]:
    """A running machine with one qcow2 disk."""
    machine = TrackedMachine(hypervisor_pair.primary, short_path, next(_names), QCOW2)
    machine.domain.create()
    machine.write(VDA, 0, b"a" * MIB)
    yield Site(hypervisor_pair.primary, machine, short_path, QCOW2)
    remove_domains(*hypervisor_pair, prefix=machine.name)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(QCOW2, tmp_path)
    yield replica
    replica.close()


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair
    remove_domains(*hypervisor_pair, prefix="moved-")


def definition_at(hypervisor: Hypervisor, name: str) -> libvirt.virDomain:
    return hypervisor.connect().lookupByName(name)


# -- over two nodes --------------------------------------------------------------------------------------------


def test_a_machine_that_is_migrated_away_is_missed_and_exact_when_it_is_back(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    here, other = hypervisor_pair
    machine = TrackedMachine(here, short_path / "m", next(_names), SIZES, formats={VDB: "raw"})
    machine.domain.create()
    for key in SIZES:
        machine.write(key, 0, b"a" * MIB)
    item = protect(nodes, machine)
    machine.domain = migrate(machine.domain, other, short_path)
    error = error_of(nodes, item, "machine_moved")
    assert "back here" in error.hint
    points = points_of(nodes.recovery, item)
    for key in SIZES:
        machine.write(key, 2 * MIB, b"b" * (64 * KIB))  # over there
    # What is off here is no reason to start the replica beside the machine that runs over there.
    with pytest.raises(RemoteError) as refused:
        nodes.primary.call("source.prepare", item, 1, {"shutdown_timeout_s": 1})
    assert refused.value.code == "machine_moved"
    nodes.primary.call("source.release", item, 1)
    error_of(nodes, item, "machine_moved")
    assert points_of(nodes.recovery, item) == points
    assert point_content(nodes.recovery, item, points[-1])[VDA] == b"a" * MIB + bytes(7 * MIB)

    machine.domain = migrate(machine.domain, here, short_path)
    for key in SIZES:
        machine.write(key, 3 * MIB, b"c" * (64 * KIB))
    next_point(nodes.primary, nodes.recovery, item)
    newest_is_the_machine(nodes, item, machine, short_path)


def test_a_machine_that_left_no_definition_behind_is_missed_and_its_item_can_be_disabled(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    machine = TrackedMachine(hypervisor_pair.primary, short_path / "m", next(_names), QCOW2)
    machine.domain.create()
    item = protect(nodes, machine)
    nodes.primary.daemon.items.change(item, autostart=True)  # as if it had been on when it was protected
    machine.domain = migrate(machine.domain, hypervisor_pair.recovery, short_path, undefine=True)
    error = error_of(nodes, item, "machine_gone")
    assert "migrated to another host" in error.hint
    points = points_of(nodes.recovery, item)
    assert points
    disable(nodes, nodes.primary, nodes.recovery, item, 1)
    assert nodes.primary.daemon.items.find(item) is None


# -- tracking --------------------------------------------------------------------------------------------------


def test_a_migration_waits_for_an_open_snapshot_and_what_is_written_over_there_is_tracked(
    site: Site, replica: Replica, other: Hypervisor
) -> None:
    """On shared storage QEMU hands the bitmap over in the image: also if nobody here saw the machine go and come.

    libvirt waits 30 s for the job, so only a snapshot that is read for longer (a first copy) is in an administrator's way.
    """
    replica.cycle(site.capture())
    site.machine.write(VDA, MIB, b"x" * (64 * KIB))
    moved: list[libvirt.virDomain] = []
    with site.capture().snapshot(since=replica.checkpoint, new="ss-1") as snapshot:
        mover = threading.Thread(
            target=lambda: moved.append(migrate(site.machine.domain, other, site.folder)), daemon=True
        )
        mover.start()
        assert b"".join(bytes(view) for _, view in snapshot.disks[VDA].read([(0, MIB)])) == b"a" * MIB
        assert mover.is_alive()
    mover.join(90)
    (site.machine.domain,) = moved
    site.machine.write(VDA, 2 * MIB, b"b" * (64 * KIB))
    site.machine.domain = migrate(site.machine.domain, site.hypervisor, site.folder)
    site.machine.write(VDA, 3 * MIB, b"c" * (64 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 3 * 64 * KIB}
    site.machine.stop()
    assert_same(site, replica)


def test_the_disk_that_a_copying_migration_leaves_behind_makes_no_point(
    short_path: Path, tmp_path: Path, other: Hypervisor
) -> None:
    """It is not in use and does not change, so points of it would look fresh for ever. libvirtd forgets why it is off."""
    away = short_path / "away.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", away, str(QCOW2[VDA])], check=True)
    other.own(away)
    with Hypervisor(short_path / "h", "h") as here:
        machine = TrackedMachine(here, short_path / "m", next(_names), QCOW2)
        site, replica = Site(here, machine, short_path, QCOW2), Replica(QCOW2, tmp_path)
        try:
            machine.domain.create()
            machine.write(VDA, 0, b"a" * MIB)
            replica.cycle(site.capture())
            image = machine.images[VDA]
            machine.domain = migrate(machine.domain, other, short_path, images={image: away})
            machine.write(VDA, 2 * MIB, b"b" * (64 * KIB))
            with pytest.raises(MachineMovedError):
                replica.cycle(site.capture())
            here.stop_daemon()
            here.start()
            assert definition_at(here, machine.name).state()[1] != libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED
            with pytest.raises(MachineMovedError):
                replica.cycle(site.capture())
            machine.domain = migrate(machine.domain, here, short_path, images={away: image})
            machine.write(VDA, 3 * MIB, b"c" * (64 * KIB))
            replica.cycle(site.capture())
            assert replica.shipped == {VDA: 2 * 64 * KIB}  # whether by a bitmap or by a compare
            machine.stop()
            replica.cycle(site.capture())  # what was noted of its absence is over
            assert_same(site, replica)
        finally:
            replica.close()
            remove_domains(here, other, prefix=machine.name)


def test_a_machine_whose_disk_another_host_writes_to_is_not_read_as_one_that_is_off(
    site: Site, replica: Replica, other: Hypervisor
) -> None:
    """Its definition was taken over there while it was off: libvirt here never heard of it."""
    replica.cycle(site.capture())
    site.machine.stop()
    left = site.machine.domain
    site.machine.domain = migrate(left, other, site.folder)
    with site.capture().snapshot(since=replica.checkpoint, new="ss-1") as snapshot:  # it is off at both
        site.machine.start()  # no lock of ours stands in its way
        with pytest.raises(MachineMovedError, match="vda is open for writing"):
            list(snapshot.disks[VDA].read([(0, MIB)]))
    site.machine.write(VDA, 2 * MIB, b"b" * (64 * KIB))
    with pytest.raises(MachineMovedError, match="vda is open for writing"):
        replica.cycle(site.capture())
    site.machine.stop()
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 64 * KIB}
    assert_same(site, replica)

    # What is forgotten while it runs over there is forgotten by libvirt here; its image is not written to.
    site.machine.start()
    site.capture().forget(keep=())
    assert left.listAllCheckpoints() == []
    site.machine.stop()
    assert list(image_info(site.machine.images[VDA]).bitmaps) == [replica.checkpoint]
    subprocess.run(["qemu-img", "check", "-q", site.machine.images[VDA]], check=True)
