"""Alembic's entry: runs migrations on the connection that `storage.database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from storage.records import Record

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Record.metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
