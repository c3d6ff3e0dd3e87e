"""The ways in which every aggregate reads rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from secondsite.errors import NotFoundError
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import make, maker

R = TypeVar("R")

AT_ONCE: Final = 20
"""Rows that are fetched in one go. One by one, each may have to wait for the interpreter's lock; all at once keeps it long."""


def find(tx: Transaction, record: type[R], statement: sa.Select[Any]) -> R | None:
    """Return the one row as a record, or None."""
    row = tx.execute(statement).one_or_none()
    return None if row is None else make(record, row)


def get(tx: Transaction, record: type[R], statement: sa.Select[Any], what: str) -> R:
    """Return the one row as a record; NotFoundError names `what` is missing."""
    found = find(tx, record, statement)
    if found is None:
        raise NotFoundError(f"there is no {what}")
    return found


def listed(tx: Transaction, record: type[R], statement: sa.Select[Any]) -> list[R]:
    """Return all rows as records."""
    found = tx.execute(statement)
    build = maker(record, list(found.keys()))
    return [build(row) for row in found.all()]


def each(tx: Transaction, record: type[R], statement: sa.Select[Any]) -> Iterator[R]:
    """Yield all rows as records, one by one: for who has to look at many, and lets others go first meanwhile."""
    found = tx.execute(statement)
    build = maker(record, list(found.keys()))
    return (build(row) for some in found.partitions(AT_ONCE) for row in some)
