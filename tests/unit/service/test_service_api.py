"""The people's API: who may call which route, how errors look, what is audited."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from secondsite.service.api.access_page import every_access, page
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.api.guard import Need
from secondsite.service.store.tables import metadata
from secondsite.service.usecases import tokens
from secondsite.service.vocabulary import Role
from support.service_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

ACCESS = Path(__file__).parents[3] / "docs" / "reference" / "access.md"
OPEN = {("GET", f"{PREFIX}/health"), ("POST", f"{PREFIX}/login")}


@pytest.fixture
def app(world: World) -> FastAPI:
    return create_app(world.ctx)


@pytest.fixture
def clients(world: World, app: FastAPI) -> Iterator[dict[str, TestClient]]:
    found = {"anonymous": TestClient(app, base_url=f"http://x{PREFIX}", raise_server_exceptions=False)}
    for role in Role:
        secret = tokens.create_token(world.ctx, role.value, role).secret
        found[role.value] = TestClient(
            app,
            base_url=f"http://x{PREFIX}",
            headers={"Authorization": f"Bearer {secret}"},
            raise_server_exceptions=False,
        )
    yield found
    for client in found.values():
        client.close()


def all_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application answers, asked from the router itself."""
    found: list[tuple[str, str]] = []

    def walk(routes: Any, prefix: str) -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.extend((method, prefix + route.path) for method in route.methods)
            elif hasattr(route, "routes"):
                walk(route.routes, prefix + getattr(route, "path", ""))
            elif hasattr(route, "original_router"):
                walk(route.original_router.routes, prefix + route.include_context.prefix)
            else:
                raise AssertionError(f"a route of an unknown kind: {route!r}")

    walk(app.routes, "")
    return found


def filled(path: str) -> str:
    return re.sub(r"\{[a-z]+\}", "web-1", path)[len(PREFIX) :]


