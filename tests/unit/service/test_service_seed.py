"""Protecting with a seed: the target fills the journal first, which shows, can be cancelled, and fails with what the node says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from secondsite.errors import CorruptError, InvalidInputError, OperationRefusedError, SecondSiteError
from secondsite.model.item import ItemState, Operation
from secondsite.service.store import commands, jobs
from secondsite.service.store.records import Command, Job
from secondsite.service.usecases import protect, reports, views
from secondsite.service.usecases.jobs import cancel_job, retry_job
from secondsite.service.vocabulary import JobState
from support.service_world import ME, Answer, Died, JournaledSteps, World, absent

SEED = "/mnt/medium/web-1"
MADE = {"seeded": {"vda": "vda.raw"}}


def begin(world: World) -> Job:
    return protect.protect(world.ctx, ME, "web-1", seed=SEED)


class Seeding:
    """A target that reads images until it is told to stop, or `done`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.begun = threading.Event()
        self.done = threading.Event()
        self.stopped = False
        world.answers["target.create"] = self

    def __call__(self, command: Command) -> Answer:
        with self._world.store.transaction() as tx:
            commands.mark_delivered(tx, [command.id], self._world.clock())
        progress = {
            "fraction": 0.25,
            "text": "seeding from vda.raw",
            "bytes": 1 << 30,
            "total_bytes": 4 << 30,
        }
        for _ in range(1000):
            self.stopped = reports.take_progress(self._world.ctx, command.node_id, command.id, progress)
            self.begun.set()
            if self.stopped:
                error = SecondSiteError("target.create was cancelled")
                error.code = "cancelled"
                return error
            if self.done.wait(0.02):
                return MADE
        raise AssertionError("nobody ended it")


def meanwhile(world: World, job: Job, act: Callable[[Seeding], object]) -> Seeding:
    """Run the job, and act while the target fills the journal."""
    seeding = Seeding(world)
    running = threading.Thread(target=world.run, args=(job.id,))
    running.start()
    try:
        assert seeding.begun.wait(20)
        act(seeding)
    finally:
        seeding.done.set()
        running.join()
    return seeding


def wait_for(world: World, holds: Callable[[], Any]) -> Any:
    for _ in range(200):
        seen = world.store.bell.count
        found = holds()
        if found:
            return found
        world.store.bell.wait(seen, 0.1)
    raise AssertionError("it did not happen")


def item_view(world: World) -> dict[str, Any]:
    return views.item_view(world.ctx, "web-1")


def test_the_target_is_given_the_folder_and_the_source_is_told_to_look(world: World) -> None:
    world.answers["target.create"] = lambda _command: MADE
    job = world.run(begin(world).id)
    assert job.state is JobState.SUCCEEDED
    assert world.args["target.create"]["seed"] == SEED
    assert world.args["source.start"]["seeded"] is True
    assert job.result is not None
    assert job.result["seeded"] == {"vda": "vda.raw"}
    assert world.item().state is ItemState.PROTECTED


def test_without_a_seed_nobody_hears_of_one(world: World) -> None:
    world.protected()
    assert "seed" not in world.args["target.create"]
    assert "seeded" not in world.args["source.start"]


@pytest.mark.parametrize("path", ["medium/web-1", "", "./x", "/mnt/\0"])
def test_a_path_that_no_host_could_have_is_refused_at_once(world: World, path: str) -> None:
    with pytest.raises(InvalidInputError, match="not an absolute path") as caught:
        protect.protect(world.ctx, ME, "web-1", seed=path)
    assert "the target node's host" in (caught.value.hint or "")
    assert world.started == []


def test_the_item_and_the_job_show_how_far_the_seeding_is(world: World) -> None:
    job = begin(world)
    seen: dict[str, Any] = {}

    def look(_seeding: Seeding) -> None:
        seen.update(
            wait_for(world, lambda: (item_view(world)["active_job"]["task"] or {}).get("progress") or None)
        )
        assert item_view(world)["active_job"]["task"]["name"] == "create the journal"
        assert views.job_view(world.ctx, job.id)["progress"] == pytest.approx(0.25 / 3)

    meanwhile(world, job, look)
    assert seen == {
        "fraction": 0.25,
        "text": "seeding from vda.raw",
        "bytes": 1 << 30,
        "total_bytes": 4 << 30,
    }
    assert item_view(world)["active_job"] is None


