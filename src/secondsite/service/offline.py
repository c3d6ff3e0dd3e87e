"""What is done to a vault's files and database directly, beside the API: rare, by who may read the data folder, and told in the audit trail."""

from __future__ import annotations

import getpass
from pathlib import Path

from secondsite.errors import InvalidInputError
from secondsite.service.context import Context
from secondsite.service.settings import DataDir
from secondsite.service.store import audit
from secondsite.service.store.database import Store
from secondsite.service.usecases.tokens import create_token
from secondsite.service.vocabulary import Role
from secondsite.ship.identity import CertificateAuthority


def make_token(
    data_dir: Path, name: str, role: str, valid_days: float | None, *, database_url: str | None = None
) -> str:
    """Issue a token without the service. It is returned once and never again."""
    if role not in {each.value for each in Role}:
        raise InvalidInputError(f"{role!r} is no role", hint="choose Contributor, Operator or Reader")
    folder = DataDir(data_dir)
    url = folder.database(database_url)
    authority = CertificateAuthority.load(folder.ca_cert, folder.ca_key)
    store = Store.open(url.render_as_string(hide_password=False))
    try:
        ctx = Context(store, authority, lambda _job: None)
        issued = create_token(ctx, name, Role(role), valid_days)
        note_offline(ctx, "service token", f"token {name}, {role}")
    finally:
        store.close()
    return issued.secret


def note_offline(ctx: Context, what: str, detail: str) -> None:
    """Write who did it as far as the machine knows: the account of its operating system."""
    try:
        person = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        person = "unknown"
    with ctx.store.transaction() as tx:
        audit.note(tx, audit.Line(ctx.clock(), f"local:{person}", "LOCAL", what, "done", detail=detail))
