"""Alert settings, receivers, and the outbox of notices: one row for each event and receiver, so that a restart loses and doubles none.

The outbox is filled from the events table. Ids of events may become visible out of order (two transactions at once on PostgreSQL), so
each filling looks a little further back than the last one came; what is in the outbox already is not added again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from secondsite.service.health.vocabulary import NoticeState
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.health_tables import alert_receivers, alert_settings, notices
from secondsite.service.store.records import Event
from secondsite.service.store.tables import events

REACH: Final = 200
"""How many ids a filling looks back behind the last one."""
RETRY_S: Final = (10, 30, 120, 600, 1800, 3600, 3 * 3600)
"""Pauses after the first, second ... failed attempt; after the last pause one more is made, and then none."""
PENDING_MAX: Final = 1000
"""More that wait for one receiver: the oldest are given up. Whoever is away for so long reads the events."""
KEPT: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Settings:
    """Which events are told, and how many messages a minute each receiver gets at the most."""

    enabled: bool
    severities: list[str]
    per_minute: int
    first_event: int
    last_event: int
    updated: datetime


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who is told. `url` is a secret. `last_error` is None once a notice has arrived again."""

    id: str
    name: str
    url: str
    sent: int
    failed: int
    last_sent: datetime | None
    last_error: str | None
    created: datetime


def settings(tx: Transaction) -> Settings | None:
    """Return the settings, or None if there never were any."""
    return rows.find(tx, Settings, sa.select(alert_settings))


def put_settings(
    tx: Transaction, *, enabled: bool, severities: Sequence[str], per_minute: int, now: datetime
) -> None:
    """Replace the settings. What happened before is told by the old ones, and is nobody's news under the new ones."""
    before = settings(tx)
    while unseen(tx):
        fill(tx, now)
    newest = int(tx.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0)
    values = {
        "enabled": enabled,
        "severities": list(severities),
        "per_minute": per_minute,
        "updated": now,
        "first_event": newest,
        "last_event": newest,
    }
    if before is None:
        tx.execute(sa.insert(alert_settings).values(id=1, **values))
    else:
        tx.execute(sa.update(alert_settings).values(**values))


def receivers(tx: Transaction) -> list[Receiver]:
    """Return all receivers by name."""
    return rows.listed(tx, Receiver, sa.select(alert_receivers).order_by(alert_receivers.c.name))


def add_receiver(tx: Transaction, receiver_id: str, name: str, url: str, now: datetime) -> None:
    """Add a receiver; ConflictError if the name is taken."""
    tx.execute(
        sa.insert(alert_receivers).values(id=receiver_id, name=name, url=url, sent=0, failed=0, created=now)
    )


def change_url(tx: Transaction, receiver_id: str, url: str) -> None:
    """Give a receiver another address; what failed at the old one is forgotten."""
    tx.execute(
        sa.update(alert_receivers).where(alert_receivers.c.id == receiver_id).values(url=url, last_error=None)
    )


def remove_receiver(tx: Transaction, receiver_id: str) -> None:
    """Forget a receiver and what waits for it."""
    tx.execute(sa.delete(alert_receivers).where(alert_receivers.c.id == receiver_id))


def unseen(tx: Transaction) -> bool:
    """Whether there are events that the outbox has not looked at. Cheap, for asking often."""
    found = settings(tx)
    if found is None or not found.enabled:
        return False
    newest = tx.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0
    return int(newest) > found.last_event


def fill(tx: Transaction, now: datetime) -> int:
    """Put what happened since into the outbox, for every receiver that was there then; returns how many rows."""
    found = settings(tx)
    if found is None or not found.enabled:
        return 0
    behind = max(found.first_event, found.last_event - REACH)
    recent = list(
        tx.execute(
            sa.select(events.c.id, events.c.time, events.c.severity)
            .where(events.c.id > behind)
            .order_by(events.c.id)
            .limit(REACH + PENDING_MAX)
        )
    )
    if not recent:
        return 0
    there = {
        (row.event_id, row.receiver_id)
        for row in tx.execute(
            sa.select(notices.c.event_id, notices.c.receiver_id).where(notices.c.event_id > behind)
        )
    }
    new = [
        {
            "event_id": event.id,
            "receiver_id": receiver.id,
            "state": NoticeState.PENDING.value,
            "attempts": 0,
            "next_attempt": now,
            "created": now,
        }
        for receiver in receivers(tx)
        for event in recent
        if event.severity in found.severities
        and event.time >= receiver.created
        and (event.id, receiver.id) not in there
    ]
    if new:
        tx.execute(sa.insert(notices).values(new))
    tx.execute(sa.update(alert_settings).values(last_event=max(recent[-1].id, found.last_event)))
    _bound(tx, now)
    return len(new)


