"""Orders that a workflow gave up on are never handed out again, whatever the node does with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from secondsite.errors import InvalidInputError, NotFoundError, OperationRefusedError, SecondSiteError
from secondsite.model.item import ItemState, Operation
from secondsite.service.store import commands, events, items
from secondsite.service.store.records import Command, Job
from secondsite.service.usecases import operations, reports, views
from secondsite.service.vocabulary import CommandState, JobState
from secondsite.service.workflows.limits import LIMITS, Limit
from support.service_node import until
from support.service_world import ME, World, absent, failing


def perform(world: World, operation: Operation, **options: Any) -> Job:
    job = operations.start_operation(world.ctx, ME, "web-1", operation, operations.Options(**options))
    return world.run(job.id)


class Forgetful:
    """A node that fetches an order, says at each poll that it runs nothing, and does not answer.

    That is one whose results do not get through, and one that is restarted over and over.
    """

    def __init__(self, world: World, opposite: str) -> None:
        self.world = world
        self.opposite = opposite
        self.fetched: list[tuple[Command, bool]] = []
        """Each hand-out, and whether the opposite order had been given by then."""

    def __call__(self, command: Command) -> None:
        with self.world.store.transaction() as tx:
            waiting = commands.deliverable(tx, command.node_id, (), lock=True)
            if command.id not in {each.id for each in waiting}:
                return  # it was given up between the look of the fake's loop and now
            opposed = any(each.kind == self.opposite for each in waiting)
            commands.mark_delivered(tx, [command.id], self.world.clock())
            self.fetched.append((command, opposed))

    @property
    def command(self) -> Command:
        return self.fetched[-1][0]


def found(world: World, command: Command) -> Command:
    with world.store.reading() as tx:
        now = commands.find(tx, command.id)
    assert now is not None
    return now


def late_results(world: World) -> list[str]:
    with world.store.reading() as tx:
        return [event.message for event in events.listed(tx) if event.code == "late-result"]


def handed_out(world: World, command: Command) -> list[str]:
    with world.store.reading() as tx:
        return [each.id for each in commands.deliverable(tx, command.node_id, ())]


@pytest.mark.parametrize("outcome", ["never", "succeeded", "failed"])
def test_a_failover_that_is_not_answered_in_time_is_not_delivered_once_abandon_was_ordered(
    world: World, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    world.protected()
    monkeypatch.setitem(LIMITS, "target.failover", Limit(total_s=0.3))
    node = Forgetful(world, opposite="target.abandon")
    world.answers["target.failover"] = node
    still_there: list[str] = []

    def abandon(command: Command) -> dict[str, Any]:
        still_there.extend(handed_out(world, command))
        return {}

    world.answers["target.abandon"] = abandon
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert node.fetched
    assert [opposed for _command, opposed in node.fetched] == [False] * len(node.fetched)
    assert not [each for each in still_there if "target.failover" in each]
    assert job.error is not None
    assert job.error["code"] == "timeout"
    after = found(world, node.command)
    assert (after.state, after.cancelled) == (CommandState.FAILED, True)
    world.clock.turn(minutes=30)
    if outcome != "never":
        result: dict[str, Any] = {"vm": "x", "sequence": 2}
        told = {"result": result} if outcome == "succeeded" else {"error": {"code": "x", "message": "no"}}
        for _ in range(2):
            reports.take_result(
                world.ctx,
                after.node_id,
                after.id,
                **{"result": None, "error": None} | told,
            )
    assert handed_out(world, after) == []
    assert len(late_results(world)) == (0 if outcome == "never" else 1)
    assert found(world, after) == after
    item = world.item()
    assert (item.state, item.epoch, item.recovery_vm) == (ItemState.PROTECTED, 2, None)
    assert world.kinds[-1] == "source.release"


def test_a_prepare_that_is_not_answered_in_time_is_not_delivered_once_release_was_ordered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.protected()
    monkeypatch.setitem(LIMITS, "source.prepare", Limit(total_s=-0.7))  # and the second for the shutdown
    node = Forgetful(world, opposite="source.release")
    world.answers["source.prepare"] = node
    perform(world, Operation.PLANNED_FAILOVER, shutdown_timeout_s=1)
    assert node.fetched
    assert not any(opposed for _command, opposed in node.fetched)
    assert handed_out(world, node.command) == []
    assert reports.take_progress(world.ctx, node.command.node_id, node.command.id, {}) is True
    assert world.args["source.release"] == {"epoch": 1}
    assert world.item().state is ItemState.PROTECTED


def test_a_release_that_waits_for_its_node_is_taken_back_by_the_next_prepare(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivered after the prepare, it would start the machine again while its replica boots."""
    world.protected()
    monkeypatch.setitem(LIMITS, "source.release", Limit(0.05, 0.05, withdraw=False))
    world.answers["source.prepare"] = failing("the guest hangs")
    world.answers["source.release"] = absent
    perform(world, Operation.PLANNED_FAILOVER)
    with world.store.reading() as tx:
        (release,) = commands.open_of_item(tx, world.item().id)
    assert release.kind == "source.release"
    opposed: list[str] = []

    def prepare(command: Command) -> dict[str, Any]:
        opposed.extend(handed_out(world, command))
        return world._usual(command)

    world.answers["source.prepare"] = prepare
    assert perform(world, Operation.PLANNED_FAILOVER).state is JobState.SUCCEEDED
    assert len(opposed) == 1
    assert found(world, release).state is CommandState.FAILED


