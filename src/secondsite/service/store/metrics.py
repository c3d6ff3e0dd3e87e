"""What the service's metrics ask of the store: counts, and what ended since the last look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from secondsite.service.store.database import Transaction
from secondsite.service.store.health_tables import health_errors
from secondsite.service.store.tables import commands, jobs


@dataclass(frozen=True, slots=True)
class Ended:
    """A job or a command that has ended. `what`: operation or kind."""

    id: str
    what: str
    began: datetime
    fetched: datetime | None
    ended: datetime


def jobs_by_state(tx: Transaction) -> list[tuple[str, str, int]]:
    """Return operation, state and how many jobs."""
    found = tx.execute(
        sa.select(jobs.c.operation, jobs.c.state, sa.func.count().label("many")).group_by(
            jobs.c.operation, jobs.c.state
        )
    )
    return [(row.operation, row.state, int(row.many)) for row in found]


def errors_by_code(tx: Transaction) -> list[tuple[str, str, int]]:
    """Return code, level and how many health errors are kept."""
    found = tx.execute(
        sa.select(health_errors.c.code, health_errors.c.level, sa.func.count().label("many")).group_by(
            health_errors.c.code, health_errors.c.level
        )
    )
    return [(row.code, row.level, int(row.many)) for row in found]


def jobs_ended_since(tx: Transaction, since: datetime) -> Iterator[Ended]:
    """Return the jobs that ran and ended after."""
    found = tx.execute(
        sa.select(jobs.c.id, jobs.c.operation, jobs.c.started, jobs.c.ended).where(
            jobs.c.ended > since, jobs.c.started.is_not(None)
        )
    )
    for row in found:
        yield Ended(row.id, row.operation, row.started, None, row.ended)


def commands_ended_since(tx: Transaction, since: datetime) -> Iterator[Ended]:
    """Return the commands that were fetched, answered by their node, and ended after."""
    found = tx.execute(
        sa.select(
            commands.c.id, commands.c.kind, commands.c.created, commands.c.delivered, commands.c.ended
        ).where(
            commands.c.ended > since, commands.c.delivered.is_not(None), commands.c.cancelled.is_(sa.false())
        )
    )
    for row in found:
        yield Ended(row.id, row.kind, row.created, row.delivered, row.ended)


def open_commands(tx: Transaction) -> int:
    """Return how many commands wait for their node."""
    return int(
        tx.execute(
            sa.select(sa.func.count()).select_from(commands).where(commands.c.ended.is_(None))
        ).scalar_one()
    )
