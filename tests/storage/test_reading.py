"""Reads ahead share the memory of uploads, and give it back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.objects import reading
from storage.objects.reading import ObjectReader
from storage.settings import ObjectSettings
from storage.tree import Node
from storage.upload_target import Target
from storage.uploads import Uploads
from tests.storage.memory_store import MemoryStore

MIB = 1024 * 1024


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def engine(
    database: Database, audit: AuditTrail, changes: Changes, memory: MemoryStore
) -> AsyncIterator[Uploads]:
    engine = Uploads(database, memory, audit, changes, ObjectSettings(memory_mib=16))
    yield engine
    await engine.close()


async def reader_of(engine: Uploads, memory: MemoryStore, size: int, owner: str) -> ObjectReader:
    if "k" not in memory.objects or len(memory.objects["k"].body) != size:
        await memory.put("k", os.urandom(size))
    node = Node("k", is_directory=False, size=size)
    return ObjectReader(memory, await memory.head("k"), node, engine.budget, owner)


async def test_a_small_file_takes_no_more_than_it_has(engine: Uploads, memory: MemoryStore) -> None:
    small = await reader_of(engine, memory, 1000, "alice")
    assert engine.budget.used == 1000
    large = await reader_of(engine, memory, 5 * MIB, "alice")
    assert engine.budget.used == 1000 + 5 * MIB
    await small.close()
    await large.close()
    assert engine.budget.used == 0


async def test_idle_readers_do_not_hold_up_uploads(
    engine: Uploads, memory: MemoryStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People who stop a download in the middle, or keep files open."""
    readers = [await reader_of(engine, memory, 20 * MIB, owner) for owner in ("bob", "carol") for _ in range(2)]
    for reader in readers:
        await reader.read(0, 1000)
    assert engine.budget.used == engine.budget.total
    writer = await engine.open(alice, Target("/f", "f"))
    writing = asyncio.create_task(writer.write(0, b"x"), name="write")
    await asyncio.sleep(0)
    await engine._progress._tick()
    await asyncio.sleep(0)
    assert not writing.done()
    monkeypatch.setattr(reading, "_IDLE", 0.0)
    await engine._progress._tick()
    await asyncio.wait_for(writing, 30)
    await writer.finish()
    for reader in readers:
        content = memory.objects["k"].body
        assert await reader.read(1000, MIB) == content[1000 : 1000 + MIB]
        await reader.close()
    assert engine.budget.used == 0
