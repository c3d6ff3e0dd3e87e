"""After a failover: commit it, then reverse the replication."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from secondsite.errors import OperationRefusedError, RemoteError, SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store import items, points
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.enable import wait_for_point
from secondsite.service.workflows.facts import check_nodes, read_facts
from secondsite.service.workflows.halting import check_cancelled, pass_no_return
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.transport import as_source, as_target

POINT: Final = "point"
UNKNOWN: Final = "unknown"
DIVERGED: Final = "diverged"
"""What the old machine's disks are to the new direction: exactly the last point; something to be compared first; or that, with
the disks as they were kept as the first point of the new journal."""
COMMIT_TASKS: Final = ("make the replica stand alone, give up the points",)
CHECK, ADOPT, START, FIRST = range(4)
REVERSE_TASKS: Final = (
    "check both sides",
    "turn the old machine's disks into the base",
    "start replication in the other direction",
    "first recovery point in the other direction",
)


def commit(run: Run) -> None:
    """Keep the running state and give up all points; fails: commit pending as before."""
    run.begin(COMMIT_TASKS)
    try:
        facts = read_facts(run)
        run.command(0, "target.commit", facts["target"], facts["item"], facts["epoch"], {})
    except SecondSiteError as error:
        run.finish(Event.FAILED, f"the commit failed: {error.message}", error=error)
        return

    def settled(tx: Transaction, item: Item) -> Json:
        points.remove_all(tx, item.id)
        return {"last_sequence": None, "last_point_time": None}

    run.finish(
        Event.SUCCEEDED,
        f"the failover to {facts['target_name']} is committed",
        result={"node": facts["target_name"]},
        values=settled,
    )


def reverse(run: Run) -> None:
    """Replicate from the side that runs to the side that ran; fails: committed as before, to be tried again."""
    run.begin(REVERSE_TASKS)
    try:
        facts = read_facts(run)
        run.task(CHECK, lambda: _check(run, facts))
        check_cancelled(run)
        # Before the order, so that the first report of the new journal already counts.
        run.change(
            "journal-moves",
            f"{facts['source_name']} will keep the journal",
            lambda _tx, item: {"journal_node_id": item.source_node_id},
        )
        adopted = run.command(
            ADOPT,
            "target.adopt",
            facts["source"],
            facts["item"],
            facts["epoch"],
            {**as_source(facts, "target"), "policy": facts["policy"], "after": _highest(facts)},
            with_key=True,
        )
        base = adopted.get("base", POINT)
        if base not in {POINT, DIVERGED}:
            base = UNKNOWN
        if base == DIVERGED:
            _kept(run, facts, adopted)
        elif base == UNKNOWN:
            _fresh_journal(run, facts, adopted)
        run.command(
            START,
            "source.start",
            facts["target"],
            facts["item"],
            facts["epoch"],
            {
                "name": facts["name"],
                "vm": facts["failover"]["vm"],
                "disks": sorted(facts["disks"]),
                "target": as_target(facts, "source"),
                "policy": facts["policy"],
                "resume": True,
                "base": base,
            },
            with_key=True,
        )
        after = int(adopted["sequence"] if base == DIVERGED else facts["failover"]["sequence"])
        epoch = facts["epoch"] if base == UNKNOWN else None
        point = run.task(FIRST, lambda: wait_for_point(run, FIRST, after=after, epoch=epoch))
        pass_no_return(run, "the direction is turned: a planned-failover leads back")
    except SecondSiteError as error:
        run.finish(Event.FAILED, f"the reversal failed: {error.message}", error=error)
        return

    # A report of before the fresh journal that came late may have told the old one's sequence.
    first: Json = {
        "last_sequence": point["sequence"],
        "last_point_time": datetime.fromisoformat(point["time"]),
    }

    def turned(_tx: Transaction, item: Item) -> Json:
        # The reports keep their sides by the direction; the next ones come within seconds.
        return {
            "direction": item.direction.reversed().value,
            "source_report": item.target_report,
            "source_report_time": item.target_report_time,
            "target_report": item.source_report,
            "target_report_time": item.source_report_time,
            f"{item.source_side.value}_vm": None,
        } | (first if base != POINT else {})

    run.finish(
        Event.SUCCEEDED,
        f"replicates from {facts['target_name']} to {facts['source_name']}, first point {point['sequence']}",
        result={"point": point, "base": base, "source": facts["target_name"], "target": facts["source_name"]},
        values=turned,
    )


def _fresh_journal(run: Run, facts: Json, adopted: Json) -> None:
    """The old disks are no longer the last point: they are compared whole, and the journal counts from its own start."""

    def action(tx: Transaction, item: Item) -> Json:
        points.remove_all(tx, item.id)
        return {"last_sequence": None, "last_point_time": None}

    why = adopted.get("reason") or "the node gives no reason"
    run.change(
        "fresh-journal",
        f"the old disks at {facts['source_name']} are compared whole, which takes as long as a first replication: {why}",
        action,
        severity=Severity.WARNING,
    )


def _kept(run: Run, facts: Json, adopted: Json) -> None:
    """The old disks hold what no point has: they are a point of the new journal, and stay until somebody gives it up."""
    sequence = adopted.get("sequence")
    if not isinstance(sequence, int):
        raise RemoteError(
            {"code": "unsupported", "message": f"the node does not say which point it kept: {adopted}"}
        )
    why = adopted.get("reason") or "the node gives no reason"
    run.change(
        "diverged-kept",
        f"the old disks at {facts['source_name']} are kept as point {sequence}, and what differs is shipped: {why}",
        lambda _tx, _item: {},
        severity=Severity.WARNING,
    )


def _highest(facts: Json) -> int:
    failover = facts["failover"]
    return int(failover.get("highest") or failover["sequence"])


def _check(run: Run, facts: Json) -> None:
    with run.ctx.store.reading() as tx:
        item = items.get(tx, facts["item"])
        check_nodes(tx, item)
        if item.demotion is not None:
            raise OperationRefusedError(
                f"{facts['source_name']} has not confirmed that it stepped down",
                hint="it is told again by itself; try again when the item shows no pending demotion",
            )
