"""Capture on real QEMU machines: crashes, shutdowns, leftovers and other people's work."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secondsite.capture.bitmaps import add_bitmap, image_info
from secondsite.capture.checkpoints import adopt_checkpoint
from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.machine import Machine
from secondsite.capture.offline import OfflineCapture
from secondsite.capture.port import Capture, Extent
from secondsite.capture.select import capture_for
from secondsite.errors import (
    NoSpaceError,
    NotFoundError,
    TrackingLostError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.lab.hypervisor import Hypervisor
from secondsite.libvirt_connection import Keepalive
from secondsite.model.ids import DiskKey
from secondsite.model.units import GIB, KIB, MIB
from support.capture_sites import Site, assert_same, has_no_job, snapshot_disk_only
from support.patience import wait_until
from support.replicas import Replica
from support.tracked_machines import TrackedMachine

pytestmark = pytest.mark.integration
VDA, VDB = DiskKey("vda"), DiskKey("vdb")
SIZES = {VDA: 16 * MIB, VDB: 4 * MIB + 512}
_names = (f"capture-{number}" for number in itertools.count())


@pytest.fixture
def site(hypervisor: Hypervisor, short_path: Path) -> Iterator[Site]:
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


# -- cycles ------------------------------------------------------------------------------------------------


def test_cycles_ship_exactly_what_was_written(site: Site, replica: Replica) -> None:
    site.machine.start()
    site.machine.write(VDA, MIB, b"a" * MIB)
    site.machine.write(VDB, 0, b"b" * (8 * KIB))
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: MIB, VDB: 8 * KIB}
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 0, VDB: 0}
    site.machine.write(VDA, MIB + 64 * KIB, b"c" * 512)  # 512 bytes: one block of 4 KiB, not libvirt's 64 KiB
    site.machine.write(VDB, 4 * MIB, b"d" * 512)  # the short block at the end
    site.machine.write(VDA, 8 * MIB, bytes(64 * KIB))  # zeros where zeros are
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 4 * KIB, VDB: 512}
    site.machine.io(VDA, f"discard {MIB} {512 * KIB}")
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 512 * KIB, VDB: 0}
    site.machine.stop()
    assert_same(site, replica)


def test_a_snapshot_does_not_see_later_writes(site: Site) -> None:
    site.machine.start()
    site.machine.write(VDA, 0, b"a" * MIB)
    with site.running().snapshot(since=None, new="ss-1") as snapshot:
        site.machine.write(VDA, 0, b"b" * MIB)
        site.machine.write(VDB, 0, b"b" * MIB)
        data = {key: b"".join(bytes(v) for _, v in snapshot.disks[key].read([(0, MIB)])) for key in SIZES}
    assert data == {VDA: b"a" * MIB, VDB: bytes(MIB)}
    with site.running().snapshot(since="ss-1", new="ss-2") as second:
        assert list(second.disks[VDA].changed()) == [Extent(0, MIB)]
        assert list(second.disks[VDB].changed()) == [Extent(0, MIB)]


def test_a_failed_cycle_loses_nothing(site: Site, replica: Replica) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    site.machine.write(VDA, 0, b"a" * (4 * KIB))
    replica.cycle(site.capture(), acknowledge=False)
    site.machine.write(VDA, MIB, b"b" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 8 * KIB, VDB: 0}
    names = {checkpoint.getName() for checkpoint in site.machine.domain.listAllCheckpoints()}
    assert names == {replica.checkpoint}


def test_a_thin_disk_of_500_gib_is_read_where_it_has_data_only(
    hypervisor: Hypervisor, short_path: Path
) -> None:
    machine = TrackedMachine(hypervisor, short_path, next(_names), {VDA: 500 * GIB})
    try:
        machine.start()
        machine.write(VDA, 400 * GIB, b"a" * (64 * KIB))
        capture = LibvirtCapture(hypervisor.uri, machine.name, [VDA], machine.scratch)
        with capture.snapshot(since=None, new="ss-1") as first:
            data = [extent for extent in first.disks[VDA].changed() if not extent.zero]
        assert data == [Extent(400 * GIB, 64 * KIB)]
        machine.write(VDA, 450 * GIB, b"b" * (64 * KIB))
        with capture.snapshot(since="ss-1", new="ss-2") as second:
            assert list(second.disks[VDA].changed()) == [Extent(450 * GIB, 64 * KIB)]
    finally:
        machine.remove()


# -- power -------------------------------------------------------------------------------------------------


def test_after_a_clean_shutdown_the_offline_capture_goes_on_by_bitmap(site: Site, replica: Replica) -> None:
    site.machine.start()
    site.machine.write(VDA, 0, b"a" * (2 * MIB))
    replica.cycle(site.capture())
    site.machine.write(VDA, MIB, b"b" * (4 * KIB))
    site.machine.stop()

    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 4 * KIB, VDB: 0}
    assert_same(site, replica)
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 0, VDB: 0}

    site.machine.start()
    site.machine.write(VDB, MIB, b"c" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 0, VDB: 4 * KIB}
    site.machine.stop()
    assert_same(site, replica)


def test_a_first_offline_capture_tracks_from_then_on(site: Site, replica: Replica) -> None:
    site.machine.write(VDA, 0, b"a" * MIB)
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: MIB, VDB: 0}
    site.machine.write(VDA, 2 * MIB, b"b" * (4 * KIB))  # by an administrator's qemu tool
    site.machine.start()
    site.machine.write(VDB, 0, b"c" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 4 * KIB, VDB: 4 * KIB}
    site.machine.stop()
    assert_same(site, replica)


@pytest.mark.fault
@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "left off"])
@pytest.mark.parametrize("stored", [True, False], ids=["bitmap stored before", "bitmap never stored"])
def test_a_killed_qemu_is_noticed_and_a_compare_ships_the_difference_only(
    site: Site, replica: Replica, stored: bool, restarted: bool
) -> None:
    site.machine.start()
    site.machine.write(VDA, 0, b"a" * (8 * MIB))
    site.machine.write(VDB, 0, b"a" * MIB)
    replica.cycle(site.capture())
    if stored:
        site.machine.stop()
        site.machine.start()
    site.machine.write(VDA, MIB, b"b" * (4 * KIB))
    site.machine.io(VDB, "flush")
    site.machine.io(VDA, "flush")
    site.machine.io(VDA, f"discard {4 * MIB} {64 * KIB}", "flush")
    site.kill()
    if restarted:
        site.machine.start()
    site.machine.write(VDB, 0, b"c" * (4 * KIB))
    with pytest.raises(TrackingLostError):
        site.capture().snapshot(since=replica.checkpoint, new="ss-lost")
    replica.cycle(site.capture())
    assert replica.compared
    assert replica.shipped == {VDA: 68 * KIB, VDB: 4 * KIB}
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 0, VDB: 0}
    site.machine.stop()
    assert_same(site, replica)
    for image in site.machine.images.values():  # nothing broken is left in the images
        assert list(image_info(image).bitmaps) == [replica.checkpoint]


def test_a_machine_that_starts_during_an_offline_read_is_not_held_up_and_the_read_is_void(site: Site) -> None:
    site.machine.write(VDA, 0, b"a" * (8 * MIB))
    capture = OfflineCapture(site.hypervisor.uri, site.machine.name, SIZES, site.scratch)
    with capture.snapshot(since=None, new="ss-1") as snapshot:
        reader = snapshot.disks[VDA].read([(0, 8 * MIB)])
        next(reader)
        site.machine.start()
        with pytest.raises(UnavailableError):
            list(reader)
        site.machine.stop()
        # Off again, but it ran in between.
        with pytest.raises(UnavailableError):
            list(snapshot.disks[VDA].read([(0, 4096)]))


def test_each_capture_refuses_the_other_state(site: Site) -> None:
    with pytest.raises(UnavailableError):
        site.running().snapshot(since=None, new="ss-1")
    site.machine.start()
    with pytest.raises(UnavailableError):
        OfflineCapture(site.hypervisor.uri, site.machine.name, SIZES, site.scratch).snapshot(
            since=None, new="ss-1"
        )


def test_an_administrators_external_snapshot_does_not_hide_changes(site: Site, replica: Replica) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    site.machine.write(VDA, 0, b"a" * (4 * KIB))
    snapshot_disk_only(site, SIZES)
    site.machine.write(VDA, MIB, b"b" * (4 * KIB))
    site.machine.stop()
    replica.cycle(site.capture())  # shut off: the changes are in two layers' bitmaps
    assert not replica.compared
    assert replica.shipped == {VDA: 8 * KIB, VDB: 0}
    site.machine.start()
    site.machine.write(VDA, 2 * MIB, b"c" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 4 * KIB, VDB: 0}
    site.machine.stop()
    assert_same(site, replica)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_the_replica_follows(site: Site, replica: Replica, seed: int) -> None:
    """Random writes, discards, cycles that succeed or fail, starts, stops and kills: each point is exact."""
    rng = random.Random(seed)

    def write() -> None:
        for _ in range(rng.randint(1, 4)):
            disk = rng.choice([VDA, VDB])
            offset = rng.randrange(0, SIZES[disk] // 512) * 512
            length = min(rng.choice([512, 4 * KIB, 96 * KIB]), SIZES[disk] - offset)
            site.machine.write(disk, offset, bytes([rng.choice([0, rng.randint(1, 255)])]) * length)

    def discard() -> None:
        site.machine.io(VDA, f"discard {rng.randrange(0, 64) * 128 * KIB} {256 * KIB}")

    def power() -> None:
        site.machine.stop() if site.machine.domain.isActive() else site.machine.start()

    def kill() -> None:
        if site.machine.domain.isActive():
            for disk in SIZES:
                site.machine.io(disk, "flush")
            site.kill()

    steps = [write] * 5 + [discard] + [power] * 3 + [kill]
    for _ in range(8):
        for step in rng.choices(steps, k=3):
            step()
        replica.cycle(site.capture(), acknowledge=rng.random() < 0.7)
    replica.cycle(site.capture())
    site.machine.stop()
    assert_same(site, replica)


# -- leftovers and others ----------------------------------------------------------------------------------

_SNAPSHOT_AND_DIE = """
import os, sys
from pathlib import Path
from secondsite.capture.select import capture_for
capture = capture_for(sys.argv[1], sys.argv[2], ["vda", "vdb"], Path(sys.argv[3]))
snapshot = capture.snapshot(since="ss-1", new="ss-2")
next(snapshot.disks["vda"].read([(0, 4 << 20)]))
os.kill(os.getpid(), 9)
"""


@pytest.mark.fault
@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_what_a_killed_process_left_is_cleared_and_its_changes_come_again(site: Site, running: bool) -> None:
    if running:
        site.machine.start()
    site.capture().snapshot(since=None, new="ss-1").close()
    site.machine.write(VDA, 0, b"a" * (4 * MIB))
    died = subprocess.run(
        [sys.executable, "-c", _SNAPSHOT_AND_DIE, site.hypervisor.uri, site.machine.name, site.scratch]
    )
    assert died.returncode == -signal.SIGKILL
    assert list(site.scratch.iterdir())
    with site.capture().snapshot(since="ss-1", new="ss-3") as snapshot:
        assert list(snapshot.disks[VDA].changed()) == [Extent(0, 4 * MIB)]
    assert list(site.scratch.iterdir()) == []


@pytest.mark.fault
@pytest.mark.parametrize("after", ["running", "shut off"])
def test_what_a_killed_process_left_is_tidied_without_a_snapshot(site: Site, after: str) -> None:
    site.machine.start()
    site.capture().snapshot(since=None, new="ss-1").close()
    site.machine.write(VDA, 0, b"a" * (4 * MIB))
    died = subprocess.run(
        [sys.executable, "-c", _SNAPSHOT_AND_DIE, site.hypervisor.uri, site.machine.name, site.scratch]
    )
    assert died.returncode == -signal.SIGKILL
    if after == "shut off":
        site.machine.stop()
    assert list(site.scratch.iterdir())
    site.capture().tidy()
    assert list(site.scratch.iterdir()) == []
    assert has_no_job(site.machine.domain)
    with site.capture().snapshot(since="ss-1", new="ss-3") as snapshot:
        assert list(snapshot.disks[VDA].changed()) == [Extent(0, 4 * MIB)]


def test_a_leftover_is_kept_while_libvirtd_cannot_say_whether_its_job_runs(site: Site) -> None:
    """Its scratch files are what a guest that stands still is recognized by."""
    site.machine.start()
    capture = impatient(site)
    left = site.scratch / "ss-run-01234567-vda"
    left.touch()
    with hanging(site.hypervisor), pytest.raises(UnavailableError):
        capture.tidy()
    assert left.exists()
    site.capture().tidy()
    assert not left.exists()


def test_somebody_elses_backup_job_is_left_alone(site: Site) -> None:
    site.machine.start()
    elsewhere = site.folder / "other"
    elsewhere.mkdir()
    site.hypervisor.own(elsewhere)
    site.machine.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{elsewhere}/sock'/></domainbackup>",
        None,
        0,
    )
    with pytest.raises(UnavailableError, match="another backup job"):
        site.running().snapshot(since=None, new="ss-1")
    site.running().tidy()
    assert site.machine.domain.backupGetXMLDesc(0)
    site.machine.domain.abortJob()
    wait_until(lambda: has_no_job(site.machine.domain))
    site.running().snapshot(since=None, new="ss-1").close()


def test_somebody_elses_checkpoints_survive_forget(site: Site) -> None:
    site.machine.start()
    site.machine.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    site.running().snapshot(since=None, new="ss-1").close()
    site.running().forget(keep=())
    assert [checkpoint.getName() for checkpoint in site.machine.domain.listAllCheckpoints()] == ["theirs"]
    site.machine.stop()
    site.capture().forget(keep=())
    assert all("theirs" in image_info(image).bitmaps for image in site.machine.images.values())


def test_forgetting_all_of_a_shut_off_machine_leaves_no_bitmap(site: Site) -> None:
    site.machine.start()
    site.running().snapshot(since=None, new="ss-1").close()
    site.machine.stop()
    site.capture().forget(keep=())
    assert site.machine.domain.listAllCheckpoints() == []
    assert all(not image_info(image).bitmaps for image in site.machine.images.values())


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_bitmaps_that_were_there_before_the_first_boot_are_adopted(site: Site, running: bool) -> None:
    for image in site.machine.images.values():
        add_bitmap(image, "ss-reverse")
        add_bitmap(image, "ss-reverse")
    if running:
        site.machine.start()
    site.machine.write(VDA, MIB, b"a" * (64 * KIB))
    machine = Machine(site.hypervisor.uri, site.machine.name, SIZES)
    for _ in range(2):
        adopt_checkpoint(machine, "ss-reverse")
    if not running:
        site.machine.start()
    with site.capture().snapshot(since="ss-reverse", new="ss-1") as snapshot:
        assert list(snapshot.disks[VDA].changed()) == [Extent(MIB, 64 * KIB)]


# -- a libvirtd that hangs -----------------------------------------------------------------------------------

_IMPATIENT = Keepalive(interval_s=1, count=1)
_NOTICED_S = 10.0
"""Far above what keep-alive needs, far below for ever."""


@contextmanager
def hanging(hypervisor: Hypervisor) -> Iterator[None]:
    daemon = hypervisor.daemon
    assert daemon is not None
    # What earlier tests dropped may be a connection, and closing it waits for this daemon as long as that one is patient.
    gc.collect()
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < limit_s, f"it took {took:.1f} s"


def impatient(site: Site) -> Capture:
    return capture_for(site.hypervisor.uri, site.machine.name, SIZES, site.scratch, keepalive=_IMPATIENT)


@pytest.mark.fault
@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_a_libvirtd_that_hangs_makes_every_call_unavailable_in_bounded_time(
    site: Site, running: bool
) -> None:
    if running:
        site.machine.start()
    captures = [impatient(site) for _ in range(3)]
    calls = [
        lambda: impatient(site),
        lambda: captures[0].snapshot(since=None, new="ss-1"),
        lambda: captures[1].forget(keep=()),
        lambda: captures[2].tidy(),
    ]
    with hanging(site.hypervisor):
        for call in calls:
            with within(_NOTICED_S), pytest.raises(UnavailableError):
                call()
    with site.capture().snapshot(since=None, new="ss-2") as snapshot:
        assert snapshot.disks[VDA].whole


@pytest.mark.fault
def test_an_open_snapshot_of_a_libvirtd_that_hangs_is_closed_in_bounded_time(site: Site) -> None:
    site.machine.start()
    snapshot = impatient(site).snapshot(since=None, new="ss-1")
    with hanging(site.hypervisor), within(3 * _NOTICED_S):
        snapshot.close()
    with site.capture().snapshot(since=None, new="ss-2") as again:
        assert again.disks[VDA].whole


# -- scratch space -----------------------------------------------------------------------------------------


def test_a_snapshot_is_not_begun_without_scratch_space(site: Site) -> None:
    site.machine.start()
    capture = LibvirtCapture(
        site.hypervisor.uri, site.machine.name, SIZES, site.scratch, scratch_reserve=1 << 60
    )
    with pytest.raises(NoSpaceError):
        capture.snapshot(since=None, new="ss-1")
    assert has_no_job(site.machine.domain)


def test_a_snapshot_is_given_up_when_scratch_space_runs_low(site: Site) -> None:
    site.machine.start()
    site.machine.write(VDA, 0, b"a" * (12 * MIB))
    capture = site.running()
    snapshot = capture.snapshot(since=None, new="ss-1")
    reader = snapshot.disks[VDA].read([(0, 16 * MIB)])
    next(reader)
    snapshot.closer.__self__._watch._reserve = 1 << 60  # type: ignore[attr-defined]  as if the file system had filled
    wait_until(lambda: has_no_job(site.machine.domain))
    with pytest.raises(NoSpaceError):
        list(reader)
    snapshot.close()
    with site.running().snapshot(since=None, new="ss-2") as again:
        assert again.disks[VDA].whole


# -- what cannot be tracked --------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_replicated_is_refused_by_name_and_others_do_not_matter(
    hypervisor: Hypervisor, short_path: Path
) -> None:
    odd = short_path / "odd.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", odd, "1M"], check=True)
    hypervisor.own(odd)
    more = f"""<disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='{odd}'/>
    <target dev='vdc' bus='virtio'/></disk><disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"""
    machine = TrackedMachine(hypervisor, short_path, next(_names), SIZES, more)
    try:
        for started in (False, True):
            if started:
                machine.start()
            with pytest.raises(UnsupportedError, match="disk vdc"):
                capture_for(hypervisor.uri, machine.name, [VDA, DiskKey("vdc")], machine.scratch).snapshot(
                    since=None, new="ss-1"
                )
            with pytest.raises(NotFoundError, match="vdx"):
                capture_for(hypervisor.uri, machine.name, [VDA, DiskKey("vdx")], machine.scratch).snapshot(
                    since=None, new="ss-1"
                )
        capture = LibvirtCapture(hypervisor.uri, machine.name, SIZES, machine.scratch)
        with capture.snapshot(since=None, new="ss-1") as snapshot:
            assert set(snapshot.disks) == {VDA, VDB}
    finally:
        machine.remove()


def test_an_image_too_old_for_bitmaps_is_refused_with_the_way_out(
    hypervisor: Hypervisor, short_path: Path
) -> None:
    machine = TrackedMachine(hypervisor, short_path, next(_names), SIZES, options="compat=0.10")
    try:
        for start in (lambda: None, machine.start):
            start()
            with pytest.raises(UnsupportedError) as refused:
                capture_for(hypervisor.uri, machine.name, SIZES, machine.scratch).snapshot(
                    since=None, new="ss-1"
                )
            assert "qemu-img amend -o compat=1.1" in refused.value.hint
    finally:
        machine.remove()


def test_a_disk_that_the_checkpoint_does_not_cover_is_tracking_lost(site: Site) -> None:
    site.machine.start()
    LibvirtCapture(site.hypervisor.uri, site.machine.name, [VDA], site.scratch).snapshot(
        since=None, new="ss-1"
    ).close()
    with pytest.raises(TrackingLostError, match="vdb"):
        site.running().snapshot(since="ss-1", new="ss-2")


def test_an_unknown_machine_is_not_found(hypervisor: Hypervisor, short_path: Path) -> None:
    with pytest.raises(NotFoundError):
        capture_for(hypervisor.uri, "nobody-knows", [VDA], short_path)


def test_the_definition_is_the_inactive_one(site: Site) -> None:
    site.machine.start()
    with site.running().snapshot(since=None, new="ss-1") as snapshot:
        root = ET.fromstring(snapshot.definition.text)
    assert root.get("id") is None
    assert root.findtext("name") == site.machine.name


def test_forgetting_works_although_an_image_is_gone(site: Site) -> None:
    site.capture().snapshot(since=None, new="ss-1").close()
    site.machine.images[VDB].unlink()
    site.capture().forget(keep=())
    assert site.machine.domain.listAllCheckpoints() == []
    assert not image_info(site.machine.images[VDA]).bitmaps


@pytest.mark.fault
def test_a_libvirtd_that_is_killed_inside_a_snapshot_loses_no_tracking(short_path: Path) -> None:
    with Hypervisor(short_path / "h", "killed") as hypervisor:
        machine = TrackedMachine(hypervisor, short_path, "capture-daemon", SIZES)
        machine.start()
        capture = LibvirtCapture(hypervisor.uri, machine.name, SIZES, machine.scratch)
        capture.snapshot(since=None, new="ss-1").close()
        machine.write(VDA, 0, b"a" * MIB)
        snapshot = capture.snapshot(since="ss-1", new="ss-2")
        daemon = hypervisor.daemon
        assert daemon is not None
        os.kill(daemon.pid, signal.SIGKILL)
        wait_until(lambda: not hypervisor.is_running)
        # What was begun can be read to its end: the export is QEMU's.
        assert list(snapshot.disks[VDA].changed()) == [Extent(0, MIB)]
        assert b"".join(bytes(view) for _, view in snapshot.disks[VDA].read([(0, MIB)])) == b"a" * MIB
        snapshot.close()  # what was read is a point; the job is cleared away by the next snapshot
        with pytest.raises(UnavailableError):
            capture.snapshot(since="ss-1", new="ss-3")
        hypervisor.start()
        with capture.snapshot(since="ss-1", new="ss-3") as again:
            assert list(again.disks[VDA].changed()) == [Extent(0, MIB)]
        capture.forget(keep={"ss-3"})
        machine.reconnect(hypervisor)
        machine.remove()
