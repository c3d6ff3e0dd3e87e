"""The second schema takes over what the first one holds, and its constraints are those of the new states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from secondsite.errors import ConflictError
from secondsite.service.store import database
from secondsite.service.store.database import Store

ITEM = {
    "id": "i",
    "name": "web",
    "vm_uuid": "v",
    "cloud_mapping_id": "m",
    "state": "commit-pending",
    "test_state": "none",
    "direction": "primary-to-recovery",
    "epoch": 2,
    "primary_node_id": "n1",
    "recovery_node_id": "n2",
    "journal_node_id": "n2",
    "digest_key": b"k" * 32,
    "disks": "{}",
    "networks": "[]",
    "rpo_alert": False,
    "created": "2026-11-23 05:00:00",
}


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A database with the first schema and an item in it."""
    found = Store(url)
    upgrade(found, "0001")
    with found.transaction() as tx:
        for statement in (
            "INSERT INTO sites (id, name, created) VALUES ('s', 's', '2026-11-23 05:00:00')",
            (
                "INSERT INTO nodes (id, name, site_id, roles, data_address, certificate_serial, public_key, version,"
                " enrolled, silent, revoked) SELECT n, n, 's', '[]', 'h:1', '1', n, '', '2026-11-23 05:00:00', false, false"
                " FROM (SELECT 'n1' AS n UNION SELECT 'n2') AS names"
            ),
            (
                "INSERT INTO clouds (id, name, site_id, created) SELECT c, c, 's', '2026-11-23 05:00:00'"
                " FROM (SELECT 'c1' AS c UNION SELECT 'c2') AS names"
            ),
            (
                "INSERT INTO policies (id, name, settings, revision, created)"
                " VALUES ('p', 'p', '{}', 1, '2026-11-23 05:00:00')"
            ),
            (
                "INSERT INTO cloud_mappings (id, source_cloud_id, target_cloud_id, policy_id, created)"
                " VALUES ('m', 'c1', 'c2', 'p', '2026-11-23 05:00:00')"
            ),
        ):
            tx.execute(sa.text(statement))
        tx.execute(sa.insert(sa.table("items", *map(sa.column, ITEM))).values(ITEM))
        tx.execute(
            sa.text(
                "INSERT INTO writable_sides (item_id, epoch, side, node_id, since)"
                " VALUES ('i', 1, 'primary', 'n1', '2026-11-23 05:00:00')"
            )
        )
    yield found
    found.close()


def upgrade(store: Store, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with store._engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def move(store: Store, state: str) -> None:
    with store.transaction() as tx:
        tx.execute(sa.text("UPDATE items SET state = :state").bindparams(state=state))


def test_an_item_of_the_first_schema_is_there_in_the_second(store: Store) -> None:
    upgrade(store, "0002")
    with store.reading() as tx:
        row = tx.execute(sa.text("SELECT name, state, epoch, standing FROM items")).one()
        assert tuple(row) == ("web", "commit-pending", 2, None)
        assert tx.execute(sa.text("SELECT item_id FROM writable_sides")).scalar() == "i"


def test_the_new_states_are_taken_and_unknown_ones_are_not(store: Store) -> None:
    with pytest.raises(ConflictError, match="a rule that the database keeps"):
        move(store, "paused")
    upgrade(store, "0002")
    for state in ("paused", "unplanned-commit-pending", "point-change-failed", "cancelling"):
        move(store, state)
    with pytest.raises(ConflictError, match="a rule that the database keeps"):
        move(store, "lost")


def test_sqlite_still_reads_the_whole_file_as_sound(store: Store) -> None:
    upgrade(store, "0002")
    if store.url.get_backend_name() != "sqlite":
        return
    store._engine.dispose()
    with store.reading() as tx:
        assert tx.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
        assert tx.execute(sa.text("PRAGMA foreign_key_check")).all() == []
