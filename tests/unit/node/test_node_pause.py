"""Pausing, resuming, comparing by order and beginning later; and who is fenced when the target refuses an old epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import UnavailableError
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Digest, Epoch, Sequence
from secondsite.model.manifest import Consistency, PointKind, format_time
from secondsite.node.records import Acked, ItemStore, Role
from secondsite.node.report import standing_still
from secondsite.node.source.replicator import Adapters, Replicator, Replicators
from support import cycle_world
from support.cycle_world import VDA, World
from support.journals import ITEM
from support.power import unsynced
from support.role_world import Killed, SourceSide, killed_at

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SourceSide]:
    side = SourceSide(tmp_path)
    side.items.change(ITEM, acked=Acked(Sequence(6), "6" * 64, "2026-01-01T00:00:00.000000Z", "ss-six"))  # type: ignore[arg-type]
    yield side
    side.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.create(tmp_path)
    yield world
    world.close()


class Told:
    """Whom the replicator says that this side was superseded."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.told = threading.Event()

    def __call__(self, item: object, epoch: int) -> None:
        self.epochs.append(epoch)
        self.told.set()


def adapters(world: World, **fields: Any) -> Adapters:
    return Adapters(
        capture=world.capture,
        sender=lambda _record, _stop: _Kept(world),  # type: ignore[arg-type, return-value]
        definition=world.definition,
        adopt_checkpoint=lambda _record, _name: None,
        **fields,
    )


class _Kept:
    def __init__(self, world: World) -> None:
        self._link = world.link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def close(self) -> None:
        return None


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


# -- pause, resume, resync -----------------------------------------------------------------------------------


def test_a_paused_source_replicates_nothing_until_it_is_resumed_also_after_a_restart(
    side: SourceSide,
) -> None:
    for _ in range(2):
        side.done("source.pause")
        assert (side.record.paused, side.replicators.running) == (True, False)
    side.reopen()
    assert standing_still(side.record)["phase"] == "paused"
    for _ in range(2):
        side.done("source.resume")
        assert (side.record.paused, side.replicators.running) == (False, True)
    assert side.record.acked is not None
    assert side.record.acked.checkpoint == "ss-six"


def test_a_resync_forgets_the_checkpoint_and_says_that_it_was_ordered(side: SourceSide) -> None:
    side.done("source.resync")
    record = side.record
    assert record.acked is not None
    assert (record.acked.checkpoint, record.compare, side.replicators.running) == ("", True, True)


@pytest.mark.parametrize("kind", ["source.pause", "source.resume", "source.resync"])
def test_only_a_source_is_paused_resumed_or_compared(side: SourceSide, kind: str) -> None:
    side.stand_by()
    assert side.refused(kind, 2) == "wrong_role"


@pytest.mark.parametrize("kind", ["source.pause", "source.resume", "source.resync"])
def test_these_orders_end_right_whatever_step_they_are_cut_at(side: SourceSide, kind: str) -> None:
    for at in range(6):
        side.items.change(ITEM, paused=kind == "source.resume", compare=False)
        with killed_at(side, at), suppress(Killed):
            side.act(kind)
        side.reopen()
        side.done(kind)
        record = side.record
        assert record.paused is (kind == "source.pause")
        assert record.compare is (kind == "source.resync")


def test_a_cancelled_failover_ends_a_pause(side: SourceSide) -> None:
    side.done("source.pause")
    side.done("source.demote", 2, new_epoch=2)
    side.done("source.release", 3, epoch=3)
    assert (side.record.paused, side.power) == (False, PowerState.RUNNING)


def test_no_replicator_starts_for_a_paused_item(world: World) -> None:
    world.items.change(cycle_world.ITEM, paused=True)
    replicators = Replicators(world.items, adapters(world))
    replicators.start_all()
    assert replicators.find(cycle_world.ITEM) is None
    world.items.change(cycle_world.ITEM, paused=False)
    replicators.start(cycle_world.ITEM)
    found = replicators.find(cycle_world.ITEM)
    assert found is not None
    until(lambda: found.outcomes, "a cycle")
    replicators.close()


def test_an_ordered_comparison_ships_only_what_differs_and_is_done_once(world: World) -> None:
    world.run()
    world.machine.capture.write(VDA, 0, b"w" * 4096)
    acked = world.items.get(cycle_world.ITEM).acked
    assert acked is not None
    world.items.change(cycle_world.ITEM, acked=replace(acked, checkpoint=""), compare=True)
    outcome = world.run()
    assert (outcome.kind, outcome.changed) == (PointKind.RESYNC, 4096)
    assert world.items.get(cycle_world.ITEM).compare is False
    assert world.run().kind is PointKind.DELTA
    world.check_latest()


