"""Tokens of programs, and of people without an account."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Token
from secondsite.service.store.tables import tokens


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
