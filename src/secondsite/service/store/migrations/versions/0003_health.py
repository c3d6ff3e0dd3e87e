"""Changes of the schema: health, figures and notices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from secondsite.service.store.tables import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    _points()
    _health()
    _figures()
    _notices()


def _points() -> None:
    diverged, application = sa.text("kind = 'diverged'"), sa.text("consistency = 'application'")
    op.create_index(
        "points_diverged", "points", ["item_id"], sqlite_where=diverged, postgresql_where=diverged
    )
    op.create_index(
        "points_application",
        "points",
        ["item_id", "time"],
        sqlite_where=application,
        postgresql_where=application,
    )


def _health() -> None:
    op.create_table(
        "health_errors",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.CheckConstraint("subject IN ('item', 'node', 'vault')", name=op.f("health_errors_subject_ck")),
        sa.CheckConstraint(
            "level IN ('information', 'warning', 'critical')", name=op.f("health_errors_level_ck")
        ),
        sa.PrimaryKeyConstraint("subject", "subject_id", "code", name=op.f("health_errors_pk")),
    )


def _figures() -> None:
    counts = ("cycles", "failed", "tracking_lost", "resyncs", "timed")
    sizes = ("bytes_changed", "bytes_shipped", "changed_largest", "shipped_largest")
    op.create_table(
        "samples",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("time", UtcTime(), nullable=False),
        sa.Column("rpo_median_s", sa.Float(), nullable=True),
        sa.Column("rpo_largest_s", sa.Float(), nullable=True),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("expected", "seconds", "seconds_largest")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in counts),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in sizes),
        sa.CheckConstraint("step IN ('minute', 'hour')", name=op.f("samples_step_ck")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("samples_item_id_fk")),
        sa.PrimaryKeyConstraint("item_id", "step", "time", name=op.f("samples_pk")),
    )
    op.create_table(
        "meters",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("counters", sa.JSON(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=True),
        sa.Column("time", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("meters_item_id_fk")),
        sa.PrimaryKeyConstraint("item_id", name=op.f("meters_pk")),
    )


def _notices() -> None:
    op.create_table(
        "alert_settings",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("severities", sa.JSON(), nullable=False),
        sa.Column("per_minute", sa.Integer(), nullable=False),
        sa.Column("first_event", sa.Integer(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("updated", UtcTime(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("alert_settings_single_ck")),
        sa.CheckConstraint("per_minute >= 1", name=op.f("alert_settings_per_minute_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("alert_settings_pk")),
    )
    op.create_table(
        "alert_receivers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sent", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("last_sent", UtcTime(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("alert_receivers_pk")),
        sa.UniqueConstraint("name", name=op.f("alert_receivers_name_uq")),
    )
    op.create_table(
        "notices",
        sa.Column("event_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("receiver_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt", UtcTime(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("ended", UtcTime(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'sent', 'failed')", name=op.f("notices_state_ck")),
        sa.ForeignKeyConstraint(
            ["receiver_id"],
            ["alert_receivers.id"],
            name=op.f("notices_receiver_id_fk"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "receiver_id", name=op.f("notices_pk")),
    )
    op.create_index("notices_due", "notices", ["receiver_id", "state", "next_attempt"])
