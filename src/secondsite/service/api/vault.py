"""Vault, tokens, and the health check that needs no token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from secondsite.service.api.answers import Health, TokenView, VaultView, Whoami
from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import TokenBody
from secondsite.service.store import vaults
from secondsite.service.store.records import Token
from secondsite.service.usecases import tokens, views

router = APIRouter(tags=["vault"])


@router.get("/health", response_model=Health)
def health(ctx: Ctx) -> Any:
    """Whether the service runs and reaches its database. Needs no token and tells nothing else."""
    with ctx.store.reading() as tx:
        vaults.get_vault(tx)
    return {"status": "ok"}


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request, _: Reader) -> Any:
    """The OpenAPI document."""
    return request.app.openapi()


@router.get("/vault", response_model=VaultView)
def vault(ctx: Ctx, _: Reader) -> Any:
    """The vault and a summary of its health."""
    return views.vault_view(ctx)


@router.get("/whoami", response_model=Whoami)
def whoami(actor: Reader) -> Any:
    """Who the token speaks for."""
    return {"name": actor.name, "role": actor.role}


@router.get("/tokens", response_model=list[TokenView])
def list_tokens(ctx: Ctx, _: Contributor) -> Any:
    """All tokens, without their secrets."""
    return [_view(token) for token in tokens.list_tokens(ctx)]


@router.post("/tokens", response_model=TokenView, status_code=201)
def create_token(ctx: Ctx, _: Contributor, body: TokenBody) -> Any:
    """Issue a token. It is shown in this answer and never again."""
    issued = tokens.create_token(ctx, body.name, body.role, body.valid_days)
    return _view(issued.token) | {"token": issued.secret}


@router.delete("/tokens/{token}", status_code=204)
def revoke_token(ctx: Ctx, _: Contributor, token: str) -> Response:
    """Revoke a token (name or id) at once."""
    tokens.revoke_token(ctx, token)
    return Response(status_code=204)


def _view(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "created": token.created,
        "expires": token.expires,
    }
