"""A source that lost its tracking compares by itself only in the policy's window, or when an operator orders it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError
from secondsite.model.manifest import Consistency, PointKind
from secondsite.node.source.replicator import Adapters, Replicator
from secondsite.node.source.window import ResyncRequiredError
from support.cycle_world import ITEM, POLICY, VDA, World
from support.patience import wait_until
from support.power import unsynced


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One that has lost its tracking just after midnight, under a policy that compares between ten and eleven."""
    world = World.create(tmp_path / "w")
    world.machine.capture.write(VDA, 0, b"a" * 100_000)
    world.items.change(ITEM, policy=replace(POLICY, resync_window="10:00-11:00"))
    world.run()
    world.machine.capture.lose_tracking()
    world.machine.capture.write(VDA, 65536, b"z" * 4096)
    yield world
    world.close()


def lose(world: World) -> None:
    with pytest.raises(ResyncRequiredError):
        world.run()


def test_outside_of_the_window_nothing_is_compared_and_a_counter_and_an_event_say_why(world: World) -> None:
    lose(world)
    lose(world)
    record = world.items.get(ITEM)
    assert record.counters["tracking_lost"] == 1
    assert record.counters.get("resyncs", 0) == 0
    assert world.told == ["tracking-lost"]
    assert world.machine.capture.open_snapshots == 0
    assert [point.sequence for point in world.journal.points()] == [1]  # and what is there stays valid
    world.check_points()


def test_in_the_window_it_compares_by_itself_and_ships_only_what_differs(world: World) -> None:
    lose(world)
    world.machine.time += timedelta(hours=10)
    outcome = world.run()
    assert (outcome.kind, outcome.changed) == (PointKind.RESYNC, 4096)
    world.check_latest()
    world.machine.time += timedelta(hours=5)
    assert world.run().kind is PointKind.DELTA
    assert not world.items.get(ITEM).tracking_lost


def test_a_restart_does_not_open_the_window_and_leaves_no_snapshot_behind(world: World) -> None:
    world.machine.time += timedelta(hours=10)
    world.fail_at = world.calls + 4  # the seal of the compare
    with pytest.raises(UnavailableError):
        world.run()
    world.machine.capture.snapshot(since=None, new="ss-left")  # open when the node died
    world.machine.time += timedelta(hours=2)
    world.restart()
    lose(world)
    assert world.machine.capture.open_snapshots == 0


def test_an_operators_order_opens_the_gate(world: World) -> None:
    lose(world)
    world.items.change(ITEM, compare=True)
    assert world.run().kind is PointKind.RESYNC
    world.check_latest()
    assert not world.items.get(ITEM).compare


def test_the_last_point_of_a_failover_is_not_put_off(world: World) -> None:
    lose(world)
    assert world.cycle.run(Consistency.PLANNED).kind is PointKind.RESYNC
    world.check_latest()


def test_a_window_that_is_changed_holds_at_once(world: World) -> None:
    lose(world)
    world.items.change(ITEM, policy=replace(POLICY, resync_window="always"))
    assert world.run().kind is PointKind.RESYNC


@pytest.mark.parametrize("window", ["manual", "10:00-11:00"])
def test_the_replicator_shows_that_a_resynchronization_is_required_and_does_it_when_it_may(
    world: World, window: str
) -> None:
    world.items.change(ITEM, policy=replace(POLICY, resync_window=window))
    adapters = Adapters(
        capture=world.capture,
        sender=lambda _record, _cancelled: _Closing(world),
        definition=world.definition,
        adopt_checkpoint=lambda _record, _name: None,
        clock=world.clock,
    )
    replicator = Replicator(world.items, ITEM, adapters)
    replicator.start()
    try:
        wait_until(lambda: replicator.status()["phase"] == "resync-required")
        said = replicator.status()["error"]
        assert said["code"] == "resync_required"
        assert world.items.get(ITEM).counters.get("failed_cycles", 0) == 0
        world.items.change(ITEM, policy=replace(POLICY, resync_window="always"))
        replicator.wake()
        wait_until(lambda: replicator.status()["error"] is None and bool(replicator.outcomes))
        assert replicator.outcomes[0].kind is PointKind.RESYNC
    finally:
        replicator.stop()


class _Closing:
    """The world's link, with the end that a real sender has."""

    def __init__(self, world: World) -> None:
        self._link = world.link

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    def close(self) -> None:
        return None
