"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from secondsite.service.store.tables import UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", UtcTime(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pk")),
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("policies_pk")),
        sa.UniqueConstraint("name", name=op.f("policies_name_uq")),
    )
    op.create_table(
        "sites",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("sites_pk")),
        sa.UniqueConstraint("name", name=op.f("sites_name_uq")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("expires", UtcTime(), nullable=True),
        sa.CheckConstraint("role IN ('Contributor', 'Operator', 'Reader')", name=op.f("tokens_role_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("tokens_pk")),
        sa.UniqueConstraint("hash", name=op.f("tokens_hash_uq")),
        sa.UniqueConstraint("name", name=op.f("tokens_name_uq")),
    )
    op.create_table(
        "vault",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("vault_single_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("vault_pk")),
    )
    op.create_table(
        "clouds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("storage", sa.Text(), nullable=True),
        sa.Column("created", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("clouds_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("clouds_pk")),
        sa.UniqueConstraint("name", name=op.f("clouds_name_uq")),
    )
    op.create_table(
        "network_mappings",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source_site_id", sa.Text(), nullable=False),
        sa.Column("source_network", sa.Text(), nullable=False),
        sa.Column("target_site_id", sa.Text(), nullable=False),
        sa.Column("target_network", sa.Text(), nullable=False),
        sa.Column("test_network", sa.Text(), nullable=True),
        sa.Column("created", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_site_id"], ["sites.id"], name=op.f("network_mappings_source_site_id_fk")
        ),
        sa.ForeignKeyConstraint(
            ["target_site_id"], ["sites.id"], name=op.f("network_mappings_target_site_id_fk")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("network_mappings_pk")),
        sa.UniqueConstraint(
            "source_site_id", "source_network", "target_site_id", name="network_mappings_source_uq"
        ),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("data_address", sa.Text(), nullable=False),
        sa.Column("storage", sa.JSON(), nullable=True),
        sa.Column("certificate_serial", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("enrolled", UtcTime(), nullable=False),
        sa.Column("last_seen", UtcTime(), nullable=True),
        sa.Column("silent", sa.Boolean(), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("inventory", sa.JSON(), nullable=True),
        sa.Column("inventory_time", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("nodes_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("nodes_pk")),
        sa.UniqueConstraint("name", name=op.f("nodes_name_uq")),
    )
    op.create_table(
        "registration_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("expires", UtcTime(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("uses_max", sa.Integer(), nullable=True),
        sa.CheckConstraint("uses_max IS NULL OR uses <= uses_max", name=op.f("registration_keys_uses_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("registration_keys_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("registration_keys_pk")),
    )
    op.create_table(
        "cloud_mappings",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source_cloud_id", sa.Text(), nullable=False),
        sa.Column("target_cloud_id", sa.Text(), nullable=False),
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.CheckConstraint("source_cloud_id <> target_cloud_id", name=op.f("cloud_mappings_two_clouds_ck")),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], name=op.f("cloud_mappings_policy_id_fk")),
        sa.ForeignKeyConstraint(
            ["source_cloud_id"], ["clouds.id"], name=op.f("cloud_mappings_source_cloud_id_fk")
        ),
        sa.ForeignKeyConstraint(
            ["target_cloud_id"], ["clouds.id"], name=op.f("cloud_mappings_target_cloud_id_fk")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("cloud_mappings_pk")),
        sa.UniqueConstraint("source_cloud_id", name=op.f("cloud_mappings_source_cloud_id_uq")),
    )
    op.create_table(
        "cloud_members",
        sa.Column("cloud_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cloud_id"], ["clouds.id"], name=op.f("cloud_members_cloud_id_fk"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("cloud_members_node_id_fk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cloud_id", "node_id", name=op.f("cloud_members_pk")),
        sa.UniqueConstraint("node_id", name=op.f("cloud_members_node_id_uq")),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("vm_uuid", sa.Text(), nullable=False),
        sa.Column("cloud_mapping_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("test_state", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("primary_node_id", sa.Text(), nullable=False),
        sa.Column("recovery_node_id", sa.Text(), nullable=False),
        sa.Column("journal_node_id", sa.Text(), nullable=False),
        sa.Column("primary_vm", sa.Text(), nullable=True),
        sa.Column("recovery_vm", sa.Text(), nullable=True),
        sa.Column("digest_key", sa.LargeBinary(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("networks", sa.JSON(), nullable=False),
        sa.Column("source_report", sa.JSON(), nullable=True),
        sa.Column("source_report_time", UtcTime(), nullable=True),
        sa.Column("target_report", sa.JSON(), nullable=True),
        sa.Column("target_report_time", UtcTime(), nullable=True),
        sa.Column("last_sequence", sa.Integer(), nullable=True),
        sa.Column("last_point_time", UtcTime(), nullable=True),
        sa.Column("rpo_alert", sa.Boolean(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("test", sa.JSON(), nullable=True),
        sa.Column("failover", sa.JSON(), nullable=True),
        sa.Column("demotion", sa.JSON(), nullable=True),
        sa.Column("last_test_time", UtcTime(), nullable=True),
        sa.Column("last_failover_time", UtcTime(), nullable=True),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("deleted", UtcTime(), nullable=True),
        sa.CheckConstraint("(state = 'disabled') = (deleted IS NOT NULL)", name=op.f("items_deleted_ck")),
        sa.CheckConstraint(
            "direction IN ('primary-to-recovery', 'recovery-to-primary')", name=op.f("items_direction_ck")
        ),
        sa.CheckConstraint(
            "state IN ('enabling', 'enable-failed', 'initial-replicating', 'protected', 'failing-over', 'commit-pending', 'committing', 'committed', 'reversing', 'disabling', 'disable-failed', 'disabled')",
            name=op.f("items_state_ck"),
        ),
        sa.CheckConstraint(
            "test_state IN ('none', 'starting', 'running', 'cleaning', 'failed')",
            name=op.f("items_test_state_ck"),
        ),
        sa.CheckConstraint("epoch >= 1", name=op.f("items_epoch_ck")),
        sa.CheckConstraint("primary_node_id <> recovery_node_id", name=op.f("items_two_nodes_ck")),
        sa.ForeignKeyConstraint(
            ["cloud_mapping_id"], ["cloud_mappings.id"], name=op.f("items_cloud_mapping_id_fk")
        ),
        sa.ForeignKeyConstraint(["journal_node_id"], ["nodes.id"], name=op.f("items_journal_node_id_fk")),
        sa.ForeignKeyConstraint(["primary_node_id"], ["nodes.id"], name=op.f("items_primary_node_id_fk")),
        sa.ForeignKeyConstraint(["recovery_node_id"], ["nodes.id"], name=op.f("items_recovery_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("items_pk")),
    )
    op.create_index(
        "items_one_per_machine",
        "items",
        ["vm_uuid"],
        unique=True,
        sqlite_where=sa.text("deleted IS NULL"),
        postgresql_where=sa.text("deleted IS NULL"),
    )
    op.create_index(
        "items_one_per_name",
        "items",
        ["name"],
        unique=True,
        sqlite_where=sa.text("deleted IS NULL"),
        postgresql_where=sa.text("deleted IS NULL"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", UtcTime(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("once", sa.Text(), nullable=True),
        sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name=op.f("events_severity_ck")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("events_item_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("events_pk")),
        sa.UniqueConstraint("once", name=op.f("events_once_uq")),
    )
    op.create_index(op.f("events_item_id_ix"), "events", ["item_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("item_name", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("started", UtcTime(), nullable=True),
        sa.Column("ended", UtcTime(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.CheckConstraint(
            "state IN ('NotStarted', 'InProgress', 'Succeeded', 'Failed', 'Cancelled', 'Suspended')",
            name=op.f("jobs_state_ck"),
        ),
        sa.CheckConstraint("progress >= 0 AND progress <= 1", name=op.f("jobs_progress_ck")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("jobs_item_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pk")),
    )
    op.create_index(op.f("jobs_created_ix"), "jobs", ["created"], unique=False)
    op.create_index(
        "jobs_one_active_change",
        "jobs",
        ["item_id"],
        unique=True,
        sqlite_where=sa.text(
            "state IN ('InProgress', 'NotStarted', 'Suspended') AND operation IN ('commit', 'disable', 'enable', 'planned-failover', 'reverse')"
        ),
        postgresql_where=sa.text(
            "state IN ('InProgress', 'NotStarted', 'Suspended') AND operation IN ('commit', 'disable', 'enable', 'planned-failover', 'reverse')"
        ),
    )
    op.create_index(
        "jobs_one_active_test",
        "jobs",
        ["item_id"],
        unique=True,
        sqlite_where=sa.text(
            "state IN ('InProgress', 'NotStarted', 'Suspended') AND operation IN ('cleanup-test', 'test-failover')"
        ),
        postgresql_where=sa.text(
            "state IN ('InProgress', 'NotStarted', 'Suspended') AND operation IN ('cleanup-test', 'test-failover')"
        ),
    )
    op.create_table(
        "points",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("time", UtcTime(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("consistency", sa.Text(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("sequence >= 1", name=op.f("points_sequence_ck")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("points_item_id_fk")),
        sa.PrimaryKeyConstraint("item_id", "sequence", name=op.f("points_pk")),
    )
    op.create_table(
        "writable_sides",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.CheckConstraint("side IN ('primary', 'recovery')", name=op.f("writable_sides_side_ck")),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("writable_sides_item_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("writable_sides_node_id_fk")),
        sa.PrimaryKeyConstraint("item_id", "epoch", name=op.f("writable_sides_pk")),
    )
    op.create_table(
        "commands",
        sa.Column("ordinal", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.Column("delivered", UtcTime(), nullable=True),
        sa.Column("ended", UtcTime(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'done', 'failed')", name=op.f("commands_state_ck")
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("commands_item_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("commands_job_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("commands_node_id_fk")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("commands_pk")),
        sa.UniqueConstraint("id", name=op.f("commands_id_uq")),
    )
    op.create_index("commands_open", "commands", ["node_id", "state", "ordinal"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("started", UtcTime(), nullable=True),
        sa.Column("ended", UtcTime(), nullable=True),
        sa.CheckConstraint(
            "state IN ('NotStarted', 'InProgress', 'Succeeded', 'Failed', 'Cancelled', 'Skipped')",
            name=op.f("tasks_state_ck"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("tasks_job_id_fk"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "ordinal", name=op.f("tasks_pk")),
    )