def test_a_seeding_that_is_cancelled_stops_and_disable_removes_what_it_made(world: World) -> None:
    job = begin(world)

    def cancel(seeding: Seeding) -> None:
        cancel_job(world.ctx, ME, job.id)
        wait_for(world, lambda: seeding.stopped)

    meanwhile(world, job, cancel)
    ended = world.job(job.id)
    assert (ended.state, (ended.error or {})["code"]) == (JobState.CANCELLED, "cancelled")
    assert world.item().state is ItemState.ENABLE_FAILED
    assert "source.start" not in world.kinds
    with pytest.raises(OperationRefusedError, match="begun anew"):
        retry_job(world.ctx, ME, job.id)
    world.succeed(Operation.DISABLE)
    assert "target.remove" in world.kinds
    assert [machine.name for machine in protect.protectable(world.ctx)] == ["web-1"]


def test_a_seeding_on_a_node_that_is_away_can_be_cancelled(world: World) -> None:
    world.answers["target.create"] = absent
    job = begin(world)
    cancel_job(world.ctx, ME, job.id)
    assert world.run(job.id).state is JobState.CANCELLED
    with world.store.reading() as tx:
        assert commands.open_of_job(tx, job.id) == [], "nothing is handed to the node when it is back"


def test_a_cancel_that_comes_as_the_seeding_ends_starts_no_replication(world: World) -> None:
    job = begin(world)

    def made(_command: Command) -> Answer:
        cancel_job(world.ctx, ME, job.id)
        return MADE

    world.answers["target.create"] = made
    assert world.run(job.id).state is JobState.CANCELLED
    assert "source.start" not in world.kinds


def test_once_the_source_is_told_to_start_a_cancel_is_refused_with_the_way_out(world: World) -> None:
    job = begin(world)
    refused: list[OperationRefusedError] = []

    def start(command: Command) -> Answer:
        with pytest.raises(OperationRefusedError) as caught:
            cancel_job(world.ctx, ME, job.id)
        refused.append(caught.value)
        world.point(world.item(), epoch=command.epoch)
        return {}

    world.answers["source.start"] = start
    assert world.run(job.id).state is JobState.SUCCEEDED
    assert (refused[0].hint or "").startswith("disable the item")


def test_without_a_seed_an_enable_is_not_cancelled_but_disabled(world: World) -> None:
    job = protect.protect(world.ctx, ME, "web-1")
    with pytest.raises(OperationRefusedError) as caught:
        cancel_job(world.ctx, ME, job.id)
    assert (caught.value.hint or "").startswith("disable the item")


def test_a_damaged_medium_fails_with_the_nodes_words_and_the_item_is_disabled(world: World) -> None:
    said = CorruptError("/mnt/medium/web-1/vda.raw does not hold what was exported", hint="export it again")
    world.answers["target.create"] = lambda _command: said
    job = world.run(begin(world).id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["message"], job.error["hint"]) == (
        "corrupt",
        said.message,
        said.hint,
    )
    item = world.item()
    assert (item.state, (item.error or {})["message"]) == (ItemState.ENABLE_FAILED, said.message)
    assert "source.start" not in world.kinds
    world.succeed(Operation.DISABLE)
    assert [machine.name for machine in protect.protectable(world.ctx)] == ["web-1"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_service_that_is_killed_at_any_step_goes_on(world: World, recorded: bool) -> None:
    job = begin(world)
    world.answers["target.create"] = lambda _command: MADE
    steps = JournaledSteps()
    for at in range(20):
        steps = JournaledSteps(steps.records, die_at=at, die_recorded=recorded)
        try:
            world.run(job.id, steps)
        except Died:
            continue
        break
    assert 5 < at < 19
    assert world.job(job.id).state is JobState.SUCCEEDED
    assert world.kinds == ["target.create", "source.start"]
    with world.store.reading() as tx:
        assert jobs.get(tx, job.id).result == world.job(job.id).result
