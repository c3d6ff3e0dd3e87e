"""The old side steps down before the other one starts, as long as it is alive to do so."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Final

from secondsite.errors import Retry, SecondSiteError
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.asking import ask, go_on, is_confirmed, was_confirmed
from secondsite.service.workflows.facts import is_away, was_away
from secondsite.service.workflows.halting import check_cancelled, is_cancelled
from secondsite.service.workflows.limits import FOREVER, STEP_DOWN
from secondsite.service.workflows.rollback import REFUSALS, is_open, pause
from secondsite.service.workflows.run import Run

ATTEMPTS: Final = 5
"""With the pauses between them as long as an order waits: about a minute."""
PAUSE_S: Final = 60.0


class StepDown(StrEnum):
    """What became of it. The values are what people read."""

    NOT_ASKED = "it was not asked yet"
    DONE = "it stepped down"
    AWAY = "it does not answer"
    CONFIRMED = "an operator confirmed that it does not run there"


def step_down_first(run: Run, facts: Json, ordinal: int) -> StepDown:
    """Order the source to step down, and wait for it while its node is alive; the order stands in any case.

    A node that is alive and does not do it within a minute suspends the job, which asks: then it goes on when the node
    has done it or a person has confirmed that the machine does not run there, and not because the node falls silent.

    Raises:
        CancelRequestedError: the job was cancelled while it waited.
    """
    epoch = facts["epoch"] + 1
    attempt = refusals = 0
    asked = False
    while True:
        try:
            run.command(
                ordinal,
                "source.demote",
                facts["source"],
                facts["item"],
                epoch,
                {"new_epoch": epoch},
                attempt=attempt,
                limit=FOREVER if asked else STEP_DOWN,
                unless=partial(_need_not_wait, run, facts, asked),
            )
        except SecondSiteError as error:
            check_cancelled(run)
            if was_confirmed(run):
                return _went_on(run, facts, ordinal, StepDown.CONFIRMED)
            if not asked and was_away(run, facts["source"]):
                return _went_on(run, facts, ordinal, StepDown.AWAY)
            refusals += not is_open(error) and error.retry is Retry.NEVER
            asked = asked or is_open(error) or refusals >= REFUSALS or attempt >= ATTEMPTS
            if asked:
                _ask(run, facts, ordinal, error)
            if is_open(error):
                continue  # the order stands: wait for the same one
            attempt += 1
            pause(
                run,
                f"step down {attempt}",
                min(PAUSE_S, 2.0 ** min(attempt, 10)),
                partial(_need_not_wait, run, facts, asked),
            )
        else:
            return _went_on(run, facts, ordinal, StepDown.DONE)


def _need_not_wait(run: Run, facts: Json, asked: bool, tx: Transaction) -> bool:
    return is_cancelled(run, tx) or is_confirmed(run, tx) or (not asked and is_away(run, tx, facts["source"]))


def _went_on(run: Run, facts: Json, ordinal: int, how: StepDown) -> StepDown:
    def action(tx: Transaction, _item: object) -> Json:
        go_on(run, tx, ordinal)
        return {}

    done = how is StepDown.DONE
    run.change(
        "stepped-down" if done else "not-stepped-down",
        f"{facts['source_name']}: {how.value}",
        action,
        severity=Severity.INFO if done else Severity.WARNING,
    )
    return how


def _ask(run: Run, facts: Json, ordinal: int, error: SecondSiteError) -> None:
    name, source = facts["name"], facts["source_name"]
    ask(
        run,
        ordinal,
        f"{source} is alive and has not confirmed that {name} does not run there ({error.message})",
        f"I checked that {name} does not run on {source}",
    )
    run.change(
        "operator-needed",
        f"look whether it runs on {source}, stop it there, and resume the job with the sentence that it asks for",
        lambda _tx, _item: {},
        severity=Severity.CRITICAL,
    )
