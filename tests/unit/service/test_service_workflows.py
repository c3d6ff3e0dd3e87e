"""Each operation as a runbook: what nodes are told, where the item ends, and that any interruption changes neither."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from secondsite.errors import ConflictError, RemoteError, SecondSiteError
from secondsite.model.item import Direction, ItemState, Operation, TestState
from secondsite.service.monitor import look
from secondsite.service.store import commands, events, items, jobs, points
from secondsite.service.store.records import Command, Job
from secondsite.service.usecases import operations, protect, reports
from secondsite.service.vocabulary import JobState, Side, TaskState
from secondsite.service.workflows.engine import WORKFLOWS, break_off
from secondsite.service.workflows.run import Interrupted, Run
from support.service_world import ME, Died, JournaledSteps, World, absent, failing


def begin(world: World, operation: Operation, **options: Any) -> Job:
    return operations.start_operation(world.ctx, ME, "web-1", operation, operations.Options(**options))


def perform(world: World, operation: Operation, speed: float = 1.0, **options: Any) -> Job:
    return world.run(begin(world, operation, **options).id, speed=speed)


def succeed(world: World, operation: Operation, **options: Any) -> Job:
    job = perform(world, operation, **options)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


def writable(world: World) -> list[tuple[int, Side]]:
    with world.store.reading() as tx:
        return [(row.epoch, row.side) for row in items.writable(tx, world.item().id)]


def task_states(world: World, job: Job) -> dict[str, TaskState]:
    with world.store.reading() as tx:
        return {task.name: task.state for task in jobs.list_tasks(tx, job.id)}


# -- enable ------------------------------------------------------------------------------------------------


def test_enable_makes_a_journal_then_starts_replication_and_ends_with_the_first_point(world: World) -> None:
    job = world.run(protect.protect(world.ctx, ME, "web-1", exclude_disks=["vdb"]).id)
    assert (job.state, job.progress) == (JobState.SUCCEEDED, 1.0)
    item = world.item()
    assert item.state is ItemState.PROTECTED
    assert world.kinds == ["target.create", "source.start"]
    created, started = world.args["target.create"], world.args["source.start"]
    assert created["disks"] == {"vda": 1 << 30}
    assert created["source_node"] == item.primary_node_id
    assert created["digest_key"] == started["digest_key"] == item.digest_key.hex()
    assert started["vm"] == world.vm["uuid"]
    assert started["target"] == {"node": item.recovery_node_id, "host": "127.0.0.1", "port": 9}
    assert started["policy"]["copy_frequency_s"] == 5
    assert writable(world) == [(1, Side.PRIMARY)]


def test_the_key_is_struck_out_of_answered_commands(world: World) -> None:
    world.protected()
    with world.store.reading() as tx:
        for kind, ordinal in (("target.create", 0), ("source.start", 1)):
            command = commands.find(tx, f"{world.started[0]}:{ordinal}:{kind}")  # type: ignore[arg-type]
            assert command is not None
            assert "digest_key" not in command.args
            assert "policy" in command.args


def test_a_failed_enable_keeps_the_nodes_error_and_can_be_disabled(world: World) -> None:
    world.answers["source.start"] = lambda _command: ConflictError("the disk is locked", hint="unlock it")
    job = world.run(protect.protect(world.ctx, ME, "web-1").id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["hint"]) == ("conflict", "unlock it")
    item = world.item()
    assert item.state is ItemState.ENABLE_FAILED
    assert item.error is not None
    assert item.error["message"] == "the disk is locked"
    succeed(world, Operation.DISABLE)
    assert [machine.name for machine in protect.protectable(world.ctx)] == ["web-1"]


def test_an_initial_replication_that_stops_for_good_fails_the_enable(world: World) -> None:
    def start(command: Command) -> dict[str, Any]:
        error = SecondSiteError("the disk is gone").to_dict()
        report = {"item": command.item_id, "role": "source", "phase": "stopped", "error": error}
        reports.take_report(world.ctx, command.node_id, {"items": [report]})
        return {}

    world.answers["source.start"] = start
    job = world.run(protect.protect(world.ctx, ME, "web-1").id)
    assert job.error is not None
    assert job.error["message"] == "the disk is gone"
    assert world.item().state is ItemState.ENABLE_FAILED


def test_a_disable_during_initial_replication_ends_the_enable(world: World) -> None:
    world.answers["source.start"] = lambda _command: {}
    enabling = protect.protect(world.ctx, ME, "web-1")
    steps = JournaledSteps(die_at=4, die_recorded=True)
    with pytest.raises(Died):
        world.run(enabling.id, steps)
    assert world.item().state is ItemState.INITIAL_REPLICATING
    disabling = begin(world, Operation.DISABLE)
    world.run(enabling.id, steps.again())
    assert world.job(enabling.id).state is JobState.CANCELLED
    assert world.item().state is ItemState.DISABLING
    assert world.run(disabling.id).state is JobState.SUCCEEDED


def test_initial_replication_shows_its_progress(world: World) -> None:
    def start(command: Command) -> dict[str, Any]:
        progress = {"bytes": 25, "total_bytes": 100, "rate": 5.0, "eta_s": 15.0}
        report = {"item": command.item_id, "role": "source", "phase": "initial", "progress": progress}
        reports.take_report(world.ctx, command.node_id, {"items": [report]})
        return {}

    world.answers["source.start"] = start
    job = protect.protect(world.ctx, ME, "web-1")

    running = threading.Thread(target=world.run, args=(job.id,))
    running.start()

    def shown() -> dict[str, Any] | None:
        with world.store.reading() as tx:
            return jobs.list_tasks(tx, job.id)[2].progress if jobs.list_tasks(tx, job.id) else None

    wait_for(world, lambda: shown() is not None)
    world.point(world.item())
    running.join()
    assert shown() == {
        "bytes": 25,
        "total_bytes": 100,
        "rate": 5.0,
        "eta_s": 15.0,
        "fraction": 0.25,
        "text": "initial",
    }
    assert world.item().state is ItemState.PROTECTED


# -- test failover -----------------------------------------------------------------------------------------


def test_a_test_failover_uses_the_chosen_point_and_the_test_networks(world: World) -> None:
    world.point(world.protected())
    job = succeed(world, Operation.TEST_FAILOVER, sequence=1)
    assert world.args["target.test_start"] == {
        "epoch": 1,
        "sequence": 1,
        "name": "web-1-test",
        "networks": {"lan": "lan-test"},
    }
    item = world.item()
    assert (item.state, item.test_state) == (ItemState.PROTECTED, TestState.RUNNING)
    assert item.test is not None
    assert job.result is not None
    assert item.test["vm"] == job.result["vm"]


def test_a_test_on_no_network_is_connected_to_nothing(world: World) -> None:
    world.protected()
    succeed(world, Operation.TEST_FAILOVER, network=operations.TestNetwork.NONE)
    assert world.args["target.test_start"]["networks"] == {"lan": None}


def test_a_test_counts_only_once_it_was_cleaned_up(world: World) -> None:
    world.protected()
    succeed(world, Operation.TEST_FAILOVER)
    assert world.item().last_test_time is None
    world.clock.turn(hours=1)
    succeed(world, Operation.CLEANUP_TEST)
    item = world.item()
    assert (item.test_state, item.test, item.last_test_time) == (TestState.NONE, None, world.clock.now)


def test_a_failed_test_is_cleaned_up_and_does_not_count(world: World) -> None:
    world.protected()
    world.answers["target.test_start"] = failing()
    assert perform(world, Operation.TEST_FAILOVER).state is JobState.FAILED
    assert world.item().test_state is TestState.FAILED
    succeed(world, Operation.CLEANUP_TEST)
    assert (world.item().test_state, world.item().last_test_time) == (TestState.NONE, None)


# -- planned failover --------------------------------------------------------------------------------------


def test_a_planned_failover_ships_the_last_changes_before_the_replica_starts(world: World) -> None:
    world.protected()
    world.kinds.clear()
    job = succeed(world, Operation.PLANNED_FAILOVER)
    assert world.kinds == ["source.prepare", "target.failover", "source.demote"]
    failover = world.args["target.failover"]
    assert (failover["epoch"], failover["new_epoch"], failover["sequence"]) == (1, 2, 2)
    assert failover["digest"] == f"{2:064x}"
    assert failover["networks"] == {"lan": "lan-rtm"}
    assert world.args["source.demote"] == {"epoch": 2, "new_epoch": 2}
    item = world.item()
    assert (item.state, item.epoch, item.demotion) == (ItemState.COMMIT_PENDING, 2, None)
    assert item.recovery_vm is not None
    assert writable(world) == [(1, Side.PRIMARY), (2, Side.RECOVERY)]
    assert job.result is not None
    assert set(job.result["task_seconds"]) == {
        "check both sides",
        "shut down and ship the last changes",
        "start the replica",
        "old side steps down",
    }


def test_a_silent_node_stops_a_planned_failover_before_anything_was_touched(world: World) -> None:
    world.protected()
    world.kinds.clear()
    world.clock.turn(minutes=5)
    look(world.ctx)
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert job.error is not None
    assert job.error["code"] == "unavailable"
    assert world.kinds == []
    assert world.item().state is ItemState.PROTECTED


def test_a_failed_prepare_is_rolled_back_without_a_new_epoch(world: World) -> None:
    world.protected()
    world.kinds.clear()
    world.answers["source.prepare"] = failing("the guest hangs")
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert world.kinds == ["source.prepare", "source.release"]
    assert world.args["source.release"] == {"epoch": 1}
    assert job.error is not None
    assert job.error["message"] == "the guest hangs"
    assert job.result is not None
    assert job.result["rolled_back"] is True
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.PROTECTED, 1)
    states = task_states(world, job)
    assert states["shut down and ship the last changes"] is TaskState.FAILED
    assert states["start the replica"] is TaskState.SKIPPED
    assert states["roll back: start the machine again"] is TaskState.SUCCEEDED


def test_a_prepare_that_was_never_fetched_is_taken_back(world: World) -> None:
    world.protected()
    world.kinds.clear()
    world.answers["source.prepare"] = absent
    job = perform(world, Operation.PLANNED_FAILOVER, speed=1000)
    assert job.error is not None
    assert job.error["attributes"]["withdrawn"] is True
    assert world.kinds == []
    del world.answers["source.prepare"]
    succeed(world, Operation.PLANNED_FAILOVER)
    assert world.kinds == ["source.prepare", "target.failover", "source.demote"]


def test_the_source_is_released_only_after_the_target_gave_up_its_replica(world: World) -> None:
    world.protected()
    world.kinds.clear()
    tries = iter([failing("busy"), failing("busy")])
    world.answers["target.failover"] = failing("no memory")
    world.answers["target.abandon"] = lambda command: next(tries, lambda _command: {})(command)
    job = perform(world, Operation.PLANNED_FAILOVER, speed=1000)
    assert world.kinds == [
        "source.prepare",
        "target.failover",
        "target.abandon",
        "target.abandon",
        "target.abandon",
        "source.release",
    ]
    assert world.args["target.abandon"] == {"epoch": 2}
    with world.store.reading() as tx:
        waits = [event for event in events.listed(tx) if event.code == "give-up-waits"]
    assert [event.severity for event in waits] == ["critical"]
    assert world.args["source.release"] == {"epoch": 2}
    assert job.error is not None
    assert job.error["message"] == "no memory"
    item = world.item()
    assert (item.state, item.epoch) == (ItemState.PROTECTED, 2)
    assert writable(world) == [(1, Side.PRIMARY), (2, Side.PRIMARY)]
    for kind in ("target.failover", "target.abandon"):
        del world.answers[kind]
    succeed(world, Operation.PLANNED_FAILOVER)
    assert world.args["target.failover"]["new_epoch"] == 3
    assert writable(world)[-1] == (3, Side.RECOVERY)


def test_a_target_that_never_fetched_its_order_does_not_hold_up_the_roll_back(world: World) -> None:
    world.protected()
    world.kinds.clear()
    world.answers["target.failover"] = absent
    perform(world, Operation.PLANNED_FAILOVER, speed=1000)
    assert world.kinds == ["source.prepare", "source.release"]
    assert (world.item().state, world.item().epoch) == (ItemState.PROTECTED, 1)


def test_a_replica_from_another_point_than_the_last_is_not_accepted(world: World) -> None:
    world.protected()
    world.answers["target.failover"] = lambda _command: {"vm": "x", "sequence": 1}
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert job.state is JobState.FAILED
    assert world.kinds[-2:] == ["target.abandon", "source.release"]


def test_a_machine_that_could_not_be_started_again_is_a_critical_event(world: World) -> None:
    world.protected()
    world.answers["source.prepare"] = failing("no")
    world.answers["source.release"] = failing("the disk is gone")
    job = perform(world, Operation.PLANNED_FAILOVER, speed=1000)
    assert world.kinds.count("source.release") == 4
    assert job.result is not None
    assert "start it there by hand" in job.result["information"]
    with world.store.reading() as tx:
        newest = events.listed(tx)[0]
    assert newest.severity == "critical"
    assert "start it there by hand" in newest.message


def test_an_old_side_that_is_away_does_not_undo_the_failover_and_is_told_again(world: World) -> None:
    world.protected()
    world.answers["source.demote"] = failing("shutting down")
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert "has not confirmed" in job.result["information"]
    assert world.item().demotion is not None
    look(world.ctx)
    assert world.kinds.count("source.demote") == 1
    world.clock.turn(minutes=2)
    look(world.ctx)
    wait_for(world, lambda: world.kinds.count("source.demote") == 2 and answered(world))
    del world.answers["source.demote"]
    world.clock.turn(minutes=2)
    look(world.ctx)
    wait_for(world, lambda: world.kinds.count("source.demote") == 3 and answered(world))
    look(world.ctx)
    assert world.item().demotion is None


def answered(world: World) -> bool:
    with world.store.reading() as tx:
        return commands.open_of_item(tx, world.item().id) == []


def wait_for(world: World, holds: Callable[[], bool]) -> None:
    for _ in range(200):
        seen = world.store.bell.count
        if holds():
            return
        world.store.bell.wait(seen, 0.1)
    raise AssertionError("it did not happen")


# -- afterwards --------------------------------------------------------------------------------------------


def test_commit_gives_up_the_points_and_reverse_turns_the_direction(world: World) -> None:
    before = world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    succeed(world, Operation.COMMIT)
    with world.store.reading() as tx:
        assert points.listed(tx, before.id) == []
    assert world.item().state is ItemState.COMMITTED
    world.kinds.clear()
    succeed(world, Operation.REVERSE)
    assert world.kinds == ["target.adopt", "source.start"]
    item = world.item()
    assert (item.state, item.direction) == (ItemState.PROTECTED, Direction.RECOVERY_TO_PRIMARY)
    assert (item.source_node_id, item.target_node_id) == (before.recovery_node_id, before.primary_node_id)
    assert item.journal_node_id == before.primary_node_id
    assert world.args["target.adopt"]["source_node"] == before.recovery_node_id
    started = world.args["source.start"]
    assert (started["resume"], started["vm"], started["epoch"]) == (True, item.recovery_vm, 2)
    assert started["base"] == "point"
    assert (item.primary_vm, item.source_vm) == (None, item.recovery_vm)


def test_old_disks_that_are_no_point_any_more_are_compared_whole(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    succeed(world, Operation.COMMIT)
    old = world.item()

    def adopt(_command: Command) -> dict[str, Any]:
        # What the node told before it made the fresh journal: the old side's last point.
        last = {"item": old.id, "sequence": 2, "point_time": "2026-11-23T05:00:00+00:00"}
        reports.take_report(world.ctx, old.source_node_id, {"items": [last]})
        return {"adopted": False, "base": "unknown", "reason": "the image is newer than its point"}

    def start(command: Command) -> dict[str, Any]:
        assert command.args["base"] == "unknown"
        progress = {"bytes": 25, "total_bytes": 100, "rate": 5.0, "eta_s": 15.0}
        report = {"item": command.item_id, "role": "source", "phase": "initial", "progress": progress}
        reports.take_report(world.ctx, command.node_id, {"items": [report]})
        return {}

    world.answers |= {"target.adopt": adopt, "source.start": start}
    job = begin(world, Operation.REVERSE)
    running = threading.Thread(target=world.run, args=(job.id,))
    running.start()

    def shown() -> Any:
        with world.store.reading() as tx:
            return [task.progress for task in jobs.list_tasks(tx, job.id) if task.ordinal == 3]

    wait_for(world, lambda: bool(shown()) and shown()[0] is not None)
    assert world.job(job.id).state is JobState.IN_PROGRESS
    world.sequence = 0  # the fresh journal counts from one again
    world.clock.turn(hours=1)
    world.point(world.item())
    running.join(20)
    done = world.job(job.id)
    assert (done.state, done.result and done.result["base"]) == (JobState.SUCCEEDED, "unknown")
    item = world.item()
    assert (item.last_sequence, item.last_point_time) == (1, world.clock.now)
    with world.store.reading() as tx:
        (told,) = [event for event in events.listed(tx) if event.code == "fresh-journal"]
    assert "newer than its point" in told.message


def test_points_of_the_old_direction_do_not_end_the_reversal(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    succeed(world, Operation.COMMIT)
    late = world.item()
    steps = JournaledSteps(die_at=5, die_recorded=True)
    world.answers["source.start"] = lambda _command: {}
    job = begin(world, Operation.REVERSE)
    with pytest.raises(Died):
        world.run(job.id, steps)
    world.point(late)  # from the node that kept the journal before
    assert world.item().last_sequence == late.last_sequence
    world.point(world.item())
    assert world.run(job.id, steps.again()).state is JobState.SUCCEEDED


def test_a_failed_reversal_can_be_tried_again(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    succeed(world, Operation.COMMIT)
    world.answers["source.start"] = failing()
    assert perform(world, Operation.REVERSE).state is JobState.FAILED
    assert world.item().state is ItemState.COMMITTED
    del world.answers["source.start"]
    succeed(world, Operation.REVERSE)


def test_a_failback_comes_home_to_the_old_networks(world: World) -> None:
    world.protected()
    for operation in (
        Operation.PLANNED_FAILOVER,
        Operation.COMMIT,
        Operation.REVERSE,
        Operation.PLANNED_FAILOVER,
    ):
        succeed(world, operation)
    assert world.args["target.failover"]["networks"] == {"lan": None, "lan-rtm": "lan"}
    assert world.item().epoch == 3
    assert writable(world)[-1] == (3, Side.PRIMARY)


# -- disable -----------------------------------------------------------------------------------------------


def test_a_failed_over_item_is_forgotten_by_the_roles_that_its_nodes_have(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    world.kinds.clear()
    succeed(world, Operation.DISABLE, delete_replica=True)
    assert world.kinds == ["standby.remove", "target.remove"]
    assert world.args["standby.remove"] == {"epoch": 2, "delete_replica": True}


def test_a_node_in_another_role_than_expected_is_asked_by_its_role(world: World) -> None:
    world.protected()
    world.kinds.clear()
    asked: list[tuple[str, bool]] = []

    def answer(command: Command) -> Any:
        asked.append((command.kind, command.args["delete_replica"]))
        first = ":0:" in command.id and command.kind != "standby.remove"
        return wrong_role("this node is standby") if first else {}

    world.answers |= dict.fromkeys(("source.stop", "target.remove", "standby.remove"), answer)
    succeed(world, Operation.DISABLE, delete_replica=True)
    assert asked == [
        ("source.stop", True),
        ("target.remove", False),
        ("standby.remove", False),
        ("target.remove", True),
    ]


def wrong_role(message: str) -> SecondSiteError:
    """The error by which a node says that it has another role."""
    return RemoteError({"code": "wrong_role", "message": message})


@pytest.mark.parametrize("code", ["conflict", "operation_refused", "corrupt"])
def test_a_refusal_that_says_nothing_of_the_role_is_not_taken_for_another_role(
    world: World, code: str
) -> None:
    """A guess here removes disks or a machine of somebody's."""
    world.protected()
    world.kinds.clear()
    refusal = RemoteError({"code": code, "message": "the images are in use"})
    world.answers["source.stop"] = lambda _command: refusal
    job = perform(world, Operation.DISABLE, delete_replica=True)
    assert job.error is not None
    assert job.error["code"] == code
    assert world.kinds == ["source.stop"]


