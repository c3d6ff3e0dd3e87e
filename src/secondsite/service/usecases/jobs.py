"""Cancelling a job before its point of no return, and beginning a failed one again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from secondsite.errors import ForbiddenError, OperationRefusedError
from secondsite.model.item import Operation
from secondsite.service.context import Actor, Context
from secondsite.service.store import events, jobs
from secondsite.service.store.records import Job
from secondsite.service.usecases.operations import (
    Options,
    PointChoice,
    ShutdownSource,
    TestNetwork,
    accept,
)
from secondsite.service.vocabulary import ENABLE, NO_CANCEL, JobState, Role, Severity

CONTRIBUTORS: Final = frozenset({Operation.DISABLE.value})
"""Operations that only a Contributor may begin; to begin one again needs no less."""


def cancel_job(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Ask a job to take back what it did and to end. Asking again changes nothing.

    Raises:
        OperationRefusedError: it has ended, or is past its point of no return; the hint says what to do instead.
    """
    with ctx.store.transaction() as tx:
        job = jobs.get(tx, job_id, lock=True)
        if job.state.ended:
            raise OperationRefusedError(
                f"the job has ended: {job.state.value}", hint="there is nothing to cancel"
            )
        passed = job.parameters.get("no_return")
        if passed is not None or (job.operation in NO_CANCEL and not _may_seed(job)):
            raise OperationRefusedError(
                f"{job.operation} cannot be cancelled any more", hint=str(passed or NO_CANCEL[job.operation])
            )
        if "cancel" not in job.parameters:
            now = ctx.clock()
            wish = {"by": actor.name, "time": now.isoformat()}
            jobs.change(tx, job.id, parameters={**job.parameters, "cancel": wish})
            events.add(
                tx,
                events.NewEvent(
                    now,
                    "cancel-requested",
                    f"{job.item_name}: {actor.name} cancelled the job {job.operation}",
                    Severity.WARNING,
                    item_id=job.item_id,
                    job_id=job.id,
                ),
            )
        return jobs.get(tx, job.id)


def retry_job(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Begin the operation of a failed job again with the same parameters, as a job of its own.

    Raises:
        ForbiddenError: the operation is none of those that this role may begin.
        OperationRefusedError: the job did not fail, or the item's state does not allow the operation now.
    """
    with ctx.store.transaction() as tx:
        job = jobs.get(tx, job_id, lock=True)
        if job.operation in CONTRIBUTORS and actor.role is not Role.CONTRIBUTOR:
            raise ForbiddenError(
                f"the role {actor.role.value} may not begin {job.operation}",
                hint=f"it needs the role {Role.CONTRIBUTOR.value}",
            )
        if job.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise OperationRefusedError(
                f"the job is {job.state.value}", hint="only a job that failed or was cancelled can be retried"
            )
        if job.operation == ENABLE:
            raise OperationRefusedError(
                "protecting a machine is begun anew, not retried",
                hint="disable the item, mend the cause and protect the machine again",
            )
        assert job.item_id is not None
        again = accept(
            ctx, tx, actor, job.item_id, Operation(job.operation), _options(job.parameters), retry_of=job.id
        )
    ctx.start_job(again.id)
    return again


def _may_seed(job: Job) -> bool:
    """Whether the job fills a journal from images first: that takes as long as reading them, and can be cancelled."""
    return job.operation == ENABLE and "seed" in job.parameters


def _options(parameters: dict[str, Any]) -> Options:
    known = {field.name for field in fields(Options)}
    given = {key: value for key, value in parameters.items() if key in known}
    for key, words in (("point", PointChoice), ("network", TestNetwork), ("shutdown_source", ShutdownSource)):
        if key in given:
            given[key] = words(given[key])
    return Options(**given)
