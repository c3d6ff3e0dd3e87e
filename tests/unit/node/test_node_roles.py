"""The source's side of role changes: nothing is written after the last point, and what is taken over is what was sealed."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import (
    ConflictError,
    OperationRefusedError,
    StaleEpochError,
    TrackingLostError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.fabric.fake import FakeImage
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Digest, DiskKey, Epoch, Sequence
from secondsite.model.manifest import PointKind
from secondsite.nbd.image import base_opener, stop_shared
from secondsite.node import images
from secondsite.node.images import bitmaps
from secondsite.node.records import Replica, Role
from secondsite.node.source import commands as source_commands
from secondsite.node.target import adoption
from support.journals import ITEM, VDA, VDB, Model, filled
from support.power import unsynced
from support.role_world import Killed, SourceSide, killed_at, with_real_images

LOCAL = DiskKey("vdc")
TARGET = {"target": {"node": "other", "host": "127.0.0.1", "port": 1}, "policy": {}}


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SourceSide]:
    side = SourceSide(tmp_path)
    yield side
    side.close()


# -- prepare -------------------------------------------------------------------------------------------------


def test_a_prepared_machine_is_off_and_locked_and_a_repetition_answers_with_its_point(
    side: SourceSide,
) -> None:
    first = side.done("source.prepare")
    assert (side.power, side.locked, side.record.role) == (PowerState.OFF, True, Role.PREPARED)
    assert side.done("source.prepare") == first
    assert side.replicators.cycles == 1


@pytest.mark.parametrize("after", ["started", "started and locked", "unlocked"])
def test_a_machine_that_was_started_after_it_was_prepared_is_prepared_again(
    side: SourceSide, after: str
) -> None:
    """It was "prepared" by its record: the next failover took the old point while the machine ran."""
    first = side.done("source.prepare")
    side.fabric.unlock_power(side.vm)
    if after != "unlocked":
        side.fabric.start(side.vm)
    if after == "started and locked":
        side.fabric.lock_power(side.vm, "again")
    second = side.done("source.prepare")
    assert second["sequence"] == first["sequence"] + 1
    assert (side.power, side.locked, side.record.role) == (PowerState.OFF, True, Role.PREPARED)


def test_a_machine_that_was_started_between_its_shutdown_and_its_lock_is_shut_down_again(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went on under the lock, and wrote after the last point."""
    real, once = side.fabric.lock_power, iter([True])

    def lock(vm: str, reason: str) -> None:
        if next(once, False):
            side.fabric.start(vm)
        real(vm, reason)

    seen: list[tuple[PowerState, bool]] = []
    monkeypatch.setattr(side.fabric, "lock_power", lock)
    side.replicators.during = lambda: seen.append((side.power, side.locked))
    side.done("source.prepare")
    assert seen == [(PowerState.OFF, True)]
    assert (side.power, side.locked) == (PowerState.OFF, True)


