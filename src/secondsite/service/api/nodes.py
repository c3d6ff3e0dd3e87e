"""Nodes and the networks that they report."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from secondsite.errors import NotFoundError
from secondsite.service.api.answers import NetworkMappingView, NetworkView, NodeView
from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import NetworkMappingBody
from secondsite.service.store import clouds, vaults
from secondsite.service.store.records import NetworkMapping
from secondsite.service.usecases import enrolment, setup, views

router = APIRouter()


@router.get("/nodes", response_model=list[NodeView], tags=["nodes"])
def list_nodes(ctx: Ctx, _: Reader, removed: Annotated[bool, Query()] = False) -> Any:
    """All nodes; `removed`: also those that were removed."""
    return views.node_views(ctx, revoked=removed)


@router.get("/nodes/{node}", response_model=NodeView, tags=["nodes"])
def show_node(ctx: Ctx, _: Reader, node: str) -> Any:
    """One node (name or id)."""
    return views.node_view(ctx, node)


@router.delete("/nodes/{node}", status_code=204, tags=["nodes"])
def remove_node(ctx: Ctx, _: Contributor, node: str) -> Response:
    """Remove a node that has no part in any item; its certificate is refused from now on."""
    enrolment.remove_node(ctx, node)
    return Response(status_code=204)


@router.get("/networks", response_model=list[NetworkView], tags=["networks"])
def list_networks(ctx: Ctx, _: Reader) -> Any:
    """The networks that nodes reported."""
    return views.network_views(ctx)


@router.get("/network-mappings", response_model=list[NetworkMappingView], tags=["networks"])
def list_mappings(ctx: Ctx, _: Reader) -> Any:
    """All network mappings."""
    with ctx.store.reading() as tx:
        names = vaults.site_names(tx)
        return [_mapping(mapping, names) for mapping in clouds.list_network_mappings(tx)]


@router.post("/network-mappings", response_model=NetworkMappingView, status_code=201, tags=["networks"])
def map_network(ctx: Ctx, _: Contributor, body: NetworkMappingBody) -> Any:
    """Map a network of one site to a network of another, and to a test network."""
    mapping = setup.map_network(
        ctx, body.source_site, body.source_network, body.target_site, body.target_network, body.test_network
    )
    with ctx.store.reading() as tx:
        return _mapping(mapping, vaults.site_names(tx))


@router.delete("/network-mappings/{mapping}", status_code=204, tags=["networks"])
def unmap_network(ctx: Ctx, _: Contributor, mapping: str) -> Response:
    """Remove a network mapping by its id."""
    with ctx.store.transaction() as tx:
        if not clouds.delete_network_mapping(tx, mapping):
            raise NotFoundError(f"there is no network mapping {mapping!r}")
    return Response(status_code=204)


def _mapping(mapping: NetworkMapping, names: Any) -> dict[str, Any]:
    return {
        "id": mapping.id,
        "source_site": names[mapping.source_site_id],
        "source_network": mapping.source_network,
        "target_site": names[mapping.target_site_id],
        "target_network": mapping.target_network,
        "test_network": mapping.test_network,
        "created": mapping.created,
    }
