"""Clouds, policies, and the mapping of clouds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from secondsite.service.api.answers import CloudMappingView, CloudView, PolicyView
from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import CloudBody, CloudChange, CloudMappingBody, PolicyBody, PolicyChange
from secondsite.service.store import clouds, nodes, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Cloud, CloudMapping, PolicyRecord
from secondsite.service.usecases import setup

router = APIRouter()


@router.get("/clouds", response_model=list[CloudView], tags=["clouds"])
def list_clouds(ctx: Ctx, _: Reader) -> Any:
    """All clouds."""
    with ctx.store.reading() as tx:
        return [_cloud(tx, cloud) for cloud in clouds.list_clouds(tx)]


@router.get("/clouds/{cloud}", response_model=CloudView, tags=["clouds"])
def show_cloud(ctx: Ctx, _: Reader, cloud: str) -> Any:
    """One cloud (name or id)."""
    with ctx.store.reading() as tx:
        return _cloud(tx, clouds.cloud(tx, cloud))


@router.post("/clouds", response_model=CloudView, status_code=201, tags=["clouds"])
def create_cloud(ctx: Ctx, _: Contributor, body: CloudBody) -> Any:
    """Group nodes of one site."""
    cloud, _members = setup.create_cloud(ctx, body.name, body.site, body.nodes, body.storage)
    with ctx.store.reading() as tx:
        return _cloud(tx, cloud)


@router.patch("/clouds/{cloud}", response_model=CloudView, tags=["clouds"])
def change_cloud(ctx: Ctx, _: Contributor, cloud: str, body: CloudChange) -> Any:
    """Add nodes to a cloud and take nodes out."""
    changed = setup.change_members(ctx, cloud, body.add, body.remove)
    with ctx.store.reading() as tx:
        return _cloud(tx, changed)


@router.delete("/clouds/{cloud}", status_code=204, tags=["clouds"])
def delete_cloud(ctx: Ctx, _: Contributor, cloud: str) -> Response:
    """Remove a cloud that no mapping uses."""
    setup.delete_cloud(ctx, cloud)
    return Response(status_code=204)


@router.get("/cloud-mappings", response_model=list[CloudMappingView], tags=["clouds"])
def list_mappings(ctx: Ctx, _: Reader) -> Any:
    """All cloud mappings."""
    with ctx.store.reading() as tx:
        return [_mapping(tx, mapping) for mapping in clouds.list_mappings(tx)]


@router.post("/cloud-mappings", response_model=CloudMappingView, status_code=201, tags=["clouds"])
def map_cloud(ctx: Ctx, _: Contributor, body: CloudMappingBody) -> Any:
    """Say where machines of a cloud replicate to, and under which policy."""
    mapping = setup.map_cloud(ctx, body.source, body.target, body.policy)
    with ctx.store.reading() as tx:
        return _mapping(tx, mapping)


@router.delete("/cloud-mappings/{mapping}", status_code=204, tags=["clouds"])
def unmap_cloud(ctx: Ctx, _: Contributor, mapping: str) -> Response:
    """Remove a mapping (by its id) by which nothing was ever protected."""
    setup.unmap_cloud(ctx, mapping)
    return Response(status_code=204)


@router.get("/policies", response_model=list[PolicyView], tags=["policies"])
def list_policies(ctx: Ctx, _: Reader) -> Any:
    """All policies."""
    with ctx.store.reading() as tx:
        return [_policy(policy) for policy in clouds.list_policies(tx)]


@router.get("/policies/{policy}", response_model=PolicyView, tags=["policies"])
def show_policy(ctx: Ctx, _: Reader, policy: str) -> Any:
    """One policy (name or id)."""
    with ctx.store.reading() as tx:
        return _policy(clouds.policy(tx, policy))


@router.post("/policies", response_model=PolicyView, status_code=201, tags=["policies"])
def create_policy(ctx: Ctx, _: Contributor, body: PolicyBody) -> Any:
    """Add a policy."""
    return _policy(setup.create_policy(ctx, body.name, body.settings()))


@router.patch("/policies/{policy}", response_model=PolicyView, tags=["policies"])
def change_policy(ctx: Ctx, _: Contributor, policy: str, body: PolicyChange) -> Any:
    """Change settings; both sides of each item that replicates under the policy are told."""
    return _policy(setup.change_policy(ctx, policy, body.settings()))


@router.delete("/policies/{policy}", status_code=204, tags=["policies"])
def delete_policy(ctx: Ctx, _: Contributor, policy: str) -> Response:
    """Remove a policy that no mapping uses."""
    setup.delete_policy(ctx, policy)
    return Response(status_code=204)


def _cloud(tx: Transaction, cloud: Cloud) -> dict[str, Any]:
    return {
        "id": cloud.id,
        "name": cloud.name,
        "site": vaults.site(tx, cloud.site_id).name,
        "nodes": [nodes.get(tx, node).name for node in clouds.members(tx, cloud.id)],
        "storage": cloud.storage,
        "created": cloud.created,
    }


def _mapping(tx: Transaction, mapping: CloudMapping) -> dict[str, Any]:
    return {
        "id": mapping.id,
        "source": clouds.cloud(tx, mapping.source_cloud_id).name,
        "target": clouds.cloud(tx, mapping.target_cloud_id).name,
        "policy": clouds.policy(tx, mapping.policy_id).name,
        "created": mapping.created,
    }


def _policy(policy: PolicyRecord) -> dict[str, Any]:
    return {
        "id": policy.id,
        "name": policy.name,
        "revision": policy.revision,
        "created": policy.created,
        **asdict(policy.policy),
    }
