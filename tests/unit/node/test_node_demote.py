"""Stepping down and coming back: the old side stops for good when it is told to, and runs again only under a later epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from secondsite.errors import ConflictError, StaleEpochError, UnavailableError
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Digest, Sequence
from secondsite.node.records import Acked, Held, Role
from support.journals import ITEM
from support.power import unsynced
from support.role_world import Killed, SourceSide, killed_at

ACKED = Acked(Sequence(6), Digest("6" * 64), "2026-01-01T00:00:00.000000Z", "ss-six")


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SourceSide]:
    side = SourceSide(tmp_path)
    side.items.change(ITEM, acked=ACKED)
    yield side
    side.close()


def fenced(side: SourceSide, epoch: int) -> bool:
    record = side.record
    return (record.role, record.epoch, side.power, side.locked, side.replicators.running) == (
        Role.STANDBY,
        epoch,
        PowerState.OFF,
        True,
        False,
    )


# -- demote --------------------------------------------------------------------------------------------------


def test_a_running_source_that_is_demoted_is_off_locked_and_may_hold_writes_of_its_own(
    side: SourceSide,
) -> None:
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}
    assert fenced(side, 2)
    assert side.record.acked == ACKED
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}


def test_a_demoted_machine_does_not_start(side: SourceSide) -> None:
    side.done("source.demote", 2, new_epoch=2)
    with pytest.raises(Exception, match="locked"):
        side.fabric.start(side.vm)


def test_a_source_that_was_off_is_demoted_as_one_that_did_not_run(side: SourceSide) -> None:
    side.fabric.power_off(side.vm)
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": False, "diverged": True}
    assert fenced(side, 2)


def test_a_machine_that_is_shut_down_for_a_failover_is_demoted_amid_it(side: SourceSide) -> None:
    """Its power is cut: the last changes are not waited for, and `ran` is what it was before the shutdown."""
    side.replicators.during = lambda: (_ for _ in ()).throw(UnavailableError("the link is down"))
    assert side.refused("source.prepare") == UnavailableError.code
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}
    assert fenced(side, 2)


def test_a_prepared_source_steps_down_with_disks_that_are_its_last_point(side: SourceSide) -> None:
    side.done("source.prepare")
    marks = side.record.marks
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": False}
    assert fenced(side, 2)
    assert side.record.marks == marks != {}


def test_a_prepared_source_that_somebody_started_since_is_stopped_and_may_hold_writes(
    side: SourceSide,
) -> None:
    """It went on running beside the other side, and its disks were taken for the last point's."""
    side.done("source.prepare")
    side.start_by_hand()
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}
    assert fenced(side, 2)
    assert (side.record.marks, side.record.images) == ({}, {})


@pytest.mark.parametrize("role", [Role.SOURCE, Role.PREPARED])
def test_a_demotion_that_comes_late_is_refused(side: SourceSide, role: Role) -> None:
    """After the failover was cancelled the machine was stopped once more."""
    side.done("source.demote", 2, new_epoch=2)
    side.done("source.release", 3, epoch=3)
    if role is Role.PREPARED:
        side.done("source.prepare", 3)
    for epoch in (2, 3):
        assert side.refused("source.demote", epoch, new_epoch=epoch) == StaleEpochError.code
    assert side.record.role is role
    assert side.power is (PowerState.RUNNING if role is Role.SOURCE else PowerState.OFF)


def test_a_standby_takes_the_epoch_of_a_later_failover(side: SourceSide) -> None:
    side.done("source.demote", 2, new_epoch=2)
    assert side.done("source.demote", 4, new_epoch=4)["ran"] is True
    assert fenced(side, 4)
    assert side.refused("source.release", 4, epoch=4) == StaleEpochError.code


def test_a_standby_that_somebody_started_is_stopped_by_the_repeated_order(side: SourceSide) -> None:
    side.done("source.prepare")
    side.done("source.demote", 2, new_epoch=2)
    side.start_by_hand()
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}
    assert fenced(side, 2)


