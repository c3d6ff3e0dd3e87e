"""What nodes tell: signs of life, inventories, how items fare, which points exist.

Cheap on purpose: a node reports every five seconds. One transaction per report; points are compared with what is known
by their sequences, so that a list that did not change writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from secondsite.errors import InvalidInputError, NotFoundError
from secondsite.model.ids import CommandId, GroupId, ItemId, NodeId
from secondsite.service.context import Context
from secondsite.service.store import commands, events, items, nodes, points
from secondsite.service.store import groups as group_store
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Command, Item, Point
from secondsite.service.usecases import groups
from secondsite.service.vocabulary import Severity


def take_report(ctx: Context, node_id: NodeId, report: Mapping[str, Any]) -> None:
    """Take one report of a node. What concerns items that it has no part in is ignored, and so is a report that a later one has overtaken."""
    now = ctx.clock()
    ticket = ctx.arrivals.arrived(node_id, report)
    with ctx.store.transaction() as tx:
        _sign_of_life(tx, node_id, now)
        # Here, in the transaction and with the node's row locked: from now on no other report of this node is taken before this one.
        if ticket.overtaken:
            return
        if isinstance(report.get("inventory"), dict):
            nodes.change(tx, node_id, inventory=report["inventory"], inventory_time=now)
        if isinstance(report.get("data_address"), str):
            nodes.change(tx, node_id, data_address=report["data_address"])
        # Without what was reported before: nothing here looks at it, and it is most of what there is to read.
        mine = {item.id: item for item in items.listed(tx, node=node_id, reports=False)}
        changes = {}
        for entry in _list(report, "items"):
            item = mine.get(ItemId(str(entry.get("item"))))
            if item is not None:
                changes[item.id] = _take_item(tx, item, node_id, entry, now)
        items.change_many(tx, changes)
        _take_groups(ctx, tx, node_id, report, mine)
        kept = (
            (item, entry)
            for item_id, entry in _mapping(report, "points").items()
            if (item := mine.get(ItemId(item_id))) is not None
            and isinstance(entry, dict)
            and item.journal_node_id == node_id
        )
        _take_points(tx, [_told(item, entry) for item, entry in kept])
        for entry in _list(report, "events"):
            _take_event(tx, node_id, entry, now, mine)


def sign_of_life(ctx: Context, node_id: NodeId) -> None:
    """Note that the node called."""
    with ctx.store.transaction() as tx:
        _sign_of_life(tx, node_id, ctx.clock())


def take_progress(ctx: Context, node_id: NodeId, command_id: str, progress: Mapping[str, Any]) -> bool:
    """Keep a command's progress; True if the node should stop it."""
    with ctx.store.transaction() as tx:
        command = _own(tx, node_id, command_id)
        if command.state.ended:
            return True
        kept = {
            key: progress.get(key)
            for key in ("fraction", "text", "bytes", "total_bytes", "rate", "eta_s")
            if isinstance(progress.get(key), int | float | str)
        }
        commands.note_progress(tx, command.id, kept)
        return command.cancelled


