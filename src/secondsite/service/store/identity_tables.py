"""The tables of people and of what was done: accounts, sessions, failed logins, and the audit trail.

The audit trail is append-only by construction: triggers, which the migration makes, refuse every change of a line and every
deletion of one that is younger than `AUDIT_KEPT`. Each line carries the hash of the line before; `audit_chain` has the newest
line's, and the newest of those that were pruned, so that a line that is changed or missing is found wherever it stood.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from secondsite.service.store.tables import UtcTime, metadata, one_of
from secondsite.service.vocabulary import Role

AUDIT_KEPT: Final = timedelta(days=400)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),  # a slow hash with its salt and parameters
    sa.Column("disabled", sa.Boolean, nullable=False, default=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("password_changed", UtcTime, nullable=False),
    sa.Column("last_login", UtcTime),
    one_of("role", Role),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("expires", UtcTime, nullable=False),
    sa.Column("source", sa.Text),
)

login_failures = sa.Table(
    "login_failures",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),  # a name that was tried, or an address that it came from
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last", UtcTime, nullable=False, index=True),
    sa.CheckConstraint("failures >= 0", name="failures"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column(
        "id", sa.Integer, primary_key=True, autoincrement=False
    ),  # without gaps: the chain gives them out
    sa.Column("time", UtcTime, nullable=False, index=True),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("role", sa.Text),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("item", sa.Text),
    sa.Column("job_id", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

audit_chain = sa.Table(
    "audit_chain",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("head_id", sa.Integer, nullable=False),
    sa.Column("head_hash", sa.Text, nullable=False),
    sa.Column("pruned_id", sa.Integer, nullable=False),
    sa.Column("pruned_hash", sa.Text, nullable=False),
    sa.CheckConstraint("id = 1", name="single"),
    sa.CheckConstraint("pruned_id <= head_id", name="order"),
)
