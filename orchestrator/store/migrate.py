"""Brings a database to the newest schema with Alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, inspect

HEAD = "0003"  # the newest revision in migrations/versions; a test compares them


def is_current(engine: Engine) -> bool:
    """True if the schema is the newest; cheap, and without importing Alembic."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return False
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == HEAD


def upgrade(engine: Engine) -> None:
    """Apply what is missing. The caller makes sure that one process does it at a time."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
