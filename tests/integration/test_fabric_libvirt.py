"""The libvirt adapter where the fake cannot follow: tracking through a lock, lost daemons, real guests, views that
come and go, session mode."""

from __future__ import annotations

import os
import signal
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from secondsite.errors import ConflictError, UnavailableError
from secondsite.fabric.domain_xml import LOCK_FOLDER
from secondsite.fabric.images import image_info
from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.port import PowerState, ReplicaRole, VmInfo
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor, Mode
from support.fabric_bench import LABELS, MIB, TINY, Bench, View, eventually
from support.guests import running_guest

pytestmark = pytest.mark.integration


# -- the lock ------------------------------------------------------------------------------------------------


def test_a_lock_keeps_checkpoints_and_the_tracking_in_the_image(bench: Bench) -> None:
    name = bench.tiny()
    bench.fabric.start(name)
    domain = bench.domain(name)
    domain.checkpointCreateXML("<domaincheckpoint><name>cp1</name></domaincheckpoint>", 0)
    bench.fabric.lock_power(name, "failed over")
    bench.fabric.power_off(name)
    assert image_info(bench.hypervisor.storage / f"{name}.qcow2").bitmaps == ("cp1",)
    bench.fabric.unlock_power(name)
    bench.fabric.start(name)
    assert [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()] == ["cp1"]
    socket = bench.folder / "backup.sock"
    bench.folder.chmod(0o777)
    domain.backupBegin(
        "<domainbackup mode='pull'><incremental>cp1</incremental>"
        f"<server transport='unix' socket='{socket}'/></domainbackup>",
        None,
        0,
    )
    domain.abortJob()


def test_libvirt_itself_refuses_to_start_a_locked_machine_and_names_the_reason(bench: Bench) -> None:
    name = bench.tiny()
    bench.fabric.lock_power(name, "failed over to the second site")
    with pytest.raises(libvirt.libvirtError, match=f"{LOCK_FOLDER}/failed over to the second site"):
        bench.domain(name).create()
    assert "locked by Second Site" in bench.domain(name).metadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None)


def console_password(domain: libvirt.virDomain) -> str | None:
    secure = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    graphics = ET.fromstring(secure).find("devices/graphics")
    assert graphics is not None
    return graphics.get("passwd")


def test_a_console_password_is_shown_nowhere_and_survives_lock_failback_and_giving_up(bench: Bench) -> None:
    name = bench.tiny()
    domain = bench.domain(name)
    definition = bench.fabric.definition(name)
    spec = replace(bench.spec(bench.view(), definition.text), name=name)

    def check() -> None:
        assert console_password(domain) == "geheim"
        assert "geheim" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    bench.fabric.lock_power(name, "failed over")
    check()
    bench.fabric.lock_power(name, "still failed over")
    check()
    bench.fabric.define_replica(spec)
    check()
    bench.fabric.undefine(name, keep_disks=True)
    check()
    bench.fabric.unlock_power(name)
    check()
    assert bench.fabric.definition(name) == definition


def test_a_saved_machine_is_not_locked_since_its_saved_state_would_start(bench: Bench) -> None:
    name = bench.tiny()
    bench.fabric.start(name)
    bench.domain(name).managedSave(0)
    with pytest.raises(ConflictError, match="saved"):
        bench.fabric.lock_power(name, "failed over")


# -- the connection ------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_a_daemon_that_was_stopped_or_killed_is_found_again(lone_bench: Bench) -> None:
    name = lone_bench.tiny()
    lone_bench.fabric.start(name)
    for kill in (False, True):
        lone_bench.hypervisor.stop_daemon(kill=kill)
        with pytest.raises(UnavailableError) as failure:
            lone_bench.fabric.find(name)
        assert failure.value.retry.value == "later"
        lone_bench.hypervisor.start()
        assert lone_bench.fabric.find(name).power is PowerState.RUNNING


@pytest.mark.fault
def test_a_daemon_that_hangs_is_noticed(lone_bench: Bench) -> None:
    name = lone_bench.tiny()
    assert lone_bench.fabric.power(name) is PowerState.OFF
    daemon = lone_bench.hypervisor.daemon
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError):
            lone_bench.fabric.inventory()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert lone_bench.fabric.power(name) is PowerState.OFF


# -- replicas of real guests ---------------------------------------------------------------------------------


@pytest.fixture
def replica_guest(bench: Bench, guest_files: GuestFiles) -> Iterator[tuple[VmInfo, View]]:
    """A replica of a lab guest, defined on a view of its disk; its interface is not mapped."""
    name = bench.name()
    (image,) = create_disks(bench.hypervisor.storage, name, count=1, size=128 * MIB, record_area=2 * MIB)
    view = bench.view(image, "qcow2")
    text = domain_xml(name, guest_files, [image], networks=["lab-prod"])
    yield bench.fabric.define_replica(bench.spec(view, text, 128 * MIB)), view
    image.unlink()


def start_with_console(bench: Bench, vm: VmInfo) -> ConsoleReader:
    domain = bench.domain(vm.name)
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    console = ConsoleReader(bench.hypervisor, vm.name)
    bench.fabric.start(vm.uuid)
    return console


