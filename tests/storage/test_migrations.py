"""The schema that the migrations make is the one that the records describe, from nothing and from filled databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from storage.database import migrate as migrating
from storage.database.engine import Database
from storage.database.migrate import migrate, pending
from storage.records import Record
from tests.databases import KINDS, Databases

_FIRST = "0001"
_ROWS = (
    "INSERT INTO workspaces (id, name, created) VALUES ('w1', 'main', '2026-01-01 00:00:00')",
    "INSERT INTO users (id, name, is_admin, disabled, workspace_id, language, created)"
    " VALUES ('u1', 'alice', false, false, 'w1', '', '2026-01-01 00:00:00')",
    "INSERT INTO datasets (id, workspace_id, owner_id, owner_name, name, deleting, created)"
    " VALUES ('d1', 'w1', 'u1', 'alice', 'mnist', false, '2026-01-01 00:00:00')",
    "INSERT INTO dataset_versions (id, dataset_id, name, state, created)"
    " VALUES ('v1', 'd1', 'v1', 'uploading', '2026-01-01 00:00:00')",
    "INSERT INTO file_facts (key, size, etag, mtime, sha256, md5)"
    " VALUES ('datasets/main/mnist/v1/a', 1, 'e', 2, '', '')",
    "INSERT INTO uploads (id, owner_id, path, key, s3_upload_id, part_size, size, etag, state, epoch, instance,"
    " created, touched) VALUES ('p1', 'u1', '/datasets/mnist/v1/b', 'datasets/main/mnist/v1/b', 'x', 8388608, 0, '',"
    " 'open', 1, 'i', '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
)


@pytest.fixture(params=KINDS)
async def empty(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        database = Database.in_directory(tmp_path)
    else:
        database = Database(databases.server.url(databases.server.create()))
    yield database
    await database.close()


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
    return list(compare_metadata(context, Record.metadata))


async def _upgrade_to(database: Database, revision: str) -> None:
    def run(connection: Connection) -> None:
        config = migrating._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    async with database.engine.connect() as connection:
        connection = await connection.execution_options(ashore_write=True)
        async with connection.begin():
            await connection.run_sync(run)


async def test_the_migrations_make_what_the_records_describe(empty: Database) -> None:
    assert await pending(empty)
    await migrate(empty)
    assert not await pending(empty)
    async with empty.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_a_filled_database_of_the_first_schema_is_brought_up_to_date(empty: Database) -> None:
    await _upgrade_to(empty, _FIRST)
    async with empty.writing() as tx:
        for row in _ROWS:
            await tx.execute(text(row))
    await migrate(empty)
    async with empty.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
        for table in ("users", "assets", "asset_versions", "file_facts", "uploads"):
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar() == 1
        if empty.is_sqlite:  # PostgreSQL has checked them at each change
            assert (await connection.execute(text("PRAGMA foreign_key_check"))).all() == []


async def test_to_migrate_twice_changes_nothing(empty: Database) -> None:
    await migrate(empty)
    await migrate(empty)
    assert not await pending(empty)
