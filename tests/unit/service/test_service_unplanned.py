"""Unplanned failover, change of the point and cancel, from what nodes are told to where the item ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from secondsite.errors import InvalidInputError, NotFoundError, OperationRefusedError, SecondSiteError
from secondsite.model.item import ItemState, Operation, TestState
from secondsite.service.monitor import look
from secondsite.service.store import commands, events, items, points
from secondsite.service.store.records import Command, Job
from secondsite.service.usecases import jobs, operations
from secondsite.service.usecases.operations import PointChoice, ShutdownSource
from secondsite.service.vocabulary import JobState
from secondsite.service.workflows.limits import LIMITS, Limit
from support.service_node import until
from support.service_world import ME, World, absent, failing

NO = {"shutdown_source": ShutdownSource.NO}


def three_points(world: World) -> None:
    """Points 1 to 3, protected."""
    item = world.protected()
    world.point(item)
    world.point(item)
    world.kinds.clear()


def failed_over(world: World, **options: Any) -> None:
    three_points(world)
    world.succeed(Operation.UNPLANNED_FAILOVER, **{**NO, **options})
    world.kinds.clear()


def standing(world: World) -> list[tuple[str, dict[str, Any]]]:
    return [(order["kind"], order["args"]) for order in world.item().standing or []]


def in_background(world: World, job: Job, speed: float = 1.0) -> threading.Thread:
    running = threading.Thread(target=world.run, args=(job.id,), kwargs={"speed": speed})
    running.start()
    return running


# -- the source is there -----------------------------------------------------------------------------------


def test_the_last_changes_are_shipped_if_the_source_can_be_shut_down(world: World) -> None:
    three_points(world)
    job = world.succeed(Operation.UNPLANNED_FAILOVER, shutdown_timeout_s=7)
    assert world.kinds == ["source.prepare", "target.failover", "source.demote"]
    assert world.args["source.prepare"] == {"epoch": 1, "shutdown_timeout_s": 7}
    started = world.args["target.failover"]
    assert (started["sequence"], started["digest"], started["new_epoch"]) == (4, f"{4:064x}", 2)
    item = world.item()
    assert (item.state, item.epoch, item.standing) == (ItemState.UNPLANNED_COMMIT_PENDING, 2, None)
    assert world.epochs() == [(1, "primary"), (2, "recovery")]
    assert job.result is not None
    assert job.result["last_changes"] == 4
    assert "information" not in job.result


def test_an_older_point_starts_and_the_last_changes_are_shipped_all_the_same(world: World) -> None:
    three_points(world)
    job = world.succeed(Operation.UNPLANNED_FAILOVER, sequence=2)
    assert world.kinds == ["source.prepare", "target.failover", "source.demote"]
    assert world.args["target.failover"]["sequence"] == 2
    assert world.args["target.failover"]["digest"] == f"{2:064x}"
    assert job.result is not None
    assert (job.result["point"]["sequence"], job.result["last_changes"]) == (2, 4)


def test_without_a_shut_down_the_source_steps_down_before_the_replica_starts(world: World) -> None:
    three_points(world)
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    assert world.kinds == ["source.demote", "target.failover"]
    assert world.args["source.demote"] == {"epoch": 2, "new_epoch": 2}
    assert world.args["target.failover"]["sequence"] is None, "the target knows its last point best"
    assert standing(world) == []


def test_a_source_that_cannot_be_shut_down_is_told_and_steps_down(world: World) -> None:
    three_points(world)
    world.answers["source.prepare"] = failing("the guest hangs")
    job = world.succeed(Operation.UNPLANNED_FAILOVER)
    assert world.kinds == ["source.prepare", "source.demote", "target.failover"]
    assert job.result is not None
    assert "could not ship its last changes: the guest hangs" in job.result["information"]
    assert "not-shut-down" in world.told()


def test_a_live_source_that_does_not_step_down_is_never_overrun_in_silence(world: World) -> None:
    three_points(world)
    world.answers["source.demote"] = absent
    job = world.begin(Operation.UNPLANNED_FAILOVER, **NO)
    running = in_background(world, job, speed=200)
    until(lambda: world.job(job.id).state is JobState.SUSPENDED, "the job to ask")
    asked = world.job(job.id).result or {}
    assert asked["confirm"] == "I checked that web-1 does not run on host-ams"
    assert "host-ams is alive" in asked["waits_for"]
    assert world.kinds == []
    with pytest.raises(InvalidInputError):
        operations.resume_job(world.ctx, ME, job.id, "I checked that web-1 does not run on host-rtm")
    operations.resume_job(world.ctx, ME, job.id, asked["confirm"])
    running.join(20)
    assert world.kinds == ["target.failover"]
    assert world.item().state is ItemState.UNPLANNED_COMMIT_PENDING
    assert standing(world) == [("source.demote", {"new_epoch": 2})]


def test_a_suspended_failover_goes_on_by_itself_when_the_source_steps_down(world: World) -> None:
    three_points(world)
    world.answers["source.demote"] = absent
    job = world.begin(Operation.UNPLANNED_FAILOVER, **NO)
    running = in_background(world, job, speed=200)
    until(lambda: world.job(job.id).state is JobState.SUSPENDED, "the job to ask")
    del world.answers["source.demote"]
    world.store.bell.ring()
    running.join(20)
    assert world.kinds == ["source.demote", "target.failover"]
    assert world.job(job.id).state is JobState.SUCCEEDED
    assert standing(world) == []


def test_a_source_that_refuses_again_and_again_makes_the_job_ask(world: World) -> None:
    three_points(world)
    world.answers["source.demote"] = lambda _command: SecondSiteError("the hypervisor is broken")
    job = world.begin(Operation.UNPLANNED_FAILOVER, **NO)
    running = in_background(world, job, speed=1000)
    until(lambda: world.job(job.id).state is JobState.SUSPENDED, "the job to ask")
    operations.resume_job(world.ctx, ME, job.id, "I checked that web-1 does not run on host-ams")
    running.join(20)
    assert world.item().state is ItemState.UNPLANNED_COMMIT_PENDING


# -- the source is gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shutdown", list(ShutdownSource))
def test_nothing_is_needed_of_a_source_that_is_away_and_it_is_told_when_it_is_back(
    world: World, shutdown: ShutdownSource
) -> None:
    three_points(world)
    world.away("host-ams")
    world.answers["source.demote"] = absent
    job = world.succeed(Operation.UNPLANNED_FAILOVER, shutdown_source=shutdown)
    assert world.kinds == ["target.failover"]
    assert job.result is not None
    assert "does not answer" in job.result["information"]
    assert standing(world) == [("source.demote", {"new_epoch": 2})]
    del world.answers["source.demote"]
    world.back("host-ams")
    world.store.bell.ring()
    until(lambda: world.kinds == ["target.failover", "source.demote"] and answered(world), "the order")
    look(world.ctx)
    assert standing(world) == []
    assert "stepped-down" in world.told()


def test_a_source_that_dies_with_the_order_in_its_hands_is_not_waited_for(world: World) -> None:
    """Its poll hung when the host went down, and took the order to nobody."""
    three_points(world)
    died = threading.Thread(target=world.away, args=("host-ams",))

    def dies(command: Command) -> None:
        if died.ident is None:
            with world.store.transaction() as tx:
                commands.mark_delivered(tx, [command.id], world.clock())
            died.start()

    world.answers |= {"source.prepare": dies, "source.demote": absent}
    job = world.succeed(Operation.UNPLANNED_FAILOVER)
    died.join()
    assert world.kinds == ["target.failover"]
    assert job.result is not None
    assert "could not ship its last changes" in job.result["information"]


def test_writes_that_no_point_has_are_told_when_the_old_side_is_back(world: World) -> None:
    three_points(world)
    world.away("host-ams")
    world.answers["source.demote"] = absent
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    world.answers["source.demote"] = lambda _command: {"ran": True, "diverged": True}
    world.store.bell.ring()
    until(lambda: answered(world), "the order")
    look(world.ctx)
    with world.store.reading() as tx:
        (told,) = [event for event in events.listed(tx) if event.code == "stepped-down"]
    assert "no point has" in told.message
    assert told.severity == "warning"


def test_a_demotion_that_was_refused_is_given_again_under_the_epoch_of_now(world: World) -> None:
    """The old side may have fenced itself under a later epoch meanwhile, and refuses an older one for ever."""
    three_points(world)
    world.away("host-ams")
    world.answers["source.demote"] = absent
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    world.answers["target.failover"] = failing("no memory")
    world.perform(Operation.CHANGE_POINT, sequence=1)
    assert world.item().epoch == 4
    world.answers["source.demote"] = lambda command: (
        {} if command.args["new_epoch"] >= 4 else SecondSiteError("it is at epoch 4 here")
    )
    world.store.bell.ring()
    until(lambda: answered(world), "the first answer")
    world.clock.turn(minutes=2)
    look(world.ctx)
    until(lambda: answered(world), "the second answer")
    look(world.ctx)
    assert standing(world) == []
    assert world.args["source.demote"] == {"epoch": 4, "new_epoch": 4}


def answered(world: World) -> bool:
    with world.store.reading() as tx:
        return commands.open_of_item(tx, world.item().id) == []


# -- which point -------------------------------------------------------------------------------------------


def test_the_last_application_consistent_point_is_found(world: World) -> None:
    three_points(world)
    with pytest.raises(OperationRefusedError, match="no application-consistent"):
        world.begin(Operation.UNPLANNED_FAILOVER, point=PointChoice.LATEST_APP_CONSISTENT, **NO)
    world.point(world.item(), consistency="application")
    world.point(world.item())
    world.succeed(Operation.UNPLANNED_FAILOVER, point=PointChoice.LATEST_APP_CONSISTENT, **NO)
    assert world.args["target.failover"]["sequence"] == 4


def test_a_guest_that_was_shut_down_is_the_last_application_consistent_point(world: World) -> None:
    three_points(world)
    world.succeed(Operation.UNPLANNED_FAILOVER, point=PointChoice.LATEST_APP_CONSISTENT)
    assert world.args["target.failover"]["sequence"] == 4


def test_a_point_that_is_not_there_is_refused_before_anything_is_touched(world: World) -> None:
    three_points(world)
    with pytest.raises(NotFoundError):
        world.begin(Operation.UNPLANNED_FAILOVER, sequence=99)
    with pytest.raises(InvalidInputError):
        world.begin(Operation.UNPLANNED_FAILOVER, sequence=1, point=PointChoice.LATEST_APP_CONSISTENT)
    assert world.item().state is ItemState.PROTECTED


def test_an_unplanned_failover_runs_beside_a_test_and_commit_waits_for_its_cleanup(world: World) -> None:
    three_points(world)
    world.succeed(Operation.TEST_FAILOVER)
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    assert world.item().test_state is TestState.RUNNING
    with pytest.raises(OperationRefusedError, match="test failover"):
        world.begin(Operation.COMMIT)
    world.succeed(Operation.CLEANUP_TEST)
    world.succeed(Operation.COMMIT)
    assert world.item().state is ItemState.COMMITTED


# -- roll back ---------------------------------------------------------------------------------------------


def test_a_side_that_stepped_down_takes_up_again_under_a_later_epoch(world: World) -> None:
    three_points(world)
    world.answers["target.failover"] = failing("no memory")
    job = world.perform(Operation.UNPLANNED_FAILOVER, **NO)
    assert job.state is JobState.FAILED
    assert world.kinds == ["source.demote", "target.failover", "target.abandon", "source.release"]
    assert world.args["target.abandon"] == {"epoch": 2, "next_epoch": 3}
    assert world.args["source.release"] == {"epoch": 3}
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.PROTECTED, 3)
    assert world.epochs() == [(1, "primary"), (3, "primary")]


def test_a_prepared_source_takes_up_again_under_the_epoch_of_the_replica(world: World) -> None:
    three_points(world)
    world.answers["target.failover"] = failing("no memory")
    world.perform(Operation.UNPLANNED_FAILOVER)
    assert world.kinds == ["source.prepare", "target.failover", "target.abandon", "source.release"]
    assert world.args["source.release"] == {"epoch": 2}
    assert world.epochs() == [(1, "primary"), (2, "primary")]


def test_a_failed_failover_of_a_source_that_is_away_leaves_the_release_standing(world: World) -> None:
    three_points(world)
    world.away("host-ams")
    world.answers |= {"source.demote": absent, "source.release": absent, "target.failover": failing("no")}
    job = world.perform(Operation.UNPLANNED_FAILOVER, **NO)
    assert world.kinds == ["target.failover", "target.abandon"]
    assert standing(world) == [("source.release", {"epoch": 2})], "it was never told to step down"
    assert world.item().state is ItemState.PROTECTED
    assert job.result is not None
    assert "has not taken it up again" in job.result["information"]
    del world.answers["source.release"]
    world.store.bell.ring()
    until(lambda: answered(world), "the order")
    look(world.ctx)
    assert standing(world) == []


def test_nothing_is_touched_if_the_target_is_away(world: World) -> None:
    three_points(world)
    world.away("host-rtm")
    job = world.perform(Operation.UNPLANNED_FAILOVER)
    assert job.error is not None
    assert job.error["code"] == "unavailable"
    assert world.kinds == []
    assert (world.item().state, world.item().epoch) == (ItemState.PROTECTED, 1)


def test_a_paused_item_is_paused_again_after_a_roll_back(world: World) -> None:
    three_points(world)
    world.succeed(Operation.PAUSE)
    world.answers["target.failover"] = failing("no memory")
    world.perform(Operation.UNPLANNED_FAILOVER, **NO)
    assert world.item().state is ItemState.PAUSED
    assert standing(world) == [("source.pause", {})]
    world.kinds.clear()
    look(world.ctx)
    until(lambda: world.kinds == ["source.pause"] and answered(world), "the pause")
    look(world.ctx)
    assert standing(world) == []


# -- cancelling the job ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["source.prepare", "source.demote"])
def test_a_job_is_cancelled_until_the_replica_is_started(world: World, kind: str) -> None:
    three_points(world)
    world.answers[kind] = absent
    options = {} if kind == "source.prepare" else NO
    job = world.begin(Operation.UNPLANNED_FAILOVER, **options)
    running = in_background(world, job)
    until(lambda: not answered(world), "the order")
    jobs.cancel_job(world.ctx, ME, job.id)
    running.join(20)
    done = world.job(job.id)
    assert (done.state, done.error and done.error["code"]) == (JobState.CANCELLED, "cancelled")
    assert "target.failover" not in world.kinds
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.PROTECTED, 1)
    with pytest.raises(OperationRefusedError, match="has ended"):
        jobs.cancel_job(world.ctx, ME, job.id)
    del world.answers[kind]
    again = jobs.retry_job(world.ctx, ME, job.id)
    assert again.parameters["retry_of"] == job.id
    assert world.run(again.id).state is JobState.SUCCEEDED


def test_a_job_is_cancelled_before_it_begins_and_asking_again_changes_nothing(world: World) -> None:
    three_points(world)
    job = world.begin(Operation.UNPLANNED_FAILOVER)
    first = jobs.cancel_job(world.ctx, ME, job.id)
    assert jobs.cancel_job(world.ctx, ME, job.id).parameters == first.parameters
    assert world.told().count("cancel-requested") == 1
    assert world.run(job.id).state is JobState.CANCELLED
    assert world.kinds == []
    assert world.item().state is ItemState.PROTECTED


def test_past_the_point_of_no_return_a_cancel_is_refused_with_the_way_out(world: World) -> None:
    three_points(world)
    refused: list[str] = []

    def boot(command: Command) -> Any:
        if ":2:" in command.id:
            with pytest.raises(OperationRefusedError) as caught:
                jobs.cancel_job(world.ctx, ME, job.id)
            refused.append(caught.value.hint)
        return world._usual(command)

    world.answers["target.failover"] = boot
    job = world.begin(Operation.UNPLANNED_FAILOVER)
    assert world.run(job.id).state is JobState.SUCCEEDED
    assert refused == ["the replica is being started: let it end, then cancel the failover"]


def test_a_planned_failover_is_cancelled_while_the_guest_shuts_down(world: World) -> None:
    three_points(world)
    world.answers["source.prepare"] = absent
    job = world.begin(Operation.PLANNED_FAILOVER)
    running = in_background(world, job)
    until(lambda: not answered(world), "the order")
    jobs.cancel_job(world.ctx, ME, job.id)
    running.join(20)
    assert world.job(job.id).state is JobState.CANCELLED
    assert world.kinds == ["source.release"]
    assert world.item().state is ItemState.PROTECTED


def test_a_reversal_is_cancelled_while_it_waits_for_its_first_point_and_retried(world: World) -> None:
    committed(world)
    world.answers["source.start"] = lambda _command: {}
    job = world.begin(Operation.REVERSE)
    running = in_background(world, job)
    until(lambda: "source.start" in world.kinds, "replication to start")
    jobs.cancel_job(world.ctx, ME, job.id)
    running.join(20)
    assert world.job(job.id).state is JobState.CANCELLED
    assert world.item().state is ItemState.COMMITTED
    del world.answers["source.start"]
    again = jobs.retry_job(world.ctx, ME, job.id)
    assert world.run(again.id).state is JobState.SUCCEEDED
    assert world.item().state is ItemState.PROTECTED


@pytest.mark.parametrize("operation", [Operation.DISABLE, Operation.PAUSE, Operation.TEST_FAILOVER])
def test_what_cannot_be_cancelled_says_what_to_do_instead(world: World, operation: Operation) -> None:
    three_points(world)
    job = world.begin(operation)
    with pytest.raises(OperationRefusedError) as caught:
        jobs.cancel_job(world.ctx, ME, job.id)
    assert caught.value.hint
    with pytest.raises(OperationRefusedError, match="NotStarted"):
        jobs.retry_job(world.ctx, ME, job.id)


# -- change of the point -----------------------------------------------------------------------------------


def test_points_are_changed_as_often_as_wanted_each_under_an_epoch_of_its_own(world: World) -> None:
    failed_over(world)
    for number, (sequence, epoch) in enumerate(((1, 3), (3, 4), (2, 5))):
        world.kinds.clear()
        job = world.succeed(Operation.CHANGE_POINT, sequence=sequence)
        assert world.kinds == ["target.abandon", "target.failover", "source.demote"], number
        assert world.args["source.demote"] == {"epoch": epoch, "new_epoch": epoch}
        assert world.args["target.abandon"] == {"epoch": epoch - 1}
        started = world.args["target.failover"]
        assert (started["epoch"], started["new_epoch"], started["sequence"]) == (epoch - 1, epoch, sequence)
        item = world.item()
        assert (item.state, item.epoch) == (ItemState.UNPLANNED_COMMIT_PENDING, epoch)
        assert item.failover is not None
        assert (item.failover["sequence"], item.failover["highest"]) == (sequence, 3)
        assert job.result is not None
        assert item.recovery_vm == job.result["vm"]
    assert world.epochs() == [(1, "primary"), *((epoch, "recovery") for epoch in (2, 3, 4, 5))]


def test_the_point_that_runs_is_no_other_point(world: World) -> None:
    failed_over(world, sequence=2)
    with pytest.raises(OperationRefusedError, match="runs from point 2 already"):
        world.begin(Operation.CHANGE_POINT, sequence=2)
    with pytest.raises(OperationRefusedError, match="no application-consistent"):
        world.begin(Operation.CHANGE_POINT, point=PointChoice.LATEST_APP_CONSISTENT)
    assert world.item().state is ItemState.UNPLANNED_COMMIT_PENDING


def test_if_the_point_does_not_start_the_one_before_does_again(world: World) -> None:
    failed_over(world, sequence=2)
    world.answers["target.failover"] = lambda command: (
        failing("no memory")(command) if command.args["sequence"] == 1 else world._usual(command)
    )
    job = world.perform(Operation.CHANGE_POINT, sequence=1)
    assert (job.state, job.error and job.error["message"]) == (JobState.FAILED, "no memory")
    assert world.kinds == [
        "target.abandon",
        "target.failover",
        "target.abandon",
        "target.failover",
        "source.demote",
    ]
    assert world.args["target.abandon"] == {"epoch": 3}
    assert world.args["target.failover"]["new_epoch"] == 4
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.UNPLANNED_COMMIT_PENDING, 4)
    assert item.failover is not None
    assert item.failover["sequence"] == 2
    assert world.epochs()[-2:] == [(3, "recovery"), (4, "recovery")]


def test_if_no_point_starts_the_operator_changes_again_or_cancels(world: World) -> None:
    failed_over(world)
    world.answers["target.failover"] = failing("no memory")
    world.perform(Operation.CHANGE_POINT, sequence=1)
    item = world.item()
    assert (item.state, item.epoch, item.recovery_vm) == (ItemState.POINT_CHANGE_FAILED, 4, None)
    del world.answers["target.failover"]
    world.kinds.clear()
    world.succeed(Operation.CHANGE_POINT, sequence=3)
    assert world.kinds == ["target.abandon", "target.failover", "source.demote"]
    assert (world.item().state, world.item().epoch) == (ItemState.UNPLANNED_COMMIT_PENDING, 5)


def test_an_old_side_that_is_away_is_told_of_the_last_epoch_and_holds_up_no_change(world: World) -> None:
    """It was left under the first one, and its journal refused the new source for ever."""
    three_points(world)
    world.away("host-ams")
    world.answers["source.demote"] = absent
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    job = world.succeed(Operation.CHANGE_POINT, sequence=1)
    assert job.result is not None
    assert "told again" in job.result["information"]
    assert standing(world) == [("source.demote", {"new_epoch": 3})]
    del world.answers["source.demote"]
    world.store.bell.ring()
    until(lambda: answered(world), "the orders")
    look(world.ctx)
    assert standing(world) == []
    assert world.args["source.demote"]["new_epoch"] == 3


def test_a_change_whose_target_is_away_changes_nothing(world: World) -> None:
    failed_over(world)
    world.away("host-rtm", "host-ams")
    job = world.perform(Operation.CHANGE_POINT, sequence=1)
    assert job.state is JobState.FAILED
    assert world.kinds == []
    assert (world.item().state, world.item().epoch) == (ItemState.UNPLANNED_COMMIT_PENDING, 2)


def test_two_questions_of_one_job_are_answered_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person saw before the second start says nothing of what it did."""
    failed_over(world)
    monkeypatch.setitem(LIMITS, "target.abandon", Limit(0.2, 0.2, withdraw=False))
    world.answers |= {"target.abandon": absent, "target.failover": failing("no memory")}
    job = world.begin(Operation.CHANGE_POINT, sequence=1)
    running = in_background(world, job)
    sentence = "I checked that web-1 does not run on host-rtm"
    for _ in range(3):
        until(lambda: world.job(job.id).state is JobState.SUSPENDED, "the job to ask")
        operations.resume_job(world.ctx, ME, job.id, sentence)
    running.join(20)
    assert world.item().state is ItemState.POINT_CHANGE_FAILED
    assert [kind for kind, _args in standing(world)] == ["target.abandon"]
    del world.answers["target.abandon"], world.answers["target.failover"]
    world.succeed(Operation.CHANGE_POINT, sequence=1)
    assert standing(world) == [], "it would remove what runs now"


