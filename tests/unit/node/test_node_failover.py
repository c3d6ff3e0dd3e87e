"""Failing over: only one side ever runs, whatever comes late, is cut by a crash, or meets something that still runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite import durable
from secondsite.errors import NoSpaceError, StaleEpochError, UnavailableError
from secondsite.fabric.port import PowerState
from secondsite.journal import Journal
from secondsite.journal.points import StoredPoint
from secondsite.model.ids import Epoch, ItemId, Sequence
from secondsite.model.units import Buffer
from secondsite.node.records import Role
from secondsite.node.target import upkeep as upkeeps
from secondsite.node.target.upkeep import Upkeep
from support.journals import ITEM, START, VDA
from support.patience import wait_until
from support.power import unsynced
from support.role_world import WAIT_S, Killed, TargetSide

OTHER = ItemId("0b6c7e9a-0000-4000-8000-00000000eeee")


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TargetSide]:
    with unsynced():
        side = TargetSide(tmp_path)
        yield side
        side.close()


def next_point(side: TargetSide, epoch: int) -> None:
    """The source goes on under a raised epoch."""
    side.model.epoch = Epoch(epoch)
    side.model.seal(side.journals.get(ITEM), {VDA: [(0, b"n" * 4096)]})


# -- what comes late -----------------------------------------------------------------------------------------


def test_a_failover_that_arrives_after_it_was_abandoned_boots_nothing(side: TargetSide) -> None:
    """It was carried out: the machine ran on both sides, since the source had been released."""
    side.done("target.abandon", 2, epoch=2)
    outcome = side.submit(side.failover(2))
    assert outcome["error"]["code"] == StaleEpochError.code
    assert (side.machines, side.record.role, side.record.epoch) == ([], Role.TARGET, 2)


def test_a_failover_that_failed_on_a_full_disk_is_not_carried_out_after_it_was_abandoned(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome could not be kept, so its next delivery ran it again, when there was space and the source ran."""
    real, full = durable.write_atomic, [True]

    def write(path: Path, data: Buffer, **options: Any) -> None:
        if full[0] and path.parent == side.folders.commands:
            raise NoSpaceError("the disk is full")
        real(path, data, **options)

    monkeypatch.setattr(durable, "write_atomic", write)
    side.fabric.fail("create_overlay", NoSpaceError("the disk is full"))
    order = side.failover(2)
    first = side.submit(order)
    assert first["error"]["code"] == NoSpaceError.code
    full[0] = False
    side.done("target.abandon", 2, epoch=2)
    assert side.submit(order) == first
    assert (side.machines, side.record.role) == ([], Role.TARGET)


def test_the_failover_after_an_abandoned_one_starts_from_its_own_point(side: TargetSide) -> None:
    """What was left of the abandoned one was taken for its beginning: the machine started from the older point."""
    old = side.fail_over(2)
    left = side.record.failover
    side.done("target.abandon", 2, epoch=2)
    next_point(side, 2)
    side.items.change(ITEM, failover=left)
    outcome = side.submit(side.failover(3))
    assert outcome["result"]["sequence"] == side.model.sequence == old["sequence"] + 1


def test_a_repeated_failover_answers_with_the_machine_that_runs(side: TargetSide) -> None:
    first = side.submit(side.failover(2, "a"))
    assert side.submit(side.failover(2, "b")) == first
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


def test_a_repeated_failover_serves_no_view_that_its_machine_does_not_need_any_more(side: TargetSide) -> None:
    side.fail_over(2)
    side.settle()
    assert "result" in side.submit(side.failover(2))
    assert side.views.running == set()


def test_a_point_that_took_others_in_is_known_by_the_digest_that_it_had(side: TargetSide) -> None:
    """Whoever chose it knew it from before it was merged: the failover to each point that a ladder keeps was refused."""
    journal = side.journals.get(ITEM)
    before = next(point.digest for point in journal.points() if point.sequence == 3)
    next_point(side, 1)
    journal.thin([2])
    after = next(point.digest for point in journal.points() if point.sequence == 3)
    assert after != before
    args = {"new_epoch": 2, "name": "web", "networks": {}}
    assert side.refused("target.failover", 1, sequence=3, digest="0" * 64, **args) == "out_of_sequence"
    started = side.done("target.failover", 1, sequence=3, digest=before, **args)
    assert (started["sequence"], started["digest"]) == (3, after)


