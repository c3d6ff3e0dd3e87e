"""The audit trail only grows, on every database; and what somebody changes by hand all the same is found and named."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from secondsite.errors import ConflictError
from secondsite.service.store import audit
from secondsite.service.store.database import Store
from secondsite.service.store.identity_tables import audit as table
from secondsite.service.store.identity_tables import audit_chain
from secondsite.service.store.tables import UtcTime
from support.private_postgres import PrivatePostgres

NOW = datetime.now(UTC)  # the triggers go by the database's own clock
AGES = timedelta(days=500)


def test_the_lines_of_an_older_version_are_chained_as_they_are(url: str) -> None:
    old = Store(url)
    old.migrate("0003")
    with old.transaction() as tx:
        for number in (1, 2, 5):  # a transaction that was rolled back left a gap
            tx.execute(
                sa.text(
                    "INSERT INTO audit (id, time, actor, role, method, path, status, outcome)"
                    " VALUES (:id, :time, 'anna', 'Operator', 'POST', '/x', 202, 'done')"
                ).bindparams(sa.bindparam("time", type_=UtcTime()), id=number, time=NOW)
            )
    old.close()
    store = Store.open(url)
    write(store, 1)
    with store.reading() as tx:
        found = audit.verify(tx)
        assert [line["actor"] for line in audit.trail(tx)] == ["anna"] * 4
    assert (found.lines, found.first, found.head, found.flaws) == (4, 1, 4, [])
    store.close()


def write(store: Store, count: int, *, at: datetime = NOW) -> None:
    for number in range(count):
        with store.transaction() as tx:
            audit.note(tx, audit.Line(at, "anna", "POST", f"/sites/{number}", "done", status=201))


def disarm(store: Store) -> None:
    """What somebody would do who may write to the database and wants to hide something."""
    with store.transaction() as tx:
        if store.url.get_backend_name() == "postgresql":
            tx.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        else:
            for name in ("audit_no_update", "audit_no_delete"):
                tx.execute(sa.text(f"DROP TRIGGER {name}"))


def flaws(store: Store, noted: tuple[int, str] | None = None) -> list[tuple[int, str]]:
    with store.reading() as tx:
        return [(flaw.line, flaw.what) for flaw in audit.verify(tx, noted).flaws]


def test_a_line_is_neither_changed_nor_removed(store: Store) -> None:
    write(store, 3)
    for statement in (
        sa.update(table).where(table.c.id == 2).values(outcome="refused"),
        sa.delete(table).where(table.c.id == 2),
        sa.delete(table),
        sa.delete(audit_chain),
    ):
        with pytest.raises(ConflictError) as refused, store.transaction() as tx:
            tx.execute(statement)
        assert "audit trail only grows" in str(refused.value.attributes["rule"])
    assert flaws(store) == []


def test_postgresql_does_not_truncate_it_either(postgres: PrivatePostgres) -> None:
    store = Store.open(postgres.new_database())
    for name in ("audit", "audit_chain"):
        with pytest.raises(ConflictError), store.transaction() as tx:
            tx.execute(sa.text(f"TRUNCATE {name}"))
    store.close()


def test_lines_past_their_age_are_pruned_from_the_oldest_on_and_the_rest_still_verifies(store: Store) -> None:
    write(store, 5, at=NOW - AGES)
    write(store, 2)
    write(store, 1, at=NOW - AGES)  # a clock that was set back leaves no gap
    with store.transaction() as tx:
        assert [audit.prune(tx, NOW, 3) for _ in range(3)] == [3, 2, 0]
    with store.reading() as tx:
        found = audit.verify(tx)
    assert (found.lines, found.first, found.head, found.flaws) == (3, 6, 8, [])


def test_when_everything_is_old_all_of_it_goes_and_the_chain_goes_on(store: Store) -> None:
    write(store, 2, at=NOW - AGES)
    with store.transaction() as tx:
        assert audit.prune(tx, NOW, 100) == 2
        assert audit.prune(tx, NOW, 100) == 0
    write(store, 1)
    with store.reading() as tx:
        assert [line["id"] for line in audit.trail(tx)] == [3]
    assert flaws(store) == []


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_changed_line_is_named(store: Store, number: int) -> None:
    write(store, 5)
    disarm(store)
    with store.transaction() as tx:
        tx.execute(sa.update(table).where(table.c.id == number).values(actor="somebody else"))
    assert flaws(store) == [(number, "this line was changed")]


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_missing_line_is_named(store: Store, number: int) -> None:
    write(store, 5)
    disarm(store)
    with store.transaction() as tx:
        tx.execute(sa.delete(table).where(table.c.id == number))
    assert flaws(store) == [(number, "this line is missing")]


def test_a_line_that_was_written_anew_with_its_hash_breaks_the_chain(store: Store) -> None:
    write(store, 3)
    disarm(store)
    with store.transaction() as tx:
        line = next(line for line in audit.trail(tx) if line["id"] == 2) | {"actor": "bob"}
        tx.execute(sa.update(table).where(table.c.id == 2).values(actor="bob", hash=audit.line_hash(line)))
    assert flaws(store) == [(3, "it does not follow the line before it")]


def test_a_trail_that_was_written_anew_as_a_whole_differs_from_the_head_that_was_noted(store: Store) -> None:
    write(store, 3)
    with store.reading() as tx:
        seen = audit.verify(tx)
    noted = (seen.head, seen.head_hash)
    write(store, 1)
    assert flaws(store, noted) == []
    disarm(store)
    with store.transaction() as tx:
        tx.execute(sa.delete(table))
        tx.execute(sa.update(audit_chain).values(head_id=0, head_hash=audit.START))
    assert flaws(store) == []
    assert flaws(store, noted) == [(3, "this line was noted, and is missing")]
    write(store, 4, at=NOW + timedelta(seconds=1))
    assert flaws(store, noted) == [(3, "its hash is not the one that was noted")]


def test_lines_that_are_written_at_the_same_time_make_one_chain(store: Store) -> None:
    threads = [threading.Thread(target=write, args=(store, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as tx:
        found = audit.verify(tx)
    assert (found.lines, found.head, found.flaws) == (20, 20, [])


def test_the_trail_is_asked_by_who_what_when_and_how_it_ended(store: Store) -> None:
    with store.transaction() as tx:
        for days, actor, item, outcome in (
            (3, "anna", "web-1", "done"),
            (2, "bob", None, "refused"),
            (1, "anna", "db-1", "refused"),
        ):
            audit.note(tx, audit.Line(NOW - timedelta(days=days), actor, "POST", "/x", outcome, item=item))

    def numbers(**filters: object) -> list[int]:
        with store.reading() as tx:
            return [line["id"] for line in audit.trail(tx, **filters)]  # type: ignore[arg-type]

    assert numbers() == [3, 2, 1]
    assert numbers(actor="anna") == [3, 1]
    assert numbers(item="web-1") == [1]
    assert numbers(outcome="refused", since=NOW - timedelta(days=1, hours=12)) == [3]
    assert numbers(before=3, limit=1) == [2]
