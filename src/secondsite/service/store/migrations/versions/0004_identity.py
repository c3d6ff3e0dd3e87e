"""Changes of the schema: accounts, sessions, and an audit trail that only grows.

The triggers stand only here: `tables` cannot describe them. The lines of the old trail are chained as they are.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from secondsite.service.store.audit import START, line_hash
from secondsite.service.store.tables import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEPT_DAYS = 399
"""A day less than the service keeps them, for clocks that differ."""

SQLITE_TRIGGERS = (
    """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
       BEGIN SELECT RAISE(ABORT, 'the audit trail only grows: a line is never changed'); END""",
    f"""CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
        WHEN OLD.time > datetime('now', '-{KEPT_DAYS} days')
        BEGIN SELECT RAISE(ABORT, 'the audit trail only grows: a line is removed only past its age'); END""",
    """CREATE TRIGGER audit_chain_no_delete BEFORE DELETE ON audit_chain
       BEGIN SELECT RAISE(ABORT, 'the audit trail only grows: its head is never removed'); END""",
)
POSTGRESQL_TRIGGERS = (
    f"""CREATE FUNCTION secondsite_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_TABLE_NAME = 'audit' AND TG_OP = 'DELETE' THEN
            IF OLD.time <= now() - interval '{KEPT_DAYS} days' THEN RETURN OLD; END IF;
          END IF;
          RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation',
            MESSAGE = 'the audit trail only grows: ' || TG_OP || ' is refused';
        END $$""",
    """CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit
       FOR EACH ROW EXECUTE FUNCTION secondsite_audit_refuse()""",
    """CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit
       FOR EACH STATEMENT EXECUTE FUNCTION secondsite_audit_refuse()""",
    """CREATE TRIGGER audit_chain_no_delete BEFORE DELETE ON audit_chain
       FOR EACH ROW EXECUTE FUNCTION secondsite_audit_refuse()""",
    """CREATE TRIGGER audit_chain_no_truncate BEFORE TRUNCATE ON audit_chain
       FOR EACH STATEMENT EXECUTE FUNCTION secondsite_audit_refuse()""",
)


def upgrade() -> None:
    """Change the schema."""
    op.add_column("vault", sa.Column("ca_fingerprint", sa.Text(), nullable=True))
    op.add_column("vault", sa.Column("term", sa.Integer(), nullable=False, server_default="0"))
    _accounts()
    _audit()
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_TRIGGERS if sqlite else POSTGRESQL_TRIGGERS:
        op.get_bind().exec_driver_sql(statement)


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("password_changed", UtcTime(), nullable=False),
        sa.Column("last_login", UtcTime(), nullable=True),
        sa.CheckConstraint("role IN ('Contributor', 'Operator', 'Reader')", name=op.f("accounts_role_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("accounts_pk")),
        sa.UniqueConstraint("name", name=op.f("accounts_name_uq")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("expires", UtcTime(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("sessions_account_id_fk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pk")),
        sa.UniqueConstraint("hash", name=op.f("sessions_hash_uq")),
    )
    op.create_index(op.f("sessions_account_id_ix"), "sessions", ["account_id"])
    op.create_table(
        "login_failures",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last", UtcTime(), nullable=False),
        sa.CheckConstraint("failures >= 0", name=op.f("login_failures_failures_ck")),
        sa.PrimaryKeyConstraint("subject", name=op.f("login_failures_pk")),
    )
    op.create_index(op.f("login_failures_last_ix"), "login_failures", ["last"])


def _audit() -> None:
    old = sa.table(
        "audit",
        *(sa.column(name) for name in ("id", "actor", "role", "method", "path", "status", "outcome")),
        sa.column("time", UtcTime()),
    )
    lines = op.get_bind().execute(sa.select(old).order_by(old.c.id)).mappings().all()
    op.drop_table("audit")
    texts = ("source", "item", "job_id", "detail")
    audit = op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", UtcTime(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=True) for name in texts),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pk")),
    )
    op.create_index(op.f("audit_time_ix"), "audit", ["time"])
    previous, number = START, 0
    for number, line in enumerate(lines, start=1):
        values: dict[str, Any] = {**line, **dict.fromkeys(texts), "id": number, "previous": previous}
        previous = values["hash"] = line_hash(values)
        op.get_bind().execute(sa.insert(audit).values(**values))
    chain = op.create_table(
        "audit_chain",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("head_hash", sa.Text(), nullable=False),
        sa.Column("pruned_id", sa.Integer(), nullable=False),
        sa.Column("pruned_hash", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("audit_chain_single_ck")),
        sa.CheckConstraint("pruned_id <= head_id", name=op.f("audit_chain_order_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_chain_pk")),
    )
    op.get_bind().execute(
        sa.insert(chain).values(id=1, head_id=number, head_hash=previous, pruned_id=0, pruned_hash=START)
    )
