"""Text and numbers that a database cannot hold: refused with a reason, and the attempt stands in the audit trail."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from secondsite.errors import InvalidInputError
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.store.identity_tables import audit
from secondsite.service.usecases import tokens
from secondsite.service.vocabulary import Role
from support.service_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture
def world(database: str, migrated_url: str, tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path, url=migrated_url if database == "postgresql" else None)
    yield found
    found.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    secret = tokens.create_token(world.ctx, "me", Role.CONTRIBUTOR).secret
    headers = {"Authorization": f"Bearer {secret}"}
    app = create_app(world.ctx)
    with TestClient(
        app, base_url=f"http://x{PREFIX}", headers=headers, raise_server_exceptions=False
    ) as found:
        yield found


@pytest.mark.parametrize("path", ["/sites/a%00b", "/items/%00/resync", "/nodes/%00"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_a_zero_byte_in_a_path_is_refused(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path, json={})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"] in {"invalid_input", "not_found", "method_not_allowed"}


def test_a_zero_byte_in_a_body_never_becomes_an_internal_error(client: TestClient) -> None:
    answer = client.post("/sites", json={"name": "a\0b"})
    assert answer.status_code < 500
    answer = client.post("/login", json={"name": "a\0b", "password": "x" * 20})
    assert 400 <= answer.status_code < 500


def test_the_attempt_stands_in_the_audit_trail(world: World, client: TestClient) -> None:
    client.delete("/sites/a%00b")
    with world.store.reading() as tx:
        paths = list(tx.execute(sa.select(audit.c.path)).scalars())
    assert f"{PREFIX}/sites/a\\0b" in paths


def test_a_number_beyond_the_database_is_invalid_input(world: World) -> None:
    with world.store.reading() as tx, pytest.raises(InvalidInputError):
        tx.execute(sa.select(audit.c.id).where(audit.c.id == 1 << 80))


def test_what_follows_in_the_same_service_still_works(client: TestClient) -> None:
    client.delete("/sites/a%00b")
    assert client.get("/sites").status_code == 200
