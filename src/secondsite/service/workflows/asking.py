"""A job that cannot go on without a person: it is suspended, says what it waits for, and which sentence lets it go on.

The job goes on by itself when what it waits for happens. Else somebody looks, and confirms what was seen by sending the
job's sentence (`usecases.operations.resume_job`): nobody can do so without having read what they vouch for.
"""

from __future__ import annotations

from secondsite.service.store import jobs
from secondsite.service.store.database import Transaction
from secondsite.service.vocabulary import JobState, TaskState
from secondsite.service.workflows.run import Run


def ask(run: Run, ordinal: int, waits_for: str, sentence: str) -> None:
    """Suspend the job and show in it and in its task what it waits for (a step); again with news of it."""

    def action() -> None:
        with run.ctx.store.transaction() as tx:
            if is_confirmed(run, tx):
                return
            jobs.get(tx, run.job_id, lock=True)
            jobs.change(
                tx,
                run.job_id,
                state=JobState.SUSPENDED,
                result={"waits_for": waits_for, "confirm": sentence},
            )
            jobs.change_task(
                tx,
                run.job_id,
                ordinal,
                state=TaskState.IN_PROGRESS,
                progress={"text": waits_for},
                ended=None,
            )

    run.step(f"ask {ordinal}", action)


def is_confirmed(run: Run, tx: Transaction) -> bool:
    """Whether somebody has confirmed what the job asks now; what was confirmed before counts for that question alone."""
    confirmed = jobs.get(tx, run.job_id).parameters.get("confirmed")
    return confirmed is not None and not confirmed.get("used")


def was_confirmed(run: Run) -> bool:
    """The same as a step, for decisions."""

    def action() -> bool:
        with run.ctx.store.reading() as tx:
            return is_confirmed(run, tx)

    confirmed: bool = run.step("confirmed?", action)
    return confirmed


def go_on(run: Run, tx: Transaction, ordinal: int) -> None:
    """Take the question back, within the transaction of what the job waited for."""
    job = jobs.get(tx, run.job_id, lock=True)
    if job.state is JobState.SUSPENDED:
        jobs.change(tx, job.id, state=JobState.IN_PROGRESS, result=None)
    if not is_confirmed(run, tx):
        return
    confirmed = job.parameters["confirmed"]
    jobs.change(tx, job.id, parameters={**job.parameters, "confirmed": {**confirmed, "used": True}})
    if jobs.list_tasks(tx, job.id)[ordinal].state is not TaskState.SUCCEEDED:
        jobs.change_task(
            tx,
            job.id,
            ordinal,
            state=TaskState.SKIPPED,
            progress={"text": f"confirmed by {confirmed['by']}"},
            ended=run.ctx.clock(),
        )
