"""Planned failover: nothing is lost, and until the replica was started everything can be rolled back.

    check ─▶ shut down, ship the last changes ─▶ start the replica ─▶ TAKEOVER ─▶ the old side steps down
               │ fails                             │ fails, or unknown
               ▼                                   ▼
             release the source                  the target gives up its replica (until it confirms) ─▶ release the source

TAKEOVER is one transaction: the epoch is raised, the writable side of the new epoch is recorded, the item is
COMMIT_PENDING. It is made only after the target has said that the replica runs.

A roll back after the target was told to start goes on under the raised epoch on both sides: the target's journal has
raised its own by then, and an epoch never goes down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from secondsite.errors import RemoteError, Retry, SecondSiteError
from secondsite.model.item import Event, advance
from secondsite.service.store import items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.asking import ask, go_on, is_confirmed, was_confirmed
from secondsite.service.workflows.facts import check_ready, networks_between, read_facts
from secondsite.service.workflows.limits import FOREVER, LIMITS, Limit
from secondsite.service.workflows.run import Run

log = logging.getLogger("secondsite.service")

CHECK, PREPARE, START, DEMOTE, GIVE_UP, RELEASE = range(6)
TASKS: Final = (
    "check both sides",
    "shut down and ship the last changes",
    "start the replica",
    "old side steps down",
)
ROLLBACK: Final = ("roll back: remove the replica", "roll back: start the machine again")
RELEASE_ATTEMPTS: Final = 4
REFUSALS: Final = 3
"""After so many answers that no retry can mend, a person is asked."""
PAUSE_S: Final = 60.0
REFUSED_PAUSE_S: Final = 300.0


def planned_failover(run: Run) -> None:
    """Move the machine to the other side."""
    run.begin(TASKS)
    facts = read_facts(run)
    try:
        run.task(CHECK, lambda: _check(run, facts))
    except SecondSiteError as error:
        _rolled_back(run, error, "nothing was changed")
        return
    try:
        prepared = run.command(
            PREPARE,
            "source.prepare",
            facts["source"],
            facts["item"],
            facts["epoch"],
            {"shutdown_timeout_s": _shutdown_timeout(facts)},
            limit=_prepare_limit(facts),
        )
        _must_name_its_point(prepared)
    except SecondSiteError as error:
        if error.attributes.get("withdrawn"):
            _rolled_back(run, error, "nothing was changed")
        else:
            _release(run, facts, error, facts["epoch"])
        return
    try:
        networks = networks_between(run, facts, test=False)
        started = _start_replica(run, facts, prepared, networks)
    except SecondSiteError as error:
        if error.attributes.get("withdrawn"):
            # The target never heard of it and never will.
            _release(run, facts, error, facts["epoch"])
        else:
            _give_up(run, facts)
            _release(run, facts, error, facts["epoch"] + 1)
        return
    _take_over(run, facts, prepared, started)
    information = _step_down(run, facts)
    result: Json = {
        "vm": started["vm"],
        "name": started.get("name", facts["name"]),
        "node": facts["target_name"],
        "point": prepared,
        "networks": networks,
        "epoch": facts["epoch"] + 1,
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


def _shutdown_timeout(facts: Json) -> int:
    return int(facts["parameters"].get("shutdown_timeout_s") or facts["policy"]["shutdown_timeout_s"])


def _prepare_limit(facts: Json) -> Limit:
    limit = LIMITS["source.prepare"]
    return Limit(limit.delivery_s, limit.total_s + _shutdown_timeout(facts), limit.withdraw)


def _must_name_its_point(prepared: Json) -> None:
    if not isinstance(prepared.get("sequence"), int) or not isinstance(prepared.get("digest"), str):
        raise RemoteError(
            {"code": "unsupported", "message": f"the source does not say which point it sealed: {prepared}"}
        )


def _start_replica(run: Run, facts: Json, prepared: Json, networks: Json) -> Json:
    started = run.command(
        START,
        "target.failover",
        facts["target"],
        facts["item"],
        facts["epoch"],
        {
            "sequence": prepared["sequence"],
            "digest": prepared["digest"],
            "new_epoch": facts["epoch"] + 1,
            "name": facts["name"],
            "networks": networks,
        },
    )
    if not started.get("vm") or started.get("sequence") != prepared["sequence"]:
        raise RemoteError(
            {
                "code": "conflict",
                "message": f"the replica does not run from point {prepared['sequence']}: the node says {started}",
            }
        )
    return started


def _take_over(run: Run, facts: Json, prepared: Json, started: Json) -> None:
    def action(tx: Transaction, item: Item) -> Json:
        epoch, now = facts["epoch"] + 1, run.ctx.clock()
        items.make_writable(tx, item.id, epoch, item.target_side, item.target_node_id, now)
        side_vm = f"{item.target_side.value}_vm"
        return {
            "state": advance(item.state, Event.SUCCEEDED),
            "epoch": epoch,
            side_vm: started["vm"],
            "failover": {
                "sequence": prepared["sequence"],
                "digest": prepared["digest"],
                "time": prepared.get("time"),
                "vm": started["vm"],
                "node": facts["target_name"],
                "direction": item.direction.value,
            },
            "demotion": {"node": facts["source"], "new_epoch": epoch, "job": run.job_id, "attempt": 0},
            "last_failover_time": now,
            "error": None,
        }

    run.change("takeover", f"{facts['target_name']} took over, epoch {facts['epoch'] + 1}", action)


def _step_down(run: Run, facts: Json) -> str | None:
    """Tell the old side to step down; return what is open if it does not answer. It stays told."""
    try:
        run.command(
            DEMOTE,
            "source.demote",
            facts["source"],
            facts["item"],
            facts["epoch"] + 1,
            {"new_epoch": facts["epoch"] + 1},
        )
    except SecondSiteError as error:
        return f"{facts['source_name']} has not confirmed that it stepped down ({error.message}); it is told again until it does"
    run.change("stepped-down", f"{facts['source_name']} stepped down", lambda _tx, _item: {"demotion": None})
    return None


# -- roll back ---------------------------------------------------------------------------------------------


def _give_up(run: Run, facts: Json) -> None:
    """Have the target remove its replica, and do not go on before it says so: both sides must never run.

    A target that does not answer, or refuses for good, would hold the machine down for ever. Then the job is suspended
    and asks; it goes on when the target has done it, or when an operator has confirmed that no replica runs there.
    The order is given again in any case, less and less often.
    """
    _show_rollback(run)
    attempt = refusals = 0
    asked = False
    while True:
        try:
            run.command(
                GIVE_UP,
                "target.abandon",
                facts["target"],
                facts["item"],
                facts["epoch"] + 1,
                {"epoch": facts["epoch"] + 1},
                attempt=attempt,
                limit=FOREVER if asked else None,
                unless=lambda tx: is_confirmed(run, tx),
            )
            break
        except SecondSiteError as error:
            log.warning("%s: the target cannot give up its replica yet: %s", facts["name"], error.message)
            if was_confirmed(run):
                break
            _tell_waiting(run, facts, error)
            open_still = bool(error.attributes.get("undelivered") or error.attributes.get("unanswered"))
            refused = not open_still and error.retry is Retry.NEVER
            refusals += refused
            asked = asked or open_still or refusals >= REFUSALS
            if asked:
                _ask(run, facts, error)
            if open_still:
                continue  # the order stands: wait for the same one
            attempt += 1
            most_s = REFUSED_PAUSE_S if refused else PAUSE_S
            _pause(
                run,
                f"give up {attempt}",
                min(most_s, 2.0 ** min(attempt, 10)),
                lambda tx: is_confirmed(run, tx),
            )
            if was_confirmed(run):
                break

    def raised(tx: Transaction, item: Item) -> Json:
        epoch = facts["epoch"] + 1
        go_on(run, tx, GIVE_UP)
        items.make_writable(tx, item.id, epoch, item.source_side, item.source_node_id, run.ctx.clock())
        return {"epoch": epoch}

    run.change("given-up", f"{facts['target_name']} runs no replica; epoch {facts['epoch'] + 1}", raised)


def _tell_waiting(run: Run, facts: Json, error: SecondSiteError) -> None:
    run.change(
        "give-up-waits",
        f"runs nowhere: {facts['target_name']} must first confirm that no replica runs there ({error.message})",
        lambda _tx, _item: {},
        severity=Severity.CRITICAL,
    )


def _ask(run: Run, facts: Json, error: SecondSiteError) -> None:
    name, target = facts["name"], facts["target_name"]
    ask(
        run,
        GIVE_UP,
        f"{name} runs nowhere: {target} does not confirm that no replica of it runs there ({error.message})",
        f"I checked that {name} does not run on {target}",
    )
    run.change(
        "operator-needed",
        f"look whether it runs on {target}, stop it there, and resume the job with the sentence that it asks for",
        lambda _tx, _item: {},
        severity=Severity.CRITICAL,
    )


def _release(run: Run, facts: Json, cause: SecondSiteError, epoch: int) -> None:
    """Start the machine where it was and replicate on. If that fails, say so loudly: nobody runs it now."""
    _show_rollback(run)
    args: Json = {"epoch": epoch}
    last: SecondSiteError | None = None
    for attempt in range(RELEASE_ATTEMPTS):
        try:
            run.command(
                RELEASE, "source.release", facts["source"], facts["item"], epoch, args, attempt=attempt
            )
        except SecondSiteError as error:
            last = error
            if error.attributes.get("undelivered") or error.attributes.get("unanswered"):
                break  # the order stays: the node gets it when it is back
            _pause(run, f"release {attempt}", 2.0**attempt)
        else:
            _rolled_back(run, cause, f"rolled back: it runs on {facts['source_name']} again")
            return
    assert last is not None
    _rolled_back(
        run,
        cause,
        f"rolled back, but {facts['source_name']} did not start it again ({last.message}): start it there by hand",
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


def _show_rollback(run: Run) -> None:
    run.begin((*TASKS, *ROLLBACK))


def _pause(run: Run, name: str, seconds: float, unless: Callable[[Transaction], bool] | None = None) -> None:
    def look(waited_s: float) -> bool | None:
        if waited_s >= seconds:
            return True
        if unless is not None:
            with run.ctx.store.reading() as tx:
                return unless(tx) or None
        return None

    run.step(f"pause: {name}", lambda: run.wait(look))
