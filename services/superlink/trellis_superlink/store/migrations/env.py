"""Alembic's entry: migrations run online only, over the connection that `store.migrate` hands in."""

from __future__ import annotations

from alembic import context
from trellis_superlink.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
