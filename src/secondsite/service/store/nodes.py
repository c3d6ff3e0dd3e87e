"""Nodes and the keys they enrol with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.model.ids import NodeId, SiteId
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Node, RegistrationKey
from secondsite.service.store.tables import cloud_members, nodes, registration_keys


@dataclass(frozen=True, slots=True)
class Summary:
    """Of an inventory: the host, how many machines it has, and how tickets are taken there."""

    host: Any
    vms: int
    kerberos: Any


NOTHING_TOLD: Final = Summary(None, 0, None)
"""Of a node that has sent none."""


def add(tx: Transaction, values: dict[str, Any]) -> None:
    """Add a node; ConflictError if id or name is taken."""
    tx.execute(sa.insert(nodes).values(silent=False, revoked=False, **values))


def change(tx: Transaction, node_id: NodeId, **values: Any) -> None:
    """Change columns of a node."""
    tx.execute(sa.update(nodes).where(nodes.c.id == node_id).values(**values))


def find(tx: Transaction, id_or_name: str) -> Node | None:
    """Return a node by id or name, or None."""
    return rows.find(
        tx, Node, sa.select(nodes).where(sa.or_(nodes.c.id == id_or_name, nodes.c.name == id_or_name))
    )


def get(tx: Transaction, id_or_name: str) -> Node:
    """Return a node by id or name."""
    return rows.get(
        tx,
        Node,
        sa.select(nodes).where(sa.or_(nodes.c.id == id_or_name, nodes.c.name == id_or_name)),
        f"node {id_or_name!r}",
    )


def standing(tx: Transaction, node_id: NodeId) -> tuple[bool, str] | None:
    """Return whether the node is revoked and its certificate's serial, without its inventory; None if unknown."""
    row = tx.execute(
        sa.select(nodes.c.revoked, nodes.c.certificate_serial).where(nodes.c.id == node_id)
    ).one_or_none()
    return None if row is None else (bool(row.revoked), str(row.certificate_serial))


def listed(
    tx: Transaction, site_id: SiteId | None = None, *, revoked: bool = False, inventory: bool = True
) -> list[Node]:
    """Return nodes by name; revoked ones only if asked for.

    inventory: whether they come with theirs, which for a node of 100 machines is 50 KiB to parse; else it is None.
    """
    left_out = sa.null().label("inventory")
    columns = [column if inventory or column is not nodes.c.inventory else left_out for column in nodes.c]
    statement = sa.select(*columns).order_by(nodes.c.name)
    if site_id is not None:
        statement = statement.where(nodes.c.site_id == site_id)
    if not revoked:
        statement = statement.where(nodes.c.revoked.is_(False))
    return rows.listed(tx, Node, statement)


def summaries(tx: Transaction, node_id: NodeId | None = None) -> dict[NodeId, Summary]:
    """Return what lists show of the nodes' inventories. The database picks it out of them: parsed here, 20 of them take 30 ms."""
    told = nodes.c.inventory
    # PostgreSQL counts nothing but lists, and one node's nonsense must not hide the others.
    is_list = sa.cast(told["vms"], sa.Text).like("[%")
    statement = sa.select(
        nodes.c.id,
        told["host"].label("host"),
        sa.case((is_list, sa.func.json_array_length(told["vms"])), else_=0).label("vms"),
        told["kerberos"].label("kerberos"),
    ).where(told.is_not(None))
    if node_id is not None:
        statement = statement.where(nodes.c.id == node_id)
    return {NodeId(row.id): Summary(row.host, row.vms, row.kerberos) for row in tx.execute(statement)}


def removed(tx: Transaction) -> list[NodeId]:
    """Return the ids of all nodes that were removed from the vault, in order."""
    found = tx.execute(sa.select(nodes.c.id).where(nodes.c.revoked.is_(True)).order_by(nodes.c.id))
    return [NodeId(row.id) for row in found]


def leave_clouds(tx: Transaction, node_id: NodeId) -> None:
    """Take the node out of its cloud."""
    tx.execute(sa.delete(cloud_members).where(cloud_members.c.node_id == node_id))


def seen(tx: Transaction, node_id: NodeId, now: datetime) -> bool:
    """Note a sign of life; True if the monitor had declared the node silent."""
    was = tx.execute(sa.select(nodes.c.silent).where(nodes.c.id == node_id)).scalar()
    tx.execute(sa.update(nodes).where(nodes.c.id == node_id).values(last_seen=now, silent=False))
    return bool(was)


def add_key(tx: Transaction, key: RegistrationKey) -> None:
    """Keep a registration key's hash."""
    tx.execute(
        sa.insert(registration_keys).values(
            id=key.id,
            hash=key.hash,
            site_id=key.site_id,
            created=key.created,
            expires=key.expires,
            uses=key.uses,
            uses_max=key.uses_max,
        )
    )


def find_key(tx: Transaction, key_id: str) -> RegistrationKey | None:
    """Return a registration key by id, locked until the transaction ends."""
    return rows.find(
        tx,
        RegistrationKey,
        sa.select(registration_keys).where(registration_keys.c.id == key_id).with_for_update(),
    )


def use_key(tx: Transaction, key_id: str) -> None:
    """Count one enrolment; ConflictError if the key has no use left."""
    tx.execute(
        sa.update(registration_keys)
        .where(registration_keys.c.id == key_id)
        .values(uses=registration_keys.c.uses + 1)
    )


def list_keys(tx: Transaction) -> list[RegistrationKey]:
    """Return all registration keys, newest first."""
    return rows.listed(
        tx, RegistrationKey, sa.select(registration_keys).order_by(registration_keys.c.created.desc())
    )


def delete_key(tx: Transaction, key_id: str) -> bool:
    """Forget a key; False if there was none."""
    return tx.execute(sa.delete(registration_keys).where(registration_keys.c.id == key_id)).rowcount > 0
