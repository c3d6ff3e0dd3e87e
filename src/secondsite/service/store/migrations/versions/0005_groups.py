"""Changes of the schema: consistency groups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from secondsite.service.store.tables import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "groups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created", UtcTime(), nullable=False),
        sa.CheckConstraint("revision >= 1", name=op.f("groups_revision_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("groups_pk")),
        sa.UniqueConstraint("name", name=op.f("groups_name_uq")),
    )
    op.create_table(
        "group_members",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name=op.f("group_members_item_id_fk")),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("group_members_group_id_fk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("item_id", name=op.f("group_members_pk")),
    )
    op.create_index(op.f("group_members_group_id_ix"), "group_members", ["group_id"])
    op.add_column("points", sa.Column("group_id", sa.Text(), nullable=True))
    op.add_column("points", sa.Column("group_number", sa.Integer(), nullable=True))
    op.create_index("points_group", "points", ["group_id", "group_number"])