def test_a_job_that_failed_leaves_no_order_but_those_that_stand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.protected()
    monkeypatch.setitem(LIMITS, "target.test_start", Limit(total_s=0.2))
    node = Forgetful(world, opposite="target.test_cleanup")
    world.answers["target.test_start"] = node
    assert perform(world, Operation.TEST_FAILOVER).state is JobState.FAILED
    assert handed_out(world, node.command) == []


@pytest.mark.parametrize("cause", [failing("the guest hangs"), absent])
def test_release_always_names_the_epoch_that_goes_on(
    world: World, cause: Callable[[Command], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.protected()
    released: list[dict[str, Any]] = []

    def release(command: Command) -> dict[str, Any]:
        released.append({"command": command.epoch, **command.args})
        return {}

    monkeypatch.setitem(LIMITS, "target.failover", Limit(delivery_s=0.3))
    world.answers["source.release"] = release
    world.answers["target.failover"] = cause
    perform(world, Operation.PLANNED_FAILOVER)
    epoch = world.item().epoch
    assert released == [{"command": epoch, "epoch": epoch}]
    with world.store.reading() as tx:
        assert items.writable(tx, world.item().id)[-1].epoch == epoch


# -- a target that does not give up its replica ------------------------------------------------------------


def begun(
    world: World, monkeypatch: pytest.MonkeyPatch, abandon: Callable[[Command], Any]
) -> tuple[Job, Any]:
    """Begin a failover that must be rolled back while the target answers `abandon`; returns when the job asks."""
    world.protected()
    monkeypatch.setitem(LIMITS, "target.abandon", Limit(0.2, 0.2, withdraw=False))
    world.answers |= {"target.failover": failing("no memory"), "target.abandon": abandon}
    job = operations.start_operation(world.ctx, ME, "web-1", Operation.PLANNED_FAILOVER)
    running = threading.Thread(target=world.run, args=(job.id,), kwargs={"speed": 20.0})
    running.start()
    until(lambda: world.job(job.id).state is JobState.SUSPENDED, "the job to ask")
    return job, running


def gone(_command: Command) -> SecondSiteError:
    return NotFoundError("the item is not here")


@pytest.mark.parametrize("abandon", [gone, absent])
def test_a_target_that_never_gives_up_its_replica_needs_an_operator(
    world: World, monkeypatch: pytest.MonkeyPatch, abandon: Callable[[Command], Any]
) -> None:
    job, running = begun(world, monkeypatch, abandon)
    asked = world.job(job.id).result or {}
    assert asked["confirm"] == "I checked that web-1 does not run on host-rtm"
    assert "runs nowhere" in asked["waits_for"]
    shown = views.job_view(world.ctx, job.id)
    assert shown["tasks"][4]["progress"]["text"] == asked["waits_for"]
    reason = views.item_view(world.ctx, "web-1")["health"]["reasons"][0]
    assert (reason["code"], reason["message"]) == ("operator-needed", asked["waits_for"])
    until(lambda: "operator-needed" in critical(world), "the event")
    with pytest.raises(InvalidInputError):
        operations.resume_job(world.ctx, ME, job.id, "yes")
    assert "source.release" not in world.kinds
    operations.resume_job(world.ctx, ME, job.id, asked["confirm"])
    running.join(20)
    assert world.kinds[-1] == "source.release"
    assert world.args["source.release"]["epoch"] == 2
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.PROTECTED, 2)
    done = views.job_view(world.ctx, job.id)
    assert (done["state"], done["tasks"][4]["state"]) == ("Failed", "Skipped")
    assert done["parameters"]["confirmed"]["by"] == "me"
    with pytest.raises(OperationRefusedError):
        operations.resume_job(world.ctx, ME, job.id, asked["confirm"])
    if abandon is absent:  # it still gets the order when it is back
        with world.store.reading() as tx:
            assert [each.kind for each in commands.open_of_item(tx, item.id)] == ["target.abandon"]


def test_a_suspended_job_goes_on_by_itself_when_the_target_gives_up_its_replica(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, running = begun(world, monkeypatch, absent)
    world.answers["target.abandon"] = lambda _command: {}
    world.store.bell.ring()
    running.join(20)
    assert world.kinds[-2:] == ["target.abandon", "source.release"]
    assert world.item().state is ItemState.PROTECTED
    assert views.job_view(world.ctx, job.id)["tasks"][4]["state"] == "Succeeded"


def critical(world: World) -> list[str]:
    with world.store.reading() as tx:
        return [event.code for event in events.listed(tx) if event.severity == "critical"]
