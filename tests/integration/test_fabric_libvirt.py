"""The libvirt adapter where the fake cannot follow: tracking through a lock, lost daemons, real guests, views that
come and go, session mode."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import libvirt_qemu
import pytest

from secondsite.errors import ConflictError, UnavailableError
from secondsite.fabric import images, standalone
from secondsite.fabric.domain_xml import LOCK_FOLDER
from secondsite.fabric.images import image_info
from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.libvirt_power import Waiting
from secondsite.fabric.live_copy import LiveCopy
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    CancelledError,
    DiskSource,
    HypervisorError,
    Labels,
    NbdBacking,
    PowerState,
    ReplicaRole,
    ReplicaSpec,
    VmDefinition,
    VmInfo,
)
from secondsite.fabric.standalone import Standalone
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor, Mode
from secondsite.model.ids import DiskKey, Epoch, ItemId
from support.guests import running_guest

pytestmark = pytest.mark.integration

MIB = 1 << 20
VDA = DiskKey("vda")
LABELS = Labels(ItemId("11111111-2222-3333-4444-555555555555"), Epoch(2), ReplicaRole.REPLICA)
TINY = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface>
<graphics type='vnc' passwd='geheim'/><memballoon model='none'/></devices></domain>
"""


class Killed(BaseException):
    """Stands for the end of this process."""


class View:
    """A read-only NBD server of an image, as the process that serves a journal's view is."""

    def __init__(self, folder: Path, image: Path, image_format: str = "raw") -> None:
        self.backing = NbdBacking(folder / f"{uuid4().hex[:6]}.sock", "vda")
        self._pid_file = self.backing.socket.with_suffix(".pid")
        command = ["qemu-nbd", "--fork", "-r", "-t", "-e", "8", "-f", image_format, "-x", self.backing.export]
        self._command = [*command, "-k", self.backing.socket, "--pid-file", self._pid_file, image]
        self.pid = 0

    def start(self) -> View:
        self.backing.socket.unlink(missing_ok=True)
        subprocess.run(self._command, check=True)
        self.backing.socket.chmod(0o777)
        self.pid = int(self._pid_file.read_text())
        return self

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0


class Bench:
    """A hypervisor, its fabric, and machines and views that are cleaned up."""

    def __init__(self, hypervisor: Hypervisor, folder: Path) -> None:
        self.hypervisor = hypervisor
        self.fabric = LibvirtFabric(hypervisor.uri, keepalive_interval_s=1, keepalive_count=2)
        self.folder = folder
        self.views: list[View] = []
        self.names: list[str] = []
        folder.chmod(0o755)

    def name(self) -> str:
        self.names.append(f"fl-{uuid4().hex[:8]}")
        return self.names[-1]

    def domain(self, vm: str) -> libvirt.virDomain:
        return self.hypervisor.connect().lookupByName(vm)

    def tiny(self) -> str:
        """Define a machine with one disk and start nothing; return its name."""
        name = self.name()
        image = self.hypervisor.storage / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
        self.hypervisor.own(image)
        self.hypervisor.connect().defineXML(TINY.format(name=name, uuid=uuid4(), image=image))
        return name

    def view(self, image: Path | None = None, image_format: str = "raw") -> View:
        if image is None:
            image = self.folder / f"{uuid4().hex[:6]}.raw"
            image.write_bytes(os.urandom(48 * MIB) + bytes(16 * MIB))
        view = View(self.folder, image, image_format).start()
        self.views.append(view)
        return view

    def spec(self, view: View, text: str | None = None, size: int = 64 * MIB) -> ReplicaSpec:
        name = self.name()
        overlay = self.hypervisor.storage / f"{name}-overlay.qcow2"
        self.fabric.create_overlay(overlay, size=size, backing=view.backing, bitmap="start")
        definition = text or TINY.format(name=name, uuid=uuid4(), image="/elsewhere.qcow2")
        disks = {VDA: DiskSource(overlay, view.backing)}
        return ReplicaSpec(name, VmDefinition(LIBVIRT_FORMAT, definition), disks, {}, LABELS)

    def replica(self, view: View) -> VmInfo:
        return self.fabric.define_replica(self.spec(view))

    def close(self) -> None:
        for name in self.names:
            try:
                self.fabric.power_off(name)
            except Exception:
                continue
            self.fabric.undefine(name, keep_disks=False)
        self.fabric.close()
        for view in self.views:
            view.kill()