def test_a_comparison_that_is_ordered_while_a_point_is_sealed_is_done_all_the_same(world: World) -> None:
    """What became of that point was found out first, and with it the order was taken for done."""
    world.run()
    world.machine.capture.write(VDA, 0, b"w" * 4096)
    seal = world.link.seal

    def unanswered(manifest: bytes) -> Digest:
        seal(manifest)
        raise UnavailableError("the node was told to stop")

    world.link.seal = unanswered  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        world.run()
    world.link.seal = seal  # type: ignore[method-assign]
    acked = world.items.get(cycle_world.ITEM).acked
    assert acked is not None
    world.items.change(cycle_world.ITEM, acked=replace(acked, checkpoint=""), compare=True)
    world.machine.capture.disks[VDA].content[8192:8196] = b"else"  # nothing tracked it
    assert world.run().kind is PointKind.RESYNC
    assert world.items.get(cycle_world.ITEM).compare is False
    world.check_latest()


# -- a start that is put off ---------------------------------------------------------------------------------


def test_an_initial_replication_begins_at_its_time_and_not_before(world: World) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    world.items.change(cycle_world.ITEM, start_at=format_time(now[0] + timedelta(days=7)))
    for opened in (world.items, ItemStore(world.root / "s" / "items")):  # also after a restart
        replicator = Replicator(opened, cycle_world.ITEM, adapters(world, clock=lambda: now[0]))
        replicator.start()
        until(lambda: replicator.status()["phase"] == "scheduled", "the phase")  # noqa: B023
        replicator.wake()
        assert replicator.status()["phase"] == "scheduled"
        replicator.stop()
        assert not replicator.outcomes
    now[0] += timedelta(days=7)
    replicator.start()
    until(lambda: replicator.outcomes, "the first cycle")
    replicator.stop()


@pytest.mark.parametrize("text", ["2026-11-30T05:00:00Z", "2026-11-30T06:00:00+01:00"])
def test_a_start_takes_its_time_in_any_zone(side: SourceSide, text: str) -> None:
    record = side.record
    side.items.remove(ITEM)
    target = {"node": "other", "host": "127.0.0.1", "port": 1}
    args = {"name": "web", "vm": record.vm, "disks": ["vda"], "digest_key": record.digest_key}
    args |= {"target": target, "policy": {}, "start_at": text}  # type: ignore[dict-item]
    side.done("source.start", 1, **args)
    assert side.record.start_at == "2026-11-30T05:00:00.000000Z"
    side.items.remove(ITEM)
    assert side.refused("source.start", 1, **{**args, "start_at": "soon"}) == "invalid_input"


# -- self-fencing --------------------------------------------------------------------------------------------


def _other_side(world: World, role: Role, epoch: int) -> None:
    """The target's node took a role under an epoch."""
    target = ItemStore(world.root / "t" / "items")
    target.change(cycle_world.ITEM, role=role, epoch=Epoch(epoch))
    world.journal.raise_epoch(Epoch(epoch))
    world.restart()


def test_a_source_that_the_running_other_side_refuses_steps_down_under_its_epoch(world: World) -> None:
    world.run()
    _other_side(world, Role.ACTIVE, 4)
    told = Told()
    replicator = Replicator(world.items, cycle_world.ITEM, adapters(world, superseded=told))
    replicator.start()
    assert told.told.wait(WAIT_S)
    until(lambda: not replicator.alive, "the thread's end")
    assert told.epochs == [4]
    assert replicator.status()["error"]["code"] == "stale_epoch"


def test_a_source_is_not_fenced_by_a_target_that_is_merely_ahead_and_goes_on_after_its_release(
    world: World,
) -> None:
    """A failover was cancelled, and the order that gives the machine back has not arrived: it ran nowhere then."""
    Replicator(world.items, cycle_world.ITEM, adapters(world)).run_once(Consistency.CRASH, _silent)
    _other_side(world, Role.TARGET, 3)
    told = Told()
    replicator = Replicator(world.items, cycle_world.ITEM, adapters(world, superseded=told))
    replicator.start()
    until(lambda: replicator.status()["retry_in_s"] is not None, "a refusal")
    assert replicator.status()["error"]["code"] == "stale_epoch"
    assert (replicator.alive, told.epochs) == (True, [])
    replicator.stop()


def _silent(*_words: object, **_figures: object) -> None:
    return None
