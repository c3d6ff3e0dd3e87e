"""Planned failover: nothing is lost, and until the replica was started everything can be rolled back.

    check ─▶ shut down, ship the last changes ─▶ start the replica ─▶ TAKEOVER ─▶ the old side steps down
               │ fails, cancelled                  │ fails, or unknown
               ▼                                   ▼
             release the source                  the target gives up its replica (until it confirms) ─▶ release the source

TAKEOVER is one transaction: the epoch is raised, the writable side of the new epoch is recorded, the item is
COMMIT_PENDING. It is made only after the target has said that the replica runs.

A roll back after the target was told to start goes on under the raised epoch on both sides: the target's journal has
raised its own by then, and an epoch never goes down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from secondsite.errors import RemoteError, SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store import items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows import rollback
from secondsite.service.workflows.facts import check_ready, networks_between, read_facts
from secondsite.service.workflows.halting import check_cancelled, is_cancelled, pass_no_return
from secondsite.service.workflows.limits import LIMITS, Limit
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.takeover import start_replica, step_down, take_over

CHECK, PREPARE, START, DEMOTE, GIVE_UP, RELEASE = range(6)
TASKS: Final = (
    "check both sides",
    "shut down and ship the last changes",
    "start the replica",
    "old side steps down",
)
ROLLBACK: Final = ("roll back: remove the replica", "roll back: start the machine again")


def planned_failover(run: Run) -> None:
    """Move the machine to the other side."""
    run.begin(TASKS)
    facts = read_facts(run)
    try:
        run.task(CHECK, lambda: _check(run, facts))
        check_cancelled(run)
    except SecondSiteError as error:
        _rolled_back(run, error, "nothing was changed")
        return
    try:
        prepared = prepare(run, facts, PREPARE)
        pass_no_return(run, "the replica is being started: let it end, then cancel the failover")
    except SecondSiteError as error:
        if error.attributes.get("withdrawn"):
            _rolled_back(run, error, "nothing was changed")
        else:
            _release(run, facts, error, facts["epoch"])
        return
    try:
        networks = networks_between(run, facts, test=False)
        started = start_replica(run, facts, START, facts["epoch"], prepared, networks)
    except SecondSiteError as error:
        if error.attributes.get("withdrawn"):
            # The target never heard of it and never will.
            _release(run, facts, error, facts["epoch"])
        else:
            _give_up(run, facts)
            _release(run, facts, error, facts["epoch"] + 1)
        return
    epoch = facts["epoch"] + 1
    demotion = f"{run.job_id}:{DEMOTE}:source.demote"
    take_over(run, facts, epoch, {**started, **prepared}, demotion=demotion, planned=True)
    information = step_down(run, facts, DEMOTE, epoch)
    result: Json = {
        "vm": started["vm"],
        "name": started.get("name", facts["name"]),
        "node": facts["target_name"],
        "point": prepared,
        "networks": networks,
        "epoch": epoch,
    } | ({} if information is None else {"information": information})
    run.finish(
        Event.SUCCEEDED,
        f"failed over: it runs on {facts['target_name']} from point {prepared['sequence']}",
        result=result,
        move=False,
        severity=Severity.INFO if information is None else Severity.WARNING,
    )


def _check(run: Run, facts: Json) -> None:
    with run.ctx.store.reading() as tx:
        check_ready(tx, items.get(tx, facts["item"]))


def prepare(
    run: Run,
    facts: Json,
    ordinal: int,
    limit: Limit | None = None,
    *,
    unless: Callable[[Transaction], bool] = lambda _tx: False,
) -> Json:
    """Shut the guest down and seal its last changes; return that point. It waits no longer once `unless` holds."""
    limit = limit or LIMITS["source.prepare"]
    timeout = int(facts["parameters"].get("shutdown_timeout_s") or facts["policy"]["shutdown_timeout_s"])
    try:
        prepared = run.command(
            ordinal,
            "source.prepare",
            facts["source"],
            facts["item"],
            facts["epoch"],
            {"shutdown_timeout_s": timeout},
            limit=Limit(limit.delivery_s, limit.total_s + timeout, limit.withdraw),
            unless=lambda tx: is_cancelled(run, tx) or unless(tx),
        )
    except SecondSiteError:
        check_cancelled(run)
        raise
    if not isinstance(prepared.get("sequence"), int) or not isinstance(prepared.get("digest"), str):
        raise RemoteError(
            {"code": "unsupported", "message": f"the source does not say which point it sealed: {prepared}"}
        )
    return prepared


# -- roll back ---------------------------------------------------------------------------------------------


def _give_up(run: Run, facts: Json) -> None:
    epoch = facts["epoch"] + 1

    def raised(tx: Transaction, item: Item) -> Json:
        items.make_writable(tx, item.id, epoch, item.source_side, item.source_node_id, run.ctx.clock())
        return {"epoch": epoch}

    run.begin((*TASKS, *ROLLBACK))
    rollback.give_up(run, facts, GIVE_UP, epoch, epoch, raised)


def _release(run: Run, facts: Json, cause: SecondSiteError, epoch: int) -> None:
    """Start the machine where it was. If that fails, say so loudly: nobody runs it now."""
    run.begin((*TASKS, *ROLLBACK))
    failed = rollback.release(run, facts, RELEASE, epoch)
    if failed is None:
        _rolled_back(run, cause, f"rolled back: it runs on {facts['source_name']} again")
    else:
        _rolled_back(
            run,
            cause,
            f"rolled back, but {facts['source_name']} did not start it again ({failed.message}): start it there by hand",
        )


def _rolled_back(run: Run, cause: SecondSiteError, what: str) -> None:
    run.skip(CHECK, RELEASE)
    run.finish(
        Event.FAILED,
        f"the planned failover failed: {cause.message}; {what}",
        error=cause,
        result={"rolled_back": True, "information": what},
        values=lambda _tx, _item: {},
    )
