"""Vault, tokens, audit trail, and the health check that needs no token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime

from secondsite.errors import InvalidInputError
from secondsite.service.api.answers import AuditVerdict, AuditView, Health, TokenView, VaultView, Whoami
from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import TokenBody
from secondsite.service.store import audit, vaults
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


@router.get("/audit", response_model=list[AuditView])
def audit_trail(
    ctx: Ctx,
    _: Contributor,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    actor: Annotated[str | None, Query()] = None,
    item: Annotated[str | None, Query()] = None,
    outcome: Annotated[str | None, Query(description="done, refused, failed, succeeded or cancelled")] = None,
    since: Annotated[AwareDatetime | None, Query()] = None,
    job: Annotated[str | None, Query()] = None,
    before: Annotated[int | None, Query(description="lines with a lower number")] = None,
) -> Any:
    """Who did what, newest first."""
    with ctx.store.reading() as tx:
        return audit.trail(
            tx, limit, actor=actor, item=item, outcome=outcome, since=since, job=job, before=before
        )


@router.get("/audit/verify", response_model=AuditVerdict)
def verify_audit(
    ctx: Ctx,
    _: Contributor,
    head: Annotated[str | None, Query(description="NUMBER:HASH that an earlier check printed")] = None,
) -> Any:
    """Read the whole trail and name every line that is changed or missing."""
    noted = None if head is None else _noted(head)
    with ctx.store.reading() as tx:
        found = audit.verify(tx, noted)
    return {
        "ok": not found.flaws,
        "lines": found.lines,
        "first": found.first,
        "head": f"{found.head}:{found.head_hash}",
        "flaws": [{"line": flaw.line, "what": flaw.what} for flaw in found.flaws],
    }


def _noted(head: str) -> tuple[int, str]:
    number, _, digest = head.partition(":")
    if not number.isdigit() or len(number) > 18 or len(digest) != 64:
        raise InvalidInputError(f"not a head of the trail: {head!r}", hint="expected NUMBER:HASH")
    return int(number), digest


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
