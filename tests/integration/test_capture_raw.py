"""Capture of raw files and block devices, alone and beside qcow2, on real QEMU machines."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from secondsite.capture import raw_marks
from secondsite.capture.port import Extent
from secondsite.errors import TrackingLostError, UnavailableError, UnsupportedError
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from support.capture_sites import Site, assert_same, commit_back, snapshot_disk_only
from support.replicas import Replica
from support.tracked_machines import TrackedMachine, has_loop_devices

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
VDA, VDB, VDC = DiskKey("vda"), DiskKey("vdb"), DiskKey("vdc")
SIZES = {VDA: 8 * MIB, VDB: 4 * MIB + 512, VDC: 4 * MIB}
FORMATS = {VDA: "qcow2", VDB: "raw", VDC: "block"}
needs_block = pytest.mark.skipif(not has_loop_devices(), reason="a block device cannot be made here")
_names = (f"raw-{number}" for number in itertools.count())


@pytest.fixture
def site(hypervisor: Hypervisor, short_path: Path) -> Iterator[Site]:
    """A machine with a disk of each kind."""
    machine = TrackedMachine(hypervisor, short_path, next(_names), SIZES, formats=FORMATS)
    try:
        yield Site(hypervisor, machine, short_path, SIZES)
    finally:
        machine.remove()


@pytest.fixture
def files_only(hypervisor: Hypervisor, short_path: Path) -> Iterator[Site]:
    """The same without the block device."""
    sizes = {VDA: SIZES[VDA], VDB: SIZES[VDB]}
    machine = TrackedMachine(hypervisor, short_path, next(_names), sizes, formats=FORMATS)
    try:
        yield Site(hypervisor, machine, short_path, sizes)
    finally:
        machine.remove()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(SIZES, tmp_path)
    yield replica
    replica.close()


@pytest.fixture
def small_replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica({VDA: SIZES[VDA], VDB: SIZES[VDB]}, tmp_path)
    yield replica
    replica.close()


# -- a machine that runs -------------------------------------------------------------------------------------


def test_cycles_of_mixed_disks_ship_exactly_what_was_written(site: Site, replica: Replica) -> None:
    site.machine.start()
    for key in SIZES:
        site.machine.write(key, MIB, b"a" * MIB)
    replica.cycle(site.capture())
    assert replica.shipped == dict.fromkeys(SIZES, MIB)
    replica.cycle(site.capture())
    assert replica.shipped == dict.fromkeys(SIZES, 0)
    assert not replica.compared
    site.machine.write(VDB, 4 * MIB, b"d" * 512)  # the short block at the end
    site.machine.write(VDC, MIB, b"c" * 512)
    site.machine.io(VDC, f"discard {MIB + 512 * KIB} {64 * KIB}")
    replica.cycle(site.capture(), acknowledge=False)  # a cycle that fails loses nothing
    site.machine.write(VDA, 0, b"b" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 4 * KIB, VDB: 512, VDC: 68 * KIB}
    site.machine.stop()
    assert_same(site, replica)


def test_all_disks_are_cut_at_one_instant(site: Site) -> None:
    site.machine.start()
    site.running().snapshot(since=None, new="ss-1").close()
    for key in SIZES:
        site.machine.write(key, 0, b"a" * (64 * KIB))
    with site.running().snapshot(since="ss-1", new="ss-2") as snapshot:
        for key in SIZES:
            site.machine.write(key, 0, b"b" * (128 * KIB))
        for key, disk in snapshot.disks.items():
            assert list(disk.changed()) == [Extent(0, 64 * KIB)], key
            assert b"".join(bytes(view) for _, view in disk.read([(0, 128 * KIB)])) == b"a" * (
                64 * KIB
            ) + bytes(64 * KIB)
    with site.running().snapshot(since="ss-2", new="ss-3") as third:
        for key, disk in third.disks.items():
            assert list(disk.changed()) == [Extent(0, 128 * KIB)], key


def test_a_write_just_before_or_after_the_instant_is_in_the_right_point_and_never_missed(
    site: Site, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bitmaps of raw disks are not cut in the job's own transaction: they must enclose it."""
    site.machine.start()
    replica.cycle(site.capture())
    begin = libvirt.virDomain.backupBegin

    def begin_under_writes(domain: libvirt.virDomain, *arguments: object) -> int:
        for key in SIZES:
            site.machine.write(key, 0, b"b" * (64 * KIB))
        result = begin(domain, *arguments)
        for key in SIZES:
            site.machine.write(key, MIB, b"c" * (64 * KIB))
        return int(result)

    monkeypatch.setattr(libvirt.virDomain, "backupBegin", begin_under_writes)
    replica.cycle(site.capture())
    monkeypatch.undo()
    for key, image in replica.images.items():
        assert image[: 64 * KIB] == b"b" * (64 * KIB), key
        assert image[MIB : MIB + 64 * KIB] == bytes(64 * KIB), key
    replica.cycle(site.capture())
    assert replica.shipped == dict.fromkeys(SIZES, 64 * KIB)
    assert not replica.compared
    site.machine.stop()
    assert_same(site, replica)


