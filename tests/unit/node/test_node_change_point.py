"""Cancelling a failover and choosing another point, as the target sees them: what is given up is gone, every point stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import ConflictError, OperationRefusedError, StaleEpochError
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Epoch
from secondsite.model.policy import Policy
from secondsite.node.records import Role
from secondsite.node.target import upkeep as upkeeps
from secondsite.node.target.replicas import FAILOVER_PIN, TEST_PIN
from secondsite.node.target.upkeep import Upkeep
from support.journals import ITEM, START, VDA
from support.power import unsynced
from support.role_world import Killed, TargetSide, killed_at


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TargetSide]:
    with unsynced():
        side = TargetSide(tmp_path)
        yield side
        side.close()


def start(side: TargetSide, sequence: int, new_epoch: int) -> Any:
    """Take over from a point; the machine still reads from its view."""
    return side.replicas.fail_over(ITEM, sequence, None, Epoch(new_epoch), "web", {})  # type: ignore[arg-type]


def pins(side: TargetSide) -> list[tuple[str, int]]:
    return sorted((pin.owner, pin.sequence) for pin in side.journals.get(ITEM).pins() if pin.lasting)


def overlays(side: TargetSide) -> list[str]:
    folder = side.folders.replicas(ITEM)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def points(side: TargetSide) -> list[int]:
    return [point.sequence for point in side.journals.get(ITEM).points()]


def upkeep(side: TargetSide) -> Upkeep:
    return Upkeep(side.items, side.journals, side.replicas, side.settler, lambda: START)


def is_target(side: TargetSide, epoch: int) -> None:
    assert (side.record.role, side.record.epoch, side.record.failover) == (Role.TARGET, epoch, None)
    assert side.journals.get(ITEM).epoch == epoch
    assert (side.machines, overlays(side), pins(side)) == ([], [], [])
    assert side.views.running == set()
    assert points(side) == [1, 2, 3]


def test_another_point_is_started_as_often_as_wanted(side: TargetSide) -> None:
    epoch = 1
    for sequence in (3, 1, 2):
        epoch += 1
        started = start(side, sequence, epoch)
        if sequence == 1:
            side.settle()  # it stood alone already
        assert [vm.power for vm in side.machines] == [PowerState.RUNNING]
        assert started.sequence == sequence
        assert [name.split("-")[1] for name in overlays(side)] == [f"e{epoch}"] * 2
        assert pins(side) == ([] if sequence == 1 else [(FAILOVER_PIN, sequence)])
        side.done("target.abandon", epoch, epoch=epoch, next_epoch=epoch)
        is_target(side, epoch)


def test_a_cancelled_failover_leaves_the_epoch_that_the_source_is_released_under(side: TargetSide) -> None:
    start(side, 2, 2)
    for _ in range(2):
        side.done("target.abandon", 2, epoch=2, next_epoch=3)
        is_target(side, 3)
    late = side.submit(side.failover(3))
    assert late["error"]["code"] == StaleEpochError.code
    side.model.epoch = Epoch(3)
    side.model.seal(side.journals.get(ITEM), {VDA: [(0, b"n" * 4096)]})
    assert points(side) == [1, 2, 3, 4]


def test_a_cancelling_that_comes_late_removes_no_later_failover(side: TargetSide) -> None:
    start(side, 2, 2)
    side.done("target.abandon", 2, epoch=2, next_epoch=2)
    start(side, 3, 3)
    assert side.refused("target.abandon", 3, epoch=2, next_epoch=3) == StaleEpochError.code
    assert [vm.power for vm in side.machines] == [PowerState.RUNNING]


def test_a_failover_over_one_that_runs_is_refused(side: TargetSide) -> None:
    """The record named the second one while the first ran on, with nobody to tend it."""
    start(side, 3, 2)
    before = side.record
    with pytest.raises(ConflictError):
        start(side, 1, 3)
    assert side.record == before
    assert side.journals.get(ITEM).epoch == 2


def test_a_try_that_was_cut_before_its_role_leaves_no_pin_of_its_point(side: TargetSide) -> None:
    def kill(*_args: object, **_fields: object) -> None:
        raise Killed

    side.items.change = kill  # type: ignore[assignment, method-assign]
    with pytest.raises(Killed):
        start(side, 1, 2)
    side.reopen()
    assert pins(side) == [(FAILOVER_PIN, 1)]
    start(side, 3, 2)
    assert pins(side) == [(FAILOVER_PIN, 3)]


def test_an_unplanned_failover_starts_beside_a_running_test(side: TargetSide) -> None:
    side.done("target.test_start", 1, sequence=2, name="web-test", networks={})
    start(side, 3, 2)
    assert sorted(vm.name for vm in side.machines) == ["web", "web-test"]
    assert pins(side) == [(FAILOVER_PIN, 3), (TEST_PIN, 2)]
    assert side.refused("target.commit", 2) == OperationRefusedError.code
    side.settle()
    side.done("target.test_cleanup", 2)
    assert [(vm.name, vm.power) for vm in side.machines] == [("web", PowerState.RUNNING)]
    side.done("target.commit", 2)


def test_a_test_is_cleaned_up_by_an_order_that_a_role_change_overtook(side: TargetSide) -> None:
    side.done("target.test_start", 1, sequence=2, name="web-test", networks={})
    start(side, 3, 2)
    side.done("target.abandon", 2, epoch=2, next_epoch=3)
    side.done("target.test_cleanup", 2)
    is_target(side, 3)


def test_a_failover_that_is_cancelled_leaves_the_test_alone(side: TargetSide) -> None:
    side.done("target.test_start", 1, sequence=2, name="web-test", networks={})
    start(side, 3, 2)
    side.done("target.abandon", 2, epoch=2, next_epoch=3)
    assert [(vm.name, vm.power) for vm in side.machines] == [("web-test", PowerState.RUNNING)]
    assert pins(side) == [(TEST_PIN, 2)]


def test_no_point_is_given_up_before_a_failover_is_committed_or_the_source_is_back(side: TargetSide) -> None:
    """A change of the point met the retention between its two halves: the point that was asked for was gone."""
    side.items.change(ITEM, policy=Policy(retention_points=2))
    start(side, 3, 2)
    side.settle()
    upkeep(side).maintain(side.record)
    side.done("target.abandon", 2, epoch=2, next_epoch=2)
    upkeep(side).maintain(side.record)
    assert points(side) == [1, 2, 3]
    start(side, 1, 3)
    side.done("target.abandon", 3, epoch=3, next_epoch=4)
    upkeep(side).maintain(side.record)
    assert points(side) == [1, 2, 3]
    side.model.epoch = Epoch(4)
    side.model.seal(side.journals.get(ITEM), {VDA: [(0, b"n" * 4096)]})
    upkeep(side).maintain(side.record)
    assert points(side) == [3, 4]


def test_points_behind_a_kept_one_are_merged_now_and_then_and_read_as_before(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept point forbids every fold: without merging, the journal of a 5 s policy grew by 17,000 points a day."""
    monkeypatch.setattr(upkeeps, "HELD_MAX", 4)
    side.items.change(ITEM, policy=Policy(retention_points=2))
    journal = side.journals.get(ITEM)
    journal.pin(points(side)[0], "diverged")
    counts = []
    for number in range(12):
        side.model.seal(journal, {VDA: [((number % 3) * 4096, bytes([97 + number]) * 4096)]})
        upkeep(side).maintain(side.record)
        counts.append(len(points(side)))
        side.model.check(journal, verify=True)
    assert points(side)[0] == 1
    assert points(side)[-2:] == [14, 15]
    assert max(counts) <= 1 + 4 + 2
    journal.unpin("diverged")
    upkeep(side).maintain(side.record)
    assert points(side) == [14, 15]
    side.model.check(journal, verify=True)


