"""Brings a database to the newest layout, at every start."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, inspect, text

_FOLDER = Path(__file__).parent / "migrations"


def newest() -> str:
    """The revision of the newest migration: files are named v<revision>_<what>.py."""
    return max(path.name[1:].split("_")[0] for path in (_FOLDER / "versions").glob("v*_*.py"))


def migrate(engine: Engine) -> None:
    """Runs the missing migrations, each in a transaction. A database from a newer Trellis is refused by Alembic."""
    with engine.connect() as connection:
        if inspect(connection).has_table("alembic_version"):
            revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
            if revision == newest():
                return
        connection.rollback()
        # Loading Alembic takes longer than the rest of a start, so only where there is something to do.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
