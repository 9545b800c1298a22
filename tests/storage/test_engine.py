"""The database file belongs to its owner alone, and what fails there fails in one way."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.database.engine import Database
from storage.database.migrate import migrate
from storage.errors import Unavailable
from tests.databases import KINDS, Databases
from tests.postgresql import PostgreSql


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


@pytest.mark.parametrize("kind", KINDS)
async def test_writers_take_turns(databases: Databases, kind: str, data_dir: Path) -> None:
    """Two that read the same number and write it back plus one: PostgreSQL alone would let both read the old one."""
    with databases.new(kind, data_dir) as database:
        async with database.writing() as tx:
            await tx.execute(text("CREATE TABLE numbers (number INTEGER)"))
            await tx.execute(text("INSERT INTO numbers VALUES (0)"))

        async def add() -> None:
            async with database.writing() as tx:
                number = await tx.scalar(text("SELECT number FROM numbers"))
                await asyncio.sleep(0.01)
                await tx.execute(text("UPDATE numbers SET number = :number"), {"number": number + 1})

        await asyncio.gather(*(add() for _ in range(12)))
        assert list(await database.fetch(text("SELECT number FROM numbers"))) == [(12,)]
        await database.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_sees_one_moment_and_waits_for_nobody(databases: Databases, kind: str, data_dir: Path) -> None:
    with databases.new(kind, data_dir) as database:
        async with database.writing() as tx:
            await tx.execute(text("CREATE TABLE numbers (number INTEGER)"))
        async with database.reading() as reader:
            assert await reader.scalar(text("SELECT count(*) FROM numbers")) == 0
            async with database.writing() as tx:
                await tx.execute(text("INSERT INTO numbers VALUES (1)"))
            assert await reader.scalar(text("SELECT count(*) FROM numbers")) == 0
        await database.close()


async def test_a_server_that_is_away_is_a_database_that_is_away(databases: Databases, data_dir: Path) -> None:
    """asyncpg lets a socket's errors through as they are, and most of its others are no `OperationalError`."""
    server = PostgreSql()
    try:
        database = Database(server.url("postgres"))
        async with database.reading() as tx:
            await tx.execute(text("SELECT 1"))

        async def lose() -> None:
            async with database.writing() as tx:
                server.stop()
                await tx.execute(text("SELECT 1"))

        with pytest.raises(Unavailable, match="busy or away"):
            await lose()
        for attempt in (database.fetch(text("SELECT 1")), database.quick_fetch("SELECT 1", {})):
            with pytest.raises(Unavailable, match="busy or away"):
                await attempt
        server.start()
        assert list(await database.fetch(text("SELECT 1"))) == [(1,)]
        await database.close()
        missing = Database(server.url("nothing"))
        with pytest.raises(Unavailable, match="busy or away"):
            await missing.fetch(text("SELECT 1"))
        await missing.close()
    finally:
        server.remove()


async def test_a_wrong_query_is_no_database_that_is_away(databases: Databases, data_dir: Path) -> None:
    with databases.new("postgresql", data_dir) as database:
        with pytest.raises(DBAPIError, match="nothing"):
            await database.fetch(text("SELECT nothing"))
        await database.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_writers_hold_no_reader_up(databases: Databases, kind: str, data_dir: Path) -> None:
    """They once waited with all connections of the pool in their hands, and nobody could log in meanwhile."""
    with databases.new(kind, data_dir) as database:
        may_end = asyncio.Event()

        async def write() -> None:
            async with database.writing():
                await may_end.wait()

        writers = [asyncio.create_task(write()) for _ in range(40)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10):  # less than the patience of any of them
            await database.fetch(text("SELECT 1"))
            async with database.reading() as tx:
                await tx.execute(text("SELECT 1"))
        may_end.set()
        await asyncio.gather(*writers)
        await database.close()
