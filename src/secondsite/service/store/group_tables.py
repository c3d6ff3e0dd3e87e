"""The tables of consistency groups. That an item is in one group at most is the key of `group_members`.

Which points belong together stands with the points (`points.group_id`, `points.group_number`), and nowhere else: a
group point is there if and only if every member has a point with its number.
"""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.service.store.tables import UtcTime, metadata

groups = sa.Table(
    "groups",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column(
        "revision", sa.Integer, nullable=False
    ),  # counts changes of the members; a node ignores older orders
    sa.Column("number", sa.Integer, nullable=False),  # the highest of a cut that was ever reported
    sa.Column("created", UtcTime, nullable=False),
    sa.CheckConstraint("revision >= 1", name="revision"),
)

group_members = sa.Table(
    "group_members",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("group_id", sa.ForeignKey("groups.id", ondelete="CASCADE"), nullable=False, index=True),
)
