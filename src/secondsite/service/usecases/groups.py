"""Consistency groups: who is in one, which points they share, and operations on all members at once.

What it promises: an operation on a group begins for all members or for none, in one transaction, each from its own point of the
same cut. The source node is told who is in a group, again and again until its report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, OperationRefusedError
from secondsite.model.ids import GroupId, ItemId, NodeId
from secondsite.model.item import Operation
from secondsite.service.context import Actor, Context
from secondsite.service.store import clouds, commands, groups, items, nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.groups import GroupPoint
from secondsite.service.store.records import Group, Item, Job
from secondsite.service.usecases import operations
from secondsite.service.usecases.setup import checked_name

OPERATIONS: Final = frozenset(
    {
        Operation.TEST_FAILOVER,
        Operation.CLEANUP_TEST,
        Operation.UNPLANNED_FAILOVER,
        Operation.CHANGE_POINT,
        Operation.COMMIT,
        Operation.CANCEL,
    }
)
"""What can be asked of a group."""
FROM_A_POINT: Final = frozenset(
    {Operation.TEST_FAILOVER, Operation.UNPLANNED_FAILOVER, Operation.CHANGE_POINT}
)


@dataclass(frozen=True, slots=True)
class Begun:
    """An operation that was begun for every member. `point`: the common one, for operations that take one."""

    group: Group
    operation: Operation
    point: GroupPoint | None
    jobs: list[Job]


# -- members -----------------------------------------------------------------------------------------------


def create(ctx: Context, name: str, members: Sequence[str]) -> Group:
    """Let items share points from their next cycle on.

    Raises:
        OperationRefusedError: they do not replicate from one node to one node at one frequency.
        ConflictError: the name is taken, or an item is in a group already.
    """
    with ctx.store.transaction() as tx:
        if any(group.name == name for group in groups.listed(tx)):
            raise ConflictError(f"there is a group {name!r} already", hint="choose another name")
        group = Group(GroupId(ctx.new_id()), checked_name(name), 1, 0, ctx.clock())
        groups.add(tx, group)
        return _change(ctx, tx, group, members, [])


def change(ctx: Context, group_ref: str, add: Sequence[str], remove: Sequence[str]) -> Group:
    """Put items in and take items out. Replication goes on as it is."""
    with ctx.store.transaction() as tx:
        return _change(ctx, tx, groups.get(tx, group_ref, lock=True), add, remove)


def delete(ctx: Context, group_ref: str) -> None:
    """End a group; its members' points stay, each for itself."""
    with ctx.store.transaction() as tx:
        group = groups.get(tx, group_ref, lock=True)
        holders = {item.source_node_id for item in groups.members(tx, group.id)}
        groups.delete(tx, group.id)
        for node in sorted(holders):
            _order(ctx, tx, node, group.id, [], group.revision + 1, group.number)


def _change(ctx: Context, tx: Transaction, group: Group, add: Sequence[str], remove: Sequence[str]) -> Group:
    present = groups.members(tx, group.id)
    leaving = {_member(present, group, ref).id for ref in remove}
    coming = [items.get(tx, ref) for ref in add]
    for item in coming:
        other = groups.of_item(tx, item.id)
        if other is not None and other.id != group.id:
            raise ConflictError(
                f"{item.name} is in the group {other.name} already",
                hint=f"an item is in one group; take it out first: secondsite group change {other.name} --remove {item.name}",
            )
    new = {item.id: item for item in coming if item.id not in {member.id for member in present}}
    after = [member for member in present if member.id not in leaving] + list(new.values())
    _check(tx, after)
    before = {item.source_node_id for item in present}
    changed = groups.change_members(tx, group, list(new), leaving)
    for node in sorted(before | {item.source_node_id for item in after}):
        mine = [item.id for item in after] if node == after[0].source_node_id else []
        _order(ctx, tx, node, changed.id, mine, changed.revision, changed.number)
    return changed


def _member(present: Sequence[Item], group: Group, ref: str) -> Item:
    for item in present:
        if ref in (item.id, item.name):
            return item
    raise NotFoundError(f"{ref} is not in the group {group.name}", hint="secondsite group show lists who is")


def _check(tx: Transaction, members: Sequence[Item]) -> None:
    """Refuse what one node cannot cut at one instant."""
    if len(members) < 2:
        raise InvalidInputError("a group has at least two members", hint="to end it: secondsite group delete")
    for item in members:
        if item.deleted is not None:
            raise OperationRefusedError(
                f"{item.name} is not protected any more", hint="protect it again first"
            )
    names = {node.id: node.name for node in nodes.listed(tx, revoked=True)}
    _same(
        "source node",
        {item.name: names[item.source_node_id] for item in members},
        "one node must be able to suspend all of them: move the machines to one host",
    )
    _same(
        "target node",
        {item.name: names[item.target_node_id] for item in members},
        "disable one and protect it to the other's target",
    )
    _same(
        "copy frequency",
        {item.name: _frequency(tx, item) for item in members},
        "give their clouds one policy",
    )