# -- cancel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [Operation.PLANNED_FAILOVER, Operation.UNPLANNED_FAILOVER])
def test_a_cancelled_failover_goes_back_to_the_source(world: World, operation: Operation) -> None:
    three_points(world)
    world.succeed(operation)
    world.kinds.clear()
    world.succeed(Operation.CANCEL)
    assert world.kinds == ["target.abandon", "source.release"]
    assert world.args["target.abandon"] == {"epoch": 2, "next_epoch": 3}
    assert world.args["source.release"] == {"epoch": 3}
    item = world.item()
    assert (item.state, item.epoch, item.failover, item.recovery_vm) == (ItemState.PROTECTED, 3, None, None)
    assert world.epochs() == [(1, "primary"), (2, "recovery"), (3, "primary")]
    assert item.standing is None
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    assert world.item().epoch == 4


def test_the_order_to_abandon_carries_the_epoch_that_goes_on(world: World) -> None:
    """Given again after it was done, it meets a record that has that epoch already."""
    failed_over(world)
    epochs: list[int] = []

    def abandon(command: Command) -> Any:
        epochs.append(command.epoch)
        return {}

    world.answers["target.abandon"] = abandon
    world.succeed(Operation.CANCEL, start=True)
    assert epochs == [3]
    assert world.args["source.release"] == {"epoch": 3, "start": True}


