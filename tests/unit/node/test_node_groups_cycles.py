"""A group's members as replicators: who is waited for, who is called, and what a cycle makes of the meeting."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.capture.port import Capture, Snapshot
from secondsite.errors import UnavailableError
from secondsite.fabric.fake import FakeFabric
from secondsite.model.ids import GroupId, ItemId
from secondsite.model.manifest import Consistency
from secondsite.node.records import ItemRecord
from secondsite.node.source.barrier import Pausing
from secondsite.node.source.cycle import Cycle
from secondsite.node.source.group import Cut, Meeting
from secondsite.node.source.groups import Groups
from secondsite.node.source.replicator import Adapters, Replicators
from support.cycle_world import ITEM, VDA, World
from support.power import unsynced

GROUP = GroupId("aaaaaaaa-0000-4000-8000-000000000001")
OTHER = ItemId("0b6c7e9a-0000-4000-8000-00000000dddd")
CUT = datetime(2026, 11, 23, 5, 0, 0, 500_000, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with unsynced():
        world = World.create(tmp_path / "w")
        world.machine.capture.write(VDA, 0, b"a" * 50_000)
        yield world
        world.close()


class _Link:
    def __init__(self, world: World) -> None:
        self._link = world.link

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    def close(self) -> None:
        return None


@pytest.fixture
def replicators(world: World, tmp_path: Path) -> Iterator[Replicators]:
    groups = Groups(Pausing(FakeFabric(), tmp_path / "groups", world.clock, time.monotonic))
    adapters = Adapters(
        capture=world.capture,
        sender=lambda _record, _cancelled: _Link(world),  # type: ignore[arg-type,return-value]
        definition=world.definition,
        adopt_checkpoint=lambda _record, _name: None,
        clock=world.clock,
        groups=groups,
    )
    groups.set(GROUP, [ITEM, OTHER], revision=3)
    found = Replicators(world.items, adapters)
    yield found
    found.close()


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def cycles(replicators: Replicators) -> int:
    found = replicators.find(ITEM)
    return 0 if found is None else len(found.outcomes)


def test_who_is_waited_for(world: World, replicators: Replicators) -> None:
    assert not replicators.takes_part(ITEM), "nothing replicates yet"
    world.machine.capture.fail_next = UnavailableError("the hypervisor is away")
    replicators.start(ITEM)
    assert not replicators.takes_part(ITEM), "it has no point yet, and then it has failed"
    until(lambda: cycles(replicators), "a point")
    until(lambda: replicators.takes_part(ITEM), "taking part")
    world.items.change(ITEM, paused=True)
    assert not replicators.takes_part(ITEM)
    world.items.change(ITEM, paused=False)
    replicators.stop(ITEM)
    assert not replicators.takes_part(ITEM)
    assert not replicators.takes_part(OTHER), "an item of another node"


def test_a_member_alone_goes_on_and_says_so(world: World, replicators: Replicators) -> None:
    replicators.start(ITEM)
    until(lambda: cycles(replicators) == 1, "the first point")
    until(lambda: replicators.find(ITEM).idle, "the interval")  # type: ignore[union-attr]
    replicators.call(ITEM)
    until(lambda: cycles(replicators) == 2, "a second point, at once")
    status = replicators.find(ITEM).status()["group"]  # type: ignore[union-attr]
    assert (status["id"], status["members"], status["revision"]) == (GROUP, sorted([ITEM, OTHER]), 3)
    assert (status["cuts"], status["failed"], status["alone"]) == (0, 0, 1)
    assert world.journal.points()[-1].group is None
    world.check_points()


class _Met(Meeting):
    """A meeting at which all came; it writes down in what order things happened."""

    def __init__(self, story: list[str]) -> None:
        self._story = story

    def capture(self, capture: Capture) -> Capture:
        return _Recording(capture, self, self._story)

    @contextmanager
    def still(self) -> Iterator[None]:
        self._story.append("suspended")
        yield
        self._story.append("resumed")
        self.cut = Cut(GROUP, 7, 2, CUT)


class _Recording:
    def __init__(self, capture: Capture, meeting: _Met, story: list[str]) -> None:
        self._capture, self._meeting, self._story = capture, meeting, story

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        with self._meeting.still():
            self._story.append("snapshot")
            snapshot = self._capture.snapshot(since=since, new=new)
        snapshot.time = CUT
        return snapshot

    def forget(self, keep: Collection[str]) -> None:
        self._capture.forget(keep)

    def tidy(self) -> None:
        self._capture.tidy()


class _Ports:
    """The world's ports with a meeting."""

    def __init__(self, world: World, meeting: Callable[[], Meeting]) -> None:
        self._world, self._meeting = world, meeting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def meet(self, record: ItemRecord, consistency: Consistency) -> AbstractContextManager[Meeting]:
        @contextmanager
        def met() -> Iterator[Meeting]:
            yield self._meeting()

        return met()


def test_the_point_of_a_cut_carries_its_label_and_its_time(world: World) -> None:
    world.run()
    story: list[str] = []
    world.machine.time = CUT - timedelta(seconds=1)
    Cycle(_Ports(world, lambda: _Met(story)), world.items.get(ITEM)).run()
    point = world.journal.points()[-1]
    assert (point.group, point.group_members, point.time) == (f"{GROUP}:7", 2, CUT)
    assert story == ["suspended", "snapshot", "resumed"]
    world.run()
    assert world.journal.points()[-1].group is None, "the next one is its own again"


def test_a_freeze_of_the_guest_goes_around_the_stand_still(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended guest answers no agent: the other way round no member's point would be application-consistent."""
    world.run()
    story: list[str] = []
    agent = world.machine.agent
    freeze, thaw = agent.freeze, agent.thaw

    def frozen() -> int:
        story.append("frozen")
        return freeze()

    def thawed() -> int:
        story.append("thawed")
        return thaw()

    monkeypatch.setattr(agent, "freeze", frozen)
    monkeypatch.setattr(agent, "thaw", thawed)
    policy = replace(world.items.get(ITEM).policy, app_consistent_hours=1)
    world.items.change(ITEM, policy=policy)
    world.machine.time = CUT - timedelta(seconds=1)
    Cycle(_Ports(world, lambda: _Met(story)), world.items.get(ITEM)).run()
    assert story[:5] == ["frozen", "suspended", "snapshot", "resumed", "thawed"]
    point = world.journal.points()[-1]
    assert (point.consistency, point.group) == (Consistency.APPLICATION, f"{GROUP}:7")
