"""Change of the recovery point: the machine that runs is discarded, and another point is started in its place.

    the target discards what runs (until it confirms) ─▶ start the chosen point ─▶ TAKEOVER
                                                           │ fails, or unknown
                                                           ▼
                                        discard (until confirmed) ─▶ start the point before again ─▶ TAKEOVER, the job failed
                                                                       │ fails, or unknown
                                                                       ▼
                                                       discard (until confirmed) ─▶ POINT_CHANGE_FAILED: nothing runs

Each start has an epoch of its own, and the old side is told of it, also if it stepped down under an earlier one: nobody but the
side that writes may be left under an epoch of the past. It is not waited for.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.model.item import Event, ItemState
from secondsite.service.store import items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows import rollback
from secondsite.service.workflows.choosing import choose_point
from secondsite.service.workflows.facts import networks_between, read_facts, was_away
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.takeover import start_replica, step_down, take_over

DISCARD, START, DEMOTE, GIVE_UP, AGAIN, GIVE_UP_AGAIN = range(6)
TASKS: Final = ("discard the machine that runs", "start the chosen point", "old side steps down")
FALL_BACK: Final = (
    "remove what was started",
    "start the point before again",
    "remove what was started of it",
)


def change_point(run: Run) -> None:
    """Run another point at the target."""
    run.begin(TASKS)
    facts = read_facts(run)
    before = None if run.begun_in is ItemState.POINT_CHANGE_FAILED else _before(facts)
    epoch = facts["epoch"]
    try:
        _need_target(run, facts)
        chosen = choose_point(run, facts, None)
        networks = networks_between(run, facts, test=False)
    except SecondSiteError as error:
        _not_begun(run, error, runs=before is not None)
        return
    rollback.give_up(run, facts, DISCARD, epoch, epoch, lambda _tx, item: _stopped(item))
    try:
        started = start_replica(run, facts, START, epoch, chosen, networks)
    except SecondSiteError as error:
        epoch = _given_up(run, facts, GIVE_UP, epoch, error)
        _fall_back(run, facts, epoch, before, networks, error)
        return
    told = _take_over(run, facts, epoch + 1, started, Event.SUCCEEDED)
    run.finish(
        Event.SUCCEEDED,
        f"it runs on {facts['target_name']} from point {started['sequence']} now",
        result=_result(facts, started, networks, epoch + 1) | told,
        move=False,
    )


def _need_target(run: Run, facts: Json) -> None:
    if was_away(run, facts["target"]):
        raise UnavailableError(
            f"node {facts['target_name']} does not answer",
            hint="the machine runs there: start the node, or mend its connection",
        )


def _before(facts: Json) -> Json:
    return {"sequence": facts["failover"]["sequence"], "digest": facts["failover"]["digest"]}


def _stopped(item: Item) -> Json:
    return {f"{item.target_side.value}_vm": None}


def _take_over(run: Run, facts: Json, epoch: int, started: Json, event: Event) -> Json:
    """Note what runs, and tell the old side; return what is open there."""
    take_over(
        run,
        facts,
        epoch,
        started,
        event,
        demotion=f"{run.job_id}:{DEMOTE}:source.demote",
        planned=False,
        prepared=bool(facts["failover"].get("prepared")),
    )
    information = step_down(run, facts, DEMOTE, epoch)
    return {} if information is None else {"information": information}


def _given_up(run: Run, facts: Json, ordinal: int, epoch: int, error: SecondSiteError) -> int:
    """Have the target remove what it may have started, and return the epoch that stands then."""
    run.begin((*TASKS, *FALL_BACK))
    if error.attributes.get("withdrawn"):
        return epoch  # the target never heard of it and never will
    raised = epoch + 1

    def note(tx: Transaction, item: Item) -> Json:
        items.make_writable(tx, item.id, raised, item.target_side, item.target_node_id, run.ctx.clock())
        return {"epoch": raised}

    rollback.give_up(run, facts, ordinal, raised, raised, note, mark=f"-{ordinal}")
    return raised


def _fall_back(
    run: Run, facts: Json, epoch: int, before: Json | None, networks: Json, cause: SecondSiteError
) -> None:
    """Start the point that ran before again; the job has failed in any case."""
    if before is None:
        _nothing_runs(run, cause)
        return
    try:
        started = start_replica(run, facts, AGAIN, epoch, before, networks)
    except SecondSiteError as error:
        _given_up(run, facts, GIVE_UP_AGAIN, epoch, error)
        _nothing_runs(run, cause)
        return
    told = _take_over(run, facts, epoch + 1, started, Event.FELL_BACK)
    run.skip(START, GIVE_UP_AGAIN)
    run.finish(
        Event.FELL_BACK,
        f"the point was not changed: {cause.message}; it runs from point {started['sequence']} again",
        error=cause,
        result=_result(facts, started, networks, epoch + 1) | told | {"rolled_back": True},
        move=False,
        severity=Severity.WARNING,
    )


def _nothing_runs(run: Run, cause: SecondSiteError) -> None:
    run.skip(START, GIVE_UP_AGAIN)
    run.finish(
        Event.FAILED,
        f"the point was not changed: {cause.message}; it runs nowhere: choose another point, or cancel the failover",
        error=cause,
        values=lambda _tx, _item: {"error": cause.to_dict()},
    )


def _not_begun(run: Run, cause: SecondSiteError, *, runs: bool) -> None:
    run.skip(DISCARD, DEMOTE)
    run.finish(
        Event.FELL_BACK if runs else Event.FAILED,
        f"the point was not changed: {cause.message}; nothing was changed",
        error=cause,
        result={"rolled_back": True, "information": "nothing was changed"},
    )


def _result(facts: Json, started: Json, networks: Json, epoch: int) -> Json:
    return {
        "vm": started["vm"],
        "name": started.get("name", facts["name"]),
        "node": facts["target_name"],
        "point": {key: started.get(key) for key in ("sequence", "digest", "time")},
        "networks": networks,
        "epoch": epoch,
    }
