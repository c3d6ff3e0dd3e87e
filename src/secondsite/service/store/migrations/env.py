"""Runs migrations on the connection that `Store.migrate` gives; there is no command line of its own."""

from __future__ import annotations

from alembic import context

from secondsite.service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