def test_forgetting_leaves_no_bitmap_in_qemu(site: Site) -> None:
    site.machine.start()
    site.running().snapshot(since=None, new="ss-1").close()
    site.running().snapshot(since="ss-1", new="ss-2").close()
    assert bitmaps_in_memory(site) == {"ss-1", "ss-2"}
    site.running().forget(keep={"ss-2"})
    assert bitmaps_in_memory(site) == {"ss-2"}
    site.running().forget(keep=())
    assert bitmaps_in_memory(site) == set()


def test_a_restarted_qemu_has_lost_track_and_a_compare_ships_the_difference_only(
    site: Site, replica: Replica
) -> None:
    site.machine.start()
    for key in SIZES:
        site.machine.write(key, 0, b"a" * (2 * MIB))
    replica.cycle(site.capture())
    site.machine.write(VDB, MIB, b"b" * (4 * KIB))
    site.machine.stop()
    site.machine.start()
    site.machine.write(VDC, MIB, b"c" * (4 * KIB))
    site.machine.io(VDC, f"discard 0 {64 * KIB}")
    with pytest.raises(TrackingLostError, match="vdb"):
        site.running().snapshot(since=replica.checkpoint, new="ss-lost")
    replica.cycle(site.capture())
    assert replica.compared
    assert replica.shipped == {VDA: 0, VDB: 4 * KIB, VDC: 68 * KIB}
    replica.cycle(site.capture())
    assert not replica.compared
    site.machine.stop()
    assert_same(site, replica)


def test_a_snapshot_that_comes_and_goes_between_two_cycles_hides_nothing(
    site: Site, replica: Replica
) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    site.machine.write(VDB, 0, b"a" * (64 * KIB))
    below = snapshot_disk_only(site, SIZES)
    for key in SIZES:
        site.machine.write(key, MIB, b"b" * (64 * KIB))
    site.machine.io(VDC, f"discard {MIB} {4 * KIB}")
    commit_back(site, below)
    site.machine.write(VDC, 2 * MIB, b"c" * (64 * KIB))
    replica.cycle(site.capture())
    site.machine.stop()
    assert_same(site, replica)


def test_under_an_administrators_snapshot_a_raw_disk_is_compared_and_then_tracked_again(
    site: Site, replica: Replica
) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    site.machine.write(VDB, 0, b"a" * (4 * KIB))
    below = snapshot_disk_only(site, SIZES)
    site.machine.write(VDB, MIB, b"b" * (4 * KIB))
    replica.cycle(site.capture())
    assert replica.compared
    assert replica.shipped == {VDA: 0, VDB: 8 * KIB, VDC: 0}
    site.machine.write(VDC, MIB, b"c" * (4 * KIB))
    replica.cycle(site.capture())
    assert not replica.compared  # the overlays are qcow2
    assert replica.shipped == {VDA: 0, VDB: 0, VDC: 4 * KIB}
    commit_back(site, below)
    site.machine.write(VDB, 2 * MIB, b"d" * (4 * KIB))
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 0, VDB: 4 * KIB, VDC: 0}
    site.machine.stop()
    assert_same(site, replica)


