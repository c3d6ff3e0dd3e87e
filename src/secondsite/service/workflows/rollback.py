"""Taking back what a failover did: the target removes its replica, and confirms it, before anything else runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from secondsite.errors import Retry, SecondSiteError
from secondsite.service.store import commands
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.asking import ask, go_on, is_confirmed, was_confirmed
from secondsite.service.workflows.facts import is_away
from secondsite.service.workflows.limits import FOREVER
from secondsite.service.workflows.run import Run

log = logging.getLogger("secondsite.service")

RELEASE_ATTEMPTS: Final = 4
REFUSALS: Final = 3
"""After so many answers that no retry can mend, a person is asked."""
PAUSE_S: Final = 60.0
REFUSED_PAUSE_S: Final = 300.0


def give_up(
    run: Run,
    facts: Json,
    ordinal: int,
    epoch: int,
    next_epoch: int,
    then: Callable[[Transaction, Item], Json],
    *,
    mark: str = "",
) -> None:
    """Have the target remove its replica, and do not go on before it says so: both sides must never run.

    `epoch` is the failover's that is given up, `next_epoch` the one that goes on; `then` returns what to change in the
    transaction that notes it. `mark` tells one giving up of a job from another.

    A target that does not answer, or refuses for good, would hold the machine down for ever. Then the job is suspended
    and asks; it goes on when the target has done it, or when an operator has confirmed that no replica runs there.
    The order is given again in any case, less and less often.
    """
    attempt = refusals = 0
    asked = False
    args = {"epoch": epoch} | ({} if next_epoch == epoch else {"next_epoch": next_epoch})
    while True:
        try:
            run.command(
                ordinal,
                "target.abandon",
                facts["target"],
                facts["item"],
                next_epoch,
                args,
                attempt=attempt,
                limit=FOREVER if asked else None,
                unless=lambda tx: is_confirmed(run, tx),
            )
            break
        except SecondSiteError as error:
            log.warning("%s: the target cannot give up its replica yet: %s", facts["name"], error.message)
            if was_confirmed(run):
                break
            _tell_waiting(run, facts, error, mark)
            open_still = is_open(error)
            refused = not open_still and error.retry is Retry.NEVER
            refusals += refused
            asked = asked or open_still or refusals >= REFUSALS
            if asked:
                _ask(run, facts, ordinal, error, mark)
            if open_still:
                continue  # the order stands: wait for the same one
            attempt += 1
            pause(
                run,
                f"give up {attempt}",
                min(REFUSED_PAUSE_S if refused else PAUSE_S, 2.0 ** min(attempt, 10)),
                lambda tx: is_confirmed(run, tx),
            )
            if was_confirmed(run):
                break

    def given_up(tx: Transaction, item: Item) -> Json:
        go_on(run, tx, ordinal)
        values = then(tx, item)
        still = [each for each in commands.open_of_job(tx, run.job_id) if each.kind == "target.abandon"]
        if still:  # confirmed by a person: the target is told all the same, until it has done it
            told = standing.order("target.abandon", facts["target"], next_epoch, args, still[-1].id)
            values["standing"] = standing.with_order(values.get("standing", item.standing), told)
        return values

    run.change(
        f"given-up{mark}", f"{facts['target_name']} runs no replica; epoch {next_epoch} goes on", given_up
    )


def release(
    run: Run, facts: Json, ordinal: int, epoch: int, *, start: bool = False
) -> SecondSiteError | None:
    """Start the machine where it was and replicate on; return the error if that was not done. Then the order stands."""
    args: Json = {"epoch": epoch} | ({"start": True} if start else {})
    last: SecondSiteError | None = None
    attempt = 0
    for attempt in range(RELEASE_ATTEMPTS):
        try:
            run.command(
                ordinal,
                "source.release",
                facts["source"],
                facts["item"],
                epoch,
                args,
                attempt=attempt,
                unless=lambda tx: is_away(run, tx, facts["source"]),
            )
        except SecondSiteError as error:
            last = error
            if is_open(error):
                break  # the order stays: the node gets it when it is back
            pause(run, f"release {attempt}", 2.0**attempt)
        else:
            run.change(
                "released",
                f"{facts['source_name']} took it up again",
                lambda _tx, item: {"standing": standing.without(item.standing, "source.release")},
            )
            return None
    base = f"{run.job_id}:{ordinal}:source.release" + (f":{attempt}" if attempt else "")
    told = standing.order("source.release", facts["source"], epoch, args, base)
    run.change(
        "release-waits",
        f"{facts['source_name']} has not taken it up again; it is told again until it does",
        lambda _tx, item: {"standing": standing.with_order(item.standing, told)},
        severity=Severity.CRITICAL,
    )
    return last


def is_open(error: SecondSiteError) -> bool:
    """Whether the order that failed so may still be done: it was not fetched, or not answered, and stands."""
    return bool(error.attributes.get("undelivered") or error.attributes.get("unanswered"))


def pause(run: Run, name: str, seconds: float, unless: Callable[[Transaction], bool] | None = None) -> None:
    """Wait (a step), or until `unless` holds."""

    def look(waited_s: float) -> bool | None:
        if waited_s >= seconds:
            return True
        if unless is not None:
            with run.ctx.store.reading() as tx:
                return unless(tx) or None
        return None

    run.step(f"pause: {name}", lambda: run.wait(look))


def _tell_waiting(run: Run, facts: Json, error: SecondSiteError, mark: str) -> None:
    run.change(
        f"give-up-waits{mark}",
        f"runs nowhere: {facts['target_name']} must first confirm that no replica runs there ({error.message})",
        lambda _tx, _item: {},
        severity=Severity.CRITICAL,
    )


def _ask(run: Run, facts: Json, ordinal: int, error: SecondSiteError, mark: str) -> None:
    name, target = facts["name"], facts["target_name"]
    ask(
        run,
        ordinal,
        f"{name} runs nowhere: {target} does not confirm that no replica of it runs there ({error.message})",
        f"I checked that {name} does not run on {target}",
    )
    run.change(
        f"operator-needed{mark}",
        f"look whether it runs on {target}, stop it there, and resume the job with the sentence that it asks for",
        lambda _tx, _item: {},
        severity=Severity.CRITICAL,
    )
