"""Runs of jobs beside what else writes to the same item, on a database that lets several write at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.model.item import Operation
from secondsite.service.store import commands, events, items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item
from secondsite.service.workflows import ordering
from secondsite.service.workflows.run import Run
from support.private_postgres import PrivatePostgres
from support.service_world import JournaledSteps, World


@pytest.fixture
def world(postgres: PrivatePostgres, tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path, url=postgres.new_database())
    found.two_sites()
    yield found
    found.close()


def wait_until_blocked(world: World) -> None:
    """Return once a transaction waits for another's lock."""
    statement = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with world.store.reading() as tx:
            if tx.execute(statement).scalar():
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits for a lock")


def beside(world: World, ours: Any, theirs: Any) -> None:
    """Run `ours` in a thread while a transaction that holds the item's lock has done `theirs`, and ends only then."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            ours()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    with world.store.transaction() as tx:
        theirs(tx, items.get(tx, "web-1", lock=True))
        thread.start()
        wait_until_blocked(world)
    thread.join(30)
    assert not thread.is_alive()
    assert failures == []


def test_a_change_that_the_monitor_tells_at_the_same_moment_is_made_and_told_once(world: World) -> None:
    world.protected()
    job = world.begin(Operation.PLANNED_FAILOVER)
    run = Run(world.ctx, JournaledSteps(), job.id, threading.Event())
    made: list[str] = []

    def action(_tx: Transaction, item: Item) -> dict[str, Any]:
        made.append(item.id)
        return {}

    def told(tx: Transaction, item: Item) -> None:
        happened = events.NewEvent(
            world.clock(), "stepped-down", "it stepped down", item_id=item.id, once=f"{job.id}:stepped-down"
        )
        events.add(tx, happened)

    beside(world, lambda: run.change("stepped-down", "it stepped down", action), told)
    assert made == []  # it was told by the one that saw it first
    with world.store.reading() as tx:
        assert [each.code for each in events.listed(tx)].count("stepped-down") == 1


def test_an_order_that_the_monitor_gives_at_the_same_moment_is_put_once(world: World) -> None:
    world.protected()
    job = world.begin(Operation.PLANNED_FAILOVER)
    run = Run(world.ctx, JournaledSteps(), job.id, threading.Event())
    item = world.item()
    order = {
        "id": f"{job.id}:3:source.demote",
        "node_id": item.source_node_id,
        "item_id": item.id,
        "job_id": job.id,
        "kind": "source.demote",
        "epoch": 1,
        "args": {"new_epoch": 2},
        "created": world.clock(),
    }

    def ours() -> None:
        ordering.put(
            run, order["id"], "source.demote", item.source_node_id, item.id, 1, {"new_epoch": 2}, False
        )

    beside(world, ours, lambda tx, _item: commands.put(tx, order))
    with world.store.reading() as tx:
        assert [each.id for each in commands.open_of_item(tx, item.id)] == [order["id"]]
