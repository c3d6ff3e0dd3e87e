"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from secondsite.service.store.tables import UtcTime

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    ${upgrades if upgrades else "pass"}
