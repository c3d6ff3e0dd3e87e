"""A real guest with an agent, frozen for its snapshot: the file systems are clean, and it is always thawed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import libvirt_qemu
import pytest

from secondsite.capture.guest_agent import LibvirtAgent
from secondsite.capture.machine import Machine
from secondsite.capture.port import Capture, Snapshot
from secondsite.capture.quiesce import Quiescer
from secondsite.capture.select import capture_for
from secondsite.errors import SecondSiteError
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import check_records
from secondsite.model.ids import DiskKey
from secondsite.model.units import MIB
from support.guests import Guest, running_guest
from support.patience import wait_until
from support.replicas import Replica

pytestmark = pytest.mark.integration
DISKS = (DiskKey("vda"), DiskKey("vdb"))
SIZE = 128 * MIB


class Quiet:
    """A capture whose snapshots begin with the guest frozen."""

    def __init__(self, capture: Capture, quiescer: Quiescer) -> None:
        self.problems: list[SecondSiteError | None] = []
        self._capture = capture
        self._quiescer = quiescer

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        snapshot, problem = self._quiescer.around(lambda: self._capture.snapshot(since=since, new=new))
        self.problems.append(problem)
        return snapshot

    def forget(self, keep: Collection[str]) -> None:
        self._capture.forget(keep)

    def tidy(self) -> None:
        self._capture.tidy()


def status(guest: Guest) -> str:
    answer = libvirt_qemu.qemuAgentCommand(guest.domain, '{"execute":"guest-fsfreeze-status"}', 5, 0)
    return str(json.loads(answer)["return"])


def quiescer_of(hypervisor: Hypervisor, name: str, folder: Path) -> Quiescer:
    return Quiescer(LibvirtAgent(Machine(hypervisor.uri, name, DISKS)), folder / "frozen")


def test_a_point_of_a_frozen_guest_needs_no_recovery_of_its_file_systems(
    hypervisor: Hypervisor, guest_files: GuestFiles, short_path: Path, tmp_path: Path
) -> None:
    scratch = short_path / "s"
    scratch.mkdir()
    hypervisor.own(scratch)
    replica = Replica(dict.fromkeys(DISKS, SIZE), tmp_path)
    with running_guest(hypervisor, guest_files, "freeze", rate=200, churn=60, agent=True) as guest:
        assert guest.console is not None
        guest.wait_for_agent()
        quiescer = quiescer_of(hypervisor, "freeze", tmp_path)
        assert quiescer.has_guest()
        for _ in range(2):
            told = guest.console.record()
            quiet = Quiet(capture_for(hypervisor.uri, "freeze", DISKS, scratch), quiescer)
            replica.cycle(quiet)
            assert quiet.problems == [None]
            assert status(guest) == "thawed"
            images = []
            for key, content in replica.images.items():
                images.append(tmp_path / f"{key}.raw")
                images[-1].write_bytes(content)
            for image in images:
                checked = check_filesystem(image)
                assert checked.problems == ()
                assert not checked.needed_recovery
            found = check_records(images)
            assert found.problems == ()
            assert found.last >= told
            assert guest.console.record() > found.last  # it went on
        wait_until(lambda: sum("SS-HOOK post-thaw" in line for line in guest.console.lines) == 2)
        said = [line for line in guest.console.lines if line.startswith(("SS-HOOK", "SS-FREEZE", "SS-THAW"))]
        once = [
            "SS-HOOK pre-freeze",
            "SS-FREEZE file-systems=2",
            "SS-THAW file-systems=2",
            "SS-HOOK post-thaw",
        ]
        assert said == once * 2
        assert not (tmp_path / "frozen").exists()
    replica.close()


_FREEZE_AND_DIE = """
import os, sys
from pathlib import Path
from secondsite.capture.guard import ThawGuard
from secondsite.capture.guest_agent import LibvirtAgent
from secondsite.capture.machine import Machine
from secondsite.capture.quiesce import Quiescer
uri, name, marker, limit_s = sys.argv[1:]
agent = LibvirtAgent(Machine(uri, name, ["vda", "vdb"]))
quiescer = Quiescer(agent, Path(marker), limit_s=float(limit_s), guard=ThawGuard(uri, name))
quiescer.around(lambda: os.kill(os.getpid(), 9))
"""


def freeze_and_die(hypervisor: Hypervisor, name: str, marker: Path, limit_s: float) -> None:
    died = subprocess.run(
        [sys.executable, "-c", _FREEZE_AND_DIE, hypervisor.uri, name, str(marker), str(limit_s)],
        env=os.environ,
    )
    assert died.returncode == -signal.SIGKILL


@pytest.mark.fault
def test_a_guest_that_a_dead_process_left_frozen_is_thawed_by_the_next(
    hypervisor: Hypervisor, guest_files: GuestFiles, tmp_path: Path
) -> None:
    with running_guest(hypervisor, guest_files, "freeze-dead", agent=True) as guest:
        assert guest.console is not None
        guest.wait_for_agent()
        freeze_and_die(hypervisor, "freeze-dead", tmp_path / "frozen", 60)
        assert status(guest) == "frozen"  # it did happen
        quiescer = quiescer_of(hypervisor, "freeze-dead", tmp_path)
        assert quiescer.thaw_leftover()
        assert status(guest) == "thawed"
        assert not quiescer.thaw_leftover()
        # And if the node stays dead, the guard that it left thaws when the limit has run out.
        freeze_and_die(hypervisor, "freeze-dead", tmp_path / "frozen", 1)
        wait_until(lambda: status(guest) == "thawed", timeout_s=40)
        wait_until(lambda: not (tmp_path / "frozen").exists())
        guest.console.wait_for("SS-THAW file-systems=2")
        assert guest.shut_down() > 0  # the file systems can be unmounted: nothing hangs in a frozen one


def test_a_machine_without_an_agent_says_so_and_is_not_held_up(
    hypervisor: Hypervisor, guest_files: GuestFiles, tmp_path: Path
) -> None:
    with running_guest(hypervisor, guest_files, "freeze-none") as guest:
        quiescer = quiescer_of(hypervisor, "freeze-none", tmp_path)
        result, problem = quiescer.around(lambda: "begun")
        assert result == "begun"
        assert problem is not None
        assert "agent" in problem.message
        assert not (tmp_path / "frozen").exists()
        (tmp_path / "frozen").touch()  # of a run that had one: nobody is frozen now
        assert quiescer.thaw_leftover()
        guest.domain.destroy()
        assert not quiescer.has_guest()
