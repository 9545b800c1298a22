"""The database file belongs to its owner alone, and what fails there fails in one way."""

from __future__ import annotations

import os
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database.engine import Database
from storage.database.migrate import migrate
from storage.errors import Unavailable


async def test_the_files_are_private_wherever_they_lie(tmp_path: Path) -> None:
    """Names, addresses and sealed keys were readable by everybody who could reach the data directory."""
    mask = os.umask(0o022)
    try:
        database = Database.in_directory(tmp_path)
        await migrate(database)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        await database.close()
    finally:
        os.umask(mask)
    assert modes
    assert set(modes.values()) == {0o600}


async def test_a_pool_that_is_used_up_is_a_database_that_is_busy(data_dir: Path) -> None:
    """Loops live through `Unavailable`, and through nothing else."""
    database = Database.in_directory(data_dir)
    database.engine.pool._timeout = 0.05  # type: ignore[attr-defined]
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(database.reading())
        with pytest.raises(Unavailable, match="busy"):
            await stack.enter_async_context(database.writing())
        with pytest.raises(Unavailable, match="busy"):
            await database.fetch(text("SELECT 1"))
    await database.close()
