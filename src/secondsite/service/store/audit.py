"""The audit trail: who did what, with the outcome. It only grows, and a line that is changed or missing is found.

Each line carries the hash of the line before it and its own over all its fields. Lines are numbered without gaps; the
chain's row has the newest number and hash and is locked while a line is added, so no two lines follow the same one. Lines
past their age are pruned from the oldest on, and the last one that went leaves its number and hash behind.

It finds what somebody changed in the database by hand. Who may write there can also write the whole chain anew: note the head
(`secondsite audit verify` prints it) at a place that they don't reach, and give it to a later check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.service.store.database import Transaction
from secondsite.service.store.identity_tables import AUDIT_KEPT, audit, audit_chain

START: Final = "0" * 64
"""What the first line follows."""
HASHED: Final = (
    "previous",
    "id",
    "time",
    "actor",
    "role",
    "method",
    "path",
    "status",
    "outcome",
    "source",
    "item",
    "job_id",
    "detail",
)
_AT_ONCE: Final = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that somebody did, or tried to. `method` and `path`: of a request, or what was done in words of our own."""

    time: datetime
    actor: str
    method: str
    path: str
    outcome: str
    role: str | None = None
    status: int | None = None
    source: str | None = None
    item: str | None = None
    job_id: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Flaw:
    """A place where the trail is not what was written."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `head` and `head_hash` are worth noting elsewhere."""

    lines: int
    first: int
    head: int
    head_hash: str
    flaws: list[Flaw]


def line_hash(line: Mapping[str, Any]) -> str:
    """Return the hash of a line: SHA-256 over its fields as a JSON list, times in UTC with microseconds."""
    time: datetime = line["time"]
    shown = {**line, "time": time.astimezone(UTC).isoformat(timespec="microseconds")}
    text = json.dumps([shown[name] for name in HASHED], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def note(tx: Transaction, line: Line) -> int:
    """Add a line and return its number. Do it last in a transaction: until its end no other line can be added."""
    chain = tx.execute(sa.select(audit_chain).with_for_update()).one()
    values: dict[str, Any] = {name: _storable(getattr(line, name)) for name in Line.__slots__}
    values |= {"id": chain.head_id + 1, "previous": chain.head_hash}
    values["hash"] = line_hash(values)
    tx.execute(sa.insert(audit).values(**values))
    tx.execute(sa.update(audit_chain).values(head_id=values["id"], head_hash=values["hash"]))
    return int(values["id"])


def _storable(value: Any) -> Any:
    """PostgreSQL refuses a zero byte, and whoever sends one must not escape the trail by it."""
    return value.replace("\0", "\\0") if isinstance(value, str) else value


def trail(
    tx: Transaction,
    limit: int = 200,
    *,
    actor: str | None = None,
    item: str | None = None,
    outcome: str | None = None,
    since: datetime | None = None,
    job: str | None = None,
    before: int | None = None,
) -> list[dict[str, Any]]:
    """Return lines, newest first."""
    statement = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    for column, value in (
        (audit.c.actor, actor),
        (audit.c.item, item),
        (audit.c.outcome, outcome),
        (audit.c.job_id, job),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if since is not None:
        statement = statement.where(audit.c.time >= since)
    if before is not None:
        statement = statement.where(audit.c.id < before)
    return [dict(row._mapping) for row in tx.execute(statement)]


def prune(tx: Transaction, now: datetime, at_once: int) -> int:
    """Remove lines past their age, the oldest first and without a gap; returns how many it were."""
    young = tx.execute(sa.select(sa.func.min(audit.c.id)).where(audit.c.time >= now - AUDIT_KEPT)).scalar()
    chain = tx.execute(sa.select(audit_chain).with_for_update()).one()
    last = min(chain.pruned_id + at_once, chain.head_id if young is None else young - 1)
    kept = tx.execute(sa.select(audit.c.hash).where(audit.c.id == last)).scalar()
    if last <= chain.pruned_id or kept is None:
        return 0
    tx.execute(sa.update(audit_chain).values(pruned_id=last, pruned_hash=kept))
    return tx.execute(sa.delete(audit).where(audit.c.id <= last)).rowcount


def verify(tx: Transaction, noted: tuple[int, str] | None = None, *, flaws_max: int = 100) -> Verdict:
    """Read the whole trail and name every line that is changed or missing. `noted`: a head that was seen before."""
    chain = tx.execute(sa.select(audit_chain)).one()
    flaws: list[Flaw] = []
    number, previous, count = int(chain.pruned_id), str(chain.pruned_hash), 0
    for line in _all(tx):
        count += 1
        if line["id"] != number + 1:
            flaws += [
                Flaw(gone, "this line is missing") for gone in range(number + 1, min(line["id"], number + 11))
            ]
        elif line["previous"] != previous:
            flaws.append(Flaw(line["id"], "it does not follow the line before it"))
        if line_hash(line) != line["hash"]:
            flaws.append(Flaw(line["id"], "this line was changed"))
        if noted is not None and line["id"] == noted[0] and line["hash"] != noted[1]:
            flaws.append(Flaw(line["id"], "its hash is not the one that was noted"))
        number, previous = line["id"], line["hash"]
    flaws += [
        Flaw(gone, "this line is missing") for gone in range(number + 1, min(chain.head_id, number + 10) + 1)
    ]
    if number == chain.head_id and previous != chain.head_hash:
        flaws.append(Flaw(number, "its hash is not the one of the newest line"))
    if noted is not None and noted[0] > chain.head_id:
        flaws.append(Flaw(noted[0], "this line was noted, and is missing"))
    return Verdict(
        count, int(chain.pruned_id) + 1, int(chain.head_id), str(chain.head_hash), flaws[:flaws_max]
    )


def _all(tx: Transaction) -> Iterator[dict[str, Any]]:
    after = -1
    while True:
        found = tx.execute(
            sa.select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(_AT_ONCE)
        ).all()
        if not found:
            return
        for row in found:
            yield dict(row._mapping)
        after = found[-1].id
