"""The list of health errors that are true now: one row each, with the time since when. What was is in the events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from secondsite.service.health.vocabulary import Level, Subject
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.health_tables import alert_receivers, health_errors
from secondsite.service.store.tables import points

Key = tuple[Subject, str, str]
"""Subject, its id, the rule's code."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A health error as it is kept. `told`: the event that it began is written."""

    subject: Subject
    subject_id: str
    code: str
    level: Level
    message: str
    since: datetime
    told: bool

    @property
    def key(self) -> Key:
        """What it is the only one of."""
        return self.subject, self.subject_id, self.code


def listed(
    tx: Transaction, *, subject: Subject | None = None, only: Collection[str] | None = None
) -> list[Kept]:
    """Return what is true now, all of it, that of one kind of subject, or that of the subjects with these ids."""
    statement = sa.select(health_errors)
    if subject is not None:
        statement = statement.where(health_errors.c.subject == subject.value)
    if only is not None:
        statement = statement.where(health_errors.c.subject_id.in_(list(only)))
    return rows.listed(tx, Kept, statement)


def put(tx: Transaction, kept: Kept) -> None:
    """Add an error that began, or replace what is known of it."""
    remove(tx, [kept.key])
    tx.execute(
        sa.insert(health_errors).values(
            subject=kept.subject.value,
            subject_id=kept.subject_id,
            code=kept.code,
            level=kept.level.value,
            message=kept.message,
            since=kept.since,
            told=kept.told,
        )
    )


def remove(tx: Transaction, keys: Iterable[Key]) -> None:
    """Take away errors that have ended."""
    for subject, subject_id, code in keys:
        tx.execute(
            sa.delete(health_errors).where(
                health_errors.c.subject == subject.value,
                health_errors.c.subject_id == subject_id,
                health_errors.c.code == code,
            )
        )


def newest_application_points(tx: Transaction) -> dict[str, datetime]:
    """Return for each item that has one the time of its newest application-consistent point."""
    found = tx.execute(
        sa.select(points.c.item_id, sa.func.max(points.c.time).label("newest"))
        .where(points.c.consistency == "application")
        .group_by(points.c.item_id)
    )
    return {row.item_id: row.newest for row in found}


def diverged_points(tx: Transaction) -> dict[str, int]:
    """Return for each item that has one the sequence of its kept `diverged` point."""
    found = tx.execute(
        sa.select(points.c.item_id, sa.func.max(points.c.sequence).label("newest"))
        .where(points.c.kind == "diverged")
        .group_by(points.c.item_id)
    )
    return {row.item_id: row.newest for row in found}


def receivers(tx: Transaction) -> tuple[int, Mapping[str, str]]:
    """Return how many receivers of notices there are, and those that fail with the reason."""
    found = list(tx.execute(sa.select(alert_receivers.c.name, alert_receivers.c.last_error)))
    return len(found), {row.name: row.last_error for row in found if row.last_error}