def test_a_cancel_while_the_source_is_away_releases_it_when_it_is_back(world: World) -> None:
    three_points(world)
    world.away("host-ams")
    world.answers |= {"source.demote": absent, "source.release": absent}
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    job = world.succeed(Operation.CANCEL)
    assert job.result is not None
    assert "has not taken it up again" in job.result["information"]
    assert standing(world) == [("source.release", {"epoch": 3})], "the demotion was taken back"
    with world.store.reading() as tx:
        assert [each.kind for each in commands.open_of_item(tx, world.item().id)] == ["source.release"]


@pytest.mark.parametrize("shutdown", list(ShutdownSource))
def test_a_release_that_still_stood_does_not_outlive_the_next_failover(
    world: World, shutdown: ShutdownSource
) -> None:
    """Given again under the epoch of now, it would start the machine beside the one that runs."""
    three_points(world)
    world.away("host-ams")
    world.answers |= {"source.demote": absent, "source.release": absent}
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    world.succeed(Operation.CANCEL)
    assert [kind for kind, _args in standing(world)] == ["source.release"]
    world.back("host-ams")
    del world.answers["source.demote"]
    world.succeed(Operation.UNPLANNED_FAILOVER, shutdown_source=shutdown)
    assert standing(world) == []
    world.succeed(Operation.CHANGE_POINT, sequence=1)
    world.clock.turn(hours=1)
    look(world.ctx)
    assert standing(world) == []
    assert answered(world)
    assert "source.release" not in world.kinds