# -- a machine that is off -----------------------------------------------------------------------------------


def test_raw_files_of_a_machine_that_stays_off_are_not_read_again(
    files_only: Site, small_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_marks, "SETTLED_S", 0.0)
    site = files_only
    site.machine.write(VDB, 0, b"a" * MIB)
    small_replica.cycle(site.capture())
    for _ in range(2):
        small_replica.cycle(site.capture())
        assert not small_replica.compared
        assert small_replica.shipped == {VDA: 0, VDB: 0}
    site.machine.write(VDA, 0, b"b" * (4 * KIB))  # this one has a bitmap
    small_replica.cycle(site.capture())
    assert not small_replica.compared
    assert small_replica.shipped == {VDA: 4 * KIB, VDB: 0}
    site.machine.write(VDB, MIB, b"b" * (4 * KIB))
    with pytest.raises(TrackingLostError, match="vdb"):
        site.capture().snapshot(since=small_replica.checkpoint, new="ss-lost")
    small_replica.cycle(site.capture())
    assert small_replica.compared
    assert small_replica.shipped == {VDA: 0, VDB: 4 * KIB}
    assert_same(site, small_replica)


def test_a_raw_file_that_was_written_just_now_is_not_vouched_for(
    files_only: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_marks, "SETTLED_S", 3600.0)
    with files_only.capture().snapshot(since=None, new="ss-1") as snapshot:
        assert snapshot.checkpoint == ""


@needs_block
def test_a_block_device_of_a_machine_that_is_off_is_compared_each_time(site: Site, replica: Replica) -> None:
    site.machine.write(VDC, 0, b"a" * MIB)
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 0, VDB: 0, VDC: MIB}
    assert replica.checkpoint == ""
    replica.checkpoint = None
    site.machine.write(VDC, MIB, b"b" * (4 * KIB))
    replica.cycle(site.capture())
    assert replica.shipped == {VDA: 0, VDB: 0, VDC: 4 * KIB}
    assert_same(site, replica)


@needs_block
def test_a_block_device_that_is_written_while_it_is_read_makes_no_point(site: Site) -> None:
    with site.capture().snapshot(since=None, new="ss-1") as snapshot:
        reader = snapshot.disks[VDC].read([(0, 4 * MIB)])
        next(reader)
        site.machine.write(VDC, 0, b"x" * 512)
        with pytest.raises(UnavailableError):
            list(reader)


def test_a_raw_disk_that_looks_like_an_image_is_replicated_to_the_letter(
    files_only: Site, small_replica: Replica
) -> None:
    """A guest may write a qcow2 header, with a backing file of its host, into its disk: it is bytes, no header."""
    site = files_only
    secret = site.folder / "secret"
    secret.write_bytes(b"s" * MIB)
    trap = site.folder / "trap.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", trap, "4M"], check=True
    )
    with site.machine.images[VDB].open("r+b") as disk:
        disk.write(trap.read_bytes())
    small_replica.cycle(site.capture())
    assert_same(site, small_replica)
    assert b"ssss" not in small_replica.images[VDB]
    site.machine.start()
    small_replica.cycle(site.capture())
    site.machine.stop()
    assert_same(site, small_replica)


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_a_raw_file_that_ends_within_a_sector_is_refused(files_only: Site, running: bool) -> None:
    with files_only.machine.images[VDB].open("r+b") as disk:
        disk.truncate(MIB + 100)
    if running:
        files_only.machine.start()
    with pytest.raises(UnsupportedError, match="vdb has 1048676 bytes") as refused:
        files_only.capture().snapshot(since=None, new="ss-1")
    assert "truncate" in refused.value.hint


# -- any history ---------------------------------------------------------------------------------------------


