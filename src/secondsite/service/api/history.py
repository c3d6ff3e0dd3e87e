"""Jobs, how a suspended one goes on, and events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from secondsite.service.api.answers import EventView, JobDetailView, JobView
from secondsite.service.api.guard import Ctx, Operator, Reader
from secondsite.service.api.requests import ResumeBody
from secondsite.service.store import events, items
from secondsite.service.store import nodes as node_store
from secondsite.service.usecases import jobs as job_control
from secondsite.service.usecases import operations, views
from secondsite.service.vocabulary import JobState, Severity

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/jobs", response_model=list[JobView], tags=["jobs"])
def list_jobs(
    ctx: Ctx,
    _: Reader,
    item: Annotated[str | None, Query()] = None,
    state: Annotated[JobState | None, Query()] = None,
    operation: Annotated[str | None, Query()] = None,
    limit: Limit = 100,
) -> Any:
    """Jobs, newest first; filtered by item (name or id), state, operation."""
    return views.job_views(ctx, item=item, state=state, operation=operation, limit=limit)


@router.get("/jobs/{job}", response_model=JobDetailView, tags=["jobs"])
def show_job(ctx: Ctx, _: Reader, job: str) -> Any:
    """One job with its tasks, their progress and errors."""
    return views.job_view(ctx, job)


@router.post("/jobs/{job}/resume", response_model=JobDetailView, tags=["jobs"])
def resume_job(ctx: Ctx, actor: Operator, job: str, body: ResumeBody) -> Any:
    """Confirm what a suspended job asks, so that it goes on without the answer that it waits for."""
    return views.job_view(ctx, operations.resume_job(ctx, actor, job, body.confirm).id)


@router.post("/jobs/{job}/cancel", response_model=JobDetailView, tags=["jobs"])
def cancel_job(ctx: Ctx, actor: Operator, job: str) -> Any:
    """Have a job take back what it did and end; refused, with what to do instead, once it is past its point of no return."""
    return views.job_view(ctx, job_control.cancel_job(ctx, actor, job).id)


@router.post("/jobs/{job}/retry", response_model=JobDetailView, status_code=202, tags=["jobs"])
def retry_job(ctx: Ctx, actor: Operator, job: str) -> Any:
    """Begin the operation of a failed job again with the same parameters; the answer is the new job."""
    return views.job_view(ctx, job_control.retry_job(ctx, actor, job).id)


@router.get("/events", response_model=list[EventView], tags=["events"])
def list_events(
    ctx: Ctx,
    _: Reader,
    item: Annotated[str | None, Query()] = None,
    node: Annotated[str | None, Query()] = None,
    severity: Annotated[Severity | None, Query()] = None,
    after: Annotated[
        int | None, Query(ge=0, description="only later ones than this id, oldest first")
    ] = None,
    limit: Limit = 200,
) -> Any:
    """Events, newest first."""
    with ctx.store.reading() as tx:
        found = events.listed(
            tx,
            item_id=None if item is None else items.get(tx, item).id,
            node_id=None if node is None else node_store.get(tx, node).id,
            severity=severity,
            after=after,
            limit=limit,
        )
    return [
        {
            "id": event.id,
            "time": event.time,
            "severity": event.severity.value,
            "code": event.code,
            "message": event.message,
            "item_id": event.item_id,
            "node_id": event.node_id,
            "job_id": event.job_id,
            "details": event.details,
        }
        for event in found
    ]
