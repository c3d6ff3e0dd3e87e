"""Sites, clouds, policies and mappings: what a Contributor sets up before anything is protected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from secondsite.errors import ConflictError, InvalidInputError
from secondsite.model.ids import CloudId, PolicyId, SiteId
from secondsite.model.item import ItemState
from secondsite.model.policy import Policy
from secondsite.service.context import Context
from secondsite.service.store import clouds, commands, items, nodes, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import (
    Cloud,
    CloudMapping,
    Item,
    NetworkMapping,
    Node,
    PolicyRecord,
    Site,
)
from secondsite.ship.throttle import zone_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")
NOT_TOLD = frozenset(
    {
        ItemState.ENABLE_FAILED,
        ItemState.COMMITTING,
        ItemState.COMMITTED,
        ItemState.DISABLING,
        ItemState.DISABLE_FAILED,
        ItemState.DISABLED,
    }
)
"""States in which no side will apply a policy that it was told before: nothing replicates, or reverse tells it anew."""


def checked_name(name: str) -> str:
    """Return a usable name; InvalidInputError otherwise."""
    if not NAME.fullmatch(name):
        raise InvalidInputError(
            f"not a usable name: {name!r}",
            hint="1 to 63 letters, digits, spaces or any of . _ @ -, and a letter or digit first",
        )
    return name


# -- sites -------------------------------------------------------------------------------------------------


def create_site(ctx: Context, name: str) -> Site:
    """Add a site."""
    site = Site(SiteId(ctx.new_id()), checked_name(name), ctx.clock())
    with ctx.store.transaction() as tx:
        _refuse_taken(name, [known.name for known in vaults.list_sites(tx)], "site")
        vaults.create_site(tx, site)
    return site


def delete_site(ctx: Context, id_or_name: str) -> None:
    """Remove an empty site."""
    with ctx.store.transaction() as tx:
        site = vaults.site(tx, id_or_name)
        if nodes.listed(tx, site.id, revoked=True):
            raise ConflictError(f"site {site.name} has nodes", hint="remove them first")
        vaults.delete_site(tx, site.id)


# -- clouds ------------------------------------------------------------------------------------------------


def create_cloud(
    ctx: Context, name: str, site: str, members: Sequence[str], storage: str | None = None
) -> tuple[Cloud, list[Node]]:
    """Group nodes of one site."""
    with ctx.store.transaction() as tx:
        home = vaults.site(tx, site)
        _refuse_taken(name, [known.name for known in clouds.list_clouds(tx)], "cloud")
        found = [_member(tx, home, member) for member in members]
        cloud = Cloud(CloudId(ctx.new_id()), checked_name(name), home.id, storage, ctx.clock())
        clouds.add_cloud(tx, cloud, [node.id for node in found])
    return cloud, found


def change_members(ctx: Context, cloud: str, add: Sequence[str], remove: Sequence[str]) -> Cloud:
    """Add nodes to a cloud and take nodes out of it. Items stay where they are."""
    with ctx.store.transaction() as tx:
        record = clouds.cloud(tx, cloud)
        home = vaults.site(tx, record.site_id)
        for name in remove:
            clouds.remove_member(tx, record.id, nodes.get(tx, name).id)
        for name in add:
            clouds.add_member(tx, record.id, _member(tx, home, name).id)
    return record


def delete_cloud(ctx: Context, cloud: str) -> None:
    """Remove a cloud that no mapping uses."""
    with ctx.store.transaction() as tx:
        record = clouds.cloud(tx, cloud)
        if any(record.id in {m.source_cloud_id, m.target_cloud_id} for m in clouds.list_mappings(tx)):
            raise ConflictError(f"cloud {record.name} is mapped", hint="delete the mapping first")
        clouds.delete_cloud(tx, record.id)


def _member(tx: Transaction, home: Site, name: str) -> Node:
    node = nodes.get(tx, name)
    if node.revoked:
        raise ConflictError(f"node {node.name} was removed", hint="enrol it again")
    if node.site_id != home.id:
        raise InvalidInputError(
            f"node {node.name} is not at site {home.name}", hint="a cloud groups nodes of one site"
        )
    for cloud in clouds.list_clouds(tx):
        if node.id in clouds.members(tx, cloud.id):
            raise ConflictError(
                f"node {node.name} is in cloud {cloud.name} already", hint="a node is in one cloud"
            )
    return node


# -- policies ----------------------------------------------------------------------------------------------


def create_policy(ctx: Context, name: str, settings: Mapping[str, Any]) -> PolicyRecord:
    """Add a policy; what `settings` leaves out has the model's default."""
    policy = _checked(settings)
    with ctx.store.transaction() as tx:
        _refuse_taken(name, [known.name for known in clouds.list_policies(tx)], "policy")
        record = PolicyRecord(PolicyId(ctx.new_id()), checked_name(name), asdict(policy), 1, ctx.clock())
        clouds.add_policy(tx, record)
    return record


