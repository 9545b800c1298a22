"""Whether a file still fits, without counting all files for each."""

from __future__ import annotations

import sys

import pytest

from storage import room as rooms
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import OverQuota
from storage.quotas import Owner, Quotas
from storage.records import FileFact
from storage.room import Room
from storage.settings import ObjectSettings

GIB = 1024**3


@pytest.fixture
def quotas(database: Database, audit: AuditTrail, changes: Changes) -> Quotas:
    return Quotas(database, audit, changes, objects=ObjectSettings(workspace_gib=1))


class Counted(Room):
    """Knows how often files were counted."""

    counts = 0

    async def _exactly(self, *arguments: object) -> int:  # type: ignore[override]
        self.counts += 1
        return await super()._exactly(*arguments)  # type: ignore[arg-type]


async def test_files_are_counted_again_only_where_it_matters(
    quotas: Quotas, database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "_FRESH", 60.0)
    room = Counted(database, quotas)

    async def check(name: str, size: int) -> int:
        key = f"datasets/{alice.workspace}/d/v1/{name}"
        most = await room.check(Owner.of(alice), alice.workspace, key, key, size)
        async with database.writing() as tx:
            tx.add(FileFact(key=key, size=size, mtime=0))
        return most

    for number in range(50):
        assert await check(f"small-{number}", 1000) <= GIB
    assert room.counts == 1
    await check("half", GIB // 2 + 1)  # near the limit nothing is guessed
    assert room.counts == 2
    with pytest.raises(OverQuota, match="may hold 1GiB, 512MiB are stored: this file does not fit"):
        await check("rest", GIB // 2)
    assert room.counts == 3


async def test_where_nothing_is_limited_nothing_is_counted(
    database: Database, audit: AuditTrail, changes: Changes, alice: Caller
) -> None:
    room = Counted(database, Quotas(database, audit, changes))
    assert await room.check(Owner.of(alice), alice.workspace, "k", "k", 1 << 50) == sys.maxsize
    assert room.counts == 0
