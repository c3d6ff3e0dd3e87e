"""Writers of one process take turns, and SQLite's log is written back beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from secondsite.service.store import vaults
from secondsite.service.store.database import Store
from secondsite.service.store.tables import vault

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """On SQLite: PostgreSQL has many writers."""
    made = Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with made.transaction() as tx:
        vaults.create_vault(tx, "test", NOW)
    yield made
    made.close()


def test_a_writer_waits_for_the_one_before_it_and_sees_what_that_one_wrote(store: Store) -> None:
    entered, seen = threading.Event(), list[str]()

    def second() -> None:
        entered.set()
        with store.transaction() as tx:
            seen.append(vaults.get_vault(tx).name)

    with store.transaction() as tx:
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(10)
        assert seen == []
        tx.execute(sa.update(vault).values(name="renamed"))
    thread.join(10)
    assert seen == ["renamed"]


def test_a_writer_that_failed_lets_the_next_one_in(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), store.transaction():
            raise ZeroDivisionError
    with store.transaction() as tx:
        assert vaults.get_vault(tx).name


def test_the_log_is_written_back_while_a_transaction_is_open(store: Store, tmp_path: Path) -> None:
    file, log = tmp_path / "store.sqlite", tmp_path / "store.sqlite-wal"
    before = file.stat().st_size
    assert log.stat().st_size > before  # the schema is in the log only
    with store.transaction():
        store.checkpoint()
    assert file.stat().st_size > before