def test_a_machine_that_is_started_again_and_again_is_not_prepared(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = side.fabric.lock_power

    def lock(vm: str, reason: str) -> None:
        side.start_by_hand()
        real(vm, reason)

    monkeypatch.setattr(side.fabric, "lock_power", lock)
    assert side.refused("source.prepare") == ConflictError.code
    assert (side.record.role, side.replicators.cycles) == (Role.PREPARING, 0)


@pytest.mark.parametrize("left", [PowerState.RUNNING, PowerState.OFF], ids=["runs", "ran"])
def test_a_machine_that_was_started_while_its_last_changes_were_shipped_is_not_prepared(
    side: SourceSide, left: PowerState
) -> None:
    """The failover went on from a point that lacks what the machine wrote since."""

    def start() -> None:
        side.start_by_hand()
        if left is PowerState.OFF:
            side.fabric.power_off(side.vm)

    side.replicators.during = start
    assert side.refused("source.prepare") == ConflictError.code
    assert side.record.role is Role.PREPARING
    side.replicators.during = lambda: None
    side.done("source.prepare")
    assert (side.power, side.locked, side.replicators.cycles) == (PowerState.OFF, True, 2)


def test_a_machine_that_lost_a_protected_disk_is_not_prepared(tmp_path: Path) -> None:
    side = SourceSide(tmp_path)
    side.items.change(ITEM, disks=(VDA, VDB))
    assert side.refused("source.prepare") == ConflictError.code
    assert side.record.role is Role.PREPARING
    side.close()


# -- release -------------------------------------------------------------------------------------------------


def test_a_released_machine_runs_and_is_replicated(side: SourceSide) -> None:
    side.done("source.prepare")
    side.done("source.release")
    assert (side.power, side.locked, side.replicators.running) == (PowerState.RUNNING, False, True)
    assert (side.record.role, side.record.images, side.record.marks) == (Role.SOURCE, {}, {})


def test_a_release_takes_the_epoch_of_its_order(side: SourceSide) -> None:
    """Without an epoch among its arguments it stayed behind the journal's: nothing was replicated any more."""
    side.done("source.prepare")
    side.done("source.release", 2)
    assert side.record.epoch == 2
    assert side.refused("source.prepare", 1) == StaleEpochError.code


def test_a_release_whose_start_fails_replicates_all_the_same_and_a_retry_starts_the_machine(
    side: SourceSide,
) -> None:
    """It was left prepared and unlocked: whoever started it by hand ran an unprotected machine."""
    side.done("source.prepare")
    side.fabric.fail("start", UnavailableError("network default is not active"))
    assert side.refused("source.release", 2) == UnavailableError.code
    assert (side.record.role, side.record.epoch) == (Role.SOURCE, 2)
    assert (side.power, side.locked, side.replicators.running) == (PowerState.OFF, False, True)
    side.done("source.release", 2)
    assert side.power is PowerState.RUNNING


def test_a_release_of_a_machine_that_was_off_leaves_it_off(tmp_path: Path) -> None:
    side = SourceSide(tmp_path, power=PowerState.OFF)
    side.done("source.prepare")
    side.done("source.release")
    assert (side.power, side.locked, side.replicators.running) == (PowerState.OFF, False, True)
    side.close()


def test_a_machine_that_ran_is_started_by_release_also_when_prepare_was_cut_and_repeated(
    side: SourceSide,
) -> None:
    """The repetition finds it off already; it is our shutdown that it finds."""

    def kill() -> None:
        raise Killed

    side.replicators.during = kill
    with pytest.raises(Killed):
        side.act("source.prepare")
    side.reopen()
    side.done("source.prepare")
    side.done("source.release")
    assert side.power is PowerState.RUNNING


def test_a_machine_that_ran_is_started_by_release_also_when_an_earlier_release_was_cut(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared again after the cut, it was found off, and that was taken for its own doing."""
    side.done("source.prepare")

    def kill(*_args: object, **_fields: object) -> None:
        raise Killed

    monkeypatch.setattr(side.items, "change", kill)
    with pytest.raises(Killed):
        side.act("source.release")
    side.reopen()
    assert (side.locked, side.record.role) == (False, Role.PREPARED)
    side.done("source.prepare")
    side.done("source.release")
    assert side.power is PowerState.RUNNING


@pytest.mark.parametrize("before", ["nothing", "rolled back", "failed over and reversed"])
def test_a_release_of_a_prepare_that_did_not_begin_starts_no_machine(side: SourceSide, before: str) -> None:
    """It started machines that their owner had shut down."""
    epoch = 1
    if before == "rolled back":
        side.done("source.prepare")
        side.done("source.release")
    elif before == "failed over and reversed":
        side.stand_by()
        side.fabric.unlock_power(side.vm)
        _committed(side)
        side.done("source.start", epoch := 2, resume=True, **TARGET)
    side.fabric.power_off(side.vm)
    side.fabric.fail("power", UnavailableError("the hypervisor is away"))
    assert side.refused("source.prepare", epoch) == UnavailableError.code
    side.done("source.release", epoch)
    assert side.power is PowerState.OFF


# -- the way back --------------------------------------------------------------------------------------------


def _committed(side: SourceSide) -> None:
    """The machine came here by a failover, and was committed."""
    _, journal = filled(side.root / "journal", points=2)
    manifest = journal.manifest()
    (side.items.folder(ITEM) / "manifest.json").write_bytes(manifest.to_bytes())
    journal.close()
    failover = Replica(
        side.vm, "web", Sequence(2), Digest("d" * 64), checkpoint="ss-boot", started=True, standalone=True
    )
    side.items.change(ITEM, role=Role.ACTIVE, epoch=Epoch(2), failover=failover, acked=None)
    side.replicators.running = False


def test_a_reversal_goes_on_from_the_bitmap_of_the_first_boot(side: SourceSide) -> None:
    _committed(side)
    side.done("source.start", 2, resume=True, **TARGET)
    acked = side.record.acked
    assert acked is not None
    assert (acked.sequence, acked.checkpoint, side.replicators.forgotten) == (2, "ss-boot", 0)


def test_a_reversal_compares_when_the_bitmap_of_the_replica_is_lost(side: SourceSide) -> None:
    """It was refused for ever after the replica's QEMU had been killed."""
    _committed(side)

    def lost() -> None:
        raise TrackingLostError("the bitmap ss-boot is in use")

    side.replicators.adopting = lost
    side.done("source.start", 2, resume=True, **TARGET)
    acked = side.record.acked
    assert acked is not None
    assert (acked.sequence, acked.digest, acked.checkpoint) == (2, "d" * 64, "")
    assert (side.record.role, side.replicators.running) == (Role.SOURCE, True)
    assert (side.replicators.forgotten, side.record.counters["tracking_lost"]) == (1, 1)


def test_a_reversal_goes_on_when_qemu_dies_while_the_bitmap_is_taken_over(side: SourceSide) -> None:
    """It failed, and had to be asked for again."""
    _committed(side)
    tries = iter([True])

    def dies() -> None:
        if next(tries, False):
            side.fabric.power_off(side.record.vm)
            raise UnavailableError("Missing monitor reply object")

    side.replicators.adopting = dies
    side.done("source.start", 2, resume=True, **TARGET)
    acked = side.record.acked
    assert acked is not None
    assert (acked.checkpoint, side.replicators.running) == ("ss-boot", True)


def test_a_reversal_fails_when_the_bitmap_of_a_machine_that_runs_is_refused(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_commands, "NOTICED_S", 0.0)
    _committed(side)
    side.fabric.start(side.record.vm)

    def refused() -> None:
        raise UnavailableError("libvirtd does not answer")

    side.replicators.adopting = refused
    assert side.refused("source.start", 2, resume=True, **TARGET) == UnavailableError.code
    assert side.record.role is Role.ACTIVE


# -- the end of a protection ---------------------------------------------------------------------------------


def test_an_item_is_forgotten_when_qemu_dies_while_its_checkpoints_are_removed(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disable failed, and had to be asked for again."""
    tries = iter([True])

    def forget(_record: object) -> None:
        if next(tries, False):
            side.fabric.power_off(side.record.vm)
            raise UnsupportedError("cannot delete checkpoint for inactive domain")

    monkeypatch.setattr(side.replicators, "forget_checkpoints", forget)
    side.done("source.stop")
    assert side.items.find(ITEM) is None


def test_a_machine_that_was_failed_over_does_not_start_with_its_host_after_disable(tmp_path: Path) -> None:
    """Its autostart came back with the unlock: at the host's next boot it ran beside the other side's."""
    side = SourceSide(tmp_path, autostart=True)
    side.stand_by()
    assert side.done("standby.remove", 2, delete_replica=False) == {"autostart": False}
    assert (side.fabric.autostart(side.vm), side.locked, side.power) == (False, False, PowerState.OFF)
    assert side.items.find(ITEM) is None
    side.close()


def test_a_disk_that_was_never_replicated_outlives_its_machine(tmp_path: Path) -> None:
    """It was deleted with the machine, and nobody else had its data."""
    side = SourceSide(tmp_path, local={LOCAL: tmp_path / "local.qcow2"})
    side.stand_by()
    side.done("standby.remove", 2, delete_replica=True)
    assert side.fabric.inventory().vms == ()
    assert not side.disks[VDA].exists()
    assert (tmp_path / "local.qcow2").exists()
    side.close()


def test_a_disk_that_another_machine_uses_outlives_its_machine(tmp_path: Path) -> None:
    side = SourceSide(tmp_path, disks={VDA: tmp_path / "vda.qcow2", VDB: tmp_path / "vdb.qcow2"})
    side.fabric.add_vm("clone", {VDA: (side.disks[VDB], 1 << 20)}, power=PowerState.OFF)
    side.stand_by()
    side.done("standby.remove", 2, delete_replica=True)
    assert [vm.name for vm in side.fabric.inventory().vms] == ["clone"]
    assert (side.disks[VDA].exists(), side.disks[VDB].exists()) == (False, True)
    side.close()


@pytest.mark.parametrize(("epoch", "kept"), [(1, True), (2, False)])
def test_a_prepared_machine_is_deleted_only_if_the_other_side_took_over(
    side: SourceSide, epoch: int, kept: bool
) -> None:
    """A disable amid a roll back deleted the only machine and its disks."""
    side.done("source.prepare")
    side.done("standby.remove", epoch, delete_replica=True)
    assert [vm.name for vm in side.fabric.inventory().vms] == (["web"] if kept else [])
    assert side.disks[VDA].exists() is kept


# -- the old disks as the base of a journal ------------------------------------------------------------------


class OldSide:
    """A machine on real qcow2 files, with a bitmap of ours each, that was failed over to the other side."""

    def __init__(self, root: Path) -> None:
        (root / "images").mkdir(parents=True)
        self.model, old = filled(root / "old", points=4)
        self.images = {disk: root / "images" / f"{disk}.qcow2" for disk in (VDA, VDB)}
        for disk, image in self.images.items():
            raw = root / f"{disk}.raw"
            raw.write_bytes(self.model.contents[4][disk])
            _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, _below(image))
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", _below(image).name, image)
            _run("qemu-img", "bitmap", "--add", image, "ss-last")
            _run("qemu-img", "bitmap", "--add", image, "theirs")
        run = root / "node" / "state" / "run"
        self.side = SourceSide(root / "node", disks=self.images, open_base=base_opener(run))
        folder = self.side.items.folder(ITEM)
        (folder / "digests").mkdir(parents=True)
        (folder / "manifest.json").write_bytes(old.manifest().to_bytes())
        with old.view(purpose="test") as view:
            for disk in self.images:
                old.digests_at(view, disk, folder / "digests" / f"{disk}.tbl")
        old.close()
        self.side.stand_by()

    def adopt(self, act: Callable[..., Any], epoch: int = 2, after: int = 0) -> Any:
        return act("target.adopt", epoch, source_node="other", policy={}, after=after)

    def check_diverged(self, answer: Mapping[str, Any], epoch: int = 2) -> None:
        """Its journal has one point, pinned for good, that reads as the images do."""
        record = self.side.record
        assert (record.role, record.vm, record.marks, record.diverged) == (Role.TARGET, "", {}, False)
        assert self.side.fabric.inventory().vms == ()
        assert [bitmaps(image) for image in self.images.values()] == [["theirs"]] * 2
        journal = self.side.journals.get(ITEM)
        (point,) = journal.points()
        assert (point.kind, point.sequence, point.digest, point.epoch) == (
            PointKind.DIVERGED,
            answer["sequence"],
            answer["digest"],
            epoch,
        )
        assert [(pin.sequence, pin.owner, pin.lasting) for pin in journal.pins()] == [
            (point.sequence, "diverged", True)
        ]
        assert "<name>web</name>" in journal.manifest().vm.text
        with journal.view(purpose="test", verify=True) as view:
            for disk, image in self.images.items():
                raw = image.with_suffix(".now")
                _run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw)
                assert view.disks[disk].read(0, view.disks[disk].size) == raw.read_bytes()
        assert list(journal.verify()) == []

    def check(self) -> None:
        """It is the target of the other side, from the point that the old disks hold."""
        record = self.side.record
        assert (record.role, record.vm, record.marks) == (Role.TARGET, "", {})
        assert self.side.fabric.inventory().vms == ()
        assert [bitmaps(image) for image in self.images.values()] == [["theirs"]] * 2
        held: Model = self.model
        held.contents = {4: held.contents[4]}
        held.check(self.side.journals.get(ITEM), verify=True)

    def close(self) -> None:
        self.side.close()
        for image in self.images.values():
            stop_shared(image, self.side.folders.run)


@pytest.fixture
def old_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldSide]:
    monkeypatch.setattr(FakeImage, "read", with_real_images(FakeImage.read))
    side = OldSide(tmp_path)
    yield side
    side.close()


def _below(image: Path) -> Path:
    return image.with_name(f"below-{image.name}")


def _run(*arguments: str | Path) -> None:
    subprocess.run(list(map(str, arguments)), check=True, capture_output=True)


def _write(image: Path) -> None:
    _run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0xEE 8k 4k", image)


def _replace(image: Path) -> None:
    copy = image.with_name("copy")
    _run("cp", "--preserve=all", image, copy)
    copy.rename(image)


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "written": _write,
    "replaced": _replace,
    "written below": lambda image: _write(_below(image)),
}


def test_untouched_old_disks_become_the_base_of_the_journal(old_side: OldSide) -> None:
    assert old_side.adopt(old_side.side.done) == {"base": "point"}
    old_side.check()
    assert old_side.adopt(old_side.side.done) == {"base": "point"}


@pytest.mark.parametrize("change", ["written", "replaced", "written below"])
def test_old_disks_that_were_changed_after_the_last_point_are_kept_as_they_are(
    old_side: OldSide, change: str
) -> None:
    """They were refused; before that, every point of the reversed item was wrong where somebody had written."""
    CHANGES[change](old_side.images[VDB])
    answer = old_side.adopt(old_side.side.done)
    assert (answer["base"], answer["sequence"]) == ("diverged", 8)
    assert answer["reason"] == "written to after the last point was sealed: vdb"
    old_side.check_diverged(answer)
    assert old_side.adopt(old_side.side.done) == answer


def test_old_disks_that_are_gone_are_no_base(old_side: OldSide) -> None:
    side = old_side.side
    old_side.images[VDB].unlink()
    for _ in range(2):
        assert old_side.adopt(side.refused) == ConflictError.code
    assert side.record.role is Role.STANDBY
    assert not side.journals.exists(ITEM)
    assert [vm.name for vm in side.fabric.inventory().vms] == ["web"]
    assert side.locked
    assert "ss-last" in bitmaps(old_side.images[VDA])


def test_a_disk_that_was_resized_is_no_base_and_nothing_is_changed(old_side: OldSide) -> None:
    side = old_side.side
    _run("qemu-img", "resize", "-q", "-f", "qcow2", old_side.images[VDA], "1M")
    assert old_side.adopt(side.refused) == ConflictError.code
    assert [vm.name for vm in side.fabric.inventory().vms] == ["web"]
    assert (side.locked, side.record.role) == (True, Role.STANDBY)


def test_disks_that_an_administrator_moved_to_a_snapshot_are_no_base(old_side: OldSide) -> None:
    side = old_side.side
    side.items.change(ITEM, images={**side.record.images, VDB: "/elsewhere/before-snapshot.qcow2"})
    assert old_side.adopt(side.refused) == ConflictError.code
    assert [vm.name for vm in side.fabric.inventory().vms] == ["web"]


def test_the_disks_of_a_side_that_was_demoted_while_it_ran_are_kept_as_they_are(old_side: OldSide) -> None:
    """Nobody knows what it wrote after its last point, although its files look as they did."""
    side = old_side.side
    side.done("source.release", 3, epoch=3)
    _write(old_side.images[VDA])
    side.done("source.demote", 4, new_epoch=4)
    answer = old_side.adopt(side.done, 4, after=40)
    assert (answer["base"], answer["sequence"]) == ("diverged", 41)
    assert "not shut down" in answer["reason"]
    old_side.check_diverged(answer, epoch=4)


@pytest.mark.parametrize("diverged", [False, True])
def test_the_epoch_that_an_old_side_adopts_under_is_the_orders(old_side: OldSide, diverged: bool) -> None:
    """It stepped down for a failover whose point was changed twice since: each change raised the epoch."""
    side = old_side.side
    if diverged:
        _write(old_side.images[VDA])
    answer = old_side.adopt(side.done, 4)
    assert answer["base"] == ("diverged" if diverged else "point")
    assert side.record.epoch == 4
    assert side.journals.get(ITEM).status().epoch == 4
    assert old_side.adopt(side.done, 4) == answer


def test_what_was_kept_is_given_up_only_by_order(old_side: OldSide) -> None:
    side = old_side.side
    _write(old_side.images[VDA])
    old_side.adopt(side.done)
    journal = side.journals.get(ITEM)
    assert [pin.owner for pin in journal.pins()] == ["diverged"]
    for _ in range(2):
        side.done("target.drop_diverged", 2)
        assert journal.pins() == []


def test_a_commit_of_the_way_back_does_not_remove_what_was_kept(old_side: OldSide) -> None:
    """With the journal went the old disks, and with them what nobody else had."""
    side = old_side.side
    _write(old_side.images[VDA])
    kept = old_side.adopt(side.done)
    replica = Replica("", "web", kept["sequence"], kept["digest"], started=True, standalone=True)
    side.items.change(ITEM, role=Role.ACTIVE, failover=replica)
    assert side.refused("target.commit", 2) == OperationRefusedError.code
    assert side.journals.exists(ITEM)
    side.done("target.drop_diverged", 2)
    side.done("target.commit", 2)
    assert not side.journals.exists(ITEM)


def test_an_item_whose_old_disks_were_kept_can_be_disabled(old_side: OldSide) -> None:
    _write(old_side.images[VDA])
    old_side.adopt(old_side.side.done)
    old_side.side.done("target.remove", 2, delete_replica=False)
    assert old_side.side.items.find(ITEM) is None
    assert all(image.exists() for image in old_side.images.values())


@pytest.mark.parametrize("cut", ["before the bitmaps", "amid the bitmaps", "after the bitmaps"])
def test_adopting_goes_on_after_a_crash_between_comparing_and_making_the_journal(
    old_side: OldSide, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Removing our own bitmaps changes the files. Until they are marked anew nobody knows who wrote: then it is compared."""

    def kill(*_args: object, **_fields: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if cut == "before the bitmaps":
            patch.setattr(adoption, "release_images", kill)
        elif cut == "after the bitmaps":
            patch.setattr(adoption.Journal, "adopt", kill)
        else:
            real = images._qemu_img

            def kill_after_one(*arguments: str) -> str:
                said = real(*arguments)
                return kill() or said if arguments[0] == "bitmap" else said

            patch.setattr(images, "_qemu_img", kill_after_one)
        with pytest.raises(Killed):
            old_side.adopt(old_side.side.act)
    assert old_side.side.record.role is Role.STANDBY
    old_side.side.reopen()
    answer = old_side.adopt(old_side.side.done)
    if cut == "after the bitmaps":
        assert answer == {"base": "point"}
        old_side.check()
    else:
        assert "cut" in answer["reason"]
        old_side.check_diverged(answer)


@pytest.mark.parametrize("cut", ["amid the bitmaps", "after the bitmaps"])
def test_a_write_between_two_tries_of_adopting_is_kept(
    old_side: OldSide, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """The marks were cleared by the first try, so the second one took anything for the last point."""

    def kill(*_args: object, **_fields: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(
            *((adoption, "release_images") if cut == "amid the bitmaps" else (adoption.Journal, "adopt")),
            kill,
        )  # type: ignore[call-overload]
        with pytest.raises(Killed):
            old_side.adopt(old_side.side.act)
    old_side.side.reopen()
    _write(old_side.images[VDB])
    old_side.check_diverged(old_side.adopt(old_side.side.done))


@pytest.mark.every_step
def test_adopting_changed_disks_ends_right_whatever_step_it_is_cut_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeImage, "read", with_real_images(FakeImage.read))
    for at in itertools.count():
        old = OldSide(tmp_path / str(at))
        _write(old.images[VDA])
        ended = False
        with killed_at(old.side, at), suppress(Killed):
            old.adopt(old.side.act)
            ended = True
        old.side.reopen()
        answer = old.adopt(old.side.done)
        assert answer["base"] == "diverged", f"cut before step {at}"
        old.check_diverged(answer)
        old.close()
        if ended:
            break
    assert at >= 8