_READ_A_BITMAP_AND_DIE = """
import os, sys
from pathlib import Path
from secondsite.capture.export import ExportDisk
from secondsite.capture.select import capture_for
ExportDisk.marked = lambda self: os.kill(os.getpid(), 9)  # while the frozen bitmap is exported
capture = capture_for(sys.argv[1], sys.argv[2], ["vda", "vdb", "vdc"], Path(sys.argv[3]))
capture.snapshot(since=sys.argv[4], new="ss-dead")
"""


@pytest.mark.fault
def test_bitmaps_and_exports_that_a_killed_process_left_in_qemu_are_cleared(
    site: Site, replica: Replica
) -> None:
    site.machine.start()
    replica.cycle(site.capture())
    site.machine.write(VDB, MIB, b"b" * (64 * KIB))
    arguments = [site.hypervisor.uri, site.machine.name, str(site.scratch), str(replica.checkpoint)]
    died = subprocess.run([sys.executable, "-c", _READ_A_BITMAP_AND_DIE, *arguments])
    assert died.returncode == -signal.SIGKILL
    assert any(name.startswith("ss-frozen-") for name in bitmaps_in_memory(site))
    site.capture().tidy()
    assert list(site.scratch.iterdir()) == []
    replica.cycle(site.capture())
    assert not replica.compared
    assert replica.shipped == {VDA: 0, VDB: 64 * KIB, VDC: 0}
    assert bitmaps_in_memory(site) == {replica.checkpoint}
    site.machine.stop()
    assert_same(site, replica)


class Life:
    """What a guest, its operator and its administrator do to a machine, by chance."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self.site = site
        self.rng = rng
        self.below: dict[DiskKey, Path] = {}
        self.steps = (
            [self.write] * 5 + [self.discard] * 2 + [self.power] * 2 + [self.kill] + [self.snapshot] * 2
        )

    @property
    def runs(self) -> bool:
        return bool(self.site.machine.domain.isActive())

    def step(self) -> None:
        self.rng.choice(self.steps)()

    def write(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            disk = self.rng.choice(list(SIZES))
            offset = self.rng.randrange(0, SIZES[disk] // 512) * 512
            length = min(self.rng.choice([512, 4 * KIB, 96 * KIB]), SIZES[disk] - offset)
            fill = self.rng.choice([0, self.rng.randint(1, 255)])
            self.site.machine.write(disk, offset, bytes([fill]) * length)

    def discard(self) -> None:
        disk = self.rng.choice(list(SIZES))
        self.site.machine.io(disk, f"discard {self.rng.randrange(0, 24) * 128 * KIB} {256 * KIB}")

    def power(self) -> None:
        self.site.machine.stop() if self.runs else self.site.machine.start()

    def kill(self) -> None:
        if self.runs:
            for disk in SIZES:
                self.site.machine.io(disk, "flush")
            self.site.kill()

    def snapshot(self) -> None:
        """An external one, of some disks; then its end."""
        if not self.runs:
            return
        if self.below:
            commit_back(self.site, self.below)
            self.below = {}
        else:
            some = self.rng.sample(list(SIZES), self.rng.randint(1, 3))
            self.below = snapshot_disk_only(self.site, some)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_happens_to_mixed_disks_the_replica_follows(site: Site, replica: Replica, seed: int) -> None:
    """Random writes, discards, cycles that succeed or fail, starts, stops, kills, snapshots: each point is exact."""
    rng = random.Random(seed)
    life = Life(site, rng)
    for _ in range(8):
        for _ in range(3):
            life.step()
        replica.cycle(site.capture(), acknowledge=rng.random() < 0.7)
        replica.checkpoint = replica.checkpoint or None
    replica.cycle(site.capture())
    site.machine.stop()
    assert_same(site, replica)


def bitmaps_in_memory(site: Site) -> set[str]:
    said = json.loads(
        libvirt_qemu.qemuMonitorCommand(
            site.machine.domain,
            json.dumps({"execute": "query-named-block-nodes", "arguments": {"flat": True}}),
            0,
        )
    )
    return {
        bitmap["name"]
        for node in said["return"]
        for bitmap in node.get("dirty-bitmaps", ())
        if bitmap.get("name", "").startswith("ss-") and not bitmap["persistent"]
    }