def test_a_guest_on_a_view_shuts_down_by_its_power_button(
    bench: Bench, replica_guest: tuple[VmInfo, View]
) -> None:
    vm, _view = replica_guest
    with start_with_console(bench, vm) as console:
        console.record()
        assert bench.fabric.shutdown(vm.uuid, timeout_s=60) is True
        console.wait_for_end()
    assert bench.fabric.power(vm.uuid) is PowerState.OFF


def test_a_guest_shuts_down_by_its_agent(
    hypervisor: Hypervisor, guest_files: GuestFiles, bench: Bench
) -> None:
    with running_guest(hypervisor, guest_files, "fl-agent", count=1, agent=True) as guest:
        guest.wait_for_agent()
        assert bench.fabric.find("fl-agent").agent
        assert bench.fabric.shutdown("fl-agent", timeout_s=60) is True


def test_a_guest_whose_interface_is_not_mapped_reaches_nothing(
    bench: Bench, replica_guest: tuple[VmInfo, View]
) -> None:
    vm, _view = replica_guest
    with start_with_console(bench, vm) as console:
        # User-mode networking would hand out 10.0.2.15 within a second: see the next test.
        assert console.wait_for(r"SS-NET (.*)", 90)[1] == "none"


def test_a_guest_mapped_to_user_mode_gets_an_address(
    bench: Bench, replica_guest: tuple[VmInfo, View]
) -> None:
    vm, view = replica_guest
    text = (
        bench.fabric.definition(vm.uuid)
        .text.replace('<link state="down"/>', "")
        .replace("<link state='down'/>", "")
    )
    bench.fabric.undefine(vm.uuid, keep_disks=False)
    spec = bench.spec(view, text, 128 * MIB)
    connected = bench.fabric.define_replica(replace(spec, networks={"user": "user"}))
    with start_with_console(bench, connected) as console:
        assert console.wait_for(r"SS-NET (.*)", 60)[1].startswith("ip=10.0.2.")


@pytest.mark.fault
def test_a_guest_pauses_while_its_view_is_away_and_runs_on_afterwards(
    bench: Bench, replica_guest: tuple[VmInfo, View]
) -> None:
    vm, view = replica_guest
    assert bench.fabric.resume_if_io_error(vm.uuid) is False  # it is off
    console = start_with_console(bench, vm)
    with console:
        console.record()
        assert bench.fabric.resume_if_io_error(vm.uuid) is False  # it runs
        view.kill()
        eventually(lambda: bench.fabric.find(vm.uuid).io_error)
        assert bench.fabric.resume_if_io_error(vm.uuid) is False
        view.start()
        eventually(lambda: bench.fabric.resume_if_io_error(vm.uuid))
        console.record()
    bench.fabric.make_standalone(vm.uuid)


# -- session mode --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user all other tests are in session mode")
def test_a_session_daemon_of_another_user_runs_replicas_and_locks(short_path: Path) -> None:
    short_path.chmod(0o755)
    with Hypervisor(short_path / "s", "s", mode=Mode.NOBODY) as hypervisor:
        bench = Bench(hypervisor, short_path)
        vm = bench.replica(bench.view())
        bench.fabric.start(vm.uuid)
        bench.fabric.make_standalone(vm.uuid)
        bench.fabric.power_off(vm.uuid)
        bench.fabric.lock_power(vm.uuid, "failed over")
        with pytest.raises(libvirt.libvirtError, match=LOCK_FOLDER):
            bench.domain(vm.name).create()
        bench.fabric.unlock_power(vm.uuid)
        bench.fabric.start(vm.uuid)
        bench.close()


# -- networks ------------------------------------------------------------------------------------------------


def test_a_test_on_an_isolated_network_runs_under_its_originals_mac_address(bench: Bench) -> None:
    if not bench.hypervisor.has_networks:
        pytest.skip("this hypervisor has no networks")
    mac = "52:54:00:77:77:77"
    text = TINY.format(name="x", uuid=uuid4(), image="/e").replace(
        "<interface type='user'>",
        f"<interface type='network'><mac address='{mac}'/><source network='at-source'/>",
    )
    test = replace(LABELS, role=ReplicaRole.TEST)
    base = replace(bench.spec(bench.view(), text), labels=test, new_identity=True)
    isolated = bench.fabric.define_replica(replace(base, networks={"at-source": "lab-test"}))
    assert [(nic.mac, nic.network) for nic in isolated.nics] == [(mac, "lab-test")]
    assert {network.name: network.isolated for network in bench.fabric.inventory().networks}["lab-test"]
    bench.fabric.start(isolated.uuid)


def test_a_machine_that_is_too_busy_to_tell_its_disks_size_is_measured_by_its_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bench.tiny()
    bench.fabric.start(name)
    monkeypatch.setattr("secondsite.fabric.libvirt_inventory._sizes_by_machine", lambda _stats: {})
    fresh = LibvirtFabric(bench.hypervisor.uri)
    try:
        found = next(vm for vm in fresh.inventory().vms if vm.name == name)
    finally:
        fresh.close()
    assert [disk.size for disk in found.disks] == [64 * MIB]
