"""Consistency groups, their members, and the points that all members share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from secondsite.errors import NotFoundError
from secondsite.model.ids import GroupId, ItemId, NodeId
from secondsite.model.manifest import Consistency
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.group_tables import group_members, groups
from secondsite.service.store.records import Group, Item
from secondsite.service.store.tables import commands, items, points
from secondsite.service.vocabulary import CommandState


@dataclass(frozen=True, slots=True)
class GroupPoint:
    """One instant of all members; `sequences`: which point of each member it is."""

    number: int
    time: datetime
    consistency: Consistency
    sequences: dict[ItemId, int]


def add(tx: Transaction, group: Group) -> None:
    """Add a group without members; ConflictError if the name is taken."""
    tx.execute(
        sa.insert(groups).values(
            id=group.id,
            name=group.name,
            revision=group.revision,
            number=group.number,
            created=group.created,
        )
    )


def get(tx: Transaction, id_or_name: str, *, lock: bool = False) -> Group:
    """Return a group by id or name. `lock`: until the transaction ends."""
    statement = sa.select(groups).where(sa.or_(groups.c.id == id_or_name, groups.c.name == id_or_name))
    found = rows.listed(tx, Group, statement.with_for_update() if lock else statement)
    if not found:
        raise NotFoundError(
            f"there is no consistency group {id_or_name!r}", hint="list them: secondsite group list"
        )
    return next((group for group in found if group.id == id_or_name), found[0])


def find(tx: Transaction, group_id: GroupId) -> Group | None:
    """Return a group by id, or None."""
    return rows.find(tx, Group, sa.select(groups).where(groups.c.id == group_id))


def listed(tx: Transaction) -> list[Group]:
    """Return all groups by name."""
    return rows.listed(tx, Group, sa.select(groups).order_by(groups.c.name))


def of_item(tx: Transaction, item_id: ItemId) -> Group | None:
    """Return the group that an item is in, or None."""
    return rows.find(
        tx,
        Group,
        sa.select(groups)
        .join(group_members, group_members.c.group_id == groups.c.id)
        .where(group_members.c.item_id == item_id),
    )


def of_items(tx: Transaction, wanted: Collection[ItemId]) -> dict[ItemId, GroupId]:
    """Return for each of these items that is in a group the group's id."""
    found: list[Any] = list(
        tx.execute(
            sa.select(group_members.c.item_id, group_members.c.group_id).where(
                group_members.c.item_id.in_(list(wanted))
            )
        )
    )
    return {row.item_id: row.group_id for row in found}


def members(tx: Transaction, group_id: GroupId) -> list[Item]:
    """Return the items of a group that are protected, by name."""
    return rows.listed(
        tx,
        Item,
        sa.select(items)
        .join(group_members, group_members.c.item_id == items.c.id)
        .where(group_members.c.group_id == group_id, items.c.deleted.is_(None))
        .order_by(items.c.name),
    )


def change_members(
    tx: Transaction, group: Group, add: Collection[ItemId], remove: Collection[ItemId]
) -> Group:
    """Put items in and take items out; ConflictError if one is in another group."""
    tx.execute(
        sa.delete(group_members).where(
            group_members.c.group_id == group.id, group_members.c.item_id.in_(list(remove))
        )
    )
    if add:
        tx.execute(sa.insert(group_members).values([{"item_id": item, "group_id": group.id} for item in add]))
    tx.execute(sa.update(groups).where(groups.c.id == group.id).values(revision=group.revision + 1))
    return get(tx, group.id)


def delete(tx: Transaction, group_id: GroupId) -> None:
    """Remove a group. Its members' points stay, each for itself."""
    tx.execute(sa.delete(group_members).where(group_members.c.group_id == group_id))
    tx.execute(sa.delete(groups).where(groups.c.id == group_id))


def note_number(tx: Transaction, group_id: GroupId, number: int) -> None:
    """Remember the highest number that a cut of the group was given."""
    tx.execute(
        sa.update(groups).where(groups.c.id == group_id, groups.c.number < number).values(number=number)
    )


def complete(
    tx: Transaction,
    group_id: GroupId,
    present: Collection[ItemId],
    *,
    limit: int = 1,
    number: int | None = None,
) -> list[GroupPoint]:
    """Return the points that every one of these items has, newest first: all of them, or the one with this number."""
    among = sa.and_(points.c.group_id == group_id, points.c.item_id.in_(list(present)))
    if number is not None:
        among = sa.and_(among, points.c.group_number == number)
    # The time too: a node that lost its memory may have begun to count again.
    shared: list[Any] = list(
        tx.execute(
            sa.select(points.c.group_number, points.c.time)
            .where(among)
            .group_by(points.c.group_number, points.c.time)
            .having(sa.func.count(sa.distinct(points.c.item_id)) == len(present))
            .order_by(points.c.time.desc(), points.c.group_number.desc())
            .limit(limit)
        )
    )
    return [_group_point(tx, among, row.group_number, row.time) for row in shared]


def _group_point(tx: Transaction, among: sa.ColumnElement[bool], number: int, time: datetime) -> GroupPoint:
    found: list[Any] = list(
        tx.execute(
            sa.select(points.c.item_id, points.c.sequence, points.c.consistency)
            .where(among, points.c.group_number == number, points.c.time == time)
            .order_by(points.c.sequence)
        )
    )
    each = {row.consistency for row in found}
    quiet = each <= {Consistency.APPLICATION.value, Consistency.PLANNED.value}
    return GroupPoint(
        number,
        time,
        Consistency.APPLICATION if quiet else Consistency.CRASH,
        {row.item_id: row.sequence for row in found},
    )


def has_open_order(tx: Transaction, node_id: NodeId, group_id: str) -> bool:
    """Whether the node has an order about this group that it did not answer yet."""
    found = tx.execute(
        sa.select(commands.c.args).where(
            commands.c.node_id == node_id,
            commands.c.kind == "source.group",
            commands.c.state.in_([CommandState.PENDING.value, CommandState.DELIVERED.value]),
        )
    )
    return any(row.args.get("group") == group_id for row in found)
