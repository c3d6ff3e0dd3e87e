"""Cancelling a job: possible until its point of no return, which the job passes in a transaction of its own.

`usecases.jobs.cancel_job` writes the wish into the job under its lock, and refuses once the point was passed; so one of the two
comes first, and both know which.
"""

from __future__ import annotations

from secondsite.service.store import jobs
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Job
from secondsite.service.workflows.ends import CancelRequestedError
from secondsite.service.workflows.run import Run


def is_cancelled(run: Run, tx: Transaction) -> bool:
    """Whether somebody has asked to cancel the job."""
    return "cancel" in jobs.get(tx, run.job_id).parameters


def check_cancelled(run: Run) -> None:
    """Raise CancelRequestedError if somebody has asked to cancel the job (a step)."""

    def action() -> None:
        with run.ctx.store.reading() as tx:
            raise_if_cancelled(jobs.get(tx, run.job_id))

    run.step("cancelled?", action)


def pass_no_return(run: Run, reason: str) -> None:
    """From here on the job cannot be cancelled, for this reason; CancelRequestedError if somebody was first (a step)."""

    def action() -> None:
        with run.ctx.store.transaction() as tx:
            job = jobs.get(tx, run.job_id, lock=True)
            raise_if_cancelled(job)
            jobs.change(tx, job.id, parameters={**job.parameters, "no_return": reason})

    run.step("no return", action)


def raise_if_cancelled(job: Job) -> None:
    """Raise CancelRequestedError if somebody has asked to cancel the job; call this from within a step."""
    wish = job.parameters.get("cancel")
    if wish is not None:
        raise CancelRequestedError(f"{wish['by']} cancelled the job")
