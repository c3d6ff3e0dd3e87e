"""The tables of health: errors that stand now, figures over time, and notices with whoever gets them."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.service.health.vocabulary import Level, NoticeState, Step, Subject
from secondsite.service.store.tables import JSON, UtcTime, metadata, one_of

health_errors = sa.Table(
    "health_errors",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("subject_id", sa.Text, primary_key=True),
    sa.Column("code", sa.Text, primary_key=True),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("since", UtcTime, nullable=False),
    sa.Column("told", sa.Boolean, nullable=False),  # the event that it began is written
    one_of("subject", Subject),
    one_of("level", Level),
)

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("time", UtcTime, primary_key=True),  # its beginning
    sa.Column("rpo_median_s", sa.Float),
    sa.Column("rpo_largest_s", sa.Float),
    sa.Column("expected", sa.Float, nullable=False),  # cycles that the copy frequency asks for
    sa.Column("cycles", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("bytes_changed", sa.BigInteger, nullable=False),
    sa.Column("bytes_shipped", sa.BigInteger, nullable=False),
    sa.Column("tracking_lost", sa.Integer, nullable=False),
    sa.Column("resyncs", sa.Integer, nullable=False),
    sa.Column("timed", sa.Integer, nullable=False),  # cycles whose figures were heard one by one
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("seconds_largest", sa.Float, nullable=False),
    sa.Column("changed_largest", sa.BigInteger, nullable=False),
    sa.Column("shipped_largest", sa.BigInteger, nullable=False),
    one_of("step", Step),
)

meters = sa.Table(
    "meters",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("node_id", sa.Text, nullable=False),
    sa.Column("counters", JSON, nullable=False),
    sa.Column("sequence", sa.Integer),
    sa.Column("time", UtcTime, nullable=False),
)

alert_settings = sa.Table(
    "alert_settings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("severities", JSON, nullable=False),
    sa.Column("per_minute", sa.Integer, nullable=False),
    sa.Column("first_event", sa.Integer, nullable=False),  # older ones are nobody's news any more
    sa.Column("last_event", sa.Integer, nullable=False),  # up to here the outbox is filled
    sa.Column("updated", UtcTime, nullable=False),
    sa.CheckConstraint("id = 1", name="single"),
    sa.CheckConstraint("per_minute >= 1", name="per_minute"),
)

alert_receivers = sa.Table(
    "alert_receivers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("url", sa.Text, nullable=False),  # a secret: it never leaves the service but to the receiver
    sa.Column("sent", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("last_sent", UtcTime),
    sa.Column("last_error", sa.Text),
    sa.Column("created", UtcTime, nullable=False),
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("event_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("receiver_id", sa.ForeignKey("alert_receivers.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_attempt", UtcTime, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("ended", UtcTime),
    one_of("state", NoticeState),
    sa.Index("notices_due", "receiver_id", "state", "next_attempt"),
)
