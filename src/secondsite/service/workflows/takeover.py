"""Starting the replica, and TAKEOVER: one transaction raises the epoch, records who may write, and moves the item."""

from __future__ import annotations

from typing import Any

from secondsite.errors import RemoteError, SecondSiteError
from secondsite.model.item import Event, advance
from secondsite.service.store import items, points
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.workflows.facts import is_away
from secondsite.service.workflows.run import Run


def start_replica(run: Run, facts: Json, ordinal: int, epoch: int, point: Json, networks: Json) -> Json:
    """Have the target start the machine from a point under the epoch after `epoch`; return what runs.

    `point`: {"sequence", "digest"}; a sequence of None is the last point that its journal holds.
    """
    started = run.command(
        ordinal,
        "target.failover",
        facts["target"],
        facts["item"],
        epoch,
        {
            "sequence": point["sequence"],
            "digest": point["digest"],
            "new_epoch": epoch + 1,
            "name": facts["name"],
            "networks": networks,
        },
    )
    wanted, sequence = point["sequence"], started.get("sequence")
    if not started.get("vm") or not isinstance(sequence, int) or wanted not in {None, sequence}:
        raise RemoteError(
            {
                "code": "conflict",
                "message": f"the replica does not run from point {wanted or '(latest)'}: the node says {started}",
            }
        )
    return started


def take_over(
    run: Run,
    facts: Json,
    epoch: int,
    started: Json,
    event: Event = Event.SUCCEEDED,
    *,
    demotion: str | None,
    **more: Any,
) -> None:
    """Note that the target runs the machine under `epoch`. `demotion`: the id of the order to the old side that stands.

    `more` goes into the item's `failover`.
    """

    def action(tx: Transaction, item: Item) -> Json:
        now = run.ctx.clock()
        items.make_writable(tx, item.id, epoch, item.target_side, item.target_node_id, now)
        known = points.sequences(tx, item.id)
        # An order to take up again, to go on, or to remove a replica, that still stood must not outlive this.
        orders = standing.undone_by(item.standing, "source.demote", facts["source"])
        orders = standing.undone_by(orders, "target.failover", facts["target"])
        if demotion is not None:
            told = standing.order("source.demote", facts["source"], epoch, {"new_epoch": epoch}, demotion)
            orders = standing.with_order(orders, told)
        return {
            "state": advance(item.state, event),
            "epoch": epoch,
            f"{item.target_side.value}_vm": started["vm"],
            "failover": {
                "sequence": started["sequence"],
                "digest": started.get("digest"),
                "time": started.get("time"),
                "vm": started["vm"],
                "node": facts["target_name"],
                "direction": item.direction.value,
                # what no new point may be numbered with
                "highest": max([*known, started["sequence"]]),
                **more,
            },
            "standing": orders,
            "last_failover_time": now,
            "error": None,
        }

    run.change("takeover", f"{facts['target_name']} took over, epoch {epoch}", action)


def step_down(run: Run, facts: Json, ordinal: int, epoch: int) -> str | None:
    """Tell the old side to step down; return what is open if it does not answer. It stays told."""
    try:
        run.command(
            ordinal,
            "source.demote",
            facts["source"],
            facts["item"],
            epoch,
            {"new_epoch": epoch},
            unless=lambda tx: is_away(run, tx, facts["source"]),
        )
    except SecondSiteError as error:
        return not_stepped_down(facts, error.message)
    run.change(
        "stepped-down",
        f"{facts['source_name']} stepped down",
        lambda _tx, item: {"standing": standing.without(item.standing, "source.demote")},
    )
    return None


def not_stepped_down(facts: Json, why: str) -> str:
    """Return what a job says of an old side that has not answered."""
    return f"{facts['source_name']} has not confirmed that it stepped down ({why}); it is told again until it does"
