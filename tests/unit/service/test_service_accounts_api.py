"""Accounts over the API, and what the audit trail says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.store import audit
from secondsite.service.usecases import accounts, tokens
from secondsite.service.vocabulary import Role
from support.service_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

PASSWORD, OTHER = "correct horse battery", "staple, rather wobbly"
Client = Callable[[str | None], TestClient]


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    """Makes clients that show a token, or none."""
    app = create_app(world.ctx)
    made: list[TestClient] = []

    def make(secret: str | None) -> TestClient:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        made.append(
            TestClient(app, base_url=f"http://x{PREFIX}", headers=headers, raise_server_exceptions=False)
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def chief(world: World, client: Client) -> TestClient:
    """A Contributor by token; anna is an Operator."""
    accounts.create_account(world.ctx, "anna", Role.OPERATOR, PASSWORD)
    return client(tokens.create_token(world.ctx, "chief", Role.CONTRIBUTOR).secret)


def logged_in(client: Client, password: str = PASSWORD) -> TestClient:
    answer = client(None).post("/login", json={"name": "anna", "password": password})
    assert answer.status_code == 200, answer.text
    return client(answer.json()["token"])


def trail(world: World, **filters: Any) -> list[tuple[Any, ...]]:
    with world.store.reading() as tx:
        return [
            (
                line["actor"],
                line["method"],
                line["path"].removeprefix(PREFIX),
                line["outcome"],
                line["detail"],
            )
            for line in reversed(audit.trail(tx, **filters))
        ]


def test_a_person_logs_in_does_what_the_role_allows_and_logs_out(chief: TestClient, client: Client) -> None:
    anna = logged_in(client)
    assert anna.get("/whoami").json() == {"name": "anna", "role": "Operator"}
    assert anna.post("/sites", json={"name": "x"}).status_code == 403
    assert [session["current"] for session in anna.get("/sessions").json()] == [True]
    assert anna.post("/logout").status_code == 204
    refused = anna.get("/whoami")
    assert (refused.status_code, refused.json()["error"]["hint"]) == (401, "log in again: secondsite login")


def test_who_guesses_is_told_when_to_come_back(chief: TestClient, client: Client) -> None:
    body = {"name": "anna", "password": "a wrong one"}
    assert [client(None).post("/login", json=body).status_code for _ in range(6)] == [401] * 5 + [429]
    refused = client(None).post("/login", json=body)
    assert refused.json()["error"]["code"] == "locked_out"
    assert refused.headers["Retry-After"] == "3"


def test_logins_and_their_failures_are_in_the_trail_and_no_password_is(
    world: World, chief: TestClient, client: Client
) -> None:
    client(None).post("/login", json={"name": "anna", "password": "a wrong one"})
    client(None).post("/login", json={"name": "mallory", "password": PASSWORD})
    anna = logged_in(client)
    anna.post("/password", json={"old": PASSWORD, "new": OTHER})
    anna.post("/logout")
    chief.post("/accounts", json={"name": "bob", "role": "Reader", "password": OTHER})
    chief.patch("/accounts/bob", json={"disabled": True})
    chief.delete("/accounts/bob")
    assert trail(world) == [
        ("host-ams", "NODE", "enrol", "done", "at site ams"),
        ("host-rtm", "NODE", "enrol", "done", "at site rtm"),
        ("anonymous", "POST", "/login", "refused", "as anna"),
        ("anonymous", "POST", "/login", "refused", "as mallory"),
        ("anna", "POST", "/login", "done", "as anna"),
        ("anna", "POST", "/password", "done", None),
        ("anna", "POST", "/logout", "done", None),
        ("chief", "POST", "/accounts", "done", None),
        ("chief", "PATCH", "/accounts/bob", "done", None),
        ("chief", "DELETE", "/accounts/bob", "done", None),
    ]
    with world.store.reading() as tx:
        everything = repr(audit.trail(tx))
    assert PASSWORD not in everything
    assert OTHER not in everything


def test_a_password_that_is_refused_is_not_repeated_in_the_answer(chief: TestClient) -> None:
    answer = chief.post(
        "/accounts", json={"name": "bob", "role": "Reader", "password": "tiny-secret", "x": 1}
    )
    assert answer.status_code == 400
    assert "tiny-secret" not in answer.text
    assert (
        "tiny" not in chief.post("/accounts", json={"name": "b", "role": "Reader", "password": "tiny"}).text
    )


def test_nothing_of_a_password_is_shown(chief: TestClient) -> None:
    (account,) = chief.get("/accounts").json()
    assert account["name"] == "anna"
    assert set(account) == {"id", "name", "role", "disabled", "created", "password_changed", "last_login"}


def test_the_end_of_a_job_is_a_line_that_names_the_request_that_began_it(
    world: World, chief: TestClient, client: Client
) -> None:
    world.protected()
    world.started.clear()
    anna = logged_in(client)
    job = anna.post("/items/web-1/test-failover").json()["id"]
    world.run(world.started.pop())
    anna.post("/items/web-1/commit")
    lines = chief.get("/audit", params={"job": job}).json()
    assert [(line["actor"], line["method"], line["outcome"], line["item"]) for line in reversed(lines)] == [
        ("anna", "POST", "done", "web-1"),
        ("anna", "JOB", "succeeded", "web-1"),
    ]
    by_item = chief.get("/audit", params={"item": "web-1", "outcome": "refused"}).json()
    assert [line["path"] for line in by_item] == [f"{PREFIX}/items/web-1/commit"]


def test_the_trail_can_be_checked_by_a_contributor(world: World, chief: TestClient, client: Client) -> None:
    chief.post("/sites", json={"name": "x"})
    seen = chief.get("/audit/verify").json()
    assert (seen["ok"], seen["flaws"]) == (True, [])
    chief.post("/sites", json={"name": "y"})
    assert chief.get("/audit/verify", params={"head": seen["head"]}).json()["ok"] is True
    forged = seen["head"][:-1] + ("0" if seen["head"][-1] != "0" else "1")
    assert chief.get("/audit/verify", params={"head": forged}).json()["ok"] is False
    assert chief.get("/audit/verify", params={"head": "nonsense"}).status_code == 400


def test_strangers_cannot_fill_the_trail(world: World, chief: TestClient, client: Client) -> None:
    stranger = client(None)
    for number in range(40):
        stranger.post("/sites", json={"name": str(number)})
    assert len(trail(world, actor="anonymous")) == 30
    chief.post("/sites", json={"name": "ams"})
    assert trail(world)[-1] == ("chief", "POST", "/sites", "refused", None), "who is known is always noted"
    world.clock.turn(minutes=1)
    stranger.post("/login", json={"name": "anna", "password": "a wrong one"})
    assert trail(world)[-1] == (
        "anonymous",
        "POST",
        "/login",
        "refused",
        "as anna; 10 refused attempts before this one were not noted",
    )
