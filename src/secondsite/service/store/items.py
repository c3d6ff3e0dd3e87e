"""Protected items, and which side of each may write.

Every change of an item's state goes through `move`, which takes the event to write: no transition without its event.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from secondsite.errors import NotFoundError
from secondsite.model.ids import ItemId, NodeId, PolicyId
from secondsite.model.item import ItemState, TestState
from secondsite.service.store import events, rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, WritableSide
from secondsite.service.store.tables import cloud_mappings, items, writable_sides
from secondsite.service.vocabulary import Side


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
    tx: Transaction, *, node: NodeId | None = None, policy: PolicyId | None = None, deleted: bool = False
) -> list[Item]:
    """Return items by name, all or those of a node or a policy; disabled ones only if asked for."""
    statement = sa.select(items).order_by(items.c.name, items.c.created)
    if not deleted:
        statement = statement.where(items.c.deleted.is_(None))
    if node is not None:
        statement = statement.where(sa.or_(items.c.primary_node_id == node, items.c.recovery_node_id == node))
    if policy is not None:
        statement = statement.join(cloud_mappings, cloud_mappings.c.id == items.c.cloud_mapping_id).where(
            cloud_mappings.c.policy_id == policy
        )
    return rows.listed(tx, Item, statement)


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


def writable(tx: Transaction, item_id: ItemId) -> list[WritableSide]:
    """Return the history of writable sides, oldest first."""
    return rows.listed(
        tx,
        WritableSide,
        sa.select(writable_sides).where(writable_sides.c.item_id == item_id).order_by(writable_sides.c.epoch),
    )