@pytest.fixture
def bench(hypervisor: Hypervisor, short_path: Path) -> Iterator[Bench]:
    bench = Bench(hypervisor, short_path)
    yield bench
    bench.close()


@pytest.fixture
def lone_bench(short_path: Path) -> Iterator[Bench]:
    """A bench on a hypervisor of its own, whose daemon may be stopped and killed."""
    with Hypervisor(short_path / "h", "h") as hypervisor:
        bench = Bench(hypervisor, short_path)
        yield bench
        bench.close()


def dirty_bytes(image: Path, bitmap: str, folder: Path) -> int:
    """Bytes that a bitmap of an image at rest names."""
    socket = folder / f"{uuid4().hex[:6]}.sock"
    pid_file = socket.with_suffix(".pid")
    command = [
        "qemu-nbd",
        "--fork",
        "-r",
        "-f",
        "qcow2",
        "-B",
        bitmap,
        "-k",
        socket,
        "--pid-file",
        pid_file,
        image,
    ]
    subprocess.run(command, check=True)
    told = subprocess.run(
        ["nbdinfo", f"--map=qemu:dirty-bitmap:{bitmap}", f"nbd+unix:///?socket={socket}"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in told.stdout.splitlines()]
    return sum(int(length) for _offset, length, flags, *_ in lines if flags == "1")


def qemu_of(bench: Bench, vm: VmInfo) -> int:
    """The process of a running machine."""
    (process,) = [
        process
        for process in bench.hypervisor.guests()
        if f"guest={vm.name}," in " ".join(process.command_line)
    ]
    return process.pid


def monitor(domain: libvirt.virDomain, command: str, **arguments: object) -> Any:
    """Ask QEMU."""
    text = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, text, 0))["return"]


def count_of_bitmap(domain: libvirt.virDomain) -> int:
    """Bytes that the bitmap "start" of a running machine's disk names."""
    counts = [
        bitmap["count"]
        for node in monitor(domain, "query-named-block-nodes")
        for bitmap in node.get("dirty-bitmaps", [])
        if bitmap["name"] == "start" and node["drv"] == "qcow2"
    ]
    (count,) = counts
    return int(count)


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


# -- standing alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_what_is_pulled_does_not_count_as_changed(bench: Bench, running: bool) -> None:
    vm = bench.replica(bench.view())
    if running:
        bench.fabric.start(vm.uuid)
    bench.fabric.make_standalone(vm.uuid)
    (disk,) = vm.disks
    assert disk.path is not None
    if running:
        assert count_of_bitmap(bench.domain(vm.name)) == 0
        bench.fabric.power_off(vm.uuid)
    assert dirty_bytes(disk.path, "start", bench.folder) == 0
    assert image_info(disk.path).backing is None


@pytest.mark.fault
@pytest.mark.parametrize("running", [True, False])
def test_what_stands_alone_keeps_what_was_pulled_when_its_qemu_is_killed(bench: Bench, running: bool) -> None:
    """QEMU had the map of what it copied in its memory only: the disk read as zeros, and its view was given up."""
    image = bench.folder / "point.raw"
    image.write_bytes(os.urandom(64 * MIB))
    vm = bench.replica(bench.view(image))
    if running:
        bench.fabric.start(vm.uuid)
    bench.fabric.make_standalone(vm.uuid)
    if not running:
        bench.fabric.start(vm.uuid)
    os.kill(qemu_of(bench, vm), signal.SIGKILL)
    eventually(lambda: bench.fabric.power(vm.uuid) is PowerState.OFF)
    (disk,) = vm.disks
    assert disk.path is not None
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", disk.path, image]
    assert subprocess.run(compare, check=False).returncode == 0