def _same(what: str, found: Mapping[str, str], hint: str) -> None:
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name}: {value}" for name, value in sorted(found.items()))
        raise OperationRefusedError(f"the members differ in their {what} ({each})", hint=hint)


def _frequency(tx: Transaction, item: Item) -> str:
    policy = clouds.policy(tx, clouds.mapping(tx, item.cloud_mapping_id).policy_id).policy
    return f"{policy.copy_frequency_s} s"


# -- the source node's part --------------------------------------------------------------------------------


def reconcile(
    ctx: Context, tx: Transaction, node: NodeId, reported: Mapping[ItemId, Any], mine: Mapping[ItemId, Item]
) -> None:
    """Compare what a node says of its sources' groups with what should be, and give the order again where it differs.

    `reported`: for each item that the node replicates from, what its report has as `group`.
    """
    wanted = groups.of_items(tx, reported)
    told: set[str] = set()
    for item_id, has in reported.items():
        group_id = wanted.get(item_id)
        if item_id not in mine or mine[item_id].source_node_id != node:
            continue
        stale = has.get("id") if isinstance(has, dict) else None
        if isinstance(stale, str) and stale != group_id and stale not in told:
            told.add(stale)
            _retell(ctx, tx, node, GroupId(stale), has)
        if group_id is not None and group_id not in told:
            told.add(group_id)
            _retell(ctx, tx, node, group_id, has if stale == group_id else None)


def _retell(ctx: Context, tx: Transaction, node: NodeId, group_id: GroupId, has: Any) -> None:
    group = groups.find(tx, group_id)
    revision = has.get("revision") if isinstance(has, dict) else None
    known = revision if isinstance(revision, int) else 0
    if group is None:
        members, goal, number = [], known + 1, 0
    else:
        found = groups.members(tx, group_id)
        if {item.source_node_id for item in found} != {node}:
            return  # torn: its members are at different nodes now, and nobody can cut it
        members, goal, number = [item.id for item in found], group.revision, group.number
        if isinstance(has, dict) and known >= goal and sorted(has.get("members") or []) == sorted(members):
            return
    if not groups.has_open_order(tx, node, group_id):
        _order(ctx, tx, node, group_id, members, max(goal, known), number)


def _order(
    ctx: Context,
    tx: Transaction,
    node: NodeId,
    group_id: GroupId,
    members: Sequence[ItemId],
    revision: int,
    number: int,
) -> None:
    commands.put(
        tx,
        {
            "id": f"group:{group_id}:{revision}:{ctx.new_id()}",
            "node_id": node,
            "kind": "source.group",
            "epoch": 0,
            "args": {
                "group": group_id,
                "members": sorted(members),
                "revision": revision,
                "number": number,
            },
            "created": ctx.clock(),
        },
    )


# -- operations --------------------------------------------------------------------------------------------


def start(
    ctx: Context,
    actor: Actor,
    group_ref: str,
    operation: Operation,
    options: operations.Options,
    number: int | None = None,
) -> Begun:
    """Begin an operation for all members, or for none.

    number: of the common point; None for the latest.

    Raises:
        OperationRefusedError: a member's state does not allow it (the message names the member), or there is no common
            point.
        NotFoundError: not every member has that point (any more).
    """
    with ctx.store.transaction() as tx:
        group = groups.get(tx, group_ref, lock=True)
        members = groups.members(tx, group.id)
        if not members:
            raise OperationRefusedError(f"the group {group.name} has no members", hint="delete it")
        point = chosen(tx, group, members, number) if operation in FROM_A_POINT else None
        jobs = []
        for item in members:
            own = options if point is None else replace(options, sequence=point.sequences[item.id])
            try:
                jobs.append(operations.accept(ctx, tx, actor, item.id, operation, own))
            except OperationRefusedError as error:
                raise OperationRefusedError(
                    f"{item.name}: {error.message}",
                    hint=error.hint,
                    **{**error.attributes, "item": item.name, "group": group.name},
                ) from error
    for job in jobs:
        ctx.start_job(job.id)
    return Begun(group, operation, point, jobs)


def chosen(tx: Transaction, group: Group, members: Sequence[Item], number: int | None) -> GroupPoint:
    """Return the common point with this number, or the latest one."""
    found = groups.complete(tx, group.id, [item.id for item in members], number=number)
    if found:
        return found[0]
    if number is not None:
        raise NotFoundError(
            f"not every member of {group.name} has a point of cut {number}",
            hint="secondsite group points lists those that all have; retention gives old ones up",
        )
    raise OperationRefusedError(
        f"the group {group.name} has no common point yet",
        hint="wait for the next cycle of all members; secondsite group show says how their cuts fare",
    )
