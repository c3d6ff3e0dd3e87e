"""Tokens of people and programs, and the audit trail of what they did."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Token
from secondsite.service.store.tables import audit, tokens


def add_token(tx: Transaction, token: Token, token_hash: str) -> None:
    """Keep a token's hash; ConflictError if the name is taken."""
    tx.execute(
        sa.insert(tokens).values(
            id=token.id,
            name=token.name,
            role=token.role.value,
            hash=token_hash,
            created=token.created,
            expires=token.expires,
        )
    )


def find_token(tx: Transaction, token_hash: str) -> Token | None:
    """Return the token with this hash, expired or not."""
    return rows.find(tx, Token, sa.select(tokens).where(tokens.c.hash == token_hash))


def list_tokens(tx: Transaction) -> list[Token]:
    """Return all tokens by name."""
    return rows.listed(tx, Token, sa.select(tokens).order_by(tokens.c.name))


def delete_token(tx: Transaction, id_or_name: str) -> bool:
    """Revoke a token at once; False if there was none."""
    statement = sa.delete(tokens).where(sa.or_(tokens.c.id == id_or_name, tokens.c.name == id_or_name))
    return tx.execute(statement).rowcount > 0


def note(
    tx: Transaction,
    *,
    time: datetime,
    actor: str,
    role: str | None,
    method: str,
    path: str,
    status: int,
    outcome: str,
) -> None:
    """Write one line of the audit trail."""
    tx.execute(
        sa.insert(audit).values(
            time=time, actor=actor, role=role, method=method, path=path, status=status, outcome=outcome
        )
    )


def trail(tx: Transaction, limit: int = 200) -> list[dict[str, Any]]:
    """Return the audit trail, newest first."""
    found = tx.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(limit))
    return [dict(row._mapping) for row in found]
