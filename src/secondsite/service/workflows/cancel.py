"""Cancel of a failover: what ran on the other side is discarded, and the source goes on from where it was.

    the target discards what runs (until it confirms) ─▶ epoch raised, source writable, PROTECTED ─▶ source.release
                                                                                                    stands until answered

The source may be away; then the machine runs nowhere until it is back.
"""

from __future__ import annotations

from typing import Final

from secondsite.model.item import Event, advance
from secondsite.service.store import items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows import rollback
from secondsite.service.workflows.facts import read_facts
from secondsite.service.workflows.run import Run

DISCARD, RELEASE = range(2)
TASKS: Final = ("discard the machine that runs", "go on where it was")


def cancel(run: Run) -> None:
    """Give the failover up: its writes are gone, replication resumes with what changed at the source."""
    run.begin(TASKS)
    facts = read_facts(run)
    epoch = facts["epoch"] + 1
    start = bool(facts["parameters"].get("start"))
    args = {"epoch": epoch} | ({"start": True} if start else {})

    def back(tx: Transaction, item: Item) -> Json:
        items.make_writable(tx, item.id, epoch, item.source_side, item.source_node_id, run.ctx.clock())
        told = standing.order(
            "source.release", facts["source"], epoch, args, f"{run.job_id}:{RELEASE}:source.release"
        )
        return {
            "state": advance(item.state, Event.SUCCEEDED),
            "epoch": epoch,
            f"{item.target_side.value}_vm": None,
            "failover": None,
            "error": None,
            "standing": standing.with_order(item.standing, told),
        }

    rollback.give_up(run, facts, DISCARD, facts["epoch"], epoch, back)
    failed = rollback.release(run, facts, RELEASE, epoch, start=start)
    information = (
        None
        if failed is None
        else f"{facts['source_name']} has not taken it up again yet ({failed.message}); it is told again until it does"
    )
    run.finish(
        Event.SUCCEEDED,
        f"the failover was cancelled; it belongs to {facts['source_name']} again",
        result={"node": facts["source_name"], "epoch": epoch}
        | ({} if information is None else {"information": information}),
        move=False,
        severity=Severity.INFO if information is None else Severity.WARNING,
    )