def test_a_release_is_never_given_while_the_machine_runs_at_the_target(world: World) -> None:
    failed_over(world)
    item = world.item()
    left = {"kind": "source.release", "node": item.source_node_id, "epoch": 1, "args": {}, "base": "x:y"}
    with world.store.transaction() as tx:
        items.change(tx, item.id, standing=[{**left, "command": None, "attempt": 0}])
    look(world.ctx)
    assert standing(world) == []
    assert answered(world)
    assert world.kinds == []


# -- after it ----------------------------------------------------------------------------------------------


def committed(world: World) -> None:
    failed_over(world)
    world.succeed(Operation.COMMIT)
    world.kinds.clear()


def test_a_failed_commit_of_an_unplanned_failover_can_still_change_the_point(world: World) -> None:
    failed_over(world)
    world.answers["target.commit"] = failing("still copying")
    assert world.perform(Operation.COMMIT).state is JobState.FAILED
    assert world.item().state is ItemState.UNPLANNED_COMMIT_PENDING
    world.succeed(Operation.CHANGE_POINT, sequence=1)


def test_old_disks_that_diverged_are_kept_as_a_point_and_the_first_new_one_follows_it(world: World) -> None:
    committed(world)
    old = world.item()

    def adopt(command: Command) -> Any:
        assert command.args["after"] == 3
        world.point(old, kind="diverged", sequence=9, node=old.source_node_id)
        return {"base": "diverged", "sequence": 9, "digest": "d", "time": "t", "reason": "it ran on"}

    def start(command: Command) -> Any:
        assert command.args["base"] == "diverged"
        world.sequence = 9
        world.point(world.item(), epoch=command.epoch)
        return {}

    world.answers |= {"target.adopt": adopt, "source.start": start}
    job = world.succeed(Operation.REVERSE)
    assert job.result is not None
    assert (job.result["base"], job.result["point"]["sequence"]) == ("diverged", 10)
    item = world.item()
    assert (item.state, item.last_sequence) == (ItemState.PROTECTED, 10)
    assert "diverged-kept" in world.told()
    with world.store.reading() as tx:
        assert [(point.sequence, point.kind) for point in points.listed(tx, item.id)] == [
            (10, "delta"),
            (9, "diverged"),
        ]
    order = operations.drop_diverged(world.ctx, ME, "web-1")
    assert order.sequence == 9
    look(world.ctx)
    until(lambda: world.kinds[-1] == "target.drop_diverged" and answered(world), "the order")
    look(world.ctx)
    assert standing(world) == []
    assert world.args["target.drop_diverged"] == {"epoch": 2}


