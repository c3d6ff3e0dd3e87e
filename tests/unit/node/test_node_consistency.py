"""Application-consistent points: when a cycle freezes the guest, what the point is called, and what failures cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.capture.quiesce import Quiescer
from secondsite.errors import UnavailableError
from secondsite.model.manifest import Consistency
from secondsite.node.events import NodeEvents
from secondsite.node.source.consistency import thaw_leftovers
from support.cycle_world import ITEM, POLICY, VDA, World
from support.patience import wait_until
from support.power import unsynced


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.create(tmp_path / "w")
    world.machine.capture.write(VDA, 0, b"a" * 20_000)
    world.items.change(ITEM, policy=replace(POLICY, app_consistent_hours=4))
    yield world
    world.close()


def consistencies(world: World) -> list[str]:
    return [point.consistency.value for point in world.journal.points()]


def counters(world: World, name: str) -> int:
    return world.items.get(ITEM).counters.get(name, 0)


def later(world: World, **delta: float) -> None:
    world.machine.time += timedelta(**delta)


def test_a_point_each_so_many_hours_is_application_consistent_and_says_so(world: World) -> None:
    for _ in range(2):
        world.run()
    later(world, hours=3)
    world.run()
    later(world, hours=1)
    world.run()
    assert consistencies(world) == ["application", "crash", "crash", "application"]
    assert world.machine.agent.calls == ["freeze", "thaw"] * 2
    assert counters(world, "app_consistent_points") == 2
    world.check_latest()


def test_without_the_setting_no_guest_is_frozen(world: World) -> None:
    world.items.change(ITEM, policy=POLICY)
    world.run()
    assert world.machine.agent.calls == []
    assert consistencies(world) == ["crash"]


def test_without_an_agent_the_point_is_crash_consistent_and_a_counter_and_an_event_say_so(
    world: World,
) -> None:
    world.machine.agent.present = False
    world.run()
    world.run()
    assert consistencies(world) == ["crash", "crash"]
    assert counters(world, "app_consistent_failed") == 1  # not at every cycle
    assert world.told == ["app-consistent-failed"]
    assert world.cycle.quiet.problem is not None
    world.machine.agent.present = True  # it was installed meanwhile
    later(world, minutes=20)
    world.run()
    assert consistencies(world)[-1] == "application"
    assert world.cycle.quiet.problem is None


def test_a_machine_that_is_off_is_not_frozen_and_its_next_point_is_due(world: World) -> None:
    world.machine.agent.running = False
    world.run()
    assert world.told == []
    world.machine.agent.running = True
    world.run()
    assert consistencies(world) == ["crash", "application"]


def test_a_cycle_that_fails_after_the_freeze_does_not_freeze_again_at_once(world: World) -> None:
    world.run()
    later(world, hours=4)
    world.machine.agent.calls.clear()
    world.fail_at = world.calls + 2  # the seal
    with pytest.raises(UnavailableError):
        world.run()
    world.run()
    assert world.machine.agent.calls.count("freeze") == 1
    later(world, minutes=20)
    world.run()
    assert consistencies(world)[-1] == "application"


def test_a_restart_freezes_nobody_early(world: World) -> None:
    world.run()
    world.restart()
    world.run()
    assert consistencies(world) == ["application", "crash"]


def test_lost_tracking_makes_the_point_crash_consistent_and_leaves_the_guest_thawed(world: World) -> None:
    world.run()
    later(world, hours=4)
    world.machine.capture.lose_tracking()
    world.run()
    assert not world.machine.agent.frozen
    assert consistencies(world)[-1] == "crash"
    world.check_latest()


def test_the_last_point_of_a_planned_failover_freezes_nobody(world: World) -> None:
    world.cycle.run(Consistency.PLANNED)
    assert world.machine.agent.calls == []


def test_what_a_dead_node_left_frozen_is_thawed_before_the_cycle_waits_for_anything(world: World) -> None:
    world.run()
    (world.folder / "frozen").touch()
    world.machine.agent.frozen = True
    world.restart()
    world.fail_at = world.calls  # the first thing that the cycle asks of anybody
    with pytest.raises(UnavailableError):
        world.run()
    assert not world.machine.agent.frozen
    assert not (world.folder / "frozen").exists()
    assert counters(world, "thawed_leftovers") == 1


def test_a_guest_that_does_not_thaw_is_not_frozen_again(world: World) -> None:
    (world.folder / "frozen").touch()
    world.machine.agent.frozen = True
    world.machine.agent.fail_thaws = 1
    world.run()
    assert world.machine.agent.calls == ["thaw"]
    world.run()
    assert world.machine.agent.calls == ["thaw", "thaw", "freeze", "thaw"]
    assert consistencies(world) == ["crash", "application"]


def test_a_node_that_starts_thaws_also_what_it_does_not_replicate_now(world: World) -> None:
    (world.folder / "frozen").touch()
    agent = world.machine.agent
    agent.frozen = True
    agent.fail_thaws = 1
    thread = thaw_leftovers(
        world.items, lambda _: Quiescer(agent, world.folder / "frozen"), threading.Event()
    )
    wait_until(lambda: not thread.is_alive())
    assert not agent.frozen


def test_events_are_sent_until_a_report_has_carried_them() -> None:
    events = NodeEvents()
    events.tell(ITEM, "app-consistent-failed", "no agent")
    sent = events.take()
    assert [event["code"] for event in sent] == ["app-consistent-failed"]
    events.put_back()
    events.tell(None, "other", "later")
    assert events.take()[0] == sent[0]
    assert events.take() == []
