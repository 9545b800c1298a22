"""Migrated databases for tests, without waiting for Alembic: it runs once a process, and the file it made is copied.

Alembic itself, and a start on an empty directory, are tested in `storage/test_migrations.py` and by every gateway that
is served.
"""

from __future__ import annotations

import asyncio
import tempfile
from functools import cache
from pathlib import Path

from storage.database.engine import Database
from storage.database.migrate import migrate


async def migrated(directory: Path) -> Database:
    """The database of a data directory, with the newest schema and no rows."""
    content = await asyncio.to_thread(_content)
    database = Database.in_directory(directory)
    (directory / "ashore.sqlite3").write_bytes(content)
    return database


@cache
def _content() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_make(Path(directory)))
        (path,) = Path(directory).iterdir()  # nothing is left in a journal
        return path.read_bytes()


async def _make(directory: Path) -> None:
    database = Database.in_directory(directory)
    await migrate(database)
    await database.close()
