"""New databases for tests: SQLite files, or databases of one PostgreSQL server that starts when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from storage.database.engine import Database
from storage.database.migrate import migrate
from tests.postgresql import PostgreSql

KINDS = ("sqlite", "postgresql")


class Databases:
    """Where they come from; `close` ends the server and removes what it kept."""

    @cached_property
    def server(self) -> PostgreSql:
        return PostgreSql()

    @cached_property
    def _template(self) -> str:
        """With our schema: a copy of it is made in a tenth of the time."""
        name = self.server.create()

        async def fill() -> None:
            database = Database(self.server.url(name))
            await migrate(database)
            await database.close()

        with ThreadPoolExecutor(1) as thread:  # this thread may have a running loop
            thread.submit(asyncio.run, fill()).result()
        return name

    @contextmanager
    def new(self, kind: str, directory: Path) -> Iterator[Database]:
        """One that nobody has used; the schema may still be missing."""
        if kind == "sqlite":
            yield Database.in_directory(directory)
            return
        name = self.server.create(self._template)
        yield Database(self.server.url(name))
        self.server.drop(name)

    def close(self) -> None:
        if "server" in vars(self):
            self.server.remove()
