"""Accounts of people, their sessions, and how often a login failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.identity_tables import accounts, login_failures, sessions
from secondsite.service.vocabulary import Role

FAILURES_MAX: Final = 10_000
"""Rows: beyond that the oldest go, so that a flood of made-up names fills nothing."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person. `password` is a slow hash and leaves the service nowhere."""

    id: str
    name: str
    role: Role
    password: str
    disabled: bool
    created: datetime
    password_changed: datetime
    last_login: datetime | None


@dataclass(frozen=True, slots=True)
class Session:
    """A login that has not ended. The token itself is not kept, only its hash."""

    id: str
    account_id: str
    created: datetime
    expires: datetime
    source: str | None


def add(tx: Transaction, account: Account) -> None:
    """Add an account; ConflictError if the name is taken."""
    values = {name: getattr(account, name) for name in Account.__slots__}
    tx.execute(sa.insert(accounts).values(**values | {"role": account.role.value}))


def find(tx: Transaction, name: str) -> Account | None:
    """Return the account with this very name."""
    return rows.find(tx, Account, sa.select(accounts).where(accounts.c.name == name))


def get(tx: Transaction, id_or_name: str, *, lock: bool = False) -> Account:
    """Return an account; NotFoundError if there is none."""
    statement = sa.select(accounts).where(sa.or_(accounts.c.id == id_or_name, accounts.c.name == id_or_name))
    if lock:
        statement = statement.with_for_update()
    return rows.get(tx, Account, statement, f"account {id_or_name!r}")


def listed(tx: Transaction) -> list[Account]:
    """Return all accounts by name."""
    return rows.listed(tx, Account, sa.select(accounts).order_by(accounts.c.name))


def change(tx: Transaction, account_id: str, **values: Any) -> None:
    """Change columns of an account."""
    tx.execute(sa.update(accounts).where(accounts.c.id == account_id).values(**values))


def delete(tx: Transaction, account_id: str) -> None:
    """Remove an account and its sessions."""
    tx.execute(sa.delete(accounts).where(accounts.c.id == account_id))


# -- sessions ----------------------------------------------------------------------------------------------


def add_session(tx: Transaction, session: Session, token_hash: str, *, most: int) -> None:
    """Add a session; beyond `most` of an account, its oldest end."""
    values = {name: getattr(session, name) for name in Session.__slots__}
    tx.execute(sa.insert(sessions).values(**values, hash=token_hash))
    mine = sa.select(sessions.c.id).where(sessions.c.account_id == session.account_id)
    older = [row.id for row in tx.execute(mine.order_by(sessions.c.created.desc()).offset(most))]
    if older:
        tx.execute(sa.delete(sessions).where(sessions.c.id.in_(older)))


def find_session(tx: Transaction, token_hash: str) -> tuple[Session, Account] | None:
    """Return the session with this hash, expired or not, and whose it is."""
    session = rows.find(tx, Session, sa.select(sessions).where(sessions.c.hash == token_hash))
    return None if session is None else (session, get(tx, session.account_id))


def list_sessions(tx: Transaction, account_id: str | None = None) -> list[Session]:
    """Return sessions, newest first."""
    statement = sa.select(sessions).order_by(sessions.c.created.desc())
    if account_id is not None:
        statement = statement.where(sessions.c.account_id == account_id)
    return rows.listed(tx, Session, statement)


def end_session(tx: Transaction, session_id: str, account_id: str | None = None) -> bool:
    """End a session (of this account); False if there is none."""
    statement = sa.delete(sessions).where(sessions.c.id == session_id)
    if account_id is not None:
        statement = statement.where(sessions.c.account_id == account_id)
    return tx.execute(statement).rowcount > 0


def end_sessions(tx: Transaction, account_id: str, *, but: str | None = None) -> int:
    """End all sessions of an account, or all but one; returns how many it were."""
    statement = sa.delete(sessions).where(sessions.c.account_id == account_id)
    if but is not None:
        statement = statement.where(sessions.c.id != but)
    return tx.execute(statement).rowcount


# -- failed logins -----------------------------------------------------------------------------------------


def failures(tx: Transaction, subject: str) -> tuple[int, datetime] | None:
    """Return how often it failed, and when last; the row is locked."""
    found = tx.execute(
        sa.select(login_failures).where(login_failures.c.subject == subject).with_for_update()
    ).one_or_none()
    return None if found is None else (found.failures, found.last)


def set_failures(tx: Transaction, subject: str, count: int, now: datetime) -> None:
    """Write how often it failed; 0 forgets it."""
    where = login_failures.c.subject == subject
    if count <= 0:
        tx.execute(sa.delete(login_failures).where(where))
    elif not tx.execute(sa.update(login_failures).where(where).values(failures=count, last=now)).rowcount:
        tx.execute(sa.insert(login_failures).values(subject=subject, failures=count, last=now))
        _bound(tx)


def _bound(tx: Transaction) -> None:
    many = tx.execute(sa.select(sa.func.count()).select_from(login_failures)).scalar() or 0
    if many > FAILURES_MAX:
        oldest = sa.select(login_failures.c.subject).order_by(login_failures.c.last).limit(FAILURES_MAX // 10)
        gone = [row.subject for row in tx.execute(oldest)]
        tx.execute(sa.delete(login_failures).where(login_failures.c.subject.in_(gone)))
