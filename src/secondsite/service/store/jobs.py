"""Jobs and their tasks."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from secondsite.model.ids import ItemId, JobId
from secondsite.service.store import audit, rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Job, Task
from secondsite.service.store.tables import UtcTime, jobs, tasks
from secondsite.service.vocabulary import CHANGE_OPERATIONS, JobState, TaskState

ACTIVE = (JobState.NOT_STARTED.value, JobState.IN_PROGRESS.value, JobState.SUSPENDED.value)


def add(tx: Transaction, job: Job) -> None:
    """Add a job; ConflictError if the item has an unfinished one of its kind."""
    tx.execute(
        sa.insert(jobs).values(
            id=job.id,
            operation=job.operation,
            item_id=job.item_id,
            item_name=job.item_name,
            state=job.state.value,
            progress=job.progress,
            requested_by=job.requested_by,
            parameters=job.parameters,
            created=job.created,
        )
    )
    tx.wake()


def change(tx: Transaction, job_id: JobId, *, state: JobState | None = None, **values: Any) -> None:
    """Change columns of a job; waiters are woken."""
    if state is not None:
        values["state"] = state.value
    if state is not None and state.ended:
        _audit_end(tx, get(tx, job_id, lock=True), state, dict(values))
    tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**values))
    tx.wake()


def _audit_end(tx: Transaction, job: Job, state: JobState, values: dict[str, Any]) -> None:
    """What became of a request is as much part of the trail as the request."""
    if job.state.ended:
        return
    error = values.get("error") or {}
    line = audit.Line(
        time=values.get("ended") or job.created,
        actor=job.requested_by,
        method="JOB",
        path=job.operation,
        outcome=state.value.lower(),
        item=job.item_name,
        job_id=job.id,
        detail=error.get("message"),
    )
    tx.at_end(lambda: audit.note(tx, line))


def get(tx: Transaction, job_id: str, *, lock: bool = False) -> Job:
    """Return a job by id."""
    statement = sa.select(jobs).where(jobs.c.id == job_id)
    if lock:
        statement = statement.with_for_update()
    return rows.get(tx, Job, statement, f"job {job_id!r}")


def unfinished(tx: Transaction) -> list[Job]:
    """Return the jobs that have not ended, oldest first."""
    return rows.listed(tx, Job, sa.select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.created))


def active_change(tx: Transaction, item_id: ItemId) -> Job | None:
    """Return the unfinished job that changes the item, or None."""
    return rows.find(
        tx,
        Job,
        sa.select(jobs).where(
            jobs.c.item_id == item_id,
            jobs.c.state.in_(ACTIVE),
            jobs.c.operation.in_(sorted(CHANGE_OPERATIONS)),
        ),
    )


def active_changes(tx: Transaction) -> dict[str, Job]:
    """Return for each item that has one its unfinished job that changes it."""
    statement = sa.select(jobs).where(
        jobs.c.item_id.is_not(None),
        jobs.c.state.in_(ACTIVE),
        jobs.c.operation.in_(sorted(CHANGE_OPERATIONS)),
    )
    return {str(job.item_id): job for job in rows.listed(tx, Job, statement)}


def last_changes_ended(tx: Transaction, only: Collection[str] | None = None) -> dict[str, datetime]:
    """Return for each item (or each of `only`) when the last job that changed it ended, if one did: one pass instead of one read per item."""
    statement = (
        sa.select(jobs.c.item_id, sa.func.max(jobs.c.ended, type_=UtcTime).label("newest"))
        .where(
            jobs.c.item_id.is_not(None),
            jobs.c.ended.is_not(None),
            jobs.c.operation.in_(sorted(CHANGE_OPERATIONS)),
        )
        .group_by(jobs.c.item_id)
    )
    if only is not None:
        statement = statement.where(jobs.c.item_id.in_(list(only)))
    return {row.item_id: row.newest for row in tx.execute(statement).all()}


def listed(
    tx: Transaction,
    *,
    item_id: str | None = None,
    state: JobState | None = None,
    operation: str | None = None,
    limit: int = 100,
) -> list[Job]:
    """Return jobs, newest first."""
    statement = sa.select(jobs).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
    if item_id is not None:
        statement = statement.where(jobs.c.item_id == item_id)
    if state is not None:
        statement = statement.where(jobs.c.state == state.value)
    if operation is not None:
        statement = statement.where(jobs.c.operation == operation)
    return rows.listed(tx, Job, statement)


def put_task(tx: Transaction, job_id: JobId, ordinal: int, name: str) -> None:
    """Add a task that has not started, unless it is there."""
    there = tx.execute(
        sa.select(tasks.c.ordinal).where(tasks.c.job_id == job_id, tasks.c.ordinal == ordinal)
    ).first()
    if there is None:
        tx.execute(
            sa.insert(tasks).values(
                job_id=job_id, ordinal=ordinal, name=name, state=TaskState.NOT_STARTED.value
            )
        )


def change_task(
    tx: Transaction, job_id: JobId, ordinal: int, *, state: TaskState | None = None, **values: Any
) -> None:
    """Change columns of a task."""
    if state is not None:
        values["state"] = state.value
    tx.execute(sa.update(tasks).where(tasks.c.job_id == job_id, tasks.c.ordinal == ordinal).values(**values))


def list_tasks(tx: Transaction, job_id: JobId) -> list[Task]:
    """Return the tasks of a job in order."""
    return rows.listed(tx, Task, sa.select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.ordinal))
