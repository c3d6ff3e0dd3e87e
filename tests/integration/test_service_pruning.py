"""The workflows' records go once they are old, by DBOS's own means, and never those of a job that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dbos import DBOS

from secondsite.model.item import Operation
from secondsite.service.monitor import Monitor
from secondsite.service.usecases import operations, protect
from secondsite.service.vocabulary import JobState
from secondsite.service.workflows.engine import Engine, engine_url
from support.service_node import until
from support.service_world import ME, World, absent

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.two_sites()
    yield world
    world.close()


def test_old_workflows_go_and_the_active_job_keeps_its_own(world: World, tmp_path: Path) -> None:
    engine = Engine(engine_url(tmp_path, world.store.url))
    world.answering()
    first = protect.protect(world.ctx, ME, "web-1")
    engine.start(world.ctx)
    try:
        until(lambda: world.job(first.id).state is JobState.SUCCEEDED, "the first job")
        until(lambda: status(first.id) == "SUCCESS", "its record")
        world.answers["target.test_start"] = absent
        second = operations.start_operation(world.ctx, ME, "web-1", Operation.TEST_FAILOVER)
        engine.submit(second.id)
        until(lambda: world.job(second.id).state is JobState.IN_PROGRESS, "the second job")
        now = datetime.now(UTC)
        assert engine.prune(now - timedelta(days=7)) == 0
        assert engine.prune(now + timedelta(days=1)) == 1
        assert (status(first.id), status(second.id)) == (None, "PENDING")
    finally:
        engine.close()


def status(job: str) -> str | None:
    found = DBOS.get_workflow_status(job)
    return None if found is None else found.status


def test_the_monitor_prunes_once_a_minute(world: World) -> None:
    cutoffs: list[datetime] = []

    def prune(before: datetime) -> int:
        world.clock.turn(seconds=30)
        world.store.bell.ring()
        cutoffs.append(before)  # last: who sees it turns the clock, too
        return 0

    began = world.clock()
    monitor = Monitor(world.ctx, every_s=0.01, prune_workflows=prune)
    monitor.start()
    until(lambda: len(cutoffs) == 1, "the first round")
    world.clock.turn(seconds=30)
    until(lambda: len(cutoffs) == 2, "the second round")
    monitor.close()
    assert cutoffs[0] == began - timedelta(days=7)
    assert cutoffs[1] - cutoffs[0] == timedelta(seconds=60)
