"""Orders that stand: given again after each refusal until their node has done them, however long it is away.

An item keeps them in the column `standing`, in the order in which they are to be done on a node: the next one is given
only after the one before was done. An order that undoes another takes its place.

An order: {"kind", "node", "epoch", "args", "command", "base", "attempt"} and perhaps "instead". `command` is the id under
which it was given last, None if it was not given yet; `base` is what ids of later attempts are made of. `instead` lists the
kinds to try, one after the other, if the node answers that it has another role; they are guesses and delete no disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.model.ids import CommandId
from secondsite.service.store import commands, events, items, jobs, nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Command, Item, Json
from secondsite.service.vocabulary import CommandState, Severity

AGAIN_AFTER: Final = timedelta(seconds=60)
LATER_AFTER: Final = timedelta(minutes=10)
LATER_FROM: Final = 10
"""From this attempt on an order is given again less often."""
WRONG_ROLE: Final = "wrong_role"
"""The code by which a node says that it has another role. Anything else, a conflict too, says nothing of the role."""
DONE: Final = {
    "source.demote": ("stepped-down", "the old side stepped down"),
    "source.release": ("released", "the old side took it up again"),
    "source.pause": ("replication-paused", "the source has paused"),
    "source.resume": ("replication-resumed", "the source has resumed"),
    "target.abandon": ("replica-removed", "the target has removed the replica that was given up"),
    "target.drop_diverged": ("diverged-dropped", "the kept point of the reversal was given up"),
}


def order(kind: str, node: str, epoch: int, args: Json, base: str, *, given: bool = True) -> Json:
    """Return an order. `given`: the command `base` is put by whoever makes it stand; else `follow` gives it."""
    return {
        "kind": kind,
        "node": node,
        "epoch": epoch,
        "args": args,
        "command": base if given else None,
        "base": base,
        "attempt": 0,
    }


def with_order(orders: Sequence[Json] | None, new: Json) -> list[Json]:
    """Return the orders with a new one, less what it takes the place of."""
    return [*(undone_by(orders, new["kind"], new["node"]) or []), new]


def undone_by(orders: Sequence[Json] | None, kind: str, node: str) -> list[Json] | None:
    """Return what is left once `kind` was ordered on the node: less its like, and what it undoes; None if nothing is."""
    undone = commands.UNDOES.get(kind, frozenset()) | {kind}
    return [each for each in orders or [] if each["node"] != node or each["kind"] not in undone] or None


def without(orders: Sequence[Json] | None, *kinds: str) -> list[Json] | None:
    """Return the orders less those of these kinds, None if none is left."""
    return [each for each in orders or [] if each["kind"] not in kinds] or None


def follow(tx: Transaction, item: Item, now: datetime) -> None:
    """See what became of an item's standing orders: those that were done end, those that failed are given again.

    While a job changes the item only demotions are looked after: the job gives the other orders, or takes them back.
    """
    busy = jobs.active_change(tx, item.id) is not None
    left: list[Json] = []
    waiting: set[str] = set()
    for each in item.standing or []:
        if each["kind"] == "source.release" and _runs_at_target(item):
            continue  # whatever left it behind: two sides must never run
        if each["node"] in waiting or (busy and each["kind"] != "source.demote"):
            left.append(each)
            continue
        after = _followed(tx, item, each, now, busy=busy)
        if after is not None:
            left.append(after)
            waiting.add(each["node"])
    if left != (item.standing or []):
        items.change(tx, item.id, standing=left or None)


def _runs_at_target(item: Item) -> bool:
    return item.failover is not None and item.failover["direction"] == item.direction.value


def _followed(tx: Transaction, item: Item, each: Json, now: datetime, *, busy: bool) -> Json | None:
    if each["command"] is None:
        return _give(tx, item, each, each["kind"], each["base"], now)
    command = commands.find(tx, CommandId(each["command"]))
    if command is None and not busy:
        return _again(tx, item, each, now)
    if command is None or not command.state.ended:
        return each
    if command.state is CommandState.DONE:
        _tell_done(tx, item, each, command, now)
        return None
    instead = each.get("instead") or []
    if instead and (command.error or {}).get("code") == WRONG_ROLE:
        guess = {**each, "instead": instead[1:], "args": {**each["args"], "delete_replica": False}}
        return _give(tx, item, guess, instead[0], f"{each['base']}:{instead[0]}", now)
    pause = AGAIN_AFTER if each["attempt"] < LATER_FROM else LATER_AFTER
    if command.ended is not None and command.ended < now - pause:
        return _again(tx, item, each, now)
    return each


def _again(tx: Transaction, item: Item, each: Json, now: datetime) -> Json:
    attempt = each["attempt"] + 1
    return _give(tx, item, {**each, "attempt": attempt}, each["kind"], f"{each['base']}:again{attempt}", now)


def _give(tx: Transaction, item: Item, each: Json, kind: str, command_id: str, now: datetime) -> Json:
    # The epoch may have gone on since (another point, another failover): an older one would be refused for ever.
    epoch = max(item.epoch, each["epoch"])
    args: dict[str, Any] = dict(each["args"])
    if kind == "source.demote":
        args["new_epoch"] = epoch
    elif kind == "source.release":
        args["epoch"] = epoch
    commands.put(
        tx,
        {
            "id": command_id,
            "node_id": each["node"],
            "item_id": item.id,
            "kind": kind,
            "epoch": epoch,
            "args": args,
            "created": now,
        },
    )
    return {**each, "kind": kind, "epoch": epoch, "args": args, "command": command_id}


def _tell_done(tx: Transaction, item: Item, each: Json, command: Command, now: datetime) -> None:
    name = nodes.get(tx, each["node"]).name
    code, message = DONE.get(each["kind"], ("left-nothing", f"nothing of it is left on {name}"))
    severity = Severity.INFO
    if each["kind"] == "source.demote" and (command.result or {}).get("diverged"):
        message += "; its disks may hold writes that no point has: a reversal keeps them"
        severity = Severity.WARNING
    # The job that gave the order tells it under the same key, if it is still there to see it done.
    once = f"{each['base'].partition(':')[0]}:{code}"
    if events.written(tx, once):
        return
    events.add(
        tx,
        events.NewEvent(
            now,
            code,
            f"{item.name}: {message}",
            severity,
            item_id=item.id,
            node_id=each["node"],
            details=command.result or {},
            once=once,
        ),
    )