def test_there_is_nothing_to_drop_where_nothing_was_kept(world: World) -> None:
    three_points(world)
    with pytest.raises(NotFoundError):
        operations.drop_diverged(world.ctx, ME, "web-1")


# -- pause, resume, resync ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "kind", "state"),
    [
        (Operation.PAUSE, "source.pause", ItemState.PAUSED),
        (Operation.RESUME, "source.resume", ItemState.PROTECTED),
    ],
)
def test_a_pause_and_a_resume_stand_until_the_source_has_answered(
    world: World, operation: Operation, kind: str, state: ItemState
) -> None:
    three_points(world)
    if operation is Operation.RESUME:
        world.succeed(Operation.PAUSE)
        world.kinds.clear()
    world.answers[kind] = failing("the database is locked")
    job = world.succeed(operation)
    assert job.result is not None
    assert "told again" in job.result["information"]
    assert world.item().state is state
    assert standing(world) == [(kind, {})]
    del world.answers[kind]
    world.clock.turn(minutes=2)
    look(world.ctx)
    until(lambda: answered(world), "the order")
    look(world.ctx)
    assert standing(world) == []
    assert world.kinds == [kind, kind]


def test_a_resume_takes_the_place_of_a_pause_that_was_not_answered(world: World) -> None:
    three_points(world)
    world.away("host-ams")
    world.answers |= {"source.pause": absent, "source.resume": absent}
    world.succeed(Operation.PAUSE)
    assert standing(world) == [("source.pause", {})]
    world.succeed(Operation.RESUME)
    assert standing(world) == [("source.resume", {})]
    assert world.item().state is ItemState.PROTECTED
    del world.answers["source.resume"]
    until(lambda: answered(world), "the order")
    look(world.ctx)
    assert standing(world) == []
    assert world.kinds == ["source.resume"]


