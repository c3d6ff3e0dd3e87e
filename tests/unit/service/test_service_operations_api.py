"""The routes of the operations, of jobs' control and of what nodes ask, from outside the use cases."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from secondsite.model.item import ItemState, Operation
from secondsite.model.manifest import format_time
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.nodes_face import NodesFace
from secondsite.service.store import nodes
from secondsite.service.usecases import jobs, protect, tokens
from secondsite.service.vocabulary import JobState, Role
from secondsite.ship.http import Body, Request
from secondsite.ship.identity import PeerCertificate
from support.service_node import until
from support.service_world import ME, World, absent, failing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture
def operator(world: World) -> Iterator[TestClient]:
    secret = tokens.create_token(world.ctx, "night", Role.OPERATOR).secret
    with TestClient(
        create_app(world.ctx),
        base_url=f"http://x{PREFIX}",
        headers={"Authorization": f"Bearer {secret}"},
        raise_server_exceptions=False,
    ) as client:
        yield client


def asked(operator: TestClient, path: str, **body: Any) -> dict[str, Any]:
    answer = operator.post(path, json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_operator_goes_through_the_worst_day(operator: TestClient, world: World) -> None:
    world.point(world.protected())
    job = asked(operator, "/items/web-1/unplanned-failover", sequence=1, shutdown_source="no")
    assert job["parameters"] == {
        "sequence": 1,
        "point": "latest",
        "shutdown_source": "no",
        "shutdown_timeout_s": None,
        "from_state": "protected",
    }
    world.run(job["id"])
    assert operator.get("/items/web-1").json()["state"] == "unplanned-commit-pending"
    world.run(asked(operator, "/items/web-1/change-point", sequence=2)["id"])
    assert operator.get("/items/web-1").json()["failover"]["sequence"] == 2
    world.run(asked(operator, "/items/web-1/cancel", start=True)["id"])
    assert world.args["source.release"]["start"] is True
    for operation, state in (("pause", "paused"), ("resume", "protected"), ("resync", "protected")):
        world.run(asked(operator, f"/items/web-1/{operation}")["id"])
        assert operator.get("/items/web-1").json()["state"] == state


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("unplanned-failover", {"point": "yesterday"}),
        ("unplanned-failover", {"shutdown_source": "maybe"}),
        ("unplanned-failover", {"sequence": 0}),
        ("unplanned-failover", {"sequence": 1, "point": "latest-app-consistent"}),
        ("unplanned-failover", {"shutdown_timeout_s": 3601}),
        ("unplanned-failover", {"shutdown": "no"}),
        ("cancel", {"start": "perhaps"}),
    ],
)
def test_what_does_not_parse_changes_nothing(
    operator: TestClient, world: World, path: str, body: dict[str, Any]
) -> None:
    world.protected()
    answer = operator.post(f"/items/web-1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert world.item().state is ItemState.PROTECTED


def test_a_job_shows_what_it_waits_for_and_is_cancelled_and_retried(
    operator: TestClient, world: World
) -> None:
    world.protected()
    world.answers["source.prepare"] = absent
    job = asked(operator, "/items/web-1/planned-failover")
    running = threading.Thread(target=world.run, args=(job["id"],))
    running.start()
    until(lambda: operator.get(f"/jobs/{job['id']}").json()["waits_for"], "the order")
    assert operator.get(f"/jobs/{job['id']}").json()["waits_for"] == "host-ams to fetch source.prepare"
    assert operator.post(f"/jobs/{job['id']}/retry").status_code == 409
    assert operator.post(f"/jobs/{job['id']}/cancel").status_code == 200
    running.join(20)
    ended = operator.get(f"/jobs/{job['id']}").json()
    assert (ended["state"], ended["waits_for"]) == ("Cancelled", None)
    refused = operator.post(f"/jobs/{job['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "operation_refused")
    del world.answers["source.prepare"]
    again = asked(operator, f"/jobs/{job['id']}/retry")
    assert again["parameters"]["retry_of"] == job["id"]
    assert world.run(again["id"]).error is None


def test_protecting_is_not_retried_but_says_what_to_do(operator: TestClient, world: World) -> None:
    world.answers["source.start"] = failing()
    job = world.run(protect.protect(world.ctx, ME, "web-1").id)
    answer = operator.post(f"/jobs/{job.id}/retry")
    assert answer.status_code == 409
    assert "disable the item" in answer.json()["error"]["hint"]


def test_a_disable_is_not_begun_again_by_who_may_not_begin_it(operator: TestClient, world: World) -> None:
    """An operator could end a protection, and have disks deleted, by retrying what somebody else had given up."""
    world.protected()
    world.answers["source.stop"] = failing()
    job = world.perform(Operation.DISABLE, delete_replica=True)
    assert job.state is JobState.FAILED
    del world.answers["source.stop"]
    answer = operator.post(f"/jobs/{job.id}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert world.item().state is ItemState.DISABLE_FAILED
    assert world.run(jobs.retry_job(world.ctx, ME, job.id).id).state is JobState.SUCCEEDED


def test_orders_that_stand_are_shown_with_the_item(operator: TestClient, world: World) -> None:
    world.protected()
    world.away("host-ams")
    world.answers["source.demote"] = absent
    world.succeed(Operation.UNPLANNED_FAILOVER)
    (order,) = operator.get("/items/web-1").json()["standing"]
    assert order == {"kind": "source.demote", "node": "host-ams", "attempts": 1}


def test_a_kept_point_is_given_up_by_its_kind(operator: TestClient, world: World) -> None:
    item = world.protected()
    assert operator.delete("/items/web-1/points/diverged").status_code == 404
    world.point(item, kind="diverged")
    answer = operator.delete("/items/web-1/points/diverged")
    assert (answer.status_code, answer.json()["sequence"]) == (202, 2)
    until(lambda: "target.drop_diverged" in world.kinds, "the order")


# -- a start at a time -------------------------------------------------------------------------------------


@pytest.fixture
def contributor(world: World) -> Iterator[TestClient]:
    secret = tokens.create_token(world.ctx, "boss", Role.CONTRIBUTOR).secret
    with TestClient(
        create_app(world.ctx), base_url=f"http://x{PREFIX}", headers={"Authorization": f"Bearer {secret}"}
    ) as client:
        yield client


def test_the_initial_replication_begins_when_it_was_asked_to(contributor: TestClient, world: World) -> None:
    start = world.clock() + timedelta(days=6, hours=23)
    job = contributor.post("/items", json={"vm": "web-1", "start_at": format_time(start)}).json()
    world.run(job["id"])
    assert world.args["source.start"]["start_at"] == format_time(start)


def test_without_a_time_it_begins_at_once(contributor: TestClient, world: World) -> None:
    world.run(contributor.post("/items", json={"vm": "web-1"}).json()["id"])
    assert "start_at" not in world.args["source.start"]


@pytest.mark.parametrize(
    "start", ["2026-11-30T05:00:01Z", "2026-11-23T04:58:59Z", "2026-11-24T05:00:00", "tomorrow"]
)
def test_a_time_out_of_range_or_without_a_zone_is_refused(
    contributor: TestClient, world: World, start: str
) -> None:
    answer = contributor.post("/items", json={"vm": "web-1", "start_at": start})
    assert answer.status_code == 400, answer.text
    assert contributor.get("/items").json() == []


# -- what nodes ask ----------------------------------------------------------------------------------------


def standing(world: World, node: str) -> dict[str, Any]:
    face = NodesFace(world.ctx, {})
    certificate = PeerCertificate(world.node(node), 1, world.clock())
    request = Request(
        method="GET",
        path="/node/v1/standing",
        params={},
        query={},
        headers={},
        body=Body(io.BytesIO(b""), 0),
        certificate=certificate,
        remote="",
    )
    found: dict[str, Any] = dict(face._standing(request))["items"]
    return found


def test_a_node_is_told_who_may_run_its_items(world: World) -> None:
    assert standing(world, "host-ams") == {}
    item = world.protected()
    first = {item.id: {"epoch": 1, "source": item.primary_node_id, "name": "web-1"}}
    assert standing(world, "host-ams") == standing(world, "host-rtm") == first
    world.succeed(Operation.UNPLANNED_FAILOVER)
    assert standing(world, "host-ams")[item.id] == {
        "epoch": 2,
        "source": item.recovery_node_id,
        "name": "web-1",
    }


@pytest.mark.parametrize("operation", [Operation.PLANNED_FAILOVER, Operation.UNPLANNED_FAILOVER])
def test_nobody_is_confirmed_while_the_writable_side_changes(world: World, operation: Operation) -> None:
    """An old side that boots amid a failover must not be told that it may run."""
    world.protected()
    world.begin(operation)
    assert standing(world, "host-ams") == {}


def test_a_node_that_asks_is_alive(world: World) -> None:
    world.protected()
    world.away("host-ams")
    with world.store.reading() as tx:
        assert nodes.get(tx, "host-ams").silent
    standing(world, "host-ams")
    with world.store.reading() as tx:
        assert not nodes.get(tx, "host-ams").silent
