"""Protected items, and which side of each may write.

Every change of an item's state goes through `move`, which takes the event to write: no transition without its event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.errors import NotFoundError
from secondsite.model.ids import ItemId, NodeId, PolicyId
from secondsite.model.item import ItemState, TestState
from secondsite.service.pace import UNPACED, Pace
from secondsite.service.store import events, rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, WritableSide
from secondsite.service.store.tables import cloud_mappings, items, writable_sides
from secondsite.service.vocabulary import Side

IDS_MAX: Final = 200
"""More ids are not put into a statement: then it is asked for all."""
_REPORTS: Final = frozenset({"source_report", "target_report"})


def add(tx: Transaction, values: dict[str, Any], event: events.NewEvent) -> None:
    """Add an item with the event that says so; ConflictError if machine or name is protected already."""
    tx.execute(sa.insert(items).values(rpo_alert=False, **values))
    events.add(tx, event)


def get(tx: Transaction, id_or_name: str, *, lock: bool = False) -> Item:
    """Return an item by id, or one that is protected now by its name. `lock`: until the transaction ends."""
    named = sa.and_(items.c.name == id_or_name, items.c.deleted.is_(None))
    statement = sa.select(items).where(sa.or_(items.c.id == id_or_name, named))
    if lock:
        statement = statement.with_for_update()
    found = rows.listed(tx, Item, statement)
    if not found:
        raise NotFoundError(
            f"there is no protected item {id_or_name!r}", hint="list them: secondsite item list"
        )
    # an item's id is a UUID; a machine whose name is another item's id must not shadow it
    return next((item for item in found if item.id == id_or_name), found[0])


def listed(
    tx: Transaction,
    *,
    node: NodeId | None = None,
    policy: PolicyId | None = None,
    deleted: bool = False,
    after: Item | None = None,
    limit: int | None = None,
    reports: bool = True,
    pace: Pace = UNPACED,
) -> list[Item]:
    """Return items by name, all or those of a node or a policy; disabled ones only if asked for. It rests as `pace` says.

    after, limit: at most so many of those that come after that one. reports: whether they come with what their nodes said
    last, which is most of an item and has to be parsed; else it is None.
    """
    columns = [
        column if reports or column.name not in _REPORTS else sa.null().label(column.name)
        for column in items.c
    ]
    statement = sa.select(*columns).order_by(items.c.name, items.c.created).limit(limit)
    if after is not None:
        # Names of disabled items may recur.
        later = sa.and_(items.c.name == after.name, items.c.created > after.created)
        statement = statement.where(sa.or_(items.c.name > after.name, later))
    if not deleted:
        statement = statement.where(items.c.deleted.is_(None))
    if node is not None:
        statement = statement.where(sa.or_(items.c.primary_node_id == node, items.c.recovery_node_id == node))
    if policy is not None:
        statement = statement.join(cloud_mappings, cloud_mappings.c.id == items.c.cloud_mapping_id).where(
            cloud_mappings.c.policy_id == policy
        )
    if pace is UNPACED:
        return rows.listed(tx, Item, statement)
    return list(pace.through(rows.each(tx, Item, statement)))


def with_orders(tx: Transaction) -> list[Item]:
    """Return the items with orders that stand, disabled ones too."""
    return rows.listed(
        tx, Item, sa.select(items).where(items.c.standing.is_not(None)).order_by(items.c.created)
    )


def protected_machines(tx: Transaction) -> set[str]:
    """Return the UUIDs of machines that are protected, as either side knows them."""
    found = tx.execute(
        sa.select(items.c.vm_uuid, items.c.primary_vm, items.c.recovery_vm).where(items.c.deleted.is_(None))
    )
    return {value for row in found for value in row if value is not None}


def counts_by_nodes(tx: Transaction) -> dict[NodeId, int]:
    """Return for each node that has a part in one how many items it has a part in."""
    parts = (items.c.primary_node_id, items.c.recovery_node_id)
    statement = sa.select(*parts, sa.func.count().label("items")).where(items.c.deleted.is_(None))
    counts: Counter[NodeId] = Counter()
    for row in tx.execute(statement.group_by(*parts)).all():
        counts[NodeId(row.primary_node_id)] += row.items
        counts[NodeId(row.recovery_node_id)] += row.items
    return dict(counts)


def states(tx: Transaction) -> dict[ItemId, ItemState]:
    """Return the state of each item that is not disabled."""
    found = tx.execute(sa.select(items.c.id, items.c.state).where(items.c.deleted.is_(None)))
    return {ItemId(row.id): ItemState(row.state) for row in found.all()}


def count_of_node(tx: Transaction, node: NodeId) -> int:
    """Return how many items the node has a part in."""
    return int(
        tx.execute(
            sa.select(sa.func.count())
            .select_from(items)
            .where(
                items.c.deleted.is_(None),
                sa.or_(items.c.primary_node_id == node, items.c.recovery_node_id == node),
            )
        ).scalar_one()
    )


def move(
    tx: Transaction,
    item_id: ItemId,
    event: events.NewEvent,
    *,
    state: ItemState | None = None,
    test_state: TestState | None = None,
    **values: Any,
) -> None:
    """Change the item's state (and more of it) and write the event, in this transaction."""
    if state is not None:
        values["state"] = state.value
    if test_state is not None:
        values["test_state"] = test_state.value
    change(tx, item_id, **values)
    events.add(tx, event)


def change_many(tx: Transaction, changes: Mapping[ItemId, Mapping[str, Any]]) -> None:
    """Change columns other than the states, of many items: one statement for those that change the same columns."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for item_id, values in changes.items():
        alike.setdefault(tuple(sorted(values)), []).append({"_item": item_id, **values})
    for names, many in alike.items():
        values = {name: sa.bindparam(name) for name in names}
        tx.execute(sa.update(items).where(items.c.id == sa.bindparam("_item")).values(values), many)


def change(tx: Transaction, item_id: ItemId, **values: Any) -> None:
    """Change columns other than the states."""
    if values:
        tx.execute(sa.update(items).where(items.c.id == item_id).values(**values))


def make_writable(
    tx: Transaction, item_id: ItemId, epoch: int, side: Side, node_id: NodeId, now: datetime
) -> None:
    """Record the writable side of an epoch; ConflictError if that epoch has one."""
    tx.execute(
        sa.insert(writable_sides).values(
            item_id=item_id, epoch=epoch, side=side.value, node_id=node_id, since=now
        )
    )


def writable_sides_of(tx: Transaction, ids: Sequence[ItemId]) -> dict[str, Side]:
    """Return the side that may write now of each of these items that has one."""
    newest = (
        sa.select(writable_sides.c.item_id, sa.func.max(writable_sides.c.epoch).label("epoch"))
        .group_by(writable_sides.c.item_id)
        .subquery()
    )
    statement = sa.select(writable_sides.c.item_id, writable_sides.c.side).join(
        newest,
        sa.and_(newest.c.item_id == writable_sides.c.item_id, newest.c.epoch == writable_sides.c.epoch),
    )
    if len(ids) <= IDS_MAX:
        statement = statement.where(writable_sides.c.item_id.in_(ids))
    return {row.item_id: Side(row.side) for row in tx.execute(statement).all()}


def writable(tx: Transaction, item_id: ItemId) -> list[WritableSide]:
    """Return the history of writable sides, oldest first."""
    return rows.listed(
        tx,
        WritableSide,
        sa.select(writable_sides).where(writable_sides.c.item_id == item_id).order_by(writable_sides.c.epoch),
    )