@pytest.mark.parametrize("following", [2, 3])
def test_an_abandon_that_is_cut_at_any_step_ends_right_when_it_is_repeated(
    tmp_path: Path, following: int
) -> None:
    with unsynced():
        for at in itertools.count():
            side = TargetSide(tmp_path / str(at))
            start(side, 2, 2)
            ended = False
            with killed_at(side, at), suppress(Killed):
                side.act("target.abandon", 2, epoch=2, next_epoch=following)
                ended = True
            side.reopen()
            side.done("target.abandon", 2, epoch=2, next_epoch=following)
            is_target(side, following)
            start(side, 1, following + 1)
            assert [vm.power for vm in side.machines] == [PowerState.RUNNING], f"cut before step {at}"
            side.close()
            if ended:
                break
        assert at >= 5


def test_a_failover_to_an_older_point_that_is_cut_at_any_step_is_repeated_or_abandoned(
    tmp_path: Path,
) -> None:
    with unsynced():
        for at in itertools.count():
            side = TargetSide(tmp_path / str(at))
            ended = False
            with killed_at(side, at), suppress(Killed):
                start(side, 2, 2)
                ended = True
            side.reopen()
            if at % 2:
                start(side, 2, 2)
                assert [vm.power for vm in side.machines] == [PowerState.RUNNING], f"cut before step {at}"
                assert pins(side) == [(FAILOVER_PIN, 2)]
            side.done("target.abandon", 2, epoch=2, next_epoch=3)
            is_target(side, 3)
            side.close()
            if ended:
                break
        assert at >= 8
