"""Tokens for people and programs, and registration keys for nodes. Only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, UnauthenticatedError
from secondsite.model.ids import SiteId
from secondsite.service.context import Actor, Context
from secondsite.service.store import access, accounts, nodes, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import RegistrationKey, Token
from secondsite.service.vocabulary import Role

KEY_VALIDITY: Final = timedelta(days=5)
"""The field's figure for registration keys."""
TOKEN_PREFIX: Final = "sst_"  # noqa: S105 (a prefix, no secret)
"""Makes a token that leaked into a log or a repository easy to find."""
NAME = re.compile(r"[\w.@ -]{1,64}")


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token. `secret` is shown this once."""

    token: Token
    secret: str


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new registration key: `<id>.<secret>.<sha256 of the CA certificate>`. Shown this once."""

    record: RegistrationKey
    key: str


def secret_hash(secret: str) -> str:
    """Return what is kept of a secret. The secrets are random, so a plain hash can't be guessed backwards."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(ctx: Context, name: str, role: Role, valid_days: float | None = None) -> IssuedToken:
    """Issue a token; it is returned once and never again."""
    if not NAME.fullmatch(name):
        raise InvalidInputError("a token's name has 1 to 64 letters, digits, spaces or any of . @ - _")
    if valid_days is not None and not 0 < valid_days <= 3650:
        raise InvalidInputError("valid_days is out of range", hint="choose up to 3650 days, or none")
    now = ctx.clock()
    token = Token(
        id=ctx.new_id(),
        name=name,
        role=role,
        created=now,
        expires=None if valid_days is None else now + timedelta(days=valid_days),
    )
    secret = TOKEN_PREFIX + ctx.random_bytes(32).hex()
    with ctx.store.transaction() as tx:
        if accounts.find(tx, name) is not None:
            raise ConflictError(
                f"there is an account {name!r}", hint="the trail must tell them apart: choose another name"
            )
        access.add_token(tx, token, secret_hash(secret))
    return IssuedToken(token, secret)


def authenticate(ctx: Context, secret: str) -> Actor:
    """Return who the token speaks for; UnauthenticatedError for an unknown or expired one."""
    with ctx.store.reading() as tx:
        token = access.find_token(tx, secret_hash(secret))
    if token is None:
        raise UnauthenticatedError("this token is not known", hint="ask a Contributor for a token")
    if token.expires is not None and token.expires <= ctx.clock():
        raise UnauthenticatedError("this token has expired", hint="ask a Contributor for a new one")
    return Actor(token.name, token.role)


def list_tokens(ctx: Context) -> list[Token]:
    """Return all tokens, without their secrets."""
    with ctx.store.reading() as tx:
        return access.list_tokens(tx)


def revoke_token(ctx: Context, id_or_name: str) -> None:
    """Revoke a token at once; the last Contributor's stays, else nobody could make another."""
    with ctx.store.transaction() as tx:
        tokens = access.list_tokens(tx)
        found = next((token for token in tokens if id_or_name in {token.id, token.name}), None)
        if found is None:
            raise NotFoundError(f"there is no token {id_or_name!r}")
        if found.role is Role.CONTRIBUTOR and not contributors(tx, ctx, but=found.id):
            raise ConflictError("this is the last token of a Contributor", hint="create another one first")
        access.delete_token(tx, found.id)


def contributors(tx: Transaction, ctx: Context, *, but: str) -> int:
    """Count the ways in with the role of a Contributor, beside this token or account: one must always be left."""
    now = ctx.clock()
    found = [
        token.id
        for token in access.list_tokens(tx)
        if token.role is Role.CONTRIBUTOR and (token.expires is None or token.expires > now)
    ]
    found += [
        account.id
        for account in accounts.listed(tx)
        if account.role is Role.CONTRIBUTOR and not account.disabled
    ]
    return sum(identifier != but for identifier in found)


def create_registration_key(ctx: Context, site: str, uses_max: int | None = None) -> IssuedKey:
    """Issue a key with which nodes enrol at the site during the next five days."""
    if uses_max is not None and uses_max < 1:
        raise InvalidInputError("uses_max is out of range", hint="choose at least 1, or none for any number")
    now = ctx.clock()
    secret = ctx.random_bytes(24).hex()
    with ctx.store.transaction() as tx:
        record = RegistrationKey(
            id=ctx.random_bytes(6).hex(),
            hash=secret_hash(secret),
            site_id=vaults.site(tx, site).id,
            created=now,
            expires=now + KEY_VALIDITY,
            uses=0,
            uses_max=uses_max,
        )
        nodes.add_key(tx, record)
    return IssuedKey(record, f"{record.id}.{secret}.{ctx.authority.fingerprint}")


def redeem_key(tx: Transaction, ctx: Context, key: str, *, again: bool = False) -> SiteId:
    """Check a registration key, count its use and return its site; UnauthenticatedError says only what it must.

    `again`: the use was counted before, by the same node. Two nodes that use the last use at once: the table's CHECK lets one in.
    """
    parts = key.split(".")
    if len(parts) != 3:
        raise UnauthenticatedError(
            "this is not a registration key", hint="copy the whole key: <id>.<secret>.<fingerprint>"
        )
    record = nodes.find_key(tx, parts[0])
    if record is None or not hmac.compare_digest(record.hash, secret_hash(parts[1])):
        raise UnauthenticatedError("the registration key is not known", hint="create a new one")
    if record.expires <= ctx.clock():
        raise UnauthenticatedError(
            "the registration key has expired", hint="create a new one: keys are valid for five days"
        )
    if again:
        return record.site_id
    if record.uses_max is not None and record.uses >= record.uses_max:
        raise UnauthenticatedError("the registration key is used up", hint="create a new one")
    nodes.use_key(tx, record.id)
    return record.site_id
