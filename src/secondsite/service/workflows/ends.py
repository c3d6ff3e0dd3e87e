"""How a job ends, by the error that ended it, and what the end is told with."""

from __future__ import annotations

from secondsite.errors import SecondSiteError
from secondsite.model.item import ItemState
from secondsite.service.store.records import Job, Json
from secondsite.service.vocabulary import JobState, Severity


class JobCancelledError(SecondSiteError):
    """Somebody ended this job; the run ends without a further trace."""

    code = "job_cancelled"


class CancelRequestedError(SecondSiteError):
    """Somebody cancelled this job before its point of no return; the run takes back what it did and ends."""

    code = "cancelled"


def end_of(error: SecondSiteError | None) -> tuple[JobState, str, Severity]:
    """Return the job's last state, the word for it in the event's code, and the event's severity."""
    if error is None:
        return JobState.SUCCEEDED, "done", Severity.INFO
    if error.code == CancelRequestedError.code:
        return JobState.CANCELLED, "cancelled", Severity.WARNING
    return JobState.FAILED, "failed", Severity.CRITICAL


def began_in(job: Job) -> ItemState | None:
    """Return the state in which the job's operation was accepted, as far as it says."""
    state = job.parameters.get("from_state")
    return None if state is None else ItemState(state)


def details(result: Json | None, error: SecondSiteError | None) -> Json:
    """Return what the event says besides its message."""
    if error is not None:
        return {"error": error.to_dict()}
    return {} if result is None else {"result": result}
