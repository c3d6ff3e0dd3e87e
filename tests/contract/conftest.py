"""Databases for the contract tests: what the store promises, it promises on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.service.store.database import Store
from support.private_postgres import PrivatePostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL server of one's own; ask it for a database of one's own."""
    server = PrivatePostgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    server: PrivatePostgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store on it."""
    found = Store.open(url)
    yield found
    found.close()
