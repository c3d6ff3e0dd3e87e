"""The replicator: cycles go on after failures, end for a newer epoch, and are told truthfully."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import ConflictError, TrackingLostError, UnavailableError
from secondsite.model.manifest import Consistency, PointKind
from secondsite.node.records import ItemRecord
from secondsite.node.source.replicator import Adapters, Replicator, Replicators
from support.cycle_world import ITEM, POLICY, VDA, World
from support.power import unsynced


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with unsynced():
        world = World.create(tmp_path / "w")
        world.machine.capture.write(VDA, 0, b"a" * 50_000)
        yield world
        world.close()


def adapters(world: World) -> Adapters:
    return Adapters(
        capture=world.capture,
        sender=lambda _record, _cancelled: _Closing(world),
        definition=world.definition,
        adopt_checkpoint=lambda _record, _name: None,
        clock=world.clock,
    )


class _Closing:
    """The world's link, with the end that a real sender has."""

    def __init__(self, world: World) -> None:
        self._link = world.link

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    def close(self) -> None:
        return None


@pytest.fixture
def replicator(world: World) -> Iterator[Replicator]:
    replicator = Replicator(world.items, ITEM, adapters(world))
    yield replicator
    replicator.stop()


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_a_woken_replicator_does_not_wait_for_its_interval(world: World, replicator: Replicator) -> None:
    replicator.start()
    for count in (1, 2, 3):
        until(lambda count=count: len(replicator.outcomes) >= count, f"cycle {count}")  # type: ignore[misc]
        until(lambda: replicator.status()["phase"] == "idle", "the end of the cycle")
        replicator.wake()
    assert [outcome.kind for outcome in replicator.outcomes][:2] == [PointKind.INITIAL, PointKind.DELTA]
    status = replicator.status()
    assert status["last_cycle"]["sequence"] == status["cycles"][-1]["sequence"] >= 3
    replicator.stop()
    assert replicator.status()["phase"] == "stopped"
    world.check_latest()


def test_a_failure_is_told_and_soon_tried_again(world: World, replicator: Replicator) -> None:
    world.machine.capture.fail_next = UnavailableError("the hypervisor is away")
    replicator.start()
    until(lambda: replicator.status()["retry_in_s"] is not None, "a failure")
    status = replicator.status()
    assert (status["phase"], status["error"]["message"]) == ("waiting", "the hypervisor is away")
    assert status["retry_in_s"] <= 1.0
    until(lambda: replicator.outcomes, "a cycle after the failure")
    until(lambda: replicator.status()["error"] is None, "no error any more")
    assert world.items.get(ITEM).counters["failed_cycles"] == 1


def test_what_nobody_expected_is_a_failure_like_any_other(world: World, replicator: Replicator) -> None:
    world.machine.capture.fail_next = ZeroDivisionError("a bug")
    replicator.start()
    until(lambda: replicator.outcomes, "a cycle after the failure")
    assert world.items.get(ITEM).counters["failed_cycles"] == 1


def test_one_cycle_by_order_needs_a_stopped_replicator_and_tries_again(
    world: World, replicator: Replicator
) -> None:
    world.machine.capture.fail_next = UnavailableError("a moment")
    outcome = replicator.run_once(Consistency.PLANNED, _no_progress)
    assert (outcome.sequence, world.journal.points()[-1].consistency) == (1, Consistency.PLANNED)
    replicator.start()
    with pytest.raises(ConflictError):
        replicator.run_once(Consistency.PLANNED, _no_progress)


def test_one_cycle_by_order_gives_up_after_some_tries(
    world: World, replicator: Replicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicator._stop, "wait", lambda _seconds: False)
    world.machine.capture.reachable = False
    said: list[str] = []
    with pytest.raises(UnavailableError):
        replicator.run_once(Consistency.PLANNED, lambda *words, **_: said.append(str(words[1])))
    assert len(said) == 3


def test_tracking_that_is_lost_in_the_order_itself_is_repaired(world: World, replicator: Replicator) -> None:
    replicator.run_once(Consistency.CRASH, _no_progress)
    world.machine.capture.fail_next = TrackingLostError("gone")
    assert replicator.run_once(Consistency.PLANNED, _no_progress).kind is PointKind.RESYNC
    world.check_latest()


def test_after_a_restart_replication_goes_on_without_being_asked(world: World) -> None:
    replicators = Replicators(world.items, adapters(world))
    replicators.start_all()
    found = replicators.find(ITEM)
    assert found is not None
    until(lambda: found.outcomes, "a cycle")
    replicators.close()
    assert not found.alive


def _no_progress(*_words: object, **_figures: object) -> None:
    return None


def test_a_policy_that_compresses_otherwise_holds_for_the_next_cycle(world: World) -> None:
    made: list[bool] = []

    def sender(record: ItemRecord, _cancelled: threading.Event) -> Any:
        made.append(record.policy.compression)
        return _Closing(world)

    replicator = Replicator(world.items, ITEM, replace(adapters(world), sender=sender))
    replicator.run_once(Consistency.CRASH, lambda *_: None)
    replicator.run_once(Consistency.CRASH, lambda *_: None)
    world.items.change(ITEM, policy=replace(POLICY, compression=False))
    replicator.run_once(Consistency.CRASH, lambda *_: None)
    replicator.stop()
    assert made == [True, False]
