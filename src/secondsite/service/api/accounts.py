"""Accounts, logins and sessions of people. The one route beside the health check that needs no token is the login."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from secondsite.service.api.guard import Contributor, Ctx, Reader
from secondsite.service.api.requests import Body
from secondsite.service.context import Actor
from secondsite.service.store.accounts import Account
from secondsite.service.usecases import accounts
from secondsite.service.vocabulary import Role

router = APIRouter(tags=["accounts"])
_Password = Field(min_length=1, max_length=256, examples=["four words that differ"])


class LoginBody(Body):
    """Name and password of an account."""

    name: str = Field(min_length=1, max_length=64, examples=["anna"])
    password: str = _Password


class LoginView(BaseModel):
    """A session. `token` is shown in this answer and never again."""

    token: str
    name: str
    role: Role
    expires: datetime


class AccountBody(Body):
    """A new account."""

    name: str = Field(min_length=1, max_length=64, examples=["anna"])
    role: Role = Field(examples=["Operator"])
    password: str = _Password


class AccountChange(Body):
    """What to change of an account; what is left out stays."""

    role: Role | None = Field(default=None, examples=["Reader"])
    disabled: bool | None = Field(default=None, examples=[True])


class NewPassword(Body):
    """A new password of somebody."""

    password: str = _Password


class OwnPassword(Body):
    """One's own new password, and the present one."""

    old: str = _Password
    new: str = _Password


class AccountView(BaseModel):
    """An account. Nothing of its password is shown."""

    id: str
    name: str
    role: Role
    disabled: bool
    created: datetime
    password_changed: datetime
    last_login: datetime | None


class SessionView(BaseModel):
    """A login that has not ended. `current`: the one that asks."""

    id: str
    account: str
    created: datetime
    expires: datetime
    source: str | None
    current: bool


@router.post("/login", response_model=LoginView)
def login(request: Request, ctx: Ctx, body: LoginBody) -> Any:
    """Open a session of eight hours. Needs no token; slows down who guesses (429, `Retry-After`)."""
    request.state.detail = f"as {body.name}"
    source = None if request.client is None else request.client.host
    found = accounts.login(ctx, body.name, body.password, source)
    request.state.actor = Actor(found.account.name, found.account.role, found.account.id, found.session.id)
    return {
        "token": found.secret,
        "name": found.account.name,
        "role": found.account.role,
        "expires": found.session.expires,
    }


@router.post("/logout", status_code=204)
def logout(ctx: Ctx, actor: Reader) -> Response:
    """End the session that asks."""
    accounts.logout(ctx, actor)
    return Response(status_code=204)


@router.post("/password", status_code=204)
def change_password(ctx: Ctx, actor: Reader, body: OwnPassword) -> Response:
    """Change one's own password; all other sessions of the account end."""
    accounts.change_password(ctx, actor, body.old, body.new)
    return Response(status_code=204)


@router.get("/sessions", response_model=list[SessionView])
def list_sessions(ctx: Ctx, actor: Reader) -> Any:
    """Open sessions: one's own; all for a Contributor."""
    return [
        {
            "id": session.id,
            "account": name,
            "created": session.created,
            "expires": session.expires,
            "source": session.source,
            "current": session.id == actor.session,
        }
        for session, name in accounts.list_sessions(ctx, actor)
    ]


@router.delete("/sessions/{session}", status_code=204)
def end_session(ctx: Ctx, actor: Reader, session: str) -> Response:
    """End a session: one's own; anybody's for a Contributor."""
    accounts.end_session(ctx, actor, session)
    return Response(status_code=204)


@router.get("/accounts", response_model=list[AccountView])
def list_accounts(ctx: Ctx, _: Contributor) -> Any:
    """All accounts."""
    return [_view(account) for account in accounts.list_accounts(ctx)]


@router.post("/accounts", response_model=AccountView, status_code=201)
def create_account(ctx: Ctx, _: Contributor, body: AccountBody) -> Any:
    """Add a person."""
    return _view(accounts.create_account(ctx, body.name, body.role, body.password))


@router.patch("/accounts/{account}", response_model=AccountView)
def change_account(ctx: Ctx, _: Contributor, account: str, body: AccountChange) -> Any:
    """Give an account (name or id) another role, disable it, enable it again."""
    return _view(accounts.change_account(ctx, account, role=body.role, disabled=body.disabled))


@router.post("/accounts/{account}/password", status_code=204)
def set_password(ctx: Ctx, _: Contributor, account: str, body: NewPassword) -> Response:
    """Give an account a new password; its sessions end."""
    accounts.set_password(ctx, account, body.password)
    return Response(status_code=204)


@router.delete("/accounts/{account}", status_code=204)
def remove_account(ctx: Ctx, _: Contributor, account: str) -> Response:
    """Remove an account; its sessions end, and what it did stays in the audit trail."""
    accounts.remove_account(ctx, account)
    return Response(status_code=204)


def _view(account: Account) -> dict[str, Any]:
    return {name: getattr(account, name) for name in AccountView.model_fields}
