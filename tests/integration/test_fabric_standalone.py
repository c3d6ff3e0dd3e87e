"""Standing alone on real QEMU: what was pulled outlives whoever is killed, and counts as changed nowhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import libvirt_qemu
import pytest

from secondsite.fabric import images, standalone
from secondsite.fabric.images import image_info
from secondsite.fabric.live_copy import LiveCopy
from secondsite.fabric.port import CancelledError, HypervisorError, PowerState, VmInfo
from secondsite.fabric.standalone import Standalone
from support.fabric_bench import MIB, Bench, eventually

pytestmark = pytest.mark.integration


class Killed(BaseException):
    """Stands for the end of this process."""


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


@pytest.mark.parametrize("end", ["copied", "cancelled"])
def test_a_machine_outlives_being_looked_at_while_its_copying_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """QEMU 7.2 dies if its block nodes are listed between a job's end and its dismissal."""
    vm = bench.replica(bench.view())
    bench.fabric.start(vm.uuid)
    domain = bench.domain(vm.name)
    real, listed = LiveCopy._call, []

    def call(self: LiveCopy, command: str, arguments: dict[str, Any] | None = None) -> Any:
        answer = real(self, command, arguments)
        if command == "job-cancel":
            listed.append(len(monitor(domain, "query-named-block-nodes")))
        return answer

    monkeypatch.setattr(LiveCopy, "_call", call)
    stop = threading.Event()
    looks: list[PowerState] = []

    def look() -> None:
        while not stop.is_set():
            looks.append(bench.fabric.find(vm.uuid).power)
            bench.fabric.inventory()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        if end == "cancelled":
            pull_slowly(monkeypatch)
            seen: list[int] = []
            with pytest.raises(CancelledError):
                bench.fabric.make_standalone(
                    vm.uuid, progress=lambda done, _total: seen.append(done), cancelled=lambda: bool(seen)
                )
        else:
            bench.fabric.make_standalone(vm.uuid)
            assert bench.fabric.standalone(vm.uuid)
    finally:
        stop.set()
        thread.join(60)
    assert listed
    assert set(looks) == {PowerState.RUNNING}
    assert bench.fabric.power(vm.uuid) is PowerState.RUNNING


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