def everything(world: World, *, but: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    with world.store.reading() as tx:
        return {
            name: [tuple(row) for row in tx.execute(table.select())]
            for name, table in metadata.tables.items()
            if name not in but
        }


def test_every_route_is_found(app: FastAPI) -> None:
    routes = all_routes(app)
    assert ("POST", f"{PREFIX}/items/{{item}}/planned-failover") in routes
    assert len(routes) > 40
    documented = {
        (method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods
    }
    assert set(routes) - documented == {("GET", f"{PREFIX}/openapi.json")}


def test_anonymous_callers_get_nothing_but_the_health_check_and_the_login(
    app: FastAPI, clients: dict[str, TestClient]
) -> None:
    for method, path in all_routes(app):
        answer = clients["anonymous"].request(method, filled(path))
        if (method, path) in OPEN:
            assert answer.status_code == (200 if method == "GET" else 400)
            assert set(answer.json()) == {"status" if method == "GET" else "error"}
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "unauthenticated"
            assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_reader_changes_nothing_but_what_is_its_own(
    app: FastAPI, clients: dict[str, TestClient], world: World
) -> None:
    world.protected()
    before = everything(world, but=("audit", "audit_chain"))
    own = {"/login", "/logout", "/password", "/sessions/{session}"}
    for method, path in all_routes(app):
        if method != "GET" and path.removeprefix(PREFIX) not in own:
            answer = clients["Reader"].request(method, filled(path), json={})
            assert answer.status_code == 403, (method, path)
            assert answer.json()["error"]["code"] == "forbidden"
    assert everything(world, but=("audit", "audit_chain")) == before


@pytest.mark.parametrize("role", [None, *Role])
def test_every_route_lets_in_exactly_whom_the_reference_says(
    app: FastAPI, clients: dict[str, TestClient], role: Role | None
) -> None:
    """A refusal of the role is 401 or 403; what comes after it (the body, the thing that is not there) is not looked at."""
    ranks = {None: -1, Role.READER: 0, Role.OPERATOR: 1, Role.CONTRIBUTOR: 2}
    text = ACCESS.read_text()
    table = re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \| (\S+) \|", text, re.MULTILINE)
    assert {(method, PREFIX + path) for method, path, _ in table} == set(all_routes(app))
    client = clients["anonymous" if role is None else role.value]
    for method, path, needs in table:
        if (method, path) == ("POST", "/login"):
            continue  # which refuses whom it does not know, not whom it does not let in
        wanted = None if needs == "*none*" else Role(needs)
        answer = client.request(method, filled(PREFIX + path), json={"?": 1} if method != "GET" else None)
        refused = answer.status_code in {401, 403}
        assert refused == (ranks[role] < ranks[wanted]), (method, path, needs, answer.text)


def test_the_page_of_who_may_call_what_is_up_to_date() -> None:
    assert ACCESS.read_text() == page(), (
        "run: python -m secondsite.service.api.access_page > docs/reference/access.md"
    )


def test_an_operator_may_only_run_operations() -> None:
    may = {
        access.path.rpartition("/")[2]
        for access in every_access()
        if access.role is Role.OPERATOR and access.method != "GET"
    }
    assert may >= {"test-failover", "cleanup-test", "planned-failover", "commit", "reverse", "resume"}
    setting_up = {
        "sites",
        "tokens",
        "accounts",
        "clouds",
        "policies",
        "items",
        "registration-keys",
        "disable",
    }
    assert not may & setting_up


def test_reading_secrets_of_others_needs_a_contributor(clients: dict[str, TestClient]) -> None:
    for path in ("/tokens", "/accounts", "/audit", "/audit/verify", "/registration-keys"):
        assert clients["Reader"].get(path).status_code == 403
        assert clients["Operator"].get(path).status_code == 403
        assert clients["Contributor"].get(path).status_code == 200


def test_each_route_names_the_role_it_needs_once(app: FastAPI) -> None:
    def needs(dependant: Any) -> int:
        return sum(isinstance(part.call, Need) + needs(part) for part in dependant.dependencies)

    def walk(routes: Any, prefix: str) -> Iterator[tuple[str, APIRoute]]:
        for route in routes:
            if isinstance(route, APIRoute):
                yield prefix + route.path, route
            elif hasattr(route, "original_router"):
                yield from walk(route.original_router.routes, prefix + route.include_context.prefix)

    found = dict(walk(app.routes, ""))
    assert len(found) > 25
    for path, route in found.items():
        assert needs(route.dependant) == (0 if path in {f"{PREFIX}/health", f"{PREFIX}/login"} else 1), path


def test_an_expired_and_a_revoked_token_are_refused(world: World, clients: dict[str, TestClient]) -> None:
    issued = tokens.create_token(world.ctx, "short", Role.READER, valid_days=1)
    header = {"Authorization": f"Bearer {issued.secret}"}
    anonymous = clients["anonymous"]
    assert anonymous.get("/items", headers=header).status_code == 200
    world.clock.turn(days=2)
    assert anonymous.get("/items", headers=header).json()["error"]["message"] == "this token has expired"
    assert clients["Contributor"].delete("/tokens/Reader").status_code == 204
    assert clients["Reader"].get("/items").status_code == 401


def test_the_last_contributor_cannot_be_revoked(clients: dict[str, TestClient]) -> None:
    answer = clients["Contributor"].delete("/tokens/Contributor")
    assert answer.status_code == 409
    assert "create another one first" in answer.json()["error"]["hint"]


def test_a_refused_operation_says_why_and_what_to_do(world: World, clients: dict[str, TestClient]) -> None:
    world.protected()
    answer = clients["Operator"].post("/items/web-1/commit")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["code"] == "operation_refused"
    view = clients["Reader"].get("/items/web-1").json()["allowed_operations"]["commit"]
    assert view == {
        "allowed": False,
        "reason": error["message"].removeprefix("commit is refused: "),
        "instead": error["hint"],
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/items/nothing", None, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("PUT", "/items", None, 405, "not_found"),
        ("POST", "/sites", {"nme": "x"}, 400, "invalid_input"),
        ("POST", "/sites", {"name": "ams"}, 409, "conflict"),
        ("POST", "/policies", {"name": "p", "copy_frequency_s": 7}, 400, "invalid_input"),
        ("POST", "/items", {"vm": "ghost"}, 404, "not_found"),
        ("GET", "/events?limit=0", None, 400, "invalid_input"),
    ],
)
def test_every_error_has_the_one_form(
    clients: dict[str, TestClient], method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = clients["Contributor"].request(method, path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "hint", "retry", "attributes"}


def test_an_unforeseen_error_tells_no_details(world: World, clients: dict[str, TestClient]) -> None:
    def broken() -> Any:
        raise RuntimeError("secret detail")

    object.__setattr__(world.ctx, "clock", broken)
    answer = clients["anonymous"].get("/items", headers=clients["Reader"].headers)
    object.__setattr__(world.ctx, "clock", world.clock)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret detail" not in answer.text


def test_each_attempt_to_change_something_is_audited(clients: dict[str, TestClient]) -> None:
    clients["anonymous"].post("/sites", json={"name": "a"})
    clients["Reader"].post("/sites", json={"name": "b"})
    clients["Contributor"].post("/sites", json={"name": "c"})
    clients["Contributor"].post("/sites", json={"name": "c"})
    clients["Contributor"].get("/sites")
    trail = clients["Contributor"].get("/audit", params={"limit": 4}).json()
    assert [(line["actor"], line["status"], line["outcome"]) for line in reversed(trail)] == [
        ("anonymous", 401, "refused"),
        ("Reader", 403, "refused"),
        ("Contributor", 201, "done"),
        ("Contributor", 409, "refused"),
    ]
    assert {line["path"] for line in trail} == {f"{PREFIX}/sites"}


def test_no_secret_is_kept_or_shown_twice(world: World, clients: dict[str, TestClient]) -> None:
    token = clients["Contributor"].post("/tokens", json={"name": "n", "role": "Reader"}).json()["token"]
    key = clients["Contributor"].post("/registration-keys", json={"site": "ams"}).json()["key"]
    item = world.protected()
    everything_stored = repr(everything(world))
    for secret in (token, key.split(".")[1]):
        assert secret not in everything_stored
    for path in ("/tokens", "/registration-keys", "/items/web-1", "/jobs", "/events", "/nodes", "/audit"):
        shown = clients["Contributor"].get(path).text
        assert item.digest_key.hex() not in shown
        assert token not in shown
        assert key.split(".")[1] not in shown


def test_an_item_is_seen_with_its_health_and_its_age(world: World, clients: dict[str, TestClient]) -> None:
    world.protected()
    world.clock.turn(seconds=30)
    view = clients["Reader"].get("/items/web-1").json()
    assert (view["state"], view["rpo_s"], view["health"]["level"]) == ("protected", 30.0, "normal")
    assert (view["primary"]["node"], view["recovery"]["site"], view["active_side"]) == (
        "host-ams",
        "rtm",
        "primary",
    )
    world.clock.turn(seconds=31)
    view = clients["Reader"].get("/items/web-1").json()
    assert {"rpo", "report-missing"} == {reason["code"] for reason in view["health"]["reasons"]}
    assert clients["Reader"].get("/vault").json()["items"]["by_health"] == {"critical": 1}


def test_jobs_tasks_points_and_events_are_listed(world: World, clients: dict[str, TestClient]) -> None:
    item = world.protected()
    reader = clients["Reader"]
    (job,) = reader.get("/jobs", params={"item": "web-1", "state": "Succeeded"}).json()
    detail = reader.get(f"/jobs/{job['id']}").json()
    assert [task["state"] for task in detail["tasks"]] == ["Succeeded"] * 3
    assert [point["sequence"] for point in reader.get(f"/items/{item.id}/points").json()] == [1]
    events = reader.get("/events", params={"item": "web-1", "after": 0}).json()
    assert [event["code"] for event in events] == ["enabling", "initial-replicating", "enable-done"]


def test_a_job_that_asks_nothing_is_not_resumed(world: World, clients: dict[str, TestClient]) -> None:
    world.protected()
    (job,) = clients["Reader"].get("/jobs").json()
    path, body = f"/jobs/{job['id']}/resume", {"confirm": "I checked that web-1 does not run on host-rtm"}
    assert clients["Reader"].post(path, json=body).status_code == 403
    refused = clients["Operator"].post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "operation_refused")


def test_the_set_up_is_listed_and_taken_down_again(clients: dict[str, TestClient]) -> None:
    contributor = clients["Contributor"]
    (mapping,) = contributor.get("/cloud-mappings").json()
    assert (mapping["source"], mapping["target"], mapping["policy"]) == ("cloud-ams", "cloud-rtm", "fast")
    assert contributor.delete("/policies/fast").status_code == 409
    assert contributor.delete("/clouds/cloud-ams").status_code == 409
    assert contributor.delete("/sites/ams").status_code == 409
    assert contributor.delete(f"/cloud-mappings/{mapping['id']}").status_code == 204
    assert contributor.delete("/policies/fast").status_code == 204
    changed = contributor.patch("/clouds/cloud-ams", json={"remove": ["host-ams"]})
    assert changed.json()["nodes"] == []
    assert contributor.delete("/clouds/cloud-ams").status_code == 204
    (network,) = contributor.get("/network-mappings").json()
    assert network["test_network"] == "lan-test"
    assert contributor.delete(f"/network-mappings/{network['id']}").status_code == 204
    assert contributor.delete("/nodes/host-ams").status_code == 204
    assert [node["name"] for node in contributor.get("/nodes").json()] == ["host-rtm"]
