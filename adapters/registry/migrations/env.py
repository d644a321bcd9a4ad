"""Run by alembic inside `adapters.registry.migrate`, on the connection it hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from adapters.registry.schema import metadata

connection = context.config.attributes["connection"]
assert isinstance(connection, Connection)
# transactional_ddl: alembic takes SQLite's DDL for not transactional, but it is, and a crash in the
# middle of a migration must leave the old schema. render_as_batch: SQLite's ALTER TABLE is poor.
context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