@pytest.mark.parametrize(
    ("operation", "kind", "after"),
    [
        (Operation.PAUSE, "source.pause", ItemState.PROTECTED),
        (Operation.RESUME, "source.resume", ItemState.PAUSED),
    ],
)
def test_a_source_that_refuses_for_good_moves_the_state_back(
    world: World, operation: Operation, kind: str, after: ItemState
) -> None:
    three_points(world)
    if operation is Operation.RESUME:
        world.succeed(Operation.PAUSE)
    world.answers[kind] = lambda _command: SecondSiteError("this node cannot")
    job = world.perform(operation)
    assert job.state is JobState.FAILED
    assert world.item().state is after
    assert standing(world) == []


def test_a_resync_is_ordered_and_does_not_wait_for_its_end(world: World) -> None:
    three_points(world)
    world.succeed(Operation.RESYNC)
    assert world.kinds == ["source.resync"]
    assert world.item().state is ItemState.PROTECTED
    world.answers["source.resync"] = failing("no")
    assert world.perform(Operation.RESYNC).state is JobState.FAILED
    assert world.item().state is ItemState.PROTECTED


# -- disable -----------------------------------------------------------------------------------------------


def disabled(world: World) -> list[dict[str, Any]]:
    with world.store.reading() as tx:
        (item,) = items.listed(tx, deleted=True)
        return item.standing or []


