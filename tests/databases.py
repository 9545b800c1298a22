"""New databases with the newest schema and no rows: SQLite files, or databases of one PostgreSQL server.

Nobody waits for Alembic or for a server twice: each kind is migrated once a process, when it is first asked for, and
copied. Alembic itself, and a start on an empty directory, are tested in `storage/test_migrations.py` and by every
gateway that is served.
"""

from __future__ import annotations

import asyncio
import tempfile
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

    @contextmanager
    def new(self, kind: str, directory: Path) -> Iterator[Database]:
        """One that nobody has used. Close it before the block ends."""
        if kind == "sqlite":
            database = Database.in_directory(directory)
            (directory / "ashore.sqlite3").write_bytes(self._file)
            yield database
            return
        name = self.server.create(self._template)
        yield Database(self.server.url(name))
        self.server.drop(name)

    @cached_property
    def server(self) -> PostgreSql:
        return PostgreSql()

    def close(self) -> None:
        if "server" in vars(self):
            self.server.remove()

    @cached_property
    def _file(self) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            _fill(Database.in_directory(Path(directory)))
            (path,) = Path(directory).iterdir()  # nothing is left in a journal
            return path.read_bytes()

    @cached_property
    def _template(self) -> str:
        name = self.server.create()
        _fill(Database(self.server.url(name)))
        return name


def _fill(database: Database) -> None:
    async def work() -> None:
        await migrate(database)
        await database.close()

    with ThreadPoolExecutor(1) as thread:  # this thread may have a running loop
        thread.submit(asyncio.run, work()).result()