def test_a_machine_that_is_started_again_and_again_is_told(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = side.fabric.lock_power

    def lock(vm: str, reason: str) -> None:
        side.start_by_hand()
        real(vm, reason)

    with monkeypatch.context() as patch:
        patch.setattr(side.fabric, "lock_power", lock)
        assert side.refused("source.demote", 2, new_epoch=2) == ConflictError.code
    assert side.record.role is Role.STANDBY
    side.done("source.demote", 2, new_epoch=2)
    assert fenced(side, 2)


def test_a_machine_that_is_gone_is_demoted_all_the_same(side: SourceSide) -> None:
    side.fabric.power_off(side.vm)
    side.fabric.undefine(side.vm, keep_disks=True)
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": False, "diverged": True}
    assert side.record.role is Role.STANDBY


def test_a_transient_machine_is_gone_when_its_power_is_cut(
    side: SourceSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = side.fabric.power_off

    def vanish(vm: str) -> None:
        real(vm)
        side.fabric.undefine(vm, keep_disks=True)

    monkeypatch.setattr(side.fabric, "power_off", vanish)
    assert side.done("source.demote", 2, new_epoch=2) == {"ran": True, "diverged": True}
    assert side.record.role is Role.STANDBY


def test_a_held_machine_that_ran_before_its_host_went_down_ran(side: SourceSide) -> None:
    side.fabric.power_off(side.vm)
    side.items.change(ITEM, runs=True, held=Held("nobody answers"))
    assert side.done("source.demote", 2, new_epoch=2)["ran"] is True
    assert side.record.held is None


# -- release -------------------------------------------------------------------------------------------------


def test_a_cancelled_failover_gives_the_machine_back_as_it_ran(side: SourceSide) -> None:
    side.done("source.demote", 2, new_epoch=2)
    side.done("source.release", 3, epoch=3)
    record = side.record
    assert (record.role, record.epoch, record.acked) == (Role.SOURCE, 3, ACKED)
    assert (record.diverged, record.ran) == (False, False)
    assert (side.power, side.locked, side.replicators.running) == (PowerState.RUNNING, False, True)


@pytest.mark.parametrize(("start", "power"), [(True, PowerState.RUNNING), (False, PowerState.OFF)])
def test_a_machine_that_did_not_run_is_started_only_if_that_is_asked(
    side: SourceSide, start: bool, power: PowerState
) -> None:
    side.fabric.power_off(side.vm)
    side.done("source.demote", 2, new_epoch=2)
    side.done("source.release", 3, epoch=3, start=start)
    assert side.power is power


def test_a_release_that_comes_before_its_epoch_was_raised_is_refused(side: SourceSide) -> None:
    """A late one started the machine beside the replica that had taken over."""
    side.done("source.demote", 2, new_epoch=2)
    assert side.refused("source.release", 2, epoch=2) == StaleEpochError.code
    assert side.refused("source.release", 1) == StaleEpochError.code
    assert fenced(side, 2)


def test_a_source_that_never_heard_of_the_failover_takes_the_epoch_of_its_cancelling(
    side: SourceSide,
) -> None:
    side.done("source.release", 3, epoch=3, start=False)
    assert (side.record.role, side.record.epoch) == (Role.SOURCE, 3)
    assert (side.power, side.replicators.running) == (PowerState.RUNNING, True)


# -- cut at each step ----------------------------------------------------------------------------------------


def _demote(side: SourceSide) -> tuple[str, int, dict[str, int]]:
    return "source.demote", 2, {"new_epoch": 2}


def _demote_amid_prepare(side: SourceSide) -> tuple[str, int, dict[str, int]]:
    side.replicators.during = lambda: (_ for _ in ()).throw(UnavailableError("the link is down"))
    side.refused("source.prepare")
    return _demote(side)


def _release(side: SourceSide) -> tuple[str, int, dict[str, int]]:
    side.done("source.demote", 2, new_epoch=2)
    return "source.release", 3, {"epoch": 3}


@pytest.mark.parametrize("begin", [_demote, _demote_amid_prepare, _release])
def test_an_order_that_is_cut_at_any_step_ends_right_when_it_is_repeated(
    tmp_path: Path, begin: Callable[[SourceSide], tuple[str, int, dict[str, int]]]
) -> None:
    for at in itertools.count():
        side = SourceSide(tmp_path / str(at))
        kind, epoch, args = begin(side)
        ended = False
        with killed_at(side, at), suppress(Killed):
            side.act(kind, epoch, **args)
            ended = True
        side.reopen()
        side.replicators.running = False
        result = side.done(kind, epoch, **args)
        if kind == "source.demote":
            assert result == {"ran": True, "diverged": True}, f"cut before step {at}"
            assert fenced(side, 2)
            side.done("source.release", 3, epoch=3)
        record = side.record
        assert (record.role, record.epoch, record.ran) == (Role.SOURCE, 3, False)
        assert (side.power, side.locked) == (PowerState.RUNNING, False), f"cut before step {at}"
        side.close()
        if ended:
            break
    assert at >= 2
