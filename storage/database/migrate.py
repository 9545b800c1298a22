"""Brings the schema up to date with Alembic; run at every start, safe beside other processes."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from storage.database.engine import Database
from storage.database.trouble import told

_SCRIPTS = Path(__file__).parent / "migrations"


async def migrate(database: Database) -> None:
    """Upgrade to the newest revision; one process does it, the others wait for its transaction."""
    with told(connecting=True):
        async with database.engine.connect() as connection:
            connection = await connection.execution_options(ashore_write=True)
            async with connection.begin():
                await connection.run_sync(_upgrade)


async def pending(database: Database) -> bool:
    """Whether the schema is older than this program."""
    async with database.engine.connect() as connection:
        current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current != ScriptDirectory.from_config(_config()).get_current_head()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config
