"""The port's contract, on libvirt and on the fake: one suite, two fixtures. Machines run without a system in them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OperationRefusedError,
    SecondSiteError,
    UnsupportedError,
)
from secondsite.fabric.fake import FakeFabric
from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    CancelledError,
    DiskSource,
    Fabric,
    Labels,
    NbdBacking,
    PowerState,
    ProblemCode,
    ReplicaRole,
    ReplicaSpec,
    VmDefinition,
)
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, Epoch, ItemId

pytestmark = pytest.mark.integration

MIB = 1 << 20
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
ITEM = ItemId("11111111-2222-3333-4444-555555555555")
REPLICA = Labels(ITEM, Epoch(2), ReplicaRole.REPLICA)
TEST = Labels(ITEM, Epoch(1), ReplicaRole.TEST)


@dataclass
class World:
    """A fabric, and what a test does outside of it."""

    fabric: Fabric
    folder: Path
    make_vm: Callable[[str], str]
    """Define a machine that is off, with two disks (64 and 16 MiB) and one interface; return its UUID."""
    view: Callable[[int], NbdBacking]
    """Serve a view of a disk with so many bytes, the first MiB of them not zero."""
    unserve: Callable[[NbdBacking], None]
    set_autostart: Callable[[str, bool], None]
    autostart: Callable[[str], bool]

    def name(self) -> str:
        return f"fx-{uuid4().hex[:8]}"

    def overlay(self, size: int = 64 * MIB) -> DiskSource:
        source = DiskSource(self.folder / f"{uuid4().hex[:8]}.qcow2", self.view(size))
        assert source.backing is not None
        self.fabric.create_overlay(source.overlay, size=size, backing=source.backing, bitmap="start")
        return source

    def replica(self, name: str, *, labels: Labels = REPLICA, uuid: str | None = None) -> ReplicaSpec:
        """What a replica of a machine from elsewhere is defined by."""
        text = SOURCE.format(name=name, uuid=uuid or uuid4())
        return ReplicaSpec(
            name=name,
            definition=VmDefinition(LIBVIRT_FORMAT, text),
            disks={VDA: self.overlay(), VDB: self.overlay(16 * MIB)},
            networks={},
            labels=labels,
            new_identity=labels.role is ReplicaRole.TEST,
        )


SOURCE = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/elsewhere/a.qcow2'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/elsewhere/b.qcow2'/>
<target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/elsewhere/swap.qcow2'/>
<target dev='vdc' bus='virtio'/></disk>
<interface type='network'><mac address='52:54:00:12:34:56'/><source network='at-source'/><model type='virtio'/></interface>
<serial type='file'><source path='/elsewhere/console'/></serial>
<memballoon model='none'/>
</devices></domain>
"""
HERE = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{vda}'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{vdb}'/><target dev='vdb' bus='virtio'/></disk>
<interface type='user'><mac address='52:54:00:12:34:57'/><model type='virtio'/></interface>
<memballoon model='none'/>
</devices></domain>
"""


def fake_world(folder: Path) -> Iterator[World]:
    fabric = FakeFabric()

    def make_vm(name: str) -> str:
        disks = {VDA: (folder / f"{name}-a.qcow2", 64 * MIB), VDB: (folder / f"{name}-b.qcow2", 16 * MIB)}
        fabric.add_network("production", isolated=False)
        fabric.deaf.add(name)  # as a machine without a system in it
        return fabric.add_vm(name, disks, networks=["production"], power=PowerState.OFF).uuid

    def set_autostart(vm: str, on: bool) -> None:
        text = fabric.definition(vm).text
        fabric.add_xml(text, autostart=on)

    yield World(
        fabric,
        folder,
        make_vm,
        view=lambda _size: NbdBacking(folder / f"{uuid4().hex[:6]}.sock", "disk"),
        unserve=lambda backing: fabric.unserve(backing.socket),
        set_autostart=set_autostart,
        autostart=fabric.autostart,
    )


def libvirt_world(hypervisor: Hypervisor, folder: Path) -> Iterator[World]:
    fabric = LibvirtFabric(hypervisor.uri)
    connection = hypervisor.connect()
    servers: dict[Path, int] = {}
    before = {domain.UUIDString() for domain in connection.listAllDomains()}

    def make_vm(name: str) -> str:
        paths = {}
        for key, size in ((VDA, 64 * MIB), (VDB, 16 * MIB)):
            path = paths[key] = hypervisor.storage / f"{name}-{key}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
            hypervisor.own(path)
        uuid = str(uuid4())
        connection.defineXML(HERE.format(name=name, uuid=uuid, **paths))
        return uuid

    def view(size: int) -> NbdBacking:
        base, socket = folder / f"{uuid4().hex[:6]}.raw", folder / f"{uuid4().hex[:6]}.sock"
        with base.open("wb") as file:
            file.write(os.urandom(MIB))
            file.truncate(size)
        command = ["qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-k", socket, "-x", "disk", "--fork"]
        pid_file = folder / f"{socket.name}.pid"
        subprocess.run([*command, "--pid-file", pid_file, base], check=True)
        socket.chmod(0o777)
        servers[socket] = int(pid_file.read_text())
        return NbdBacking(socket, "disk")

    def unserve(backing: NbdBacking) -> None:
        os.kill(servers.pop(backing.socket), signal.SIGKILL)

    folder.chmod(0o755)
    yield World(
        fabric,
        hypervisor.storage,
        make_vm,
        view=view,
        unserve=unserve,
        set_autostart=lambda vm, on: connection.lookupByUUIDString(vm).setAutostart(int(on)),
        autostart=lambda vm: bool(connection.lookupByUUIDString(vm).autostart()),
    )
    for domain in connection.listAllDomains():
        if domain.UUIDString() not in before:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(0x1F & ~0x8)
    connection.close()
    fabric.close()
    for pid in servers.values():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=["fake", "libvirt"])
def world(request: pytest.FixtureRequest, short_path: Path) -> Iterator[World]:
    if request.param == "fake":
        yield from fake_world(short_path)
    else:
        yield from libvirt_world(request.getfixturevalue("hypervisor"), short_path)


@pytest.fixture
def fabric(world: World) -> Fabric:
    return world.fabric


# -- what is there -------------------------------------------------------------------------------------------


def test_inventory_lists_a_machine_with_the_sizes_of_its_disks(world: World, fabric: Fabric) -> None:
    name = world.name()
    uuid = world.make_vm(name)
    inventory = fabric.inventory()
    (vm,) = [vm for vm in inventory.vms if vm.uuid == uuid]
    assert (vm.name, vm.power, vm.labels, vm.locked) == (name, PowerState.OFF, None, None)
    assert [(disk.key, disk.size, disk.format) for disk in vm.disks] == [
        ("vda", 64 * MIB, "qcow2"),
        ("vdb", 16 * MIB, "qcow2"),
    ]
    assert vm.protectable
    assert vm == fabric.find(uuid)
    assert inventory.host.cpus >= 1
    assert inventory.host.memory > 1 << 28


def test_inventory_of_a_running_machine_has_sizes_too(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    fabric.start(uuid)
    (vm,) = [vm for vm in fabric.inventory().vms if vm.uuid == uuid]
    assert [disk.size for disk in vm.disks] == [64 * MIB, 16 * MIB]
    assert vm.power is PowerState.RUNNING


def test_a_machine_whose_image_is_gone_is_listed_with_the_problem(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    path = fabric.find(uuid).disks[1].path
    assert path is not None
    path.unlink()
    vm = fabric.find(uuid)
    assert [problem.code for problem in vm.disks[1].problems] == [ProblemCode.DISK_MISSING]
    assert [problem.code for problem in vm.problems] == [ProblemCode.DISK_LEFT_OUT]
    assert vm.protectable  # without that disk


def test_a_machine_is_found_by_name_and_by_uuid(world: World, fabric: Fabric) -> None:
    name = world.name()
    uuid = world.make_vm(name)
    assert fabric.find(name) == fabric.find(uuid)


@pytest.mark.parametrize("vm", ["no-such-machine", "00000000-0000-4000-8000-000000000000"])
def test_an_unknown_machine_is_not_found(fabric: Fabric, vm: str) -> None:
    for call in (fabric.find, fabric.power, fabric.definition, fabric.start, fabric.power_off, fabric.locked):
        with pytest.raises(NotFoundError):
            call(vm)


# -- power ---------------------------------------------------------------------------------------------------


def test_start_and_power_off_are_observed_and_may_be_repeated(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    for _ in range(2):
        fabric.start(uuid)
        assert fabric.power(uuid) is PowerState.RUNNING
    for _ in range(2):
        fabric.power_off(uuid)
        assert fabric.power(uuid) is PowerState.OFF


def test_shutdown_of_a_deaf_guest_gives_up_in_time_and_leaves_it_running(
    world: World, fabric: Fabric
) -> None:
    uuid = world.make_vm(world.name())
    fabric.start(uuid)
    assert fabric.shutdown(uuid, timeout_s=0.3) is False
    assert fabric.power(uuid) is PowerState.RUNNING


def test_shutdown_of_a_machine_that_is_off_succeeds(world: World, fabric: Fabric) -> None:
    assert fabric.shutdown(world.make_vm(world.name()), timeout_s=0) is True


def test_shutdown_stops_waiting_when_it_is_cancelled(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    fabric.start(uuid)
    with pytest.raises(CancelledError):
        fabric.shutdown(uuid, timeout_s=3600, cancelled=lambda: True)
    assert fabric.power(uuid) is PowerState.RUNNING


def test_a_suspended_machine_stands_still_until_it_is_resumed(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    assert not fabric.suspend(uuid)  # it is off
    assert not fabric.resume(uuid)
    assert fabric.power(uuid) is PowerState.OFF  # a resume starts nothing
    fabric.start(uuid)
    assert fabric.suspend(uuid)
    assert fabric.power(uuid) is PowerState.PAUSED
    assert not fabric.suspend(uuid)  # whoever asks second has not paused it
    for _ in range(2):
        assert fabric.resume(uuid)
        assert fabric.power(uuid) is PowerState.RUNNING


def test_start_fails_when_an_image_is_missing(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    path = fabric.find(uuid).disks[0].path
    assert path is not None
    path.unlink()
    with pytest.raises(SecondSiteError):
        fabric.start(uuid)
    assert fabric.power(uuid) is PowerState.OFF


# -- the lock ------------------------------------------------------------------------------------------------


def test_a_locked_machine_does_not_start_and_tells_why(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    fabric.lock_power(uuid, "failed over to the second site")
    with pytest.raises(OperationRefusedError, match="failed over to the second site"):
        fabric.start(uuid)
    vm = fabric.find(uuid)
    assert vm.power is PowerState.OFF
    assert vm.locked == fabric.locked(uuid) == "failed over to the second site"
    assert ProblemCode.LOCKED in [problem.code for problem in vm.problems]
    assert not vm.protectable


def test_unlock_gives_back_exactly_what_was_locked(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    world.set_autostart(uuid, True)
    before = fabric.definition(uuid)
    fabric.lock_power(uuid, "failed over")
    assert world.autostart(uuid) is False
    fabric.lock_power(uuid, "another reason")
    assert fabric.locked(uuid) == "another reason"
    assert fabric.definition(uuid) == before
    for _ in range(2):
        fabric.unlock_power(uuid)
        assert fabric.definition(uuid) == before
        assert fabric.locked(uuid) is None
        assert world.autostart(uuid) is True
    fabric.start(uuid)


def test_a_lock_hides_no_disk_and_adds_none(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    before = fabric.find(uuid)
    fabric.lock_power(uuid, "failed over")
    after = fabric.find(uuid)
    assert (after.disks, after.nics) == (before.disks, before.nics)


def test_a_running_machine_can_be_locked_and_goes_on(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    fabric.start(uuid)
    fabric.lock_power(uuid, "failed over")
    assert fabric.power(uuid) is PowerState.RUNNING
    fabric.power_off(uuid)
    with pytest.raises(OperationRefusedError):
        fabric.start(uuid)


def test_any_reason_can_be_locked_with(world: World, fabric: Fabric) -> None:
    uuid = world.make_vm(world.name())
    before = fabric.definition(uuid)
    fabric.lock_power(uuid, "Ausfall <&\"'> ../../etc %s\n zweite Zeile: ü")
    assert fabric.locked(uuid) == "Ausfall <&\"'> ../../etc %s zweite Zeile: ü"
    with pytest.raises(OperationRefusedError):
        fabric.start(uuid)
    fabric.unlock_power(uuid)
    assert fabric.definition(uuid) == before


# -- replicas ------------------------------------------------------------------------------------------------


def test_an_overlay_is_kept_if_it_is_the_same_and_refused_if_not(world: World, fabric: Fabric) -> None:
    source = world.overlay()
    assert source.backing is not None
    fabric.create_overlay(source.overlay, size=64 * MIB, backing=source.backing, bitmap="start")
    for changed in ({"size": 32 * MIB}, {"bitmap": "other"}, {"backing": world.view(64 * MIB)}):
        wanted = {"size": 64 * MIB, "backing": source.backing, "bitmap": "start"} | changed
        with pytest.raises(ConflictError):
            fabric.create_overlay(source.overlay, **wanted)  # type: ignore[arg-type]


def test_a_replica_runs_on_its_views_under_its_sources_identity(world: World, fabric: Fabric) -> None:
    uuid = str(uuid4())
    spec = world.replica(world.name(), uuid=uuid)
    vm = fabric.define_replica(spec)
    assert (vm.uuid, vm.name, vm.labels, vm.power) == (uuid, spec.name, REPLICA, PowerState.OFF)
    assert [(disk.key, disk.path) for disk in vm.disks] == [
        (key, source.overlay) for key, source in spec.disks.items()
    ]  # vdc was excluded: it does not exist
    fabric.start(uuid)
    assert not fabric.standalone(uuid)


def test_an_interface_that_is_not_mapped_stays_but_is_disconnected(world: World, fabric: Fabric) -> None:
    vm = fabric.define_replica(world.replica(world.name()))
    assert [(nic.mac, nic.network, nic.model) for nic in vm.nics] == [("52:54:00:12:34:56", None, "virtio")]
    fabric.start(vm.uuid)


def test_a_mapped_interface_is_connected(world: World, fabric: Fabric) -> None:
    spec = replace(world.replica(world.name()), networks={"at-source": "user"})
    assert [nic.network for nic in fabric.define_replica(spec).nics] == ["user"]


def test_a_mapping_to_an_unknown_network_is_refused(world: World, fabric: Fabric) -> None:
    spec = replace(world.replica(world.name()), networks={"at-source": "no-such-network"})
    with pytest.raises(NotFoundError):
        fabric.define_replica(spec)
    with pytest.raises(NotFoundError):
        fabric.find(spec.name)


def test_a_replica_may_be_defined_again_while_it_is_off(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    first = fabric.define_replica(spec)
    assert fabric.define_replica(spec) == first
    newer = Labels(ITEM, Epoch(4), ReplicaRole.REPLICA)
    assert fabric.define_replica(replace(spec, labels=newer)).labels == newer
    fabric.start(first.uuid)
    with pytest.raises(ConflictError):
        fabric.define_replica(spec)


def test_a_test_gets_an_identity_of_its_own_and_keeps_it_when_repeated(world: World, fabric: Fabric) -> None:
    uuid = str(uuid4())
    spec = world.replica(world.name(), labels=TEST, uuid=uuid)
    vm = fabric.define_replica(spec)
    assert vm.uuid != uuid
    assert fabric.define_replica(spec).uuid == vm.uuid
    assert ProblemCode.OURS in [problem.code for problem in vm.problems]


@pytest.mark.parametrize("labels", [REPLICA, TEST])
def test_a_replica_never_takes_the_place_of_a_machine_that_is_not_ours(
    world: World, fabric: Fabric, labels: Labels
) -> None:
    name = world.name()
    uuid = world.make_vm(name)
    before = fabric.definition(uuid)
    same_uuid = labels is REPLICA
    with pytest.raises(ConflictError):
        fabric.define_replica(world.replica(name, labels=labels))
    if same_uuid:
        with pytest.raises(ConflictError):
            fabric.define_replica(world.replica(world.name(), uuid=uuid))
    assert fabric.definition(uuid) == before


def test_a_replica_without_its_overlay_is_refused(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    spec.disks[VDB].overlay.unlink()
    with pytest.raises(NotFoundError):
        fabric.define_replica(spec)


def test_disks_that_the_definition_does_not_have_are_refused(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    with pytest.raises(InvalidInputError, match="vdx"):
        fabric.define_replica(replace(spec, disks={**spec.disks, DiskKey("vdx"): world.overlay()}))


def test_a_machine_with_a_device_of_its_host_is_refused(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    device = "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x1'/></source></hostdev>"
    text = spec.definition.text.replace("<serial", device + "<serial")
    with pytest.raises(UnsupportedError):
        fabric.define_replica(replace(spec, definition=VmDefinition(LIBVIRT_FORMAT, text)))


def test_machines_of_ours_are_listed(world: World, fabric: Fabric) -> None:
    other = world.make_vm(world.name())
    vm = fabric.define_replica(world.replica(world.name()))
    test = fabric.define_replica(world.replica(world.name(), labels=TEST))
    ours = {vm.uuid: vm.labels for vm in fabric.list_ours()}
    assert ours[vm.uuid] == REPLICA
    assert ours[test.uuid] == TEST
    assert other not in ours


@pytest.mark.parametrize("running", [True, False])
def test_a_replica_is_made_to_stand_alone(world: World, fabric: Fabric, running: bool) -> None:
    spec = world.replica(world.name())
    vm = fabric.define_replica(spec)
    if running:
        fabric.start(vm.uuid)
    seen: list[tuple[int, int]] = []
    fabric.make_standalone(vm.uuid, progress=lambda done, total: seen.append((done, total)))
    assert fabric.standalone(vm.uuid)
    assert {total for _, total in seen} == {80 * MIB}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fabric.power(vm.uuid) is (PowerState.RUNNING if running else PowerState.OFF)
    for source in spec.disks.values():
        assert source.backing is not None
        world.unserve(source.backing)
    fabric.make_standalone(vm.uuid)
    fabric.power_off(vm.uuid)
    fabric.start(vm.uuid)


@pytest.mark.parametrize("running", [True, False])
def test_making_it_stand_alone_can_be_cancelled_and_repeated(
    world: World, fabric: Fabric, running: bool
) -> None:
    vm = fabric.define_replica(world.replica(world.name()))
    if running:
        fabric.start(vm.uuid)
    with pytest.raises(CancelledError):
        fabric.make_standalone(vm.uuid, cancelled=lambda: True)
    assert not fabric.standalone(vm.uuid)
    fabric.make_standalone(vm.uuid)
    assert fabric.standalone(vm.uuid)


def test_making_it_stand_alone_fails_while_its_view_is_away(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    vm = fabric.define_replica(spec)
    backing = spec.disks[VDB].backing
    assert backing is not None
    world.unserve(backing)
    with pytest.raises(SecondSiteError) as failure:
        fabric.make_standalone(vm.uuid)
    assert failure.value.retry.value == "later"
    assert not fabric.standalone(vm.uuid)


def test_undefine_removes_the_machine_and_its_images_if_asked(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    vm = fabric.define_replica(spec)
    overlays = [source.overlay for source in spec.disks.values()]
    fabric.start(vm.uuid)
    with pytest.raises(ConflictError):
        fabric.undefine(vm.uuid, keep_disks=False)
    with pytest.raises(ConflictError):
        fabric.delete_disks(overlays)
    fabric.power_off(vm.uuid)
    fabric.undefine(vm.uuid, keep_disks=True)
    assert all(path.exists() for path in overlays)
    fabric.undefine(vm.uuid, keep_disks=False)  # unknown by now: no error, and nothing else is touched
    fabric.define_replica(spec)
    fabric.undefine(vm.uuid, keep_disks=False)
    assert not any(path.exists() for path in overlays)
    fabric.delete_disks(overlays)
    with pytest.raises(NotFoundError):
        fabric.find(vm.uuid)


def test_the_way_back_displaces_the_locked_original_and_gives_it_back_if_it_is_given_up(
    world: World, fabric: Fabric
) -> None:
    name = world.name()
    uuid = world.make_vm(name)
    original = fabric.definition(uuid)
    fabric.lock_power(uuid, "failed over")
    spec = replace(
        world.replica(name, uuid=uuid), definition=original, networks={"production": "user", "user": "user"}
    )
    vm = fabric.define_replica(spec)
    assert (vm.uuid, vm.locked, vm.labels) == (uuid, None, REPLICA)
    assert fabric.define_replica(spec).uuid == uuid
    fabric.start(uuid)
    fabric.power_off(uuid)
    fabric.undefine(uuid, keep_disks=False)
    assert fabric.locked(uuid) == "failed over"
    assert fabric.definition(uuid) == original
    fabric.unlock_power(uuid)
    fabric.start(uuid)


def test_once_the_way_back_stands_alone_the_displaced_original_is_gone(world: World, fabric: Fabric) -> None:
    name = world.name()
    uuid = world.make_vm(name)
    fabric.lock_power(uuid, "failed over")
    fabric.define_replica(replace(world.replica(name, uuid=uuid), definition=fabric.definition(uuid)))
    fabric.make_standalone(uuid)
    fabric.undefine(uuid, keep_disks=False)
    with pytest.raises(NotFoundError):
        fabric.find(uuid)


def test_a_replica_can_be_locked_unlocked_and_replaced_in_a_later_round(world: World, fabric: Fabric) -> None:
    spec = world.replica(world.name())
    vm = fabric.define_replica(spec)
    fabric.make_standalone(vm.uuid)
    fabric.lock_power(vm.uuid, "failed back")
    again = Labels(ITEM, Epoch(4), ReplicaRole.REPLICA)
    overlays = {VDA: world.overlay(), VDB: world.overlay(16 * MIB)}
    second = fabric.define_replica(replace(spec, labels=again, disks=overlays))
    assert (second.uuid, second.labels, second.locked) == (vm.uuid, again, None)
    fabric.start(vm.uuid)


def test_autostart_is_set_and_read_back_as_the_hypervisor_has_it(world: World) -> None:
    vm = world.make_vm(world.name())
    assert world.fabric.autostart(vm) is False
    for on in (True, True, False, False):
        world.fabric.set_autostart(vm, on=on)
        assert (world.fabric.autostart(vm), world.autostart(vm)) == (on, on)
    world.set_autostart(vm, True)
    assert world.fabric.autostart(vm) is True
    world.fabric.lock_power(vm, "failed over")
    assert world.fabric.autostart(vm) is False
    with pytest.raises(NotFoundError):
        world.fabric.autostart("no such machine")
    with pytest.raises(NotFoundError):
        world.fabric.set_autostart("no such machine", on=True)


def test_it_may_be_used_by_many_threads_at_once(world: World, fabric: Fabric) -> None:
    uuids = [world.make_vm(world.name()) for _ in range(3)]
    failures: list[BaseException] = []

    def work(uuid: str) -> None:
        try:
            for _ in range(3):
                fabric.lock_power(uuid, "fenced")
                fabric.inventory()
                fabric.unlock_power(uuid)
                assert fabric.locked(uuid) is None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(uuid,)) for uuid in uuids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
