"""Databases for the contract tests: what the store promises, it promises on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.service.store.database import Store
from support.private_postgres import PrivatePostgres
from support.service_world import template


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL server of one's own; ask it for a database of one's own."""
    server = PrivatePostgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def migrated(postgres: PrivatePostgres) -> str:
    """The name of a database on it whose schema is up to date, to make others from."""
    store = Store.open(postgres.new_database())
    store.close()
    return str(store.url.database)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


@pytest.fixture
def url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    server: PrivatePostgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def migrated_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the schema and nothing in it; a copy, since each migration anew is most of a test's time."""
    if database == "sqlite":
        file = tmp_path / "migrated.sqlite"
        file.write_bytes(template())
        return f"sqlite:///{file}"
    server: PrivatePostgres = request.getfixturevalue("postgres")
    return server.new_database(request.getfixturevalue("migrated"))


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on it."""
    found = Store(migrated_url)
    yield found
    found.close()