def test_a_failover_starts_from_what_its_pin_holds(side: TargetSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point was read before it was pinned: a thinning between the two left the digest of one that was gone."""
    journal, pin = side.journals.get(ITEM), Journal.pin
    next_point(side, 1)
    before = journal.point(Sequence(3)).digest

    def thinned_first(self: Journal, sequence: Sequence, owner: str) -> StoredPoint:
        journal.thin([2])
        return pin(self, sequence, owner)

    monkeypatch.setattr(Journal, "pin", thinned_first)
    started = side.done("target.failover", 1, sequence=3, digest=before, new_epoch=2, name="web", networks={})
    kept = journal.point(Sequence(3)).digest
    assert started["digest"] == kept != before


def test_a_failover_to_a_point_that_is_another_pins_nothing(side: TargetSide) -> None:
    args = {"new_epoch": 2, "name": "web", "networks": {}}
    assert side.refused("target.failover", 1, sequence=3, digest="0" * 64, **args) == "out_of_sequence"
    assert side.journals.get(ITEM).pins() == []


def test_a_failover_from_before_the_one_that_runs_leaves_its_point_pinned(side: TargetSide) -> None:
    side.fail_over(3)
    pinned = side.journals.get(ITEM).pins()
    with pytest.raises(StaleEpochError):
        side.replicas.fail_over(ITEM, Sequence(1), None, Epoch(2), "web", {})
    assert side.journals.get(ITEM).pins() == pinned != []


def test_an_abandon_from_before_the_failover_that_runs_removes_nothing(side: TargetSide) -> None:
    """The machine was gone before the older epoch was noticed."""
    side.done("target.abandon", 2, epoch=2)
    next_point(side, 2)
    side.submit(side.failover(3))
    assert side.refused("target.abandon", 3, epoch=2) == StaleEpochError.code
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]
    assert (side.record.role, side.record.epoch) == (Role.ACTIVE, 3)


def test_an_abandon_after_the_commit_removes_nothing(side: TargetSide) -> None:
    """The only machine and its disks were removed before it was noticed that there is no journal to go back to."""
    side.submit(side.failover(2))
    side.done("target.commit", 2)
    side.refused("target.abandon", 2, epoch=2)
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]
    assert all(disk.path is not None and disk.path.exists() for disk in side.machines[0].disks)


def test_an_abandoned_failover_of_an_item_that_is_no_longer_known_is_found_by_its_labels(
    side: TargetSide,
) -> None:
    side.fail_over(2)
    side.items.remove(ITEM)
    side.done("target.abandon", 2, epoch=2)
    assert side.machines == []


# -- what a crash cut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["lives", "died"])
def test_a_failover_that_was_cut_after_its_start_goes_on_with_that_machine(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    """It could never be ended: the running machine stood in the way of its own definition."""
    change = side.items.change

    def kill(item: ItemId, **fields: Any) -> object:
        failover = fields.get("failover")
        if failover is not None and failover.started:
            raise Killed
        return change(item, **fields)

    monkeypatch.setattr(side.items, "change", kill)
    with pytest.raises(Killed):
        side.fail_over(2)
    begun = side.machines[0]
    assert begun.power is PowerState.RUNNING
    side.reopen()
    if view == "died":
        side.views.die(next(iter(side.views.running)))
    outcome = side.submit(side.failover(2))
    assert outcome["result"]["vm"] == begun.uuid
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]
    side.done("target.commit", 2)


def test_a_commit_works_after_a_crash_between_standing_alone_and_giving_up_the_view(side: TargetSide) -> None:
    """The pin of the failover was left for ever, so neither commit nor disable could delete the journal."""
    side.fail_over(2)

    def kill() -> None:
        raise Killed

    side.views.ending = kill
    with pytest.raises(Killed):
        side.settle()
    side.reopen()
    assert side.record.failover is not None
    assert side.record.failover.standalone
    side.done("target.commit", 2)
    assert not side.journals.exists(ITEM)
    assert side.views.running == set()


def test_an_item_is_disabled_after_a_crash_between_standing_alone_and_giving_up_the_view(
    side: TargetSide,
) -> None:
    side.fail_over(2)

    def kill() -> None:
        raise Killed

    side.views.ending = kill
    with pytest.raises(Killed):
        side.settle()
    side.reopen()
    side.done("target.remove", 2)
    assert side.items.find(ITEM) is None
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


# -- what still runs -----------------------------------------------------------------------------------------


def test_an_abandon_stops_the_pull_before_it_removes_the_machine(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling, found, asked = threading.Event(), [], threading.Event()

    def pull(vm: str, *, progress: object, cancelled: Any) -> None:
        pulling.set()
        while not cancelled() and not asked.wait(0.01):
            pass
        pulling.clear()

    remove = side.fabric.undefine

    def undefine(vm: str, *, keep_disks: bool) -> None:
        found.append(pulling.is_set())
        asked.set()
        remove(vm, keep_disks=keep_disks)

    monkeypatch.setattr(side.fabric, "make_standalone", pull)
    monkeypatch.setattr(side.fabric, "undefine", undefine)
    side.submit(side.failover(2))
    assert pulling.wait(WAIT_S)
    side.done("target.abandon", 2, epoch=2)
    assert found == [False]


def test_a_pull_that_ends_after_its_failover_was_abandoned_does_not_bring_it_back(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record said "failed over" again, so the next failover answered with a machine that was long removed."""
    side.fail_over(2)
    real = side.fabric.make_standalone

    def abandoned_meanwhile(vm: str, **options: Any) -> None:
        real(vm, **options)
        side.replicas.abandon(ITEM, Epoch(2))

    monkeypatch.setattr(side.fabric, "make_standalone", abandoned_meanwhile)
    side.settle()
    assert (side.record.role, side.record.failover) == (Role.TARGET, None)


def test_a_commit_lets_the_settling_thread_end_before_it_deletes_the_journal(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, found = threading.Event(), []
    first = iter([True])

    def slow_end() -> None:
        if next(first, False):
            deleted.wait(0.3)

    delete = side.journals.delete

    def noting(item: ItemId, *, remove_images: bool) -> None:
        found.append(any(thread.name.startswith("settle-") for thread in threading.enumerate()))
        deleted.set()
        delete(item, remove_images=remove_images)

    side.views.ending = slow_end
    monkeypatch.setattr(side.journals, "delete", noting)
    side.submit(side.failover(2))
    side.done("target.commit", 2)
    assert found == [False]


def test_a_commit_of_a_failover_that_did_not_boot_is_refused_at_once(side: TargetSide) -> None:
    """It waited for ever, and held up the abandon behind it."""
    side.fabric.fail("start", UnavailableError("network default is not active"))
    assert side.submit(side.failover(2))["error"]["code"] == UnavailableError.code
    assert side.refused("target.commit", 2) == "conflict"
    side.done("target.abandon", 2, epoch=2)
    assert side.machines == []


def test_a_commit_that_was_refused_for_a_reader_works_when_the_reader_is_gone(side: TargetSide) -> None:
    """The journal was left locked by the node itself, so nothing could open or delete it any more."""
    side.fail_over(2)
    side.settle()
    reader = Journal.open(side.folders.journal(ITEM), writable=False)
    with reader.view(purpose="extract"):
        assert side.refused("target.commit", 2) == "pinned"
        assert side.refused("target.commit", 2) == "pinned"
    side.done("target.commit", 2)
    assert not side.journals.exists(ITEM)


def test_a_target_goes_on_taking_points_after_a_refused_delete(side: TargetSide) -> None:
    side.journals.get(ITEM).pin(side.journals.get(ITEM).points()[0].sequence, "somebody")
    assert side.refused("target.remove") == "pinned"
    next_point(side, 1)
    assert side.journals.get(ITEM).points()[-1].sequence == 4


def test_a_journal_that_is_slow_to_open_holds_up_no_other_item(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go = threading.Event(), threading.Event()
    real = Journal.open

    def slow(path: Path, **options: Any) -> Journal:
        if path.name == OTHER:
            opening.set()
            assert go.wait(WAIT_S)
            raise UnavailableError("it took too long")
        return real(path, **options)

    def get_other() -> None:
        with pytest.raises(UnavailableError):
            side.journals.get(OTHER)

    monkeypatch.setattr(Journal, "open", slow)
    other = side.folders.journal(OTHER)
    other.mkdir()
    (other / "journal.json").touch()
    got: list[Journal] = []
    slow_one = threading.Thread(target=get_other)
    quick_one = threading.Thread(target=lambda: got.append(side.journals.get(ITEM)))
    slow_one.start()
    assert opening.wait(WAIT_S)
    quick_one.start()
    quick_one.join(2)
    held_up = not got
    go.set()
    slow_one.join()
    quick_one.join()
    assert not held_up


def test_a_fold_holds_up_no_failover(side: TargetSide, monkeypatch: pytest.MonkeyPatch) -> None:
    folding, go = threading.Event(), threading.Event()

    def fold(*_: object, **_fields: object) -> None:
        folding.set()
        assert go.wait(WAIT_S)

    monkeypatch.setattr(upkeeps, "MAINTAIN_S", 0.01)
    monkeypatch.setattr(upkeeps, "TEND_S", 3600.0)
    monkeypatch.setattr(Journal, "maintain", fold)
    upkeep = Upkeep(side.items, side.journals, side.replicas, side.settler, lambda: START)
    upkeep.start()
    try:
        assert folding.wait(WAIT_S)
        order = side.failover(2)
        side.executor.submit(order)
        wait_until(lambda: order.id in side.answers.results, timeout_s=3)
        assert "result" in side.answers.results[order.id]
    finally:
        go.set()
        upkeep.close()
