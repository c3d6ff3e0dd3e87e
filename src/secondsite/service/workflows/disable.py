"""Disable: nothing of ours is left on either side. The machine goes on where it runs.

A node forgets an item by the command of its role. Which role it has may be unknown after a failed operation: first
comes the command of the role that it has by what the service recorded; if the node answers `wrong_role`, and only
then, those of the other roles are tried. They are guesses, and a guess deletes no disks (`delete_replica` is false). A
node answers any of them at once when it knows nothing of the item.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store import commands
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.facts import read_facts
from secondsite.service.workflows.run import Run

SOURCE, TARGET = range(2)
TASKS: Final = ("stop and forget at the source", "remove at the target")
WRONG_ROLE: Final = "wrong_role"
"""The code by which a node says that it has another role. Anything else, a conflict too, says nothing of the role."""


def disable(run: Run) -> None:
    """End the protection; fails: DISABLE_FAILED, to be tried again (or forced)."""
    run.begin(TASKS)
    facts = read_facts(run)
    parameters = facts["parameters"]
    kinds = {
        SOURCE: ("source.stop", "target.remove", "standby.remove"),
        TARGET: ("target.remove", "standby.remove", "source.stop"),
    }
    if facts["failed_over"]:
        kinds[SOURCE] = ("standby.remove", "target.remove", "source.stop")
    left: list[str] = []
    for ordinal, side in ((SOURCE, "source"), (TARGET, "target")):
        try:
            _forget(run, facts, ordinal, facts[side], kinds[ordinal])
        except SecondSiteError as error:
            if not parameters["force"]:
                failure = error.to_dict()
                run.finish(
                    Event.FAILED,
                    f"disabling failed at {facts[f'{side}_name']}: {error.message}",
                    error=error,
                    values=lambda _tx, _item, failure=failure: {"error": failure},  # type: ignore[misc]
                )
                return
            left.append(f"{facts[f'{side}_name']}: {error.message}")

    def ended(tx: Transaction, item: Item) -> Json:
        now = run.ctx.clock()
        error = {"code": "cancelled", "message": "the item was disabled"}
        commands.give_up_all(tx, commands.open_of_item(tx, item.id), error, now)
        return {"deleted": now, "rpo_alert": False, "demotion": None, "test": None}

    run.finish(
        Event.SUCCEEDED,
        "protection ended" if not left else f"protection ended by force; left behind on {'; '.join(left)}",
        result={"left_behind": left},
        severity=Severity.WARNING if left else Severity.INFO,
        values=ended,
    )


def _forget(run: Run, facts: Json, ordinal: int, node: str, kinds: tuple[str, ...]) -> None:
    first: SecondSiteError | None = None
    delete_replica = bool(facts["parameters"]["delete_replica"])
    for kind in kinds:
        try:
            run.command(
                ordinal,
                kind,
                node,
                facts["item"],
                facts["epoch"],
                {"delete_replica": delete_replica and first is None},
            )
        except SecondSiteError as error:
            first = first or error
            if error.code != WRONG_ROLE:
                raise
        else:
            return
    assert first is not None
    raise first