def take_result(
    ctx: Context,
    node_id: NodeId,
    command_id: str,
    *,
    result: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> None:
    """Record a command's outcome; the first one wins, a second is accepted and ignored.

    The outcome of a command that was given up comes too late: an event tells it, nothing acts on it.
    """
    if (result is None) == (error is None):
        raise InvalidInputError("a result has either a result or an error")
    with ctx.store.transaction() as tx:
        command = _own(tx, node_id, command_id)
        taken = commands.answer(tx, command, ctx.clock(), result=result, error=error)
        if not taken and command.cancelled:
            _tell_late(tx, command, ctx.clock(), {"result": result, "error": error})


def _tell_late(tx: Transaction, command: Command, now: datetime, outcome: dict[str, Any]) -> None:
    once = f"late:{command.id}"
    if events.written(tx, once):
        return
    how = "succeeded" if outcome["error"] is None else f"failed: {outcome['error'].get('message', '')}"
    events.add(
        tx,
        events.NewEvent(
            now,
            "late-result",
            f"{command.kind} was given up, and now the node says that it {how}"[:2000],
            Severity.WARNING,
            item_id=command.item_id,
            node_id=command.node_id,
            job_id=command.job_id,
            details={"command": command.id} | outcome,
            once=once,
        ),
    )


def _own(tx: Transaction, node_id: NodeId, command_id: str) -> Command:
    command = commands.find(tx, CommandId(command_id))
    # A node that asks for another's command learns not even that it exists.
    if command is None or command.node_id != node_id:
        raise NotFoundError(f"there is no command {command_id!r} for this node")
    return command


def _sign_of_life(tx: Transaction, node_id: NodeId, now: datetime) -> None:
    if nodes.seen(tx, node_id, now):
        name = nodes.get(tx, node_id).name
        events.add(tx, events.NewEvent(now, "node-back", f"node {name} answers again", node_id=node_id))


def _take_item(
    tx: Transaction, item: Item, node_id: NodeId, entry: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Return the columns that what a node says of an item changes."""
    side = "source" if node_id == item.source_node_id else "target"
    values: dict[str, Any] = {f"{side}_report": dict(entry), f"{side}_report_time": now}
    if node_id == item.journal_node_id:
        sequence, time = entry.get("sequence"), entry.get("point_time")
        newer = item.last_sequence is None or (isinstance(sequence, int) and sequence > item.last_sequence)
        if isinstance(sequence, int) and sequence >= 1 and isinstance(time, str) and newer:
            values |= {"last_sequence": sequence, "last_point_time": _time(time)}
            tx.wake()
    if entry.get("progress") is not None:
        tx.wake()
    return values


def _take_groups(
    ctx: Context, tx: Transaction, node_id: NodeId, report: Mapping[str, Any], mine: Mapping[ItemId, Item]
) -> None:
    said = {
        ItemId(str(entry.get("item"))): entry["group"]
        for entry in _list(report, "items")
        if entry.get("role") == "source" and "group" in entry
    }
    if said:
        groups.reconcile(ctx, tx, node_id, said, mine)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a report says of an item's points: some, and the sequences of those that went; if `complete`, all that there are from `first` to `last`."""

    item: Item
    points: Mapping[int, Point]
    gone: frozenset[int]
    complete: bool
    first: int | None
    last: int | None

    def within(self, sequence: int) -> bool:
        """Whether the point is told because all that are there are."""
        return (
            self.complete
            and (self.first is None or sequence >= self.first)
            and (self.last is None or sequence <= self.last)
        )


def _told(item: Item, entry: Mapping[str, Any]) -> _Told:
    reported = {
        int(point["sequence"]): _point(item, point)
        for point in _list(entry, "points")
        if isinstance(point.get("sequence"), int)
    }
    gone = frozenset(_numbers(entry, "gone")) - reported.keys()
    first, last = _bound(entry, "from"), _bound(entry, "to")
    return _Told(item, dict(sorted(reported.items())), gone, entry.get("complete") is True, first, last)


def _take_points(tx: Transaction, told: Sequence[_Told]) -> None:
    """Bring what is known of points to what was told. All items of a report take the same few statements."""
    # All of an item's points are looked at only where the list is whole: there may be thousands, and reports are many.
    some = {one.item.id: {number for number in one.points if not one.within(number)} for one in told}
    known = points.digests_of(tx, {item_id: numbers for item_id, numbers in some.items() if numbers})
    whole = {
        one.item.id: points.digests(tx, one.item.id, one.first, one.last) for one in told if one.complete
    }
    added: list[Point] = []
    gone: dict[ItemId, Collection[int]] = {}
    changes: dict[ItemId, dict[str, Any]] = {}
    for one in told:
        all_there = whole.get(one.item.id, {})
        before = known.get(one.item.id, {}) | all_there
        new = [point for sequence, point in one.points.items() if sequence not in before]
        # Thinning merges points into the next one that stays, which has another digest then.
        merged = [
            point
            for sequence, point in one.points.items()
            if before.get(sequence, point.digest) != point.digest
        ]
        added += [*new, *merged]
        left = all_there.keys() - one.points.keys()
        gone[one.item.id] = {point.sequence for point in merged} | left | one.gone
        for group_id in {point.group_id for point in new if point.group_id is not None}:
            numbers = [point.group_number or 0 for point in new if point.group_id == group_id]
            group_store.note_number(tx, group_id, max(numbers))
        if new and (one.item.last_sequence is None or new[-1].sequence >= one.item.last_sequence):
            changes[one.item.id] = {"last_sequence": new[-1].sequence, "last_point_time": new[-1].time}
            tx.wake()
    points.remove_of(tx, gone)
    points.add(tx, added)
    items.change_many(tx, changes)


def _point(item: Item, fields: Mapping[str, Any]) -> Point:
    changed = fields.get("changed")
    group, _, number = str(fields.get("group") or "").partition(":")
    shared = number.isdecimal() and len(number) < 10
    return Point(
        item_id=item.id,
        sequence=int(fields["sequence"]),
        epoch=int(fields.get("epoch") or item.epoch),
        time=_time(fields.get("time")),
        digest=str(fields.get("digest") or ""),
        kind=str(fields.get("kind") or "delta"),
        consistency=str(fields.get("consistency") or "crash"),
        changed=changed if isinstance(changed, int) else None,
        group_id=GroupId(group) if shared else None,
        group_number=int(number) if shared else None,
    )


def _take_event(
    tx: Transaction, node_id: NodeId, entry: Mapping[str, Any], now: datetime, mine: Mapping[ItemId, Item]
) -> None:
    item_id = ItemId(str(entry.get("item")))
    once = None if entry.get("id") is None else f"node:{node_id}:{entry['id']}"
    if once is not None and events.written(tx, once):
        return
    severity = entry.get("severity")
    details = entry.get("details")
    events.add(
        tx,
        events.NewEvent(
            time=now,
            code=str(entry.get("code") or "node-event")[:64],
            message=str(entry.get("message") or "")[:2000],
            severity=Severity(severity) if severity in set(Severity) else Severity.INFO,
            item_id=item_id if item_id in mine else None,
            node_id=node_id,
            details=details if isinstance(details, dict) else {},
            once=once,
        ),
    )


def _time(text: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise InvalidInputError(f"not a time: {text!r}") from error
    if time.tzinfo is None:
        raise InvalidInputError(f"a time without a zone: {text!r}")
    return time


def _list(fields: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = fields.get(key) or []
    if not isinstance(found, list):
        raise InvalidInputError(f"{key} is not a list")
    return [entry for entry in found if isinstance(entry, dict)]


def _numbers(fields: Mapping[str, Any], key: str) -> list[int]:
    found = fields.get(key) or []
    if not isinstance(found, list) or not all(isinstance(number, int) for number in found):
        raise InvalidInputError(f"{key} is not a list of numbers")
    return found


def _bound(fields: Mapping[str, Any], key: str) -> int | None:
    found = fields.get(key)
    if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
        raise InvalidInputError(f"{key} is not a number")
    return found


def _mapping(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = fields.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidInputError(f"{key} is not an object")
    return found
