"""Capture under a guest that writes: every point is a strict prefix over both disks, and the guest is never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.port import Snapshot
from secondsite.capture.select import capture_for
from secondsite.capture.watch import free_space
from secondsite.errors import NoSpaceError
from secondsite.lab.console import ConsoleReader
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import check_records, last_record
from secondsite.model.ids import DiskKey
from secondsite.model.units import MIB
from support.capture_sites import has_no_job
from support.guests import running_guest
from support.patience import wait_until
from support.replicas import Replica

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
SIZE = 128 * MIB


def images_of(replica: Replica, folder: Path) -> list[Path]:
    files = []
    for key, image in replica.images.items():
        files.append(folder / f"replica-{key}.raw")
        files[-1].write_bytes(image)
    return files


def test_every_point_under_load_is_a_strict_prefix_over_both_disks(
    hypervisor: Hypervisor, guest_files: GuestFiles, short_path: Path, tmp_path: Path
) -> None:
    replica = Replica({VDA: SIZE, VDB: SIZE}, tmp_path)
    scratch = short_path / "s"
    scratch.mkdir()
    hypervisor.own(scratch)
    with running_guest(hypervisor, guest_files, "capture-load", rate=200, churn=8) as guest:
        assert guest.console is not None
        last = 0
        for cycle in range(4):
            told = guest.console.record()
            replica.cycle(capture_for(hypervisor.uri, "capture-load", SIZES, scratch))
            found = check_records(images_of(replica, tmp_path))
            assert found.problems == ()
            assert found.last >= max(told, last + 1)
            last = found.last
            assert replica.compared == (cycle == 0)
            if cycle:
                assert 0 < sum(replica.shipped.values()) < SIZE // 4
        final = guest.shut_down()
        wait_until(lambda: not guest.domain.isActive())
        replica.cycle(capture_for(hypervisor.uri, "capture-load", SIZES, scratch))
        assert not replica.compared
        images = images_of(replica, tmp_path)
        assert check_records(images).last == final
        for image in images:
            checked = check_filesystem(image)
            assert checked.problems == ()
            assert not checked.needed_recovery
    replica.close()


SIZES = (VDA, VDB)


@contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "scratch", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_guest_that_was_stopped_for_want_of_scratch_space_goes_on(
    guest_files: GuestFiles, short_path: Path
) -> None:
    scratch = short_path / "s"
    # The file system must be there before the hypervisor takes its mount namespace.
    with (
        small_file_system(scratch, MIB),
        Hypervisor(short_path / "h", "small") as hypervisor,
        running_guest(hypervisor, guest_files, "capture-full", rate=2000) as guest,
    ):
        assert guest.console is not None
        capture = LibvirtCapture(hypervisor.uri, "capture-full", SIZES, scratch, scratch_reserve=0)

        def read_until_given_up(snapshot: Snapshot) -> None:
            wait_until(lambda: not list(snapshot.disks[VDA].read([(0, 4096)])), timeout_s=60)

        # It did happen; it may go on too soon for anybody else to see it.
        stopped = pytest.raises(NoSpaceError, match="stopped the guest")
        with capture.snapshot(since=None, new="ss-1") as snapshot, stopped:
            read_until_given_up(snapshot)
        told = guest.console.record()
        assert guest.console.record() >= told
        assert guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        last = guest.shut_down()
        found = check_records(guest.disks)
        assert found.problems == ()
        assert found.last == last


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_guest_that_stops_for_want_of_scratch_space_while_libvirtd_is_away_goes_on_when_it_is_back(
    guest_files: GuestFiles, short_path: Path
) -> None:
    scratch = short_path / "s"
    with (
        small_file_system(scratch, MIB),
        Hypervisor(short_path / "h", "away") as hypervisor,
        running_guest(hypervisor, guest_files, "capture-away", rate=2000) as guest,
    ):
        assert guest.console is not None
        guest.console.record()
        capture = LibvirtCapture(hypervisor.uri, "capture-away", SIZES, scratch, scratch_reserve=0)
        with capture.snapshot(since=None, new="ss-1") as snapshot:
            hypervisor.stop_daemon(kill=True)
            # The guest writes on; its old contents fill the scratch files.
            wait_until(lambda: free_space(scratch) == 0, timeout_s=60)
            hypervisor.start()
            domain = hypervisor.connect().lookupByName("capture-away")
            wait_until(lambda: has_no_job(domain), timeout_s=90)
            wait_until(lambda: domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING, timeout_s=30)
            with pytest.raises(NoSpaceError):
                list(snapshot.disks[VDA].read([(0, 4096)]))
        assert list(scratch.iterdir()) == []
        told = last_record(guest.disks)
        wait_until(lambda: last_record(guest.disks) > told, timeout_s=60)
        domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        assert check_records(guest.disks).problems == ()


def test_a_guest_agent_that_starts_while_a_snapshot_is_open_does_no_harm(
    hypervisor: Hypervisor, guest_files: GuestFiles, short_path: Path, tmp_path: Path
) -> None:
    """libvirt 9.0 may wait 29 s for the agent before it ends the job; nothing is lost, and nothing is left.

    It may also miss that the agent is there, until the agent or libvirtd is started again: docs/status.md.
    """
    replica = Replica({VDA: SIZE, VDB: SIZE}, tmp_path)
    scratch = short_path / "s"
    scratch.mkdir()
    hypervisor.own(scratch)
    with running_guest(hypervisor, guest_files, "capture-agent", agent=True) as guest:
        guest.shut_down()
        wait_until(lambda: not guest.domain.isActive())
        replica.cycle(capture_for(hypervisor.uri, "capture-agent", SIZES, scratch))
        guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        since = replica.checkpoint
        capture = capture_for(hypervisor.uri, "capture-agent", SIZES, scratch)
        with capture.snapshot(since=since, new="ss-agent") as snapshot:
            assert guest.console is not None
            guest.console.close()
            guest.console = ConsoleReader(hypervisor, "capture-agent")
            guest.domain.resume()
            guest.console.wait_for(
                r"SS-FIRST", 120
            )  # the agent was started before; libvirt learns of it after the job
            for disk in snapshot.disks.values():
                list(disk.read([(0, MIB)]))
        assert has_no_job(guest.domain)
        assert list(scratch.iterdir()) == []
        told = guest.console.record()
        replica.cycle(capture_for(hypervisor.uri, "capture-agent", SIZES, scratch))
        assert not replica.compared
        assert check_records(images_of(replica, tmp_path)).last >= told
        assert check_records(images_of(replica, tmp_path)).problems == ()
    replica.close()


_SNAPSHOT_AND_DIE = """
import os, sys
from pathlib import Path
from secondsite.capture.libvirt import LibvirtCapture
capture = LibvirtCapture(sys.argv[1], sys.argv[2], ["vda", "vdb"], Path(sys.argv[3]), scratch_reserve=0)
capture.snapshot(since=None, new="ss-1")
os.kill(os.getpid(), 9)
"""


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_guest_that_a_dead_process_left_without_scratch_space_goes_on(
    guest_files: GuestFiles, short_path: Path
) -> None:
    scratch = short_path / "s"
    with (
        small_file_system(scratch, MIB),
        Hypervisor(short_path / "h", "dead") as hypervisor,
        running_guest(hypervisor, guest_files, "capture-dead", rate=2000) as guest,
    ):
        assert guest.console is not None
        guest.console.record()
        died = subprocess.run(
            [sys.executable, "-c", _SNAPSHOT_AND_DIE, hypervisor.uri, "capture-dead", scratch]
        )
        assert died.returncode == -signal.SIGKILL
        paused = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
        wait_until(lambda: guest.domain.state() == paused, timeout_s=60)
        capture_for(hypervisor.uri, "capture-dead", SIZES, scratch).tidy()
        told = guest.console.record()
        assert guest.console.record() >= told
        assert guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        assert list(scratch.iterdir()) == []
        last = guest.shut_down()
        found = check_records(guest.disks)
        assert found.problems == ()
        assert found.last == last
