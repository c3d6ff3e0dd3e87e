"""Changes of the schema: operations.

SQLite cannot change a CHECK in place, and a table that others refer to cannot be rebuilt while foreign keys are
enforced (dropping it deletes its rows first). The text of the constraint is changed where SQLite keeps it: its manual
names this way for changes that leave the content of the file as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OLD_STATES = (
    "'enabling', 'enable-failed', 'initial-replicating', 'protected', 'failing-over', 'commit-pending', "
    "'committing', 'committed', 'reversing', 'disabling', 'disable-failed', 'disabled'"
)
STATES = (
    "'enabling', 'enable-failed', 'initial-replicating', 'protected', 'paused', 'failing-over', 'commit-pending', "
    "'failing-over-unplanned', 'unplanned-commit-pending', 'changing-point', 'point-change-failed', 'cancelling', "
    "'committing', 'committed', 'reversing', 'disabling', 'disable-failed', 'disabled'"
)
ACTIVE_CHANGE = (
    "state IN ('InProgress', 'NotStarted', 'Suspended') AND operation IN ('cancel', 'change-point', 'commit', 'disable', "
    "'enable', 'pause', 'planned-failover', 'resume', 'resync', 'reverse', 'unplanned-failover')"
)


def upgrade() -> None:
    """Change the schema."""
    _states()
    op.add_column("items", sa.Column("standing", sa.JSON(), nullable=True))
    op.drop_column("items", "demotion")
    op.drop_index("jobs_one_active_change", "jobs")
    op.create_index(
        "jobs_one_active_change",
        "jobs",
        ["item_id"],
        unique=True,
        sqlite_where=sa.text(ACTIVE_CHANGE),
        postgresql_where=sa.text(ACTIVE_CHANGE),
    )


def _states() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.drop_constraint(op.f("items_state_ck"), "items", type_="check")
        op.create_check_constraint(op.f("items_state_ck"), "items", f"state IN ({STATES})")
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'items' AND instr(sql, ?) > 0",
        (f"state IN ({OLD_STATES})", f"state IN ({STATES})", f"state IN ({OLD_STATES})"),
    )
    assert changed.rowcount == 1, "the items' states are not those of the first schema"
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