@pytest.mark.parametrize("role", ["source", "target", "standby"])
def test_a_node_that_was_away_when_its_item_was_disabled_is_left_with_nothing_when_it_is_back(
    world: World, role: str
) -> None:
    three_points(world)
    kinds = {"source": "source.stop", "target": "target.remove", "standby": "standby.remove"}
    world.answers["source.stop"] = absent
    world.perform(Operation.DISABLE, force=True, speed=1000)
    (order,) = disabled(world)
    assert order["kind"] == "source.stop"
    wrong = SecondSiteError("another role")
    wrong.code = "wrong_role"  # type: ignore[misc]
    world.answers |= {kind: _by_role(kind == kinds[role], wrong) for kind in kinds.values()}
    for _ in range(4):
        look(world.ctx)
        world.store.bell.ring()
        until(lambda: no_open_orders(world), "the node's answer")
    assert disabled(world) == []
    assert world.kinds[-1] == kinds[role]


def _by_role(right: bool, wrong: SecondSiteError) -> Callable[[Command], Any]:
    return lambda _command: {} if right else wrong


def no_open_orders(world: World) -> bool:
    with world.store.reading() as tx:
        (item,) = items.listed(tx, deleted=True)
        return commands.open_of_item(tx, item.id) == []


def test_an_old_side_that_is_away_steps_down_before_it_forgets_the_item(world: World) -> None:
    """Forgotten first, it would start its machine beside the one that runs."""
    three_points(world)
    world.away("host-ams")
    world.answers["source.demote"] = absent
    world.succeed(Operation.UNPLANNED_FAILOVER, **NO)
    world.perform(Operation.DISABLE, force=True, speed=1000)
    assert [order["kind"] for order in disabled(world)] == ["source.demote", "standby.remove"]
    world.kinds.clear()
    del world.answers["source.demote"]
    for _ in range(4):
        look(world.ctx)
        world.store.bell.ring()
        until(lambda: no_open_orders(world), "the node's answer")
    assert disabled(world) == []
    assert world.kinds == ["source.demote", "standby.remove"]
