"""Events: what happened, in order. Written once per key, so that a step that runs twice tells it once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Event
from secondsite.service.store.tables import events
from secondsite.service.vocabulary import Severity


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to write. `once`: a key under which it is written at most once."""

    time: datetime
    code: str
    message: str
    severity: Severity = Severity.INFO
    item_id: str | None = None
    node_id: str | None = None
    job_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    once: str | None = None


def add(tx: Transaction, event: NewEvent) -> None:
    """Write an event."""
    tx.execute(
        sa.insert(events).values(
            time=event.time,
            code=event.code,
            message=event.message,
            severity=event.severity.value,
            item_id=event.item_id,
            node_id=event.node_id,
            job_id=event.job_id,
            details=event.details,
            once=event.once,
        )
    )


def written(tx: Transaction, once: str) -> bool:
    """Whether the event with this key was written already."""
    return tx.execute(sa.select(events.c.id).where(events.c.once == once)).first() is not None


def listed(
    tx: Transaction,
    *,
    item_id: str | None = None,
    node_id: str | None = None,
    severity: Severity | None = None,
    after: int | None = None,
    limit: int = 200,
) -> list[Event]:
    """Return events, newest first; with `after`, those with a higher id, oldest first."""
    statement = sa.select(events).limit(limit)
    statement = (
        statement.order_by(events.c.id.desc())
        if after is None
        else statement.where(events.c.id > after).order_by(events.c.id)
    )
    if item_id is not None:
        statement = statement.where(events.c.item_id == item_id)
    if node_id is not None:
        statement = statement.where(events.c.node_id == node_id)
    if severity is not None:
        statement = statement.where(events.c.severity == severity.value)
    return rows.listed(tx, Event, statement)
