"""Accounts of people: a password opens a session, whose token is then shown like any other.

Promises:

- Passwords are kept as slow hashes, tokens of sessions as hashes; neither is ever shown or logged.
- Whether a name exists is not told: an unknown name, a disabled account and a wrong password get the same answer after the same work.
- Guessing is slowed down, by name and by address (`FREE_*`): each failure doubles the wait, up to a quarter of an hour, and an
  hour without one forgets them. An attempt is counted before its password is looked at, so that many at once are no way around it. Nobody is locked out for
  good: a guesser can only make the owner wait.
- A session ends after `SESSION`, at the logout, when the password changes, and when the account is disabled or removed. The role is looked up anew at each call.
- One way in with the role of a Contributor is always left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    LockedOutError,
    NotFoundError,
    UnauthenticatedError,
)
from secondsite.service import passwords
from secondsite.service.context import Actor, Context
from secondsite.service.store import access, accounts
from secondsite.service.store.accounts import Account, Session
from secondsite.service.store.database import Transaction
from secondsite.service.usecases.tokens import NAME, authenticate, contributors, secret_hash
from secondsite.service.vocabulary import Role

SESSION: Final = timedelta(hours=8)
SESSIONS_MAX: Final = 20
"""Of an account; beyond that the oldest ends."""
SESSION_PREFIX: Final = "sss_"
FREE_BY_NAME: Final = 5
FREE_BY_SOURCE: Final = 30
"""Failures without a wait. More of them by address: many people may sit behind one."""
WAIT_MAX: Final = timedelta(minutes=15)
FORGET: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Login:
    """A session that was opened. `secret` is shown this once."""

    session: Session
    account: Account
    secret: str


def identify(ctx: Context, secret: str) -> Actor:
    """Return who shows this token, a session's or a program's; UnauthenticatedError if nobody does."""
    if not secret.startswith(SESSION_PREFIX):
        return authenticate(ctx, secret)
    with ctx.store.reading() as tx:
        found = accounts.find_session(tx, secret_hash(secret))
    if found is None or found[0].expires <= ctx.clock() or found[1].disabled:
        raise UnauthenticatedError("this session has ended", hint="log in again: secondsite login")
    session, account = found
    return Actor(account.name, account.role, account.id, session.id)


# -- in and out --------------------------------------------------------------------------------------------


def login(ctx: Context, name: str, password: str, source: str | None = None) -> Login:
    """Open a session.

    Raises:
        UnauthenticatedError: the name or the password is wrong, or the account is disabled.
        LockedOutError: too many failed before; the password was not looked at.
    """
    subjects = [(f"name:{name.casefold()[:64]}", FREE_BY_NAME)]
    if source is not None:
        subjects.append((f"from:{source[:64]}", FREE_BY_SOURCE))
    with ctx.store.transaction() as tx:
        account = accounts.find(tx, name)
        for subject, free in subjects:
            _count_attempt(tx, subject, free, ctx.clock())
    right = passwords.matches(
        password[: passwords.LENGTH_MAX], passwords.dummy() if account is None else account.password
    )
    if account is None or account.disabled or not right:
        raise UnauthenticatedError(
            "the name or the password is wrong",
            hint="after some attempts each further one has to wait longer",
        )
    secret = SESSION_PREFIX + ctx.random_bytes(32).hex()
    now = ctx.clock()
    session = Session(ctx.new_id(), account.id, now, now + SESSION, source)
    renewed = _hashed(ctx, password) if passwords.outdated(account.password) else account.password
    with ctx.store.transaction() as tx:
        present = accounts.get(tx, account.id, lock=True)
        if present.disabled or present.password != account.password:
            raise UnauthenticatedError("the account has changed this moment", hint="try again")
        for subject, _free in subjects:
            _take_back(tx, subject, now)
        accounts.change(tx, account.id, last_login=now, password=renewed)
        accounts.add_session(tx, session, secret_hash(secret), most=SESSIONS_MAX)
    return Login(session, account, secret)


def logout(ctx: Context, actor: Actor) -> None:
    """End the session that asks."""
    if actor.session is None:
        raise ConflictError("a token has no session to end", hint="a Contributor can revoke the token")
    with ctx.store.transaction() as tx:
        accounts.end_session(tx, actor.session)


def list_sessions(ctx: Context, actor: Actor) -> list[tuple[Session, str]]:
    """Return open sessions with their accounts' names: one's own; all of them for a Contributor."""
    mine = None if actor.role is Role.CONTRIBUTOR else actor.account or ""
    now = ctx.clock()
    with ctx.store.reading() as tx:
        names = {account.id: account.name for account in accounts.listed(tx)}
        return [
            (session, names[session.account_id])
            for session in accounts.list_sessions(tx, mine)
            if session.expires > now
        ]


def end_session(ctx: Context, actor: Actor, session: str) -> None:
    """End a session: one's own, or anybody's for a Contributor."""
    mine = None if actor.role is Role.CONTRIBUTOR else actor.account or ""
    with ctx.store.transaction() as tx:
        if not accounts.end_session(tx, session, mine):
            raise NotFoundError(f"there is no session {session!r}")


# -- accounts ----------------------------------------------------------------------------------------------


def create_account(ctx: Context, name: str, role: Role, password: str) -> Account:
    """Add a person."""
    if not NAME.fullmatch(name) or name != name.strip():
        raise InvalidInputError("an account's name has 1 to 64 letters, digits, spaces or any of . @ - _")
    passwords.check_quality(password, name)
    now = ctx.clock()
    account = Account(ctx.new_id(), name, role, _hashed(ctx, password), False, now, now, None)
    with ctx.store.transaction() as tx:
        taken = any(token.name == name for token in access.list_tokens(tx))
        if taken or any(other.name.casefold() == name.casefold() for other in accounts.listed(tx)):
            raise ConflictError(
                f"there is {'a token' if taken else 'an account'} {name!r} already",
                hint="choose another name",
            )
        accounts.add(tx, account)
    return account


def list_accounts(ctx: Context) -> list[Account]:
    """Return all accounts."""
    with ctx.store.reading() as tx:
        return accounts.listed(tx)


def change_account(
    ctx: Context, id_or_name: str, *, role: Role | None = None, disabled: bool | None = None
) -> Account:
    """Give an account another role, or disable it (its sessions end at once) or enable it again."""
    with ctx.store.transaction() as tx:
        account = accounts.get(tx, id_or_name, lock=True)
        if disabled or role not in {None, Role.CONTRIBUTOR}:
            _leave_a_way_in(tx, ctx, account)
        values: dict[str, Any] = {}
        if role is not None:
            values["role"] = role.value
        if disabled is not None:
            values["disabled"] = disabled
        if values:
            accounts.change(tx, account.id, **values)
        if disabled:
            accounts.end_sessions(tx, account.id)
        return accounts.get(tx, account.id)


def remove_account(ctx: Context, id_or_name: str) -> None:
    """Remove an account and end its sessions. What it did stays in the audit trail under its name."""
    with ctx.store.transaction() as tx:
        account = accounts.get(tx, id_or_name, lock=True)
        _leave_a_way_in(tx, ctx, account)
        accounts.delete(tx, account.id)


def set_password(ctx: Context, id_or_name: str, password: str) -> None:
    """Give an account a new password, as a Contributor; all its sessions end, and its failed logins are forgotten."""
    with ctx.store.reading() as tx:
        account = accounts.get(tx, id_or_name)
    _change_password(ctx, account, password, but=None)


def change_password(ctx: Context, actor: Actor, old: str, new: str) -> None:
    """Change one's own password, which must be shown; all other sessions end.

    A wrong one counts like a failed login: who finds an open session must not be able to guess on.
    """
    if actor.account is None:
        raise ConflictError("a token has no password", hint="log in first: secondsite login")
    with ctx.store.transaction() as tx:
        account = accounts.get(tx, actor.account)
        _count_attempt(tx, f"name:{account.name.casefold()}", FREE_BY_NAME, ctx.clock())
    if not passwords.matches(old, account.password):
        raise UnauthenticatedError("the present password is wrong")
    _change_password(ctx, account, new, but=actor.session)


def _change_password(ctx: Context, account: Account, password: str, *, but: str | None) -> None:
    passwords.check_quality(password, account.name)
    kept, now = _hashed(ctx, password), ctx.clock()
    with ctx.store.transaction() as tx:
        accounts.change(tx, account.id, password=kept, password_changed=now)
        accounts.end_sessions(tx, account.id, but=but)
        accounts.set_failures(tx, f"name:{account.name.casefold()}", 0, now)


def _hashed(ctx: Context, password: str) -> str:
    return passwords.hash_password(password, ctx.random_bytes(passwords.SALT))


def _leave_a_way_in(tx: Transaction, ctx: Context, account: Account) -> None:
    matters = account.role is Role.CONTRIBUTOR and not account.disabled
    if matters and not contributors(tx, ctx, but=account.id):
        raise ConflictError("this is the last Contributor", hint="create another account or token first")


# -- slowing down ------------------------------------------------------------------------------------------


def _count_attempt(tx: Transaction, subject: str, free: int, now: datetime) -> None:
    """Count an attempt as failed until it is taken back; refuse it if its turn has not come."""
    found = accounts.failures(tx, subject)
    count, last = (0, now) if found is None or now - found[1] > FORGET else found
    if count >= free:
        wait = min(WAIT_MAX, timedelta(seconds=2.0 ** min(count - free + 1, 30)))
        left = (last + wait - now).total_seconds()
        if left > 0:
            raise LockedOutError(
                "too many logins failed",
                hint=f"try again in {left:.0f} s; a Contributor can set a new password",
                retry_after_s=int(left) + 1,
            )
    accounts.set_failures(tx, subject, count + 1, now)


def _take_back(tx: Transaction, subject: str, now: datetime) -> None:
    """A name that got in starts anew; an address only loses the one attempt, so an account of one's own resets nothing."""
    found = accounts.failures(tx, subject)
    if found is not None:
        accounts.set_failures(tx, subject, 0 if subject.startswith("name:") else found[0] - 1, now)