@pytest.mark.fault
@pytest.mark.parametrize(("begun_by_hand", "started_again"), [(False, False), (False, True), (True, False)])
def test_an_image_without_a_backing_is_whole_also_if_its_qemu_is_killed_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, begun_by_hand: bool, started_again: bool
) -> None:
    """QEMU gave up the backing first, and wrote where the copies lie when the guest flushed: the next try, which had
    only the header to go by, took zeros for a machine that stands alone."""
    content = bench.folder / "point.raw"
    content.write_bytes(os.urandom(64 * MIB))
    vm = bench.replica(bench.view(content))
    (disk,) = vm.disks
    assert disk.path is not None
    bench.fabric.start(vm.uuid)
    if begun_by_hand:
        in_bytes = libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES
        bench.domain(vm.name).blockPull("vda", MIB, in_bytes)  # 64 s, were it left alone
    backings = []

    def kill(_standalone: Standalone, _domain: object) -> bool:
        backings.append(image_info(disk.path).backing)
        os.kill(qemu_of(bench, vm), signal.SIGKILL)
        eventually(lambda: bench.fabric.power(vm.uuid) is PowerState.OFF)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Standalone, "_is_durable", kill)
        with pytest.raises(Killed):
            bench.fabric.make_standalone(vm.uuid)
    assert backings == [None]
    if started_again:
        bench.fabric.start(vm.uuid)
    bench.fabric.make_standalone(vm.uuid)
    bench.fabric.power_off(vm.uuid)
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", disk.path, content]
    assert subprocess.run(compare, check=False).returncode == 0


def test_what_was_copied_is_synced_before_its_backing_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut takes away is all that was not synced."""
    vm = bench.replica(bench.view())
    (disk,) = vm.disks
    assert disk.path is not None
    bench.fabric.start(vm.uuid)
    steps = []

    def noting(step: str) -> Callable[..., None]:
        real = getattr(standalone, step)

        def run(*args: object) -> None:
            real(*args)
            steps.append((step, image_info(disk.path).backing is not None))

        return run

    for step in ("fsync_file", "flush"):
        monkeypatch.setattr(standalone, step, noting(step))
    bench.fabric.make_standalone(vm.uuid)
    order = ("fsync_file", "flush", "fsync_file")
    assert steps == [(step, backed) for backed in (True, False) for step in order]


@pytest.mark.fault
def test_an_image_that_says_that_it_stands_alone_does_so_also_if_its_copying_was_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header had no backing any more, and what was copied was in the memory of the tool that was killed."""
    content = bench.folder / "point.raw"
    content.write_bytes(os.urandom(64 * MIB))
    overlay = bench.hypervisor.storage / f"{bench.name()}-overlay.qcow2"
    backing = bench.view(content).backing
    bench.fabric.create_overlay(overlay, size=64 * MIB, backing=backing, bitmap="start")
    kills = []

    def kill_once_alone(monitor: images._Monitor) -> None:
        if image_info(overlay).backing is None:
            kills.append(monitor._process.pid)
            monitor._process.kill()
        end(monitor)

    end = images._Monitor._end
    monkeypatch.setattr(images._Monitor, "_end", kill_once_alone)
    images.stream_offline(overlay, progress=lambda _done, _total: None, cancelled=lambda: False)
    assert len(kills) == 1
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", overlay, content]
    assert subprocess.run(compare, check=False).returncode == 0


