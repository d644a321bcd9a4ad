"""Brings a registry database to the revision that the code wants. Imports alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from adapters.registry.revisions import HEAD


def migration_config(connection: Connection | None = None) -> Config:
    """alembic's configuration, without an ini file: the code knows everything itself."""
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Runs the missing migrations inside the caller's transaction."""
    command.upgrade(migration_config(connection), HEAD)
