"""Puts the people's application together."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from secondsite import __version__
from secondsite.service.api import (
    accounts,
    audit,
    clouds,
    errors,
    groups,
    guard,
    health,
    history,
    items,
    nodes,
    sites,
    vault,
)
from secondsite.service.context import Context

PREFIX: Final = "/api/v1"
ROUTERS: Final = tuple(
    module.router for module in (vault, accounts, audit, sites, nodes, clouds, items, groups, history, health)
)
"""After a change here or in one of them: python -m secondsite.service.api.access_page > docs/reference/access.md"""


def create_app(ctx: Context) -> FastAPI:
    """Return the application. Pages that load scripts from elsewhere (Swagger, ReDoc) are off on purpose."""
    app = FastAPI(
        title="Second Site",
        version=__version__,
        description="Replicate machines from one of your own sites to another, fail over, test it, and come back.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.ctx = ctx
    errors.install(app)
    guard.install_audit(app, ctx)
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    return app
