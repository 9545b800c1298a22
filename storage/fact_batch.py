"""Facts of small files, written together, and of those that are stored again the rows that they had."""

from __future__ import annotations

from collections.abc import Sequence

from storage.batch import Batch
from storage.database.engine import Database
from storage.database.quick import Values
from storage.objects.contract import ObjectFacts
from storage.records import FileFact, UploadState

_COLUMNS = tuple(column.name for column in FileFact.__table__.columns)
_UPSERT = (
    f"INSERT INTO file_facts ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
    f" ON CONFLICT (key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS if name != 'key')}"
)
_OVERTAKE = f"UPDATE uploads SET superseded = true WHERE key = :key AND state = '{UploadState.COMPLETING.value}'"
"""Uploads to the same name that are in doubt: what was confirmed later stands."""
_FORGET = "DELETE FROM uploads WHERE id = :id"
_TIME = "UPDATE file_facts SET mtime = :mtime WHERE key = :key AND etag = :etag"


class FactBatch:
    """Takes facts of objects that are in the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batch = Batch(self._write, "facts of files")

    async def add(self, fact: FileFact, row_id: str = "") -> None:
        """Return when `fact` is durable, in place of what was known about its key, and upload `row_id` forgotten."""
        await self._batch.add((fact, row_id))

    async def _write(self, batch: Sequence[tuple[FileFact, str]]) -> None:
        await self._database.quick_write(
            (_UPSERT, [_values(fact) for fact, _ in batch]),
            (_OVERTAKE, [{"key": fact.key} for fact, _ in batch]),
            (_FORGET, [{"id": row_id} for _, row_id in batch if row_id]),
        )


def time_batch(database: Database) -> Batch[tuple[ObjectFacts, int]]:
    """Takes files that are known, and their times in seconds: many clients set them one by one after sending."""

    async def write(batch: Sequence[tuple[ObjectFacts, int]]) -> None:
        rows: list[Values] = [{"key": facts.key, "etag": facts.etag, "mtime": seconds} for facts, seconds in batch]
        await database.quick_write((_TIME, rows))

    return Batch(write, "times of files")


def _values(fact: FileFact) -> Values:
    return {name: getattr(fact, name) for name in _COLUMNS}
