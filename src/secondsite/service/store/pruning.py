"""Removes what nobody reads any more, a bounded number of rows at a time, so that no table grows without end.

Kept: commands for a week after their end (those of an active job, or of an item with an order that stands, as long
as that lasts), events for ninety days and at most some 200,000 of them (an active job's are its memory of what it has
done, and stay), the audit trail for 400 days, logins that failed for a day, sessions until they expire.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from secondsite.service.store import audit
from secondsite.service.store.database import Transaction
from secondsite.service.store.identity_tables import login_failures, sessions
from secondsite.service.store.jobs import ACTIVE
from secondsite.service.store.tables import commands, events, items, jobs, registration_keys
from secondsite.service.vocabulary import CommandState

COMMANDS_KEPT: Final = timedelta(days=7)
EVENTS_KEPT: Final = timedelta(days=90)
EVENTS_MAX: Final = 200_000
FAILURES_KEPT: Final = timedelta(days=1)
KEYS_KEPT: Final = timedelta(days=30)
"""After their end: so long it can be seen that there was one."""
AT_ONCE: Final = 500
"""Rows of each table per round: the write lock is held for milliseconds."""
_ENDED: Final = [state.value for state in CommandState if state.ended]


def prune(tx: Transaction, now: datetime, *, events_max: int = EVENTS_MAX) -> int:
    """Remove what is due, at most `AT_ONCE` rows of each table; returns how many it were."""
    active = sa.select(jobs.c.id).where(jobs.c.state.in_(ACTIVE))
    ordered = sa.select(items.c.id).where(items.c.standing.is_not(None))
    newest = tx.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0
    due = (
        (
            commands,
            commands.c.ordinal,
            sa.and_(
                commands.c.state.in_(_ENDED),
                commands.c.ended < now - COMMANDS_KEPT,
                sa.or_(commands.c.job_id.is_(None), commands.c.job_id.not_in(active)),
                sa.or_(commands.c.item_id.is_(None), commands.c.item_id.not_in(ordered)),
            ),
        ),
        (
            events,
            events.c.id,
            sa.and_(
                sa.or_(events.c.time < now - EVENTS_KEPT, events.c.id <= newest - events_max),
                sa.or_(events.c.job_id.is_(None), events.c.job_id.not_in(active)),
            ),
        ),
        (registration_keys, registration_keys.c.id, registration_keys.c.expires < now - KEYS_KEPT),
        (sessions, sessions.c.id, sessions.c.expires < now),
        (login_failures, login_failures.c.subject, login_failures.c.last < now - FAILURES_KEPT),
    )
    removed = 0
    for table, key, condition in due:
        keys = [row[0] for row in tx.execute(sa.select(key).where(condition).order_by(key).limit(AT_ONCE))]
        if keys:
            removed += tx.execute(sa.delete(table).where(key.in_(keys))).rowcount
    return removed + audit.prune(tx, now, AT_ONCE)
