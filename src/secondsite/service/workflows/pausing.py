"""Pause and resume: the item's state is what was asked, and the order stands until the source has answered it. And resync.

A source that refuses for good moves the state back.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import Retry, SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.facts import is_away, read_facts
from secondsite.service.workflows.rollback import is_open
from secondsite.service.workflows.run import Run

PAUSE_TASKS: Final = ("tell the source to pause",)
RESUME_TASKS: Final = ("tell the source to go on",)
RESYNC_TASKS: Final = ("tell the source to compare",)


def pause(run: Run) -> None:
    """No cycles any more; changes are tracked on."""
    _tell(run, PAUSE_TASKS, "source.pause", "replication is paused", Event.PAUSE_REFUSED)


def resume(run: Run) -> None:
    """Cycles again, from what was tracked."""
    _tell(run, RESUME_TASKS, "source.resume", "replication goes on", Event.RESUME_REFUSED)


def resync(run: Run) -> None:
    """The next cycle compares whole disks; older points stay valid. It does not wait for the end: the phase shows it."""
    run.begin(RESYNC_TASKS)
    try:
        facts = read_facts(run)
        run.command(0, "source.resync", facts["source"], facts["item"], facts["epoch"], {})
    except SecondSiteError as error:
        run.finish(Event.FAILED, f"the resync was not begun: {error.message}", error=error, move=False)
        return
    run.finish(
        Event.SUCCEEDED,
        "the next cycle compares whole disks",
        result={"node": facts["source_name"]},
        move=False,
    )


def _tell(run: Run, tasks: tuple[str, ...], kind: str, done: str, refused: Event) -> None:
    run.begin(tasks)
    facts = read_facts(run)
    told = standing.order(kind, facts["source"], facts["epoch"], {}, f"{run.job_id}:0:{kind}")
    run.change(
        "ordered",
        f"{facts['source_name']} is told",
        lambda _tx, item: {"standing": standing.with_order(item.standing, told)},
    )
    information: str | None = None
    try:
        run.command(
            0,
            kind,
            facts["source"],
            facts["item"],
            facts["epoch"],
            {},
            unless=lambda tx: is_away(run, tx, facts["source"]),
        )
    except SecondSiteError as error:
        if error.retry is Retry.NEVER and not is_open(error):
            run.finish(
                refused,
                f"{facts['source_name']} refuses: {error.message}",
                error=error,
                values=lambda tx, item: _done(tx, item, kind),
            )
            return
        information = (
            f"{facts['source_name']} has not confirmed it ({error.message}); it is told again until it does"
        )
    run.finish(
        Event.SUCCEEDED,
        done,
        result={"node": facts["source_name"]} | ({} if information is None else {"information": information}),
        move=False,
        severity=Severity.INFO if information is None else Severity.WARNING,
        values=None if information is not None else lambda tx, item: _done(tx, item, kind),
    )


def _done(_tx: Transaction, item: Item, kind: str) -> Json:
    return {"standing": standing.without(item.standing, kind)}
