"""Plain SQL for the few statements that run for every small file, with one change of threads each.

SQLAlchemy's asynchronous SQLite changes threads five times for a query and builds it anew; here a statement is text
with `:named` values, and rows are tuples of strings and integers. Everything else belongs to `engine`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from storage.database.trouble import unavailable

Values = Mapping[str, str | int | bool]
Statement = tuple[str, Sequence[Values]]
"""SQL, and the values to run it with, once for each."""
Prepare = Callable[[Any, object], None]
T = TypeVar("T")


class QuickSqlite:
    """Two connections to one SQLite file, each in a thread of its own: one reads, one writes."""

    def __init__(self, path: str, prepare: Prepare) -> None:
        self._reader = _Connection(path, prepare, "records read")
        self._writer = _Connection(path, prepare, "records write")

    async def fetch(self, sql: str, values: Values) -> Sequence[tuple[Any, ...]]:
        return await self._reader.run(lambda connection: connection.execute(sql, values).fetchall())

    async def write(self, *statements: Statement) -> None:
        """All of them in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in statements:
                    connection.executemany(sql, rows)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        await self._writer.run(work)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()


class _Connection:
    def __init__(self, path: str, prepare: Prepare, name: str) -> None:
        self._path = path
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        except sqlite3.OperationalError as error:
            raise unavailable() from error

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, check_same_thread=False)
            self._prepare(self._connection, None)
        return work(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