def test_a_disable_that_failed_still_knows_which_node_is_the_standby(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    world.answers["target.remove"] = failing("busy")
    assert perform(world, Operation.DISABLE).state is JobState.FAILED
    del world.answers["target.remove"]
    world.kinds.clear()
    succeed(world, Operation.DISABLE, delete_replica=True)
    assert world.kinds == ["standby.remove", "target.remove"]
    assert world.args["standby.remove"]["delete_replica"] is True


def test_a_disable_that_fails_is_tried_again_or_forced(world: World) -> None:
    world.protected()
    world.answers["source.stop"] = failing("no way")
    assert perform(world, Operation.DISABLE).state is JobState.FAILED
    assert world.item().state is ItemState.DISABLE_FAILED
    job = perform(world, Operation.DISABLE, force=True)
    assert job.result is not None
    assert job.result["left_behind"] == ["host-ams: no way"]
    with world.store.reading() as tx:
        (item,) = items.listed(tx, deleted=True)
    assert (item.state, item.deleted) == (ItemState.DISABLED, world.clock.now)


def test_a_forced_disable_of_an_absent_node_takes_its_orders_back(world: World) -> None:
    world.protected()
    world.answers["source.stop"] = absent
    perform(world, Operation.DISABLE, force=True, speed=1000)
    with world.store.reading() as tx:
        (item,) = items.listed(tx, deleted=True)
        assert commands.open_of_item(tx, item.id) == []


# -- interruptions -----------------------------------------------------------------------------------------


def usual(_world: World) -> None:
    pass


def prepare_fails(world: World) -> None:
    world.answers["source.prepare"] = failing("the guest hangs")


def start_fails(world: World) -> None:
    world.answers["target.failover"] = failing("no memory")


def protected(world: World) -> None:
    world.protected()


def failed_over(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)


def committed(world: World) -> None:
    failed_over(world)
    succeed(world, Operation.COMMIT)


def outcome(world: World, job: Job) -> dict[str, Any]:
    """What must not depend on interruptions."""
    with world.store.reading() as tx:
        item = items.get(tx, job.item_id or "")
        history = [(event.code, event.message) for event in events.listed(tx, item_id=item.id)]
        return {
            "job": (job.state, job.error, {task.name: task.state for task in jobs.list_tasks(tx, job.id)}),
            "item": (item.state, item.test_state, item.direction, item.epoch, item.failover is None),
            "standing": [
                (order["kind"], order["epoch"], order["args"], order["attempt"])
                for order in item.standing or []
            ],
            "writable": [(row.epoch, row.side) for row in items.writable(tx, item.id)],
            "events": history,
            "commands": sorted(identifier.partition(":")[2] for identifier in world.ran),
        }


def paused(world: World) -> None:
    world.protected()
    succeed(world, Operation.PAUSE)


def failed_over_unplanned(world: World) -> None:
    world.point(world.protected())
    succeed(world, Operation.UNPLANNED_FAILOVER)


def source_is_away(world: World) -> None:
    world.away("host-ams")
    world.answers |= dict.fromkeys(
        ("source.prepare", "source.demote", "source.release", "source.resume"), absent
    )


def source_does_not_prepare(world: World) -> None:
    world.answers["source.prepare"] = failing("the guest hangs")


def nothing_starts(world: World) -> None:
    world.answers["source.prepare"] = failing("the guest hangs")
    world.answers["target.failover"] = failing("no memory")


def only_the_point_before_starts(world: World) -> None:
    world.answers["target.failover"] = lambda command: (
        failing("no memory")(command) if ":1:" in command.id else world._usual(command)
    )


def keeps_the_old_disks(world: World) -> None:
    world.answers["target.adopt"] = lambda _command: {
        "base": "diverged",
        "sequence": 7,
        "reason": "it ran on",
    }
    world.sequence = 7


CASES: list[tuple[Operation, Callable[[World], None], Callable[[World], None]]] = [
    (Operation.UNPLANNED_FAILOVER, protected, usual),
    (Operation.UNPLANNED_FAILOVER, protected, source_is_away),
    (Operation.UNPLANNED_FAILOVER, protected, source_does_not_prepare),
    (Operation.UNPLANNED_FAILOVER, protected, start_fails),
    (Operation.UNPLANNED_FAILOVER, paused, nothing_starts),
    (Operation.CHANGE_POINT, failed_over_unplanned, usual),
    (Operation.CHANGE_POINT, failed_over_unplanned, only_the_point_before_starts),
    (Operation.CHANGE_POINT, failed_over_unplanned, start_fails),
    (Operation.CANCEL, failed_over_unplanned, usual),
    (Operation.CANCEL, failed_over, source_is_away),
    (Operation.PAUSE, protected, usual),
    (Operation.RESUME, paused, source_is_away),
    (Operation.RESYNC, protected, usual),
    (Operation.REVERSE, committed, keeps_the_old_disks),
    (Operation.PLANNED_FAILOVER, protected, usual),
    (Operation.PLANNED_FAILOVER, protected, prepare_fails),
    (Operation.PLANNED_FAILOVER, protected, start_fails),
    (Operation.TEST_FAILOVER, protected, usual),
    (Operation.COMMIT, failed_over, usual),
    (Operation.REVERSE, committed, usual),
    (Operation.DISABLE, protected, usual),
]


@pytest.mark.every_step
@pytest.mark.parametrize(
    ("operation", "given", "script"),
    CASES,
    ids=[f"{operation.value}-{given.__name__}-{script.__name__}" for operation, given, script in CASES],
)
def test_a_run_that_dies_anywhere_ends_like_one_that_did_not(
    tmp_path_factory: pytest.TempPathFactory,
    operation: Operation,
    given: Callable[[World], None],
    script: Callable[[World], None],
) -> None:
    before = World(tmp_path_factory.mktemp("world"))
    try:
        before.two_sites()
        given(before)
    finally:
        before.close()
    expected: dict[str, Any] = {}
    steps = 1
    number = -1
    while number < steps:
        # Dying after the effect and before its record is the harder case: the step runs twice.
        world = before.copy(tmp_path_factory.mktemp("world"))
        try:
            script(world)
            job = begin(world, operation, **({"sequence": 1} if operation is Operation.CHANGE_POINT else {}))
            first = JournaledSteps(die_at=number if number >= 0 else None)
            try:
                done = world.run(job.id, first)
            except Died:
                done = world.run(job.id, first.again())
            found = outcome(world, done)
            if number < 0:
                expected, steps = found, len(first.records)
                assert found["job"][0].ended
            assert found == expected, f"died at step {number}"
            assert set(world.ran.values()) <= {1}
        finally:
            world.close()
        number += 1
    assert steps > 2


# -- bugs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [Operation.PLANNED_FAILOVER, Operation.TEST_FAILOVER])
def test_a_workflow_that_breaks_by_a_bug_ends_its_job(world: World, operation: Operation) -> None:
    world.protected()
    job = begin(world, operation)
    run = Run(world.ctx, JournaledSteps(), job.id, threading.Event())
    break_off(run, operation.value, KeyError("x"))
    found = world.job(job.id)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert found.error["code"] == "internal"
    assert world.item().state is ItemState.PROTECTED


def test_a_bug_past_the_takeover_leaves_the_item_failed_over(world: World) -> None:
    world.protected()
    job = begin(world, Operation.PLANNED_FAILOVER)
    steps = JournaledSteps()
    original = steps.step

    def until_takeover(name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name == "takeover":
            original(name, action)
            raise Died
        return original(name, action)

    steps.step = until_takeover  # type: ignore[method-assign]
    with pytest.raises(Died):
        world.run(job.id, steps)
    run = Run(world.ctx, JournaledSteps(), job.id, threading.Event())
    break_off(run, job.operation, KeyError("x"))
    assert world.job(job.id).state is JobState.FAILED
    assert (world.item().state, world.item().epoch) == (ItemState.COMMIT_PENDING, 2)


def test_a_source_that_does_not_name_its_point_is_released(world: World) -> None:
    world.protected()
    world.answers["source.prepare"] = lambda _command: {}
    job = perform(world, Operation.PLANNED_FAILOVER)
    assert job.error is not None
    assert job.error["code"] == "unsupported"
    assert world.kinds[-1] == "source.release"
    assert world.item().state is ItemState.PROTECTED


def test_a_failed_commit_leaves_the_item_to_be_committed_again(world: World) -> None:
    world.protected()
    succeed(world, Operation.PLANNED_FAILOVER)
    world.answers["target.commit"] = failing("still copying")
    assert perform(world, Operation.COMMIT).state is JobState.FAILED
    assert world.item().state is ItemState.COMMIT_PENDING
    del world.answers["target.commit"]
    succeed(world, Operation.COMMIT)
    assert world.item().last_sequence is None


def test_a_reversal_waits_until_the_old_side_has_stepped_down(world: World) -> None:
    world.protected()
    world.answers["source.demote"] = failing()
    succeed(world, Operation.PLANNED_FAILOVER)
    succeed(world, Operation.COMMIT)
    job = perform(world, Operation.REVERSE)
    assert job.error is not None
    assert job.error["code"] == "operation_refused"
    assert world.item().state is ItemState.COMMITTED


def test_a_run_that_is_told_to_stop_records_nothing_and_goes_on_later(world: World) -> None:
    world.protected()
    world.answers["target.test_start"] = absent
    job = begin(world, Operation.TEST_FAILOVER)
    stopping = threading.Event()
    stopping.set()
    steps = JournaledSteps()
    world.answering()
    with pytest.raises(Interrupted):
        WORKFLOWS[job.operation](Run(world.ctx, steps, job.id, stopping))
    assert [name for name, _outcome in steps.records] == ["begin", "facts", "networks"]
    assert world.job(job.id).state is JobState.IN_PROGRESS
    del world.answers["target.test_start"]
    world.store.bell.ring()
    assert world.run(job.id, steps.again()).state is JobState.SUCCEEDED
