"""The tables, and with them the safety promises that the database itself keeps.

What no code path may break, whatever two processes do at once:

- an item has at most one unfinished job that changes it (`jobs_one_active_change`) and at most one unfinished test
  job (`jobs_one_active_test`);
- an item's states are those of `secondsite.model.item`, its epoch starts at 1 and each epoch has exactly one writable
  side (`writable_sides`, whose key is item and epoch);
- a machine is protected once (`items_one_per_machine`), and a protected item's name is unique;
- a command has one result, and its id is unique, so a step that runs twice puts it once.

Migrations build the same schema; a test compares the two. Times are aware UTC; SQLite has no zones, so `UtcTime`
strips the zone on the way in and restores it on the way out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from secondsite.model.item import Direction, ItemState, TestState
from secondsite.service.vocabulary import (
    CHANGE_OPERATIONS,
    TEST_OPERATIONS,
    CommandState,
    JobState,
    Role,
    Severity,
    Side,
    TaskState,
)

metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_name)s_ix",
        "uq": "%(table_name)s_%(column_0_name)s_uq",
        "ck": "%(table_name)s_%(constraint_name)s_ck",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "pk": "%(table_name)s_pk",
    }
)


JSON = sa.JSON(none_as_null=True)
"""A JSON value; None is SQL's NULL, not JSON's."""


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware UTC instant, also on databases without time zones. A naive time is refused, not guessed."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Strip the zone where the database has none."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Give the zone back."""
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def one_of(column: str, values: type[StrEnum]) -> sa.CheckConstraint:
    """Return a CHECK that `column` holds a value of the enumeration."""
    listed = ", ".join(f"'{value.value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


def _listed(values: frozenset[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


_ACTIVE = "state IN ('InProgress', 'NotStarted', 'Suspended')"
ACTIVE_CHANGE = sa.text(f"{_ACTIVE} AND operation IN ({_listed(CHANGE_OPERATIONS)})")
ACTIVE_TEST = sa.text(f"{_ACTIVE} AND operation IN ({_listed(TEST_OPERATIONS)})")

vault = sa.Table(
    "vault",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column(
        "ca_fingerprint", sa.Text
    ),  # so that a folder with another authority is refused before it serves
    sa.Column(
        "term", sa.Integer, nullable=False, server_default="0"
    ),  # counts services: only the newest writes
    sa.CheckConstraint("id = 1", name="single"),
)

sites = sa.Table(
    "sites",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created", UtcTime, nullable=False),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("site_id", sa.ForeignKey("sites.id"), nullable=False),
    sa.Column("roles", JSON, nullable=False),
    sa.Column("data_address", sa.Text, nullable=False),
    sa.Column("storage", JSON),
    sa.Column("certificate_serial", sa.Text, nullable=False),
    sa.Column(
        "public_key", sa.Text, nullable=False
    ),  # SHA-256 of the key, so that a lost answer can be asked again
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("enrolled", UtcTime, nullable=False),
    sa.Column("last_seen", UtcTime),
    sa.Column(
        "silent", sa.Boolean, nullable=False, default=False
    ),  # the monitor said so, and nobody saw it since
    sa.Column("revoked", sa.Boolean, nullable=False, default=False),
    sa.Column("inventory", JSON),
    sa.Column("inventory_time", UtcTime),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("settings", JSON, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
)

clouds = sa.Table(
    "clouds",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("site_id", sa.ForeignKey("sites.id"), nullable=False),
    sa.Column("storage", sa.Text),
    sa.Column("created", UtcTime, nullable=False),
)

cloud_members = sa.Table(
    "cloud_members",
    metadata,
    sa.Column("cloud_id", sa.ForeignKey("clouds.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node_id", sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    sa.UniqueConstraint("node_id"),  # a host is in one cloud, so its machines have one policy
)

cloud_mappings = sa.Table(
    "cloud_mappings",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source_cloud_id", sa.ForeignKey("clouds.id"), nullable=False, unique=True),
    sa.Column("target_cloud_id", sa.ForeignKey("clouds.id"), nullable=False),
    sa.Column("policy_id", sa.ForeignKey("policies.id"), nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.CheckConstraint("source_cloud_id <> target_cloud_id", name="two_clouds"),
)

network_mappings = sa.Table(
    "network_mappings",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source_site_id", sa.ForeignKey("sites.id"), nullable=False),
    sa.Column("source_network", sa.Text, nullable=False),
    sa.Column("target_site_id", sa.ForeignKey("sites.id"), nullable=False),
    sa.Column("target_network", sa.Text, nullable=False),
    sa.Column("test_network", sa.Text),
    sa.Column("created", UtcTime, nullable=False),
    sa.UniqueConstraint(
        "source_site_id", "source_network", "target_site_id", name="network_mappings_source_uq"
    ),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("vm_uuid", sa.Text, nullable=False),
    sa.Column("cloud_mapping_id", sa.ForeignKey("cloud_mappings.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("test_state", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("primary_node_id", sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("recovery_node_id", sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("journal_node_id", sa.ForeignKey("nodes.id"), nullable=False),  # whose reports of points count
    sa.Column("primary_vm", sa.Text),  # the machine's name on each side
    sa.Column("recovery_vm", sa.Text),
    sa.Column("digest_key", sa.LargeBinary, nullable=False),
    sa.Column("disks", JSON, nullable=False),
    sa.Column("networks", JSON, nullable=False),
    sa.Column("source_report", JSON),
    sa.Column("source_report_time", UtcTime),
    sa.Column("target_report", JSON),
    sa.Column("target_report_time", UtcTime),
    sa.Column("last_sequence", sa.Integer),
    sa.Column("last_point_time", UtcTime),
    sa.Column("rpo_alert", sa.Boolean, nullable=False, default=False),
    sa.Column("error", JSON),
    sa.Column("test", JSON),  # what the running test failover is
    sa.Column("failover", JSON),  # what the last failover did
    sa.Column("standing", JSON),  # orders that are given again until their node has done them
    sa.Column("last_test_time", UtcTime),
    sa.Column("last_failover_time", UtcTime),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("deleted", UtcTime),
    one_of("state", ItemState),
    one_of("test_state", TestState),
    one_of("direction", Direction),
    sa.CheckConstraint("epoch >= 1", name="epoch"),
    sa.CheckConstraint("primary_node_id <> recovery_node_id", name="two_nodes"),
    sa.CheckConstraint("(state = 'disabled') = (deleted IS NOT NULL)", name="deleted"),
    sa.Index(
        "items_one_per_machine",
        "vm_uuid",
        unique=True,
        sqlite_where=sa.text("deleted IS NULL"),
        postgresql_where=sa.text("deleted IS NULL"),
    ),
    sa.Index(
        "items_one_per_name",
        "name",
        unique=True,
        sqlite_where=sa.text("deleted IS NULL"),
        postgresql_where=sa.text("deleted IS NULL"),
    ),
)

writable_sides = sa.Table(
    "writable_sides",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("side", sa.Text, nullable=False),
    sa.Column("node_id", sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("since", UtcTime, nullable=False),
    one_of("side", Side),
)

points = sa.Table(
    "points",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("consistency", sa.Text, nullable=False),
    sa.Column("changed", sa.BigInteger),
    sa.Column("group_id", sa.Text),  # the cut that it shares with other items' points; see group_tables
    sa.Column("group_number", sa.Integer),
    sa.CheckConstraint("sequence >= 1", name="sequence"),
    sa.Index("points_group", "group_id", "group_number"),
)

sa.Index(
    "points_diverged",
    points.c.item_id,
    sqlite_where=sa.text("kind = 'diverged'"),
    postgresql_where=sa.text("kind = 'diverged'"),
)
sa.Index(
    "points_application",
    points.c.item_id,
    points.c.time,
    sqlite_where=sa.text("consistency = 'application'"),
    postgresql_where=sa.text("consistency = 'application'"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("item_id", sa.ForeignKey("items.id")),
    sa.Column("item_name", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    sa.Column("parameters", JSON, nullable=False),
    sa.Column("created", UtcTime, nullable=False, index=True),
    sa.Column("started", UtcTime),
    sa.Column("ended", UtcTime),
    sa.Column("error", JSON),
    sa.Column("result", JSON),
    one_of("state", JobState),
    sa.CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
    sa.Index(
        "jobs_one_active_change",
        "item_id",
        unique=True,
        sqlite_where=ACTIVE_CHANGE,
        postgresql_where=ACTIVE_CHANGE,
    ),
    sa.Index(
        "jobs_one_active_test", "item_id", unique=True, sqlite_where=ACTIVE_TEST, postgresql_where=ACTIVE_TEST
    ),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("progress", JSON),
    sa.Column("error", JSON),
    sa.Column("started", UtcTime),
    sa.Column("ended", UtcTime),
    one_of("state", TaskState),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("item_id", sa.ForeignKey("items.id"), index=True),
    sa.Column("node_id", sa.Text),
    sa.Column("job_id", sa.Text),
    sa.Column("details", JSON, nullable=False),
    sa.Column("once", sa.Text, unique=True),  # a key of the writer's: the same event is written once
    one_of("severity", Severity),
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=True),  # delivered in this order
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("node_id", sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("item_id", sa.ForeignKey("items.id")),
    sa.Column("job_id", sa.ForeignKey("jobs.id")),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("args", JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cancelled", sa.Boolean, nullable=False, default=False),
    sa.Column("result", JSON),
    sa.Column("error", JSON),
    sa.Column("progress", JSON),
    sa.Column("deliveries", sa.Integer, nullable=False, default=0),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("delivered", UtcTime),
    sa.Column("ended", UtcTime),
    one_of("state", CommandState),
    sa.Index("commands_open", "node_id", "state", "ordinal"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("expires", UtcTime),
    one_of("role", Role),
)

registration_keys = sa.Table(
    "registration_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("site_id", sa.ForeignKey("sites.id"), nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("expires", UtcTime, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("uses_max", sa.Integer),
    sa.CheckConstraint("uses_max IS NULL OR uses <= uses_max", name="uses"),
)
