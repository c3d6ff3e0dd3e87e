"""Disable: nothing of ours is left on either side. The machine goes on where it runs.

A node forgets an item by the command of its role. Which role it has may be unknown after a failed operation: first
comes the command of the role that it has by what the service recorded; if the node answers `wrong_role`, and only
then, those of the other roles are tried. They are guesses, and a guess deletes no disks (`delete_replica` is false). A
node answers any of them at once when it knows nothing of the item.

An old side that was to step down steps down first: forgotten, it would start its machine beside the one that runs.

By force the protection ends without nodes that do not do their part. What they were told stands, and is given again until
they have done it, so that a node that comes back is left with nothing either.
"""

from __future__ import annotations

from typing import Final

from secondsite.errors import SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store import commands
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases import standing
from secondsite.service.usecases.standing import WRONG_ROLE
from secondsite.service.vocabulary import Severity
from secondsite.service.workflows.facts import read_facts
from secondsite.service.workflows.run import Run

SOURCE, TARGET = range(2)
TASKS: Final = ("stop and forget at the source", "remove at the target")


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
    left: dict[str, Json] = {}
    for ordinal, side in ((SOURCE, "source"), (TARGET, "target")):
        try:
            if side == "source" and facts["demotion"] is not None:
                _step_down(run, facts)
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
            message = f"{facts[f'{side}_name']}: {error.message}"
            left[message] = _farewell(run, facts, facts[side], kinds[ordinal])

    def ended(tx: Transaction, item: Item) -> Json:
        now = run.ctx.clock()
        error = {"code": "cancelled", "message": "the item was disabled"}
        # An order to step down stands, before the farewell to the same node.
        kept = [order for order in [item.demotion] if order is not None and left]
        orders = [*kept, *left.values()]
        standing_ids = {order["command"] for order in orders}
        commands.give_up_all(
            tx,
            [each for each in commands.open_of_item(tx, item.id) if each.id not in standing_ids],
            error,
            now,
        )
        return {"deleted": now, "rpo_alert": False, "standing": orders or None, "test": None}

    run.finish(
        Event.SUCCEEDED,
        "protection ended" if not left else f"protection ended by force; left behind on {'; '.join(left)}",
        result={"left_behind": list(left)}
        | ({"information": "what is left behind is removed when the node is back"} if left else {}),
        severity=Severity.WARNING if left else Severity.INFO,
        values=ended,
    )


def _step_down(run: Run, facts: Json) -> None:
    run.command(
        SOURCE,
        "source.demote",
        facts["source"],
        facts["item"],
        facts["epoch"],
        {"new_epoch": facts["epoch"]},
    )


def _farewell(run: Run, facts: Json, node: str, kinds: tuple[str, ...]) -> Json:
    """Return the order that stands: the command of the node's role, or of the one that it says it has."""
    told = standing.order(
        kinds[0],
        node,
        facts["epoch"],
        {"delete_replica": bool(facts["parameters"]["delete_replica"])},
        f"{run.job_id}:farewell:{node}",
        given=False,
    )
    return {**told, "instead": list(kinds[1:])}


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
