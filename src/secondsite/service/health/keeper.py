"""Keeps the list of what is wrong now up to date, and writes an event when something begins and when it ends.

Promises: an error's `since` is the time when it was first found, also over a restart of the service; an error and its
event change in one transaction; a fault that is over before its rule's `after_s` writes no event at all.
Writes only what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from secondsite.service.context import Context
from secondsite.service.health.reading import Reader
from secondsite.service.health.replication_rules import MONITORED
from secondsite.service.health.rule import Finding, level_of
from secondsite.service.health.vocabulary import Level, Subject
from secondsite.service.health.watched import Looked
from secondsite.service.pace import PORTION, UNPACED, Pace
from secondsite.service.store import events, health, items, nodes, samples
from secondsite.service.store.database import Transaction
from secondsite.service.store.health import Kept
from secondsite.service.store.records import Item
from secondsite.service.vocabulary import Severity

_NO_DIGITS: Final = dict.fromkeys(map(ord, "0123456789"))
SEVERITY: Final = {
    Level.INFORMATION: Severity.INFO,
    Level.WARNING: Severity.WARNING,
    Level.CRITICAL: Severity.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong now and kept otherwise, with what is kept; and what is kept and over."""

    now: datetime
    changed: Sequence[tuple[Finding, Kept | None]]
    ended: Sequence[Kept]


def keep(ctx: Context) -> None:
    """Compare what is wrong now with what is kept, and write the difference."""
    with ctx.store.reading() as tx:
        found = compare(ctx, tx, items.listed(tx))
    put(ctx, found)


def compare(ctx: Context, tx: Transaction, listed: Sequence[Item], pace: Pace = UNPACED) -> Difference:
    """Look at all items, which were read in this very transaction; what was found is kept in `ctx.watched`, too."""
    now = ctx.clock()
    minute = now.replace(second=0, microsecond=0)
    last = ctx.watched.of(now)
    # The sum over half a day of minutes changes once a minute, when one more is written.
    shares = last.shares if last is not None and last.shares_of == minute else None
    if shares is None:
        shares = samples.shares(tx, now - MONITORED)
    every = Reader(tx, now, shares=shares).all(listed, pace)
    kept = {row.key: row for row in health.listed(tx)}
    found = {(finding.subject, finding.subject_id, finding.code): finding for finding in every}
    ctx.watched.put(Looked(now, minute, shares, levels(listed, every)))
    changed = [
        (finding, row)
        for key, finding in pace.through(found.items())
        if _differs(row := kept.get(key), finding, now)
    ]
    return Difference(now, changed, [row for key, row in kept.items() if key not in found])


def put(ctx: Context, found: Difference, pace: Pace = UNPACED) -> None:
    """Write the difference, each finding with its event: all of 1,000 items at once would hold up every report for a second or two."""
    for some in pace.portions(found.changed, PORTION):
        with ctx.store.transaction() as tx:
            for finding, row in some:
                _put(tx, finding, row, found.now)
    for ended in pace.portions(found.ended, PORTION):
        with ctx.store.transaction() as tx:
            health.remove(tx, [row.key for row in ended])
            for row in ended:
                if row.told:
                    _tell_end(tx, row, found.now)


def levels(listed: Sequence[Item], every: Iterable[Finding]) -> dict[str, str]:
    """Return each item's level: the worst of what was found of it."""
    of_item: dict[str, list[Finding]] = {item.id: [] for item in listed}
    for finding in every:
        if finding.subject is Subject.ITEM:
            of_item[finding.subject_id].append(finding)
    return {item_id: level_of(found) for item_id, found in of_item.items()}


def _due(finding: Finding, since: datetime, now: datetime) -> bool:
    return finding.told and now - since >= timedelta(seconds=finding.after_s)


def _differs(row: Kept | None, finding: Finding, now: datetime) -> bool:
    if row is None or row.level is not finding.level:
        return True
    if not row.told and _due(finding, row.since, now):
        return True
    # A message counts its seconds: that is no change worth a write.
    return _words(row.message) != _words(finding.message)


def _words(message: str) -> str:
    return message.translate(_NO_DIGITS)


def _put(tx: Transaction, finding: Finding, row: Kept | None, now: datetime) -> None:
    since = now if row is None else row.since
    kept = Kept(
        finding.subject, finding.subject_id, finding.code, finding.level, finding.message[:2000], since, False
    )
    told = row is not None and row.told
    if not told and _due(finding, since, now):
        _tell_begin(tx, finding, now)
        told = True
    health.put(tx, replace(kept, told=told))


def _tell_begin(tx: Transaction, finding: Finding, now: datetime) -> None:
    named = _named(tx, finding.subject, finding.subject_id)
    events.add(
        tx,
        events.NewEvent(
            now,
            finding.code,
            f"{named}{finding.message}"[:2000],
            SEVERITY[finding.level],
            item_id=finding.subject_id if finding.subject is Subject.ITEM else None,
            node_id=finding.subject_id if finding.subject is Subject.NODE else None,
            details={"possible_causes": list(finding.causes), "recommended_action": finding.action},
        ),
    )


def _tell_end(tx: Transaction, row: Kept, now: datetime) -> None:
    seconds = (now - row.since).total_seconds()
    events.add(
        tx,
        events.NewEvent(
            now,
            f"{row.code}-over",
            f"{_named(tx, row.subject, row.subject_id)}{row.code} is over after {seconds:.0f} s",
            item_id=row.subject_id if row.subject is Subject.ITEM else None,
            node_id=row.subject_id if row.subject is Subject.NODE else None,
        ),
    )


def _named(tx: Transaction, subject: Subject, subject_id: str) -> str:
    if subject is Subject.ITEM:
        return f"{items.get(tx, subject_id).name}: "
    node = nodes.find(tx, subject_id) if subject is Subject.NODE else None
    return "" if node is None else f"{node.name}: "
