"""Unplanned failover: the other side starts from what it has, and nothing of the first side is needed.

    shut down "try": source.prepare, bounded ─▶ prepared ───────────────────────────────┐
      │ fails, or "no"                                                                  ▼
      └▶ source.demote ─▶ done | the node is away | a person confirms ─▶ NO RETURN ─▶ start the replica ─▶ TAKEOVER ─▶ source.demote
                                                     │ cancelled           │ fails, or unknown              stands until answered
                                                     ▼                     ▼
                                               release the source      the target gives up its replica ─▶ release the source

A source that is alive is never overrun in silence: the job waits for it to step down, and then asks.

A roll back goes on under an epoch that is higher than any that a side was told: the replica's (e+1) if the source was not
told to step down, the one after (e+2) if it was, since a side that stepped down takes up nothing under the same epoch.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.model.ids import CommandId
from secondsite.model.item import Event, ItemState
from secondsite.service.store import commands, items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows import rollback
from secondsite.service.workflows.choosing import choose_point
from secondsite.service.workflows.facts import is_away, networks_between, read_facts, was_away
from secondsite.service.workflows.failover import prepare
from secondsite.service.workflows.halting import check_cancelled, pass_no_return
from secondsite.service.workflows.limits import SHIP_LAST
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.stepping_down import StepDown, step_down_first
from secondsite.service.workflows.takeover import not_stepped_down, start_replica, step_down, take_over

PREPARE, DEMOTE, START, GIVE_UP, RELEASE = range(5)
TASKS: Final = (
    "shut down and ship the last changes",
    "old side steps down",
    "start the replica",
)
ROLLBACK: Final = ("roll back: remove the replica", "roll back: start the machine again")


def unplanned_failover(run: Run) -> None:
    """Start the machine on the other side, from the last point or an older one."""
    run.begin(TASKS)
    facts = read_facts(run)
    told: list[str] = []
    prepared: Json | None = None
    stepped = StepDown.NOT_ASKED
    try:
        _need_target(run, facts)
        check_cancelled(run)
        prepared = _shut_down(run, facts, told)
        if prepared is None:
            stepped = step_down_first(run, facts, DEMOTE)
        pass_no_return(run, "the replica is being started: let it end, then cancel the failover")
        networks = networks_between(run, facts, test=False)
        point = choose_point(run, facts, prepared)
    except SecondSiteError as error:
        _roll_back(run, facts, error, prepared=prepared is not None, started=False)
        return
    try:
        started = start_replica(run, facts, START, facts["epoch"], point, networks)
    except SecondSiteError as error:
        attempted = not error.attributes.get("withdrawn")  # else the target never heard of it and never will
        _roll_back(run, facts, error, prepared=prepared is not None, started=attempted)
        return
    epoch = facts["epoch"] + 1
    base = f"{run.job_id}:{DEMOTE}:source.demote"
    take_over(
        run,
        facts,
        epoch,
        started,
        demotion=None if stepped is StepDown.DONE else base,
        planned=False,
        prepared=prepared is not None,
    )
    if prepared is not None:
        open_still = step_down(run, facts, DEMOTE, epoch)
        told += [] if open_still is None else [open_still]
    elif stepped is not StepDown.DONE:
        told.append(not_stepped_down(facts, stepped.value))
    run.finish(
        Event.SUCCEEDED,
        f"failed over: it runs on {facts['target_name']} from point {started['sequence']}",
        result={
            "vm": started["vm"],
            "name": started.get("name", facts["name"]),
            "node": facts["target_name"],
            "point": {key: started.get(key) for key in ("sequence", "digest", "time")},
            "last_changes": None if prepared is None else prepared["sequence"],
            "networks": networks,
            "epoch": epoch,
        }
        | ({"information": "; ".join(told)} if told else {}),
        move=False,
        severity=Severity.WARNING,
    )


def _need_target(run: Run, facts: Json) -> None:
    if was_away(run, facts["target"]):
        raise UnavailableError(
            f"node {facts['target_name']} does not answer",
            hint="the machine would run there: start the node, or mend its connection",
        )


def _shut_down(run: Run, facts: Json, told: list[str]) -> Json | None:
    """Return the point of the last changes, if it was asked for and could be had."""
    if facts["parameters"]["shutdown_source"] == "no":
        run.skip(PREPARE, PREPARE)
        return None
    if was_away(run, facts["source"]):
        run.skip(PREPARE, PREPARE)
        told.append(f"{facts['source_name']} does not answer: what it had not shipped is not there")
        return None
    try:
        # A node that died may have been handed the order by a poll that hung: it is not waited for either.
        return prepare(run, facts, PREPARE, SHIP_LAST, unless=lambda tx: is_away(run, tx, facts["source"]))
    except SecondSiteError as error:
        check_cancelled(run)
        told.append(f"{facts['source_name']} could not ship its last changes: {error.message}")
        run.change(
            "not-shut-down",
            f"goes on without the last changes: {error.message}",
            lambda _tx, _item: {},
            severity=Severity.WARNING,
        )
        return None


# -- roll back ---------------------------------------------------------------------------------------------


def _roll_back(run: Run, facts: Json, cause: SecondSiteError, *, prepared: bool, started: bool) -> None:
    """Bring both sides back under one epoch, and start the machine where it was if it was stopped.

    `started`: the target was told to start; what it did is unknown.
    """
    epoch = facts["epoch"]
    asked = _was_told(run, PREPARE, "source.prepare")
    demoted = not prepared and _was_told(run, DEMOTE, "source.demote")
    if not (demoted or asked or started):
        _rolled_back(run, cause, "nothing was changed")
        return
    run.begin((*TASKS, *ROLLBACK))
    goes_on = epoch + 2 if demoted else epoch + 1 if started else epoch
    if goes_on > epoch:
        # Also if the target never heard of it: both sides must have the epoch that goes on.
        rollback.give_up(
            run,
            facts,
            GIVE_UP,
            epoch + 1,
            goes_on,
            lambda tx, item: _raised(run, tx, item, goes_on),
        )
    failed = rollback.release(run, facts, RELEASE, goes_on)
    if failed is None:
        what = f"rolled back: it is on {facts['source_name']} again"
    else:
        what = f"rolled back, but {facts['source_name']} has not taken it up again yet ({failed.message})"
    _rolled_back(run, cause, what)


def _was_told(run: Run, ordinal: int, kind: str) -> bool:
    """Whether the source may have had an order; one that it did not fetch is taken back (a step)."""

    def action() -> bool:
        error = UnavailableError("the failover was rolled back").to_dict()
        with run.ctx.store.transaction() as tx:
            command = commands.find(tx, CommandId(f"{run.job_id}:{ordinal}:{kind}"))
            if command is None or commands.withdraw(tx, command, error, run.ctx.clock()):
                return False
            return command.deliveries > 0

    told: bool = run.step(f"told {kind}?", action)
    return told


def _raised(run: Run, tx: Transaction, item: Item, epoch: int) -> Json:
    items.make_writable(tx, item.id, epoch, item.source_side, item.source_node_id, run.ctx.clock())
    return {"epoch": epoch}


def _rolled_back(run: Run, cause: SecondSiteError, what: str) -> None:
    def paused_again(_tx: Transaction, item: Item) -> Json:
        # A release ends a pause, too; the item goes back to the state that it was in.
        if run.begun_in is not ItemState.PAUSED:
            return {}
        pause = standing.order(
            "source.pause", item.source_node_id, item.epoch, {}, f"{run.job_id}:pause", given=False
        )
        return {"standing": standing.with_order(item.standing, pause)}

    run.skip(PREPARE, RELEASE)
    run.finish(
        Event.FAILED,
        f"the unplanned failover failed: {cause.message}; {what}",
        error=cause,
        result={"rolled_back": True, "information": what},
        values=paused_again,
    )
