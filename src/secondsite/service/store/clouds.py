"""Clouds, their members, policies and the mappings between clouds and networks."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from secondsite.model.ids import CloudId, NodeId, PolicyId, SiteId
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Cloud, CloudMapping, NetworkMapping, PolicyRecord
from secondsite.service.store.tables import (
    cloud_mappings,
    cloud_members,
    clouds,
    network_mappings,
    policies,
)


def _named(table: sa.Table, id_or_name: str) -> sa.Select[Any]:
    return sa.select(table).where(sa.or_(table.c.id == id_or_name, table.c.name == id_or_name))


# -- clouds ------------------------------------------------------------------------------------------------


def add_cloud(tx: Transaction, cloud: Cloud, members: list[NodeId]) -> None:
    """Add a cloud and its nodes; ConflictError if the name is taken or a node is in another cloud."""
    tx.execute(
        sa.insert(clouds).values(
            id=cloud.id, name=cloud.name, site_id=cloud.site_id, storage=cloud.storage, created=cloud.created
        )
    )
    for node in members:
        add_member(tx, cloud.id, node)


def add_member(tx: Transaction, cloud_id: CloudId, node_id: NodeId) -> None:
    """Put a node into a cloud."""
    tx.execute(sa.insert(cloud_members).values(cloud_id=cloud_id, node_id=node_id))


def remove_member(tx: Transaction, cloud_id: CloudId, node_id: NodeId) -> None:
    """Take a node out of a cloud."""
    tx.execute(
        sa.delete(cloud_members).where(
            cloud_members.c.cloud_id == cloud_id, cloud_members.c.node_id == node_id
        )
    )


def cloud(tx: Transaction, id_or_name: str) -> Cloud:
    """Return a cloud by id or name."""
    return rows.get(tx, Cloud, _named(clouds, id_or_name), f"cloud {id_or_name!r}")


def list_clouds(tx: Transaction) -> list[Cloud]:
    """Return all clouds by name."""
    return rows.listed(tx, Cloud, sa.select(clouds).order_by(clouds.c.name))


def members(tx: Transaction, cloud_id: CloudId) -> list[NodeId]:
    """Return the nodes of a cloud."""
    found = tx.execute(
        sa.select(cloud_members.c.node_id)
        .where(cloud_members.c.cloud_id == cloud_id)
        .order_by(cloud_members.c.node_id)
    )
    return [NodeId(row[0]) for row in found]


def delete_cloud(tx: Transaction, cloud_id: CloudId) -> None:
    """Remove a cloud; ConflictError if a mapping refers to it."""
    tx.execute(sa.delete(clouds).where(clouds.c.id == cloud_id))


# -- policies ----------------------------------------------------------------------------------------------


def add_policy(tx: Transaction, policy: PolicyRecord) -> None:
    """Add a policy; ConflictError if the name is taken."""
    tx.execute(
        sa.insert(policies).values(
            id=policy.id,
            name=policy.name,
            settings=policy.settings,
            revision=policy.revision,
            created=policy.created,
        )
    )


def change_policy(tx: Transaction, policy_id: PolicyId, settings: dict[str, Any], revision: int) -> None:
    """Replace a policy's settings."""
    tx.execute(
        sa.update(policies).where(policies.c.id == policy_id).values(settings=settings, revision=revision)
    )


def policy(tx: Transaction, id_or_name: str, *, lock: bool = False) -> PolicyRecord:
    """Return a policy by id or name."""
    statement = _named(policies, id_or_name)
    if lock:
        statement = statement.with_for_update()
    return rows.get(tx, PolicyRecord, statement, f"policy {id_or_name!r}")


def list_policies(tx: Transaction) -> list[PolicyRecord]:
    """Return all policies by name."""
    return rows.listed(tx, PolicyRecord, sa.select(policies).order_by(policies.c.name))


def delete_policy(tx: Transaction, policy_id: PolicyId) -> None:
    """Remove a policy; ConflictError if a mapping uses it."""
    tx.execute(sa.delete(policies).where(policies.c.id == policy_id))


# -- cloud mappings ----------------------------------------------------------------------------------------


def add_mapping(tx: Transaction, mapping: CloudMapping) -> None:
    """Map a cloud; ConflictError if the source cloud is mapped already."""
    tx.execute(
        sa.insert(cloud_mappings).values(
            id=mapping.id,
            source_cloud_id=mapping.source_cloud_id,
            target_cloud_id=mapping.target_cloud_id,
            policy_id=mapping.policy_id,
            created=mapping.created,
        )
    )


def mapping(tx: Transaction, mapping_id: str) -> CloudMapping:
    """Return a mapping by id."""
    return rows.get(
        tx,
        CloudMapping,
        sa.select(cloud_mappings).where(cloud_mappings.c.id == mapping_id),
        f"cloud mapping {mapping_id!r}",
    )


def mapping_of(tx: Transaction, source: CloudId) -> CloudMapping | None:
    """Return the mapping whose source is this cloud, or None."""
    return rows.find(
        tx, CloudMapping, sa.select(cloud_mappings).where(cloud_mappings.c.source_cloud_id == source)
    )


def list_mappings(tx: Transaction) -> list[CloudMapping]:
    """Return all mappings, oldest first."""
    return rows.listed(tx, CloudMapping, sa.select(cloud_mappings).order_by(cloud_mappings.c.created))


def delete_mapping(tx: Transaction, mapping_id: str) -> None:
    """Remove a mapping; ConflictError if an item was protected by it."""
    tx.execute(sa.delete(cloud_mappings).where(cloud_mappings.c.id == mapping_id))


# -- network mappings --------------------------------------------------------------------------------------


def add_network_mapping(tx: Transaction, mapping: NetworkMapping) -> None:
    """Map a network; ConflictError if it is mapped to that site already."""
    tx.execute(
        sa.insert(network_mappings).values(
            id=mapping.id,
            source_site_id=mapping.source_site_id,
            source_network=mapping.source_network,
            target_site_id=mapping.target_site_id,
            target_network=mapping.target_network,
            test_network=mapping.test_network,
            created=mapping.created,
        )
    )


def list_network_mappings(
    tx: Transaction, source: SiteId | None = None, target: SiteId | None = None
) -> list[NetworkMapping]:
    """Return network mappings, all or between two sites."""
    statement = sa.select(network_mappings).order_by(network_mappings.c.source_network)
    if source is not None:
        statement = statement.where(network_mappings.c.source_site_id == source)
    if target is not None:
        statement = statement.where(network_mappings.c.target_site_id == target)
    return rows.listed(tx, NetworkMapping, statement)


def delete_network_mapping(tx: Transaction, mapping_id: str) -> bool:
    """Remove a network mapping; False if there was none."""
    return tx.execute(sa.delete(network_mappings).where(network_mappings.c.id == mapping_id)).rowcount > 0
