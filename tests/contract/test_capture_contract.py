"""What every adapter of the capture port keeps: run on the fake, on a running machine and on a shut-off one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import libvirt
import pytest

from secondsite.capture.fake import FakeCapture
from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.offline import OfflineCapture
from secondsite.capture.port import Capture, Extent, Snapshot
from secondsite.errors import InvalidInputError, TrackingLostError, UnavailableError
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey
from secondsite.model.units import KIB, MIB
from support.tracked_machines import TrackedMachine

VDA, VDB = DiskKey("vda"), DiskKey("vdb")
SIZES = {VDA: 8 * MIB, VDB: 3 * MIB + 512}
_numbers = itertools.count(1)


class Rig(Protocol):
    """A machine and its capture."""

    capture: Capture
    clock: Callable[[], datetime]

    def write(self, disk: DiskKey, offset: int, data: bytes) -> None: ...

    def leftovers(self) -> bool:
        """Whether anything of an open snapshot is there."""
        ...


class FakeRig:
    def __init__(self) -> None:
        self.clock = ticking()
        self.capture: Capture = FakeCapture(SIZES, clock=self.clock)

    def write(self, disk: DiskKey, offset: int, data: bytes) -> None:
        assert isinstance(self.capture, FakeCapture)
        self.capture.write(disk, offset, data)

    def leftovers(self) -> bool:
        assert isinstance(self.capture, FakeCapture)
        return self.capture.open_snapshots > 0


class LibvirtRig:
    def __init__(self, kind: Any, machine: TrackedMachine, scratch: Path) -> None:
        self.machine = machine
        self.clock = ticking()
        self.capture: Capture = kind(machine.connection, machine.name, SIZES, scratch, clock=self.clock)

    def write(self, disk: DiskKey, offset: int, data: bytes) -> None:
        self.machine.write(disk, offset, data)

    def leftovers(self) -> bool:
        domain = self.machine.domain
        has_job = (
            domain.isActive()
            and domain.jobStats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
        )
        return has_job or any(self.machine.scratch.iterdir())


def ticking() -> Callable[[], datetime]:
    seconds = itertools.count()
    return lambda: datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=next(seconds))


@pytest.fixture(
    params=[
        "fake",
        pytest.param("running", marks=pytest.mark.integration),
        pytest.param("off", marks=pytest.mark.integration),
        pytest.param("running, raw", marks=pytest.mark.integration),
        pytest.param("running, mixed", marks=pytest.mark.integration),
    ]
)
def rig(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    hypervisor: Hypervisor = request.getfixturevalue("hypervisor")
    formats = {
        "running, raw": {VDA: "raw", VDB: "raw"},
        "running, mixed": {VDA: "qcow2", VDB: "raw"},
    }.get(request.param)
    machine = TrackedMachine(hypervisor, short_path, f"contract-{next(_numbers)}", SIZES, formats=formats)
    try:
        if request.param.startswith("running"):
            machine.start()
            yield LibvirtRig(LibvirtCapture, machine, machine.scratch)
        else:
            yield LibvirtRig(OfflineCapture, machine, machine.scratch)
    finally:
        machine.remove()


def new_name() -> str:
    return f"ss-{next(_numbers)}"


def content(snapshot: Snapshot, disk: DiskKey) -> bytes:
    image = bytearray(snapshot.disks[disk].size)
    for offset, view in snapshot.disks[disk].read([(0, snapshot.disks[disk].size)]):
        image[offset : offset + len(view)] = view
    return bytes(image)


def covered(extents: list[Extent], offset: int, length: int) -> bool:
    return any(e.offset <= offset and offset + length <= e.offset + e.length for e in extents)


def test_a_first_snapshot_covers_the_whole_disk_and_knows_its_holes(rig: Rig) -> None:
    rig.write(VDA, MIB, b"a" * (64 * KIB))
    with rig.capture.snapshot(since=None, new=new_name()) as snapshot:
        assert set(snapshot.disks) == {VDA, VDB}
        disk = snapshot.disks[VDA]
        assert disk.whole
        assert disk.size == SIZES[VDA]
        assert list(disk.changed()) == [
            Extent(0, MIB, zero=True),
            Extent(MIB, 64 * KIB),
            Extent(MIB + 64 * KIB, SIZES[VDA] - MIB - 64 * KIB, zero=True),
        ]
        assert list(snapshot.disks[VDB].changed()) == [Extent(0, SIZES[VDB], zero=True)]
        image = content(snapshot, VDA)
    assert image == bytes(MIB) + b"a" * (64 * KIB) + bytes(SIZES[VDA] - MIB - 64 * KIB)


def test_the_second_snapshot_names_what_changed_on_each_disk(rig: Rig) -> None:
    rig.write(VDA, 0, b"a" * MIB)
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        since = first.checkpoint
    rig.write(VDA, 5 * MIB, b"b" * 4096)
    rig.write(VDB, 3 * MIB, b"c" * 512)
    with rig.capture.snapshot(since=since, new=new_name()) as second:
        on_a, on_b = (list(second.disks[key].changed()) for key in (VDA, VDB))
        assert not second.disks[VDA].whole
        assert covered(on_a, 5 * MIB, 4096)
        assert covered(on_b, 3 * MIB, 512)
        assert sum(extent.length for extent in on_a) <= 64 * KIB
        assert sum(extent.length for extent in on_b) <= 64 * KIB
        assert content(second, VDB)[3 * MIB :] == b"c" * 512


def test_nothing_changed_means_no_extent(rig: Rig) -> None:
    rig.write(VDA, 0, b"a" * MIB)
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        since = first.checkpoint
    with rig.capture.snapshot(since=since, new=new_name()) as second:
        assert list(second.disks[VDA].changed()) == []
        assert list(second.disks[VDB].changed()) == []


def test_a_range_that_was_zeroed_is_named_as_zero(rig: Rig) -> None:
    rig.write(VDA, 0, b"a" * MIB)
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        since = first.checkpoint
    rig.write(VDA, 256 * KIB, bytes(256 * KIB))
    with rig.capture.snapshot(since=since, new=new_name()) as second:
        assert list(second.disks[VDA].changed()) == [Extent(256 * KIB, 256 * KIB, zero=True)]


def test_a_failed_cycle_is_repeated_from_the_same_checkpoint(rig: Rig) -> None:
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        since = first.checkpoint
    rig.write(VDA, MIB, b"b" * 4096)
    with rig.capture.snapshot(since=since, new=new_name()):
        pass  # and never acknowledged
    rig.write(VDA, 2 * MIB, b"c" * 4096)
    with rig.capture.snapshot(since=since, new=new_name()) as third:
        extents = list(third.disks[VDA].changed())
        assert covered(extents, MIB, 4096)
        assert covered(extents, 2 * MIB, 4096)


def test_forgetting_keeps_what_is_to_be_kept(rig: Rig) -> None:
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        pass
    rig.write(VDA, MIB, b"b" * 4096)
    with rig.capture.snapshot(since=first.checkpoint, new=new_name()) as second:
        pass
    rig.capture.forget(keep={second.checkpoint})
    rig.capture.forget(keep={second.checkpoint})
    rig.write(VDA, 2 * MIB, b"c" * 4096)
    with rig.capture.snapshot(since=second.checkpoint, new=new_name()) as third:
        assert covered(list(third.disks[VDA].changed()), 2 * MIB, 4096)


def test_a_checkpoint_that_was_forgotten_is_tracking_lost_and_a_first_one_works(rig: Rig) -> None:
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        pass
    rig.capture.forget(keep=())
    with pytest.raises(TrackingLostError):
        rig.capture.snapshot(since=first.checkpoint, new=new_name())
    with rig.capture.snapshot(since=None, new=new_name()) as again:
        assert again.disks[VDA].whole
    with rig.capture.snapshot(since=again.checkpoint, new=new_name()) as after:
        assert list(after.disks[VDA].changed()) == []


def test_what_a_dead_process_left_is_tidied_and_tracking_goes_on(rig: Rig) -> None:
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        pass
    rig.write(VDA, MIB, b"b" * 4096)
    left = rig.capture.snapshot(since=first.checkpoint, new=new_name())
    assert rig.leftovers()
    for _ in range(2):
        rig.capture.tidy()
        assert not rig.leftovers()
    with pytest.raises(UnavailableError):
        list(left.disks[VDA].read([(0, MIB)]))
    left.close()
    with rig.capture.snapshot(since=first.checkpoint, new=new_name()) as second:
        assert covered(list(second.disks[VDA].changed()), MIB, 4096)


def test_tidying_keeps_checkpoints(rig: Rig) -> None:
    rig.capture.tidy()
    with rig.capture.snapshot(since=None, new=new_name()) as first:
        pass
    rig.capture.tidy()
    rig.write(VDA, MIB, b"b" * 4096)
    with rig.capture.snapshot(since=first.checkpoint, new=new_name()) as second:
        assert covered(list(second.disks[VDA].changed()), MIB, 4096)


def test_ranges_of_any_size_are_read_in_order(rig: Rig) -> None:
    rig.write(VDA, 0, b"a" * (3 * MIB))
    rig.write(VDA, 3 * MIB, b"b" * (2 * MIB))
    ranges = [(0, 4096), (64 * KIB, 3 * MIB), (4 * MIB, 512), (4 * MIB + 512, 4096)]
    with rig.capture.snapshot(since=None, new=new_name()) as snapshot:
        pieces = [(offset, bytes(view)) for offset, view in snapshot.disks[VDA].read(ranges)]
    assert all(len(data) <= MIB for _, data in pieces)
    assert [offset for offset, _ in pieces] == sorted(offset for offset, _ in pieces)
    image = b"a" * (3 * MIB) + b"b" * (2 * MIB)
    assert sum(len(data) for _, data in pieces) == sum(length for _, length in ranges)
    assert all(image[offset : offset + len(data)] == data for offset, data in pieces)


def test_an_abandoned_read_leaves_the_snapshot_closable(rig: Rig) -> None:
    rig.write(VDA, 0, b"a" * (4 * MIB))
    snapshot = rig.capture.snapshot(since=None, new=new_name())
    reader = snapshot.disks[VDA].read([(0, 4 * MIB)])
    next(reader)
    snapshot.close()
    snapshot.close()


def test_the_time_is_not_later_than_what_the_snapshot_holds(rig: Rig) -> None:
    before = rig.clock()
    with rig.capture.snapshot(since=None, new=new_name()) as snapshot:
        assert before < snapshot.time < rig.clock()
        assert snapshot.definition.text


def test_a_name_that_is_not_ours_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidInputError):
        rig.capture.snapshot(since=None, new="backup-1")
