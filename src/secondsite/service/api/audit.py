"""The audit trail: who did what, and whether it still is what was written."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel

from secondsite.errors import InvalidInputError
from secondsite.service.api.guard import Contributor, Ctx
from secondsite.service.store import audit

router = APIRouter(tags=["vault"])


class AuditFlaw(BaseModel):
    """A line that is not what was written."""

    line: int
    what: str


class AuditVerdict(BaseModel):
    """What reading the whole trail found. `head` is worth noting elsewhere, for a later check."""

    ok: bool
    lines: int
    first: int
    head: str
    flaws: list[AuditFlaw]


class AuditView(BaseModel):
    """Who did what. A job's end is a line of its own (`method` JOB) with the `job_id` of the request that began it."""

    id: int
    time: datetime
    actor: str
    role: str | None
    method: str
    path: str
    status: int | None
    outcome: str
    source: str | None
    item: str | None
    job_id: str | None
    detail: str | None
    hash: str


@router.get("/audit", response_model=list[AuditView])
def audit_trail(
    ctx: Ctx,
    _: Contributor,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    actor: Annotated[str | None, Query()] = None,
    item: Annotated[str | None, Query()] = None,
    outcome: Annotated[str | None, Query(description="done, refused, failed, succeeded or cancelled")] = None,
    since: Annotated[AwareDatetime | None, Query()] = None,
    job: Annotated[str | None, Query()] = None,
    before: Annotated[int | None, Query(description="lines with a lower number")] = None,
) -> Any:
    """Who did what, newest first."""
    with ctx.store.reading() as tx:
        return audit.trail(
            tx, limit, actor=actor, item=item, outcome=outcome, since=since, job=job, before=before
        )


@router.get("/audit/verify", response_model=AuditVerdict)
def verify_audit(
    ctx: Ctx,
    _: Contributor,
    head: Annotated[str | None, Query(description="NUMBER:HASH that an earlier check printed")] = None,
) -> Any:
    """Read the whole trail and name every line that is changed or missing."""
    noted = None if head is None else _noted(head)
    with ctx.store.reading() as tx:
        found = audit.verify(tx, noted)
    return {
        "ok": not found.flaws,
        "lines": found.lines,
        "first": found.first,
        "head": f"{found.head}:{found.head_hash}",
        "flaws": [{"line": flaw.line, "what": flaw.what} for flaw in found.flaws],
    }


def _noted(head: str) -> tuple[int, str]:
    number, _, digest = head.partition(":")
    if not number.isdigit() or len(number) > 18 or len(digest) != 64:
        raise InvalidInputError(f"not a head of the trail: {head!r}", hint="expected NUMBER:HASH")
    return int(number), digest