def pull_slowly(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Have copying take 8 s, were it left alone; return a list that grows with each copy that begins."""
    begun: list[None] = []

    def start(copy: LiveCopy) -> dict[str, object]:
        begun.append(None)
        return {**real(copy), "speed": 8 * MIB}

    real = LiveCopy._start
    monkeypatch.setattr(LiveCopy, "_start", start)
    return begun


def test_a_machine_that_stops_in_the_middle_is_finished_offline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = bench.view()
    vm = bench.replica(view)
    bench.fabric.start(vm.uuid)
    pull_slowly(monkeypatch)
    began = threading.Event()
    failures: list[BaseException] = []

    def make() -> None:
        try:
            bench.fabric.make_standalone(vm.uuid, progress=lambda _done, _total: began.set())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    assert began.wait(20)
    bench.fabric.power_off(vm.uuid)
    thread.join(60)
    assert failures == []
    assert bench.fabric.standalone(vm.uuid)
    view.kill()
    bench.fabric.start(vm.uuid)


@pytest.mark.fault
def test_a_pull_whose_view_died_keeps_the_backing_and_goes_on_when_the_view_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bench.folder / "point.raw"
    content.write_bytes(os.urandom(64 * MIB))
    view = bench.view(content)
    vm = bench.replica(view)
    (disk,) = vm.disks
    assert disk.path is not None
    bench.fabric.start(vm.uuid)
    with monkeypatch.context() as patch:
        pull_slowly(patch)
        with pytest.raises(HypervisorError, match="before all was there") as failure:
            bench.fabric.make_standalone(vm.uuid, progress=lambda _done, _total: view.kill())
    assert failure.value.retry.value == "later"
    assert image_info(disk.path).backing is not None
    view.start()

    def stands_alone() -> bool:
        with suppress(HypervisorError):  # QEMU looks for the view again after seconds
            bench.fabric.make_standalone(vm.uuid)
        return bench.fabric.standalone(vm.uuid)

    eventually(stands_alone)
    bench.fabric.power_off(vm.uuid)
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", disk.path, content]
    assert subprocess.run(compare, check=False).returncode == 0


def test_what_is_cancelled_in_the_middle_is_begun_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = bench.replica(bench.view())
    bench.fabric.start(vm.uuid)
    seen: list[int] = []
    with monkeypatch.context() as patch:
        begun = pull_slowly(patch)
        with pytest.raises(CancelledError):
            bench.fabric.make_standalone(
                vm.uuid,
                progress=lambda done, _total: seen.append(done),
                cancelled=lambda: max(seen, default=0) > 0,
            )
    assert len(begun) == 1
    (disk,) = vm.disks
    assert disk.path is not None
    assert image_info(disk.path).backing is not None
    assert monitor(bench.domain(vm.name), "query-jobs") == []
    bench.fabric.make_standalone(vm.uuid)
    assert bench.fabric.standalone(vm.uuid)


@pytest.mark.fault
def test_a_pull_survives_the_end_of_its_process_and_a_restart_of_the_daemon(
    lone_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lone_bench.folder / "point.raw"
    content.write_bytes(os.urandom(64 * MIB))
    view = lone_bench.view(content)
    vm = lone_bench.replica(view)
    lone_bench.fabric.start(vm.uuid)
    begun = pull_slowly(monkeypatch)

    def end(_done: int, _total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        lone_bench.fabric.make_standalone(vm.uuid, progress=end)
    lone_bench.hypervisor.stop_daemon(kill=True)
    lone_bench.hypervisor.start()
    domain = lone_bench.domain(vm.name)
    (job,) = monitor(domain, "query-jobs")
    assert job["status"] == "running"
    monitor(domain, "block-job-set-speed", device=job["id"], speed=0)
    lone_bench.fabric.make_standalone(vm.uuid)
    assert len(begun) == 1
    assert lone_bench.fabric.standalone(vm.uuid)
    view.kill()
    assert lone_bench.fabric.power(vm.uuid) is PowerState.RUNNING
    lone_bench.fabric.power_off(vm.uuid)
    (disk,) = vm.disks
    compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(disk.path), str(content)]
    assert subprocess.run(compare, check=False).returncode == 0


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


def eventually(holds: Callable[[], bool]) -> None:
    assert Waiting().until(holds, 60)


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
    monkeypatch.setattr("secondsite.fabric.libvirt_inventory._all_sizes", lambda _connection: {})
    fresh = LibvirtFabric(bench.hypervisor.uri)
    try:
        found = next(vm for vm in fresh.inventory().vms if vm.name == name)
    finally:
        fresh.close()
    assert [disk.size for disk in found.disks] == [64 * MIB]