def _bound(tx: Transaction, now: datetime) -> None:
    for receiver_id, waiting in pending(tx).items():
        if waiting <= PENDING_MAX:
            continue
        oldest = [
            row.event_id
            for row in tx.execute(
                sa.select(notices.c.event_id)
                .where(notices.c.receiver_id == receiver_id, notices.c.state == NoticeState.PENDING.value)
                .order_by(notices.c.event_id)
                .limit(waiting - PENDING_MAX)
            )
        ]
        _end(tx, receiver_id, oldest, NoticeState.FAILED, now)


def due(tx: Transaction, receiver_id: str, now: datetime) -> list[Event]:
    """Return the events that the receiver should be told now, oldest first."""
    waiting = (
        notices.c.receiver_id == receiver_id,
        notices.c.state == NoticeState.PENDING.value,
        notices.c.next_attempt <= now,
    )
    statement = (
        sa.select(events)
        .join(notices, notices.c.event_id == events.c.id)
        .where(*waiting)
        .order_by(events.c.id)
        .limit(PENDING_MAX)
    )
    return rows.listed(tx, Event, statement)


def pending(tx: Transaction) -> dict[str, int]:
    """Return how many notices wait for each receiver."""
    found = tx.execute(
        sa.select(notices.c.receiver_id, sa.func.count().label("waiting"))
        .where(notices.c.state == NoticeState.PENDING.value)
        .group_by(notices.c.receiver_id)
    )
    return {row.receiver_id: int(row.waiting) for row in found}


def sent(tx: Transaction, receiver_id: str, event_ids: Collection[int], now: datetime) -> None:
    """Note that a message with these events has arrived."""
    count = _end(tx, receiver_id, event_ids, NoticeState.SENT, now)
    tx.execute(
        sa.update(alert_receivers)
        .where(alert_receivers.c.id == receiver_id)
        .values(sent=alert_receivers.c.sent + count, last_sent=now, last_error=None)
    )


def not_sent(
    tx: Transaction, receiver_id: str, event_ids: Collection[int], now: datetime, error: str
) -> None:
    """Note that a message with these events did not arrive: it is tried again later, or given up after the last try."""
    of_it = sa.and_(
        notices.c.receiver_id == receiver_id,
        notices.c.event_id.in_(list(event_ids)),
        notices.c.state == NoticeState.PENDING.value,
    )
    attempts: Mapping[int, int] = {
        row.event_id: row.attempts
        for row in tx.execute(sa.select(notices.c.event_id, notices.c.attempts).where(of_it))
    }
    for made in set(attempts.values()):
        these = [event_id for event_id, count in attempts.items() if count == made]
        if made >= len(RETRY_S):
            _end(tx, receiver_id, these, NoticeState.FAILED, now)
            continue
        tx.execute(
            sa.update(notices)
            .where(notices.c.receiver_id == receiver_id, notices.c.event_id.in_(these))
            .values(attempts=made + 1, next_attempt=now + timedelta(seconds=RETRY_S[made]))
        )
    tx.execute(
        sa.update(alert_receivers).where(alert_receivers.c.id == receiver_id).values(last_error=error[:500])
    )


def prune(tx: Transaction, now: datetime) -> int:
    """Remove what ended a week ago and lies behind the reach of a filling, and what tells of events that are gone."""
    found = settings(tx)
    if found is None:
        return 0
    gone = sa.and_(
        notices.c.state == NoticeState.PENDING.value,
        notices.c.created < now - KEPT,
        notices.c.event_id.not_in(sa.select(events.c.id)),
    )
    ended = sa.and_(notices.c.ended < now - KEPT, notices.c.event_id <= found.last_event - REACH)
    return tx.execute(sa.delete(notices).where(sa.or_(ended, gone))).rowcount


def _end(
    tx: Transaction, receiver_id: str, event_ids: Collection[int], state: NoticeState, now: datetime
) -> int:
    ended = tx.execute(
        sa.update(notices)
        .where(
            notices.c.receiver_id == receiver_id,
            notices.c.event_id.in_(list(event_ids)),
            notices.c.state == NoticeState.PENDING.value,
        )
        .values(state=state.value, ended=now)
    ).rowcount
    if state is NoticeState.FAILED:
        tx.execute(
            sa.update(alert_receivers)
            .where(alert_receivers.c.id == receiver_id)
            .values(failed=alert_receivers.c.failed + ended)
        )
    return ended
