"""Enable: a journal on the target, a replicator on the source, and the first point.

Fails: the item is ENABLE_FAILED with the error; disable removes what was made. With a seed the journal is filled first,
and until the source is told to start the job can be cancelled, which ends in ENABLE_FAILED too. A disable during the initial
replication cancels this job, and the run ends when it notices.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import RemoteError, SecondSiteError
from secondsite.model.item import Event, advance
from secondsite.service.store import items, jobs, points
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import ENABLE, NO_CANCEL, JobState
from secondsite.service.workflows.ends import CancelRequestedError, JobCancelledError
from secondsite.service.workflows.facts import read_facts
from secondsite.service.workflows.halting import (
    check_cancelled,
    is_cancelled,
    pass_no_return,
    raise_if_cancelled,
)
from secondsite.service.workflows.limits import SEEDED
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.transport import as_source, as_target

CREATE, START, INITIAL = range(3)
TASKS: Final = ("create the journal", "start replication", "initial replication")


def enable(run: Run) -> None:
    """Protect the job's item."""
    run.begin(TASKS)
    try:
        facts = read_facts(run)
        seed = facts["parameters"].get("seed")
        made = _create(run, facts, seed)
        start_at = facts["parameters"].get("start_at")
        run.command(
            START,
            "source.start",
            facts["source"],
            facts["item"],
            facts["epoch"],
            {
                "name": facts["name"],
                "vm": facts["source_vm"],
                "disks": sorted(facts["disks"]),
                "target": as_target(facts, "target"),
                "policy": facts["policy"],
                "resume": False,
            }
            | ({} if start_at is None else {"start_at": start_at})
            | ({} if seed is None else {"seeded": True}),
            with_key=True,
        )
        run.change(
            "initial-replicating",
            "initial replication began",
            lambda _tx, item: {"state": advance(item.state, Event.STARTED_INITIAL)},
        )
        point = run.task(INITIAL, lambda: wait_for_point(run, INITIAL, after=0))
    except SecondSiteError as error:
        if error.code == JobCancelledError.code:
            return
        failure = error.to_dict()
        cancelled = error.code == CancelRequestedError.code
        run.finish(
            Event.FAILED,
            f"{error.message}; disable removes what was made"
            if cancelled
            else f"protecting it failed: {error.message}",
            error=error,
            values=lambda _tx, _item: {"error": failure},
        )
        return
    run.finish(
        Event.FIRST_POINT_SEALED,
        f"protected, first recovery point {point['sequence']}",
        result={"point": point, **made},
        values=lambda _tx, _item: {"error": None},
    )


def _create(run: Run, facts: Json, seed: str | None) -> Json:
    """Have the journal made, and filled from the seed if there is one: that may take hours, and can be cancelled.

    Returns what the target says of it.
    """
    args = {
        "name": facts["name"],
        **as_source(facts, "source"),
        "disks": facts["disks"],
        "policy": facts["policy"],
    }
    place = (CREATE, "target.create", facts["target"], facts["item"], facts["epoch"])
    if seed is None:
        return run.command(*place, args, with_key=True)
    try:
        made = run.command(
            *place,
            {**args, "seed": seed},
            with_key=True,
            limit=SEEDED,
            unless=lambda tx: is_cancelled(run, tx),
        )
    except SecondSiteError:
        check_cancelled(run)
        raise
    pass_no_return(run, NO_CANCEL[ENABLE])
    return made


def wait_for_point(run: Run, ordinal: int, *, after: int, epoch: int | None = None) -> Json:
    """Wait (within a step) for a point with a higher sequence than `after`, showing the source's progress.

    With `epoch` the sequence says nothing (a fresh journal counts anew): any listed point of that epoch ends the wait.

    Raises:
        JobCancelledError: the job was ended meanwhile.
        CancelRequestedError: somebody asks it to end.
        RemoteError: replication stopped with an error that no retry can mend.
    """
    shown: Json | None = None

    def look(_waited_s: float) -> Json | None:
        nonlocal shown
        with run.ctx.store.reading() as tx:
            job = jobs.get(tx, run.job_id)
            if job.state is JobState.CANCELLED:
                raise JobCancelledError("the job was cancelled")
            raise_if_cancelled(job)
            assert job.item_id is not None
            item = items.get(tx, job.item_id)
            newest = points.listed(tx, item.id, 1) if epoch is not None else []
        if newest and newest[0].epoch == epoch:
            return {"sequence": newest[0].sequence, "time": newest[0].time.isoformat()}
        if epoch is None and item.last_sequence is not None and item.last_sequence > after:
            assert item.last_point_time is not None
            return {"sequence": item.last_sequence, "time": item.last_point_time.isoformat()}
        report = _source_report(item)
        error = report.get("error")
        if isinstance(error, dict) and error.get("retry") == "never" and report.get("phase") == "stopped":
            raise RemoteError(error)
        progress = _progress(report)
        if progress is not None and progress != shown:
            shown = progress
            run.show_progress(ordinal, progress)
        return None

    point: Json = run.wait(look)
    return point


def _source_report(item: Item) -> Json:
    for report in (item.source_report, item.target_report):
        if report is not None and report.get("role") == "source":
            return report
    return {}


def _progress(report: Json) -> Json | None:
    progress = report.get("progress")
    if not isinstance(progress, dict):
        return None
    done, total = progress.get("bytes"), progress.get("total_bytes")
    fraction: float | None = None
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        fraction = min(1.0, done / total)
    return {
        **{key: progress.get(key) for key in ("bytes", "total_bytes", "rate", "eta_s")},
        "fraction": fraction,
        "text": str(report.get("phase", "")),
    }