def change_policy(ctx: Context, id_or_name: str, changes: Mapping[str, Any]) -> PolicyRecord:
    """Change settings of a policy and push it to both sides of every item that replicates under it."""
    with ctx.store.transaction() as tx:
        record = clouds.policy(tx, id_or_name, lock=True)
        settings = asdict(_checked({**record.settings, **changes}))
        revision = record.revision + 1
        clouds.change_policy(tx, record.id, settings, revision)
        for item in items.listed(tx, policy=record.id):
            if item.state not in NOT_TOLD:
                _push_policy(tx, ctx, item, settings, f"policy:{record.id}:{revision}:{item.id}")
        return clouds.policy(tx, record.id)


def delete_policy(ctx: Context, id_or_name: str) -> None:
    """Remove a policy that no mapping uses."""
    with ctx.store.transaction() as tx:
        record = clouds.policy(tx, id_or_name)
        if any(mapping.policy_id == record.id for mapping in clouds.list_mappings(tx)):
            raise ConflictError(f"policy {record.name} is used by a mapping", hint="delete the mapping first")
        clouds.delete_policy(tx, record.id)


def _checked(settings: Mapping[str, Any]) -> Policy:
    try:
        policy = Policy(**settings)
    except TypeError as error:
        raise InvalidInputError(f"the policy has an unknown setting: {error}") from error
    zone_of(policy.bandwidth_zone)
    return policy


def _push_policy(tx: Transaction, ctx: Context, item: Item, settings: dict[str, Any], key: str) -> None:
    for kind, node in (("source.policy", item.source_node_id), ("target.policy", item.target_node_id)):
        commands.put(
            tx,
            {
                "id": f"{key}:{kind}",
                "node_id": node,
                "item_id": item.id,
                "kind": kind,
                "epoch": item.epoch,
                "args": {"policy": settings},
                "created": ctx.clock(),
            },
        )


# -- mappings ----------------------------------------------------------------------------------------------


def map_cloud(ctx: Context, source: str, target: str, policy: str) -> CloudMapping:
    """Say where machines of a cloud replicate to, and under which policy."""
    with ctx.store.transaction() as tx:
        from_cloud, to_cloud = clouds.cloud(tx, source), clouds.cloud(tx, target)
        if from_cloud.id == to_cloud.id:
            raise InvalidInputError("a cloud cannot be mapped to itself")
        if clouds.mapping_of(tx, from_cloud.id) is not None:
            raise ConflictError(
                f"cloud {from_cloud.name} is mapped already", hint="delete that mapping first"
            )
        mapping = CloudMapping(
            ctx.new_id(), from_cloud.id, to_cloud.id, clouds.policy(tx, policy).id, ctx.clock()
        )
        clouds.add_mapping(tx, mapping)
    return mapping


def unmap_cloud(ctx: Context, mapping_id: str) -> None:
    """Remove a mapping by which nothing was ever protected."""
    with ctx.store.transaction() as tx:
        mapping = clouds.mapping(tx, mapping_id)
        users = [item.name for item in items.listed(tx, deleted=True) if item.cloud_mapping_id == mapping.id]
        if users:
            raise ConflictError(
                f"{len(users)} items were protected by this mapping: {', '.join(sorted(set(users))[:5])}",
                hint="their history refers to it, so it stays",
            )
        clouds.delete_mapping(tx, mapping.id)


def map_network(
    ctx: Context,
    source_site: str,
    source_network: str,
    target_site: str,
    target_network: str,
    test_network: str | None = None,
) -> NetworkMapping:
    """Say which network a replica is connected to at the target site, and which one its test is."""
    with ctx.store.transaction() as tx:
        source, target = vaults.site(tx, source_site), vaults.site(tx, target_site)
        if source.id == target.id:
            raise InvalidInputError("a network mapping leads from one site to another")
        for known in clouds.list_network_mappings(tx, source.id, target.id):
            if known.source_network == source_network:
                raise ConflictError(
                    f"network {source_network} is mapped to {known.target_network} already",
                    hint="delete that mapping first",
                )
        mapping = NetworkMapping(
            ctx.new_id(), source.id, source_network, target.id, target_network, test_network, ctx.clock()
        )
        clouds.add_network_mapping(tx, mapping)
    return mapping


def _refuse_taken(name: str, known: list[str], what: str) -> None:
    if name in known:
        raise ConflictError(f"there is a {what} {name!r} already", hint="choose another name")
