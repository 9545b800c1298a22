"""The database: one engine, short transactions, SQLite and PostgreSQL alike.

    async with database.writing() as tx:     # begins, commits at the end, rolls back on an error
    async with database.reading() as tx:
    rows = await database.fetch(query)       # one query, no transaction

No network call belongs inside either. The word "session" means SSH in this house, never this.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Executable, event, text
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine

from storage.database.quick import QuickSqlite, Statement, Values
from storage.database.transaction import Transaction, finished
from storage.database.trouble import told, unavailable
from storage.errors import BadInput

_CLOSE_SECONDS = 5.0
_BUSY_MILLISECONDS = 20_000
_WRITERS = 0x6173686F7265
"""The advisory lock that PostgreSQL's writers take turns with: "ashore" in ASCII."""
_WRITERS_AT_ONCE = 2
"""Of this process: one that writes, and one that is ready when it ends."""


class Database:
    """A pool of connections to the records."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.engine = create_async_engine(url, **_pool_options(url))
        except ImportError as error:
            raise BadInput(f"'database.url' needs a Python package that is not installed: {error.name}") from error
        except ArgumentError as error:
            # What SQLAlchemy says about it may show the password.
            raise BadInput("'database.url' is no SQLAlchemy async URL, such as postgresql+asyncpg://…") from error
        self._in_use = 0
        self._turns = asyncio.Semaphore(_WRITERS_AT_ONCE)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        elif self.engine.dialect.name == "postgresql":
            event.listen(self.engine.sync_engine, "begin", _begin_postgresql)
        path = self.engine.url.database if self.is_sqlite else None
        self._quick = QuickSqlite(path, _prepare_sqlite) if path and path != ":memory:" else None

    @classmethod
    def in_directory(cls, directory: Path) -> Database:
        """The SQLite file of a data directory."""
        path = directory / "ashore.sqlite3"
        # SQLite gives its other files the mode of this one.
        with suppress(OSError):  # the first query will say what is wrong
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return cls(f"sqlite+aiosqlite:///{path}")

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        """A transaction that may write. Writers take turns, in all processes, on SQLite and on PostgreSQL.

        So what it has read is still true when it commits, and it never has to start again.
        """
        async with self._turn(), self._transaction({"ashore_write": True}) as tx:
            yield tx

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Writers wait here, and not with a connection of the pool in their hands, which readers need."""
        try:
            async with asyncio.timeout(_BUSY_MILLISECONDS / 1000):
                await self._turns.acquire()
        except TimeoutError as error:
            raise unavailable() from error
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A transaction that only reads, all of it from one moment; readers never wait for a writer."""
        async with self._transaction({} if self.is_sqlite else _SNAPSHOT) as tx:
            yield tx

    async def fetch(self, query: Executable) -> Sequence[Row[Any]]:
        """The rows of one query, without a transaction around it: the cheapest read, for what every login asks."""
        with told(connecting=True):
            return await finished(self._fetch(query))

    async def _fetch(self, query: Executable) -> Sequence[Row[Any]]:
        with self._used():
            async with self.engine.connect() as connection:
                connection = await connection.execution_options(ashore_single=True)
                return (await connection.execute(query)).all()

    @asynccontextmanager
    async def _transaction(self, options: dict[str, Any]) -> AsyncIterator[Transaction]:
        with told(), self._used():
            async with Transaction(self.engine, expire_on_commit=False) as tx:
                with told(connecting=True):
                    await tx.connection(execution_options=options)
                yield tx
                await tx.commit()

    async def quick_fetch(self, sql: str, values: Values) -> Sequence[tuple[Any, ...]]:
        """Rows of plain SQL with `:named` values; strings and integers only. For what runs thousands of times."""
        if self._quick is not None:
            return await self._quick.fetch(sql, values)
        async with self.reading() as tx:
            return [tuple(row) for row in await tx.execute(text(sql), values)]

    async def quick_write(self, *statements: Statement) -> None:
        """Statements of plain SQL, each once for each of its rows, in one transaction."""
        if self._quick is not None:
            await self._quick.write(*statements)
            return
        async with self.writing() as tx:
            for sql, rows in ((sql, rows) for sql, rows in statements if rows):
                await tx.execute(text(sql), [dict(row) for row in rows])

    async def close(self) -> None:
        """Wait for what is under way, for a moment, and close all connections."""
        # A connection that comes back to a pool that is gone would never be closed.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._in_use:  # noqa: ASYNC110 - it has ended in a moment, and nobody else wants to know
                    await asyncio.sleep(0.005)
        if self._quick is not None:
            await self._quick.close()
        await self.engine.dispose()

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1


_SNAPSHOT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def _pool_options(url: str) -> dict[str, Any]:
    # Every SQLite connection is a thread; four are plenty, since writers take turns anyway.
    return {"pool_size": 4, "max_overflow": 4} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own "begin on the first write" would turn readers into writers half-way and fail with "busy".
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_MILLISECONDS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("ashore_single", False):
        return
    write = options.get("ashore_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    """Let writers take turns, as SQLite's do: whatever was proven about concurrent writers there holds here too."""
    if connection.get_execution_options().get("ashore_write", False):
        # A writer whose machine is frozen or cut off must not keep all others waiting until TCP notices.
        limits = ("lock_timeout", "idle_in_transaction_session_timeout")
        patience = ", ".join(f"set_config('{name}', '{_BUSY_MILLISECONDS}ms', true)" for name in limits)
        connection.exec_driver_sql(f"SELECT {patience}, pg_advisory_xact_lock({_WRITERS})")
