"""Sites, and the keys with which nodes enrol at them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from secondsite.errors import NotFoundError
from secondsite.service.api.answers import RegistrationKeyView, SiteView
from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import RegistrationKeyBody, SiteBody
from secondsite.service.store import nodes, vaults
from secondsite.service.store.records import RegistrationKey, Site
from secondsite.service.usecases import setup, tokens

router = APIRouter(tags=["sites"])


@router.get("/sites", response_model=list[SiteView])
def list_sites(ctx: Ctx, _: Reader) -> Any:
    """All sites."""
    with ctx.store.reading() as tx:
        return [_site(site) for site in vaults.list_sites(tx)]


@router.post("/sites", response_model=SiteView, status_code=201)
def create_site(ctx: Ctx, _: Contributor, body: SiteBody) -> Any:
    """Add a site."""
    return _site(setup.create_site(ctx, body.name))


@router.delete("/sites/{site}", status_code=204)
def delete_site(ctx: Ctx, _: Contributor, site: str) -> Response:
    """Remove an empty site (name or id)."""
    setup.delete_site(ctx, site)
    return Response(status_code=204)


@router.get("/registration-keys", response_model=list[RegistrationKeyView])
def list_keys(ctx: Ctx, _: Contributor) -> Any:
    """All registration keys, without their secrets."""
    with ctx.store.reading() as tx:
        names = vaults.site_names(tx)
        return [_key(key, names[key.site_id]) for key in nodes.list_keys(tx)]


@router.post("/registration-keys", response_model=RegistrationKeyView, status_code=201)
def create_key(ctx: Ctx, _: Contributor, body: RegistrationKeyBody) -> Any:
    """Issue a key that is valid for five days. `key` is shown in this answer and never again."""
    issued = tokens.create_registration_key(ctx, body.site, body.uses_max)
    with ctx.store.reading() as tx:
        site = vaults.site(tx, body.site)
    return _key(issued.record, site.name) | {"key": issued.key}


@router.delete("/registration-keys/{key}", status_code=204)
def delete_key(ctx: Ctx, _: Contributor, key: str) -> Response:
    """Revoke a registration key by its id; nodes that enrolled with it stay."""
    with ctx.store.transaction() as tx:
        if not nodes.delete_key(tx, key):
            raise NotFoundError(f"there is no registration key {key!r}")
    return Response(status_code=204)


def _site(site: Site) -> dict[str, Any]:
    return {"id": site.id, "name": site.name, "created": site.created}


def _key(key: RegistrationKey, site: str) -> dict[str, Any]:
    return {
        "id": key.id,
        "site": site,
        "created": key.created,
        "expires": key.expires,
        "uses": key.uses,
        "uses_max": key.uses_max,
    }
