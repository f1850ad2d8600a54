"""Brings a database to the newest layout, at every start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

_FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Runs the missing migrations, each in a transaction. A database from a newer Trellis is refused by Alembic."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
