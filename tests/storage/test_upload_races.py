"""What overtakes what: uploads in doubt and newer ones, rows that change hands, versions that are closed meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import select, update

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.errors import AshoreError, BadInput, Conflict, NotAllowed, NotFound, OverQuota, Unavailable
from storage.models import Models
from storage.namespace import DataTree
from storage.quota_limits import Resource
from storage.records import FileFact, Holder, Upload, UploadState
from storage.settings import ObjectSettings
from storage.transfers import Transfers
from storage.tree import Writer
from storage.upload_target import Target, always
from storage.uploads import Uploads
from tests.databases import KINDS
from tests.storage.conftest import Desk
from tests.storage.memory_store import MemoryStore

DATABASES = KINDS

PART = 64 * 1024
KEY = "datasets/team/d/v1/f"
TARGET = Target("/datasets/d/v1/f", KEY)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore(smallest=PART)


@pytest.fixture
async def engine(
    database: Database, audit: AuditTrail, changes: Changes, memory: MemoryStore
) -> AsyncIterator[Uploads]:
    """Uploads in parts of 64 KiB to a store that fails on demand."""
    engine = Uploads(database, memory, audit, changes, ObjectSettings())
    engine.part_size = PART
    yield engine
    memory.fault = lambda method, key: None
    await engine.close()


async def send(writer: Writer, content: bytes, start: int = 0) -> None:
    for offset in range(start, len(content), 32768):
        await writer.write(offset, content[offset : offset + 32768])


async def rows(database: Database) -> list[Upload]:
    async with database.reading() as tx:
        return list((await tx.scalars(select(Upload).order_by(Upload.created))).all())


async def doubtful(engine: Uploads, memory: MemoryStore, caller: Caller, writer: Writer) -> None:
    """Finish `writer` while the store does not answer: nobody knows whether its object is there."""
    memory.fault = lambda method, key: Unavailable("away") if method == "complete_upload" else None
    with pytest.raises(Unavailable):
        await writer.finish()
    memory.fault = lambda method, key: None


# ---- uploads in doubt ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [100, 2 * PART + 7])
@pytest.mark.parametrize("is_foreign", [False, True])
async def test_what_is_in_doubt_never_replaces_what_was_confirmed_later(
    engine: Uploads, memory: MemoryStore, alice: Caller, admin: Caller, size: int, is_foreign: bool
) -> None:
    older = await engine.open(alice, TARGET)
    await send(older, os.urandom(3 * PART))
    newer = await engine.open(admin if is_foreign else alice, TARGET)
    content = os.urandom(size)
    await send(newer, content)
    await doubtful(engine, memory, alice, older)
    await newer.finish()
    assert memory.objects[KEY].body == content
    await engine.recover(even_leased=False)
    assert memory.objects[KEY].body == content


async def test_what_was_removed_in_doubt_does_not_appear(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(3 * PART))
    await doubtful(engine, memory, alice, writer)
    memory.fault = lambda method, key: Unavailable("away") if method == "abort_upload" else None
    assert await engine.remove(alice, KEY)
    memory.fault = lambda method, key: None
    await engine.recover(even_leased=False)
    assert KEY not in memory.objects
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]
    assert not memory.uploads


@pytest.mark.parametrize("size", [3 * PART, 3 * PART + 5])
async def test_what_is_in_doubt_appears_when_nothing_came_later(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, size: int
) -> None:
    content = os.urandom(size)
    writer = await engine.open(alice, TARGET)
    await send(writer, content)
    await doubtful(engine, memory, alice, writer)
    await engine.recover(even_leased=False)
    assert memory.objects[KEY].body == content
    assert [row.state for row in await rows(database)] == [UploadState.DONE]


# ---- versions that are closed, deleted or moved meanwhile ------------------------------------------------------
class Closing:
    """A guard that begins to refuse at its `nth` question, as when somebody publishes just then."""

    def __init__(self, nth: int, error: AshoreError) -> None:
        self._left = nth
        self._error = error

    async def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error


REFUSALS = [NotAllowed("published"), NotFound("deleted"), Conflict("being moved")]


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_small_file_that_is_refused_while_it_is_stored_does_not_stay(
    engine: Uploads, memory: MemoryStore, alice: Caller, error: AshoreError
) -> None:
    """An asset of the same name that is made later would begin with it."""
    writer = await engine.open(alice, Target(TARGET.path, KEY, Closing(1, error)))
    await send(writer, b"small")
    with pytest.raises(type(error)):
        await writer.finish()
    assert KEY not in memory.objects


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("nth", [0, 1, 2])
async def test_what_is_there_stays_when_a_small_file_is_refused(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, error: AshoreError, nth: int
) -> None:
    old = await engine.open(alice, TARGET)
    await send(old, b"old")
    await old.finish()
    writer = await engine.open(alice, Target(TARGET.path, KEY, Closing(nth, error)))
    await send(writer, b"new")
    is_gone = nth == 1 and isinstance(error, NotFound)  # the whole version, with all that was in it
    if is_gone or not nth:
        with pytest.raises(type(error)):
            await writer.finish()
    else:
        await writer.finish()
    content = memory.objects[KEY].body if KEY in memory.objects else None
    assert content == (None if is_gone else b"new" if nth else b"old")
    states = [row.state for row in await rows(database)]
    assert states == ([] if content == b"new" else [UploadState.ABORTED])  # thousands of them leave nothing behind


async def test_a_version_is_not_published_while_a_small_file_in_it_is_replaced(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    datasets = Datasets(database, audit, changes, memory)
    tree = DataTree(database, audit, changes, memory, engine, datasets, Models(database, audit, changes, memory))
    desk = Desk(tree, alice)
    await tree.mkdir(alice, "/datasets/d")
    await tree.mkdir(alice, "/datasets/d/v1")
    await desk.put("/datasets/d/v1/f", b"old")
    put = memory.put

    async def slow(key: str, *arguments: Any, **options: Any) -> str:
        with pytest.raises(Conflict, match="unfinished"):
            await datasets.publish(alice, "d", "v1")
        return await put(key, *arguments, **options)

    memory.put = slow  # type: ignore[method-assign]
    await desk.put("/datasets/d/v1/f", b"new")
    memory.put = put  # type: ignore[method-assign]
    await datasets.publish(alice, "d", "v1")
    assert await desk.get("/datasets/d/v1/f") == b"new"


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_large_file_asks_again_once_others_can_see_it(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, error: AshoreError
) -> None:
    """Whoever closes a version looks at the rows: what begins after that look must not go on."""
    writer = await engine.open(alice, Target(TARGET.path, KEY, Closing(0, error)))
    with pytest.raises(type(error)):
        await send(writer, os.urandom(9 * PART))
    await writer.abandon()
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]
    assert not memory.uploads


@pytest.mark.parametrize("size", [100, 3 * PART])
async def test_an_upload_that_was_aborted_does_not_appear(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("storage.upload_progress._ROW_AFTER", 0.0)
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(size))
    await engine._progress._begin_row(writer)
    (row,) = await rows(database)
    await Transfers(database, engine.rows._audit, engine.changes, engine).abort(alice, row.id)
    with pytest.raises(Conflict):
        await writer.finish()
    assert KEY not in memory.objects
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]


async def test_facts_of_what_was_deleted_meanwhile_do_not_stay(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    """Nobody could make a directory of that name any more."""
    datasets = Datasets(database, audit, changes, memory)
    await datasets.create(alice, "d")
    await datasets.create_version(alice, "d", "v1")
    complete = memory.complete_upload

    async def slow(*arguments: Any, **options: Any) -> str:
        etag = await complete(*arguments, **options)
        await datasets.delete(alice, "d")
        return etag

    memory.complete_upload = slow  # type: ignore[method-assign]
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(3 * PART))
    with pytest.raises(Conflict, match="ended"):
        await writer.finish()
    assert not memory.objects
    async with database.reading() as tx:
        assert (await tx.scalars(select(FileFact))).all() == []


# ---- going on --------------------------------------------------------------------------------------------------
async def test_a_client_goes_on_from_the_size_that_it_was_told(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    """A first connection that is still there may have stored more since; WinSCP's "background" does that."""
    content = os.urandom(6 * PART + 9)
    first = await engine.open(alice, TARGET)
    await send(first, content[: 2 * PART + 100])
    await first.flush()
    await engine._progress._tick()
    (row,) = await rows(database)
    assert row.size == 2 * PART
    await send(first, content[: 5 * PART + 100], 2 * PART)
    await first.flush()
    second = await engine.resume(alice, TARGET)
    assert second is not None
    assert second.size == 5 * PART
    await send(second, content, row.size)
    await second.finish()
    assert memory.objects[KEY].body == content


async def test_whoever_goes_back_comes_as_far_as_before(engine: Uploads, memory: MemoryStore, alice: Caller) -> None:
    """A change in the middle is not the end of the file, unless the client says so."""
    content = os.urandom(4 * PART + 100)
    first = await engine.open(alice, TARGET)
    await send(first, content)
    await first.abandon()
    for is_cut in (False, True):
        second = await engine.resume(alice, TARGET)
        assert second is not None
        await second.write(2 * PART, content[2 * PART : 3 * PART] + b"end")
        if is_cut:
            await second.truncate(3 * PART + 3)
            await second.finish()
        else:
            with pytest.raises(Conflict, match="were here before"):
                await second.finish()
            assert KEY not in memory.objects
    assert memory.objects[KEY].body == content[: 3 * PART] + b"end"


async def test_the_last_bytes_of_a_sealed_upload_can_be_changed(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    target = Target("/datasets/d/v1/f.filepart", KEY, sent_as=f"{KEY}.filepart")
    content = os.urandom(2 * PART + 100)
    for start, piece in ((0, content), (2 * PART, b"changed")):
        writer = await engine.resume(alice, target) or await engine.open(alice, target)
        await send(writer, bytes(start) + piece, start)
        await writer.finish()
    await engine.commit(alice, (await rows(database))[-1], always, only_new=False)
    assert memory.objects[KEY].body == content[: 2 * PART] + b"changed" + content[2 * PART + 7 :]


async def test_nothing_but_the_beginning_of_a_part_is_gone_back_to(engine: Uploads, alice: Caller) -> None:
    first = await engine.open(alice, TARGET)
    await send(first, os.urandom(3 * PART + 100))
    await first.abandon()
    second = await engine.resume(alice, TARGET)
    assert second is not None
    with pytest.raises(BadInput, match="in place"):
        await second.write(PART + 1, b"x")


async def test_the_size_that_is_told_is_what_is_gone_on_with(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    """Also when the last byte that came ends a part."""
    content = os.urandom(4 * PART)
    first = await engine.open(alice, TARGET)
    await send(first, content[: 3 * PART])
    await first.flush()
    await engine._progress._tick()
    (row,) = await rows(database)
    second = await engine.resume(alice, TARGET)
    assert second is not None
    assert second.size == row.size == 2 * PART


async def test_a_writer_that_began_anew_is_told_about_from_the_beginning(
    engine: Uploads, alice: Caller, database: Database
) -> None:
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(4 * PART + 1))
    await writer.abandon()
    again = await engine.resume(alice, TARGET)
    assert again is not None
    await engine._progress._tick()
    await send(again, os.urandom(2 * PART + 1))
    await again.flush()
    await engine._progress._tick()
    assert [row.size for row in await rows(database) if row.state is UploadState.OPEN] == [2 * PART]


async def test_what_is_being_completed_is_not_taken_over(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.uploads._TAKE_OVER", 0.05)
    complete, held, go = memory.complete_upload, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **options: Any) -> str:
        if not held.is_set():
            held.set()
            await go.wait()
        return await complete(*arguments, **options)

    memory.complete_upload = slow  # type: ignore[method-assign]
    content = os.urandom(3 * PART)
    first = await engine.open(alice, TARGET)
    await send(first, content)
    row = (await rows(database))[0]
    monkeypatch.setattr(engine.rows, "current", AsyncMock(return_value=row))  # as it was a moment ago
    finishing = asyncio.create_task(first.finish(), name="finish")
    await held.wait()
    try:
        assert await engine.resume(alice, TARGET) is None
    finally:
        go.set()
    assert (await finishing).size == len(content)
    assert memory.objects[KEY].body == content
    assert [row.state for row in await rows(database)] == [UploadState.DONE]


async def test_a_sealed_upload_that_somebody_looked_at_when_the_process_died(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    """Its client was told that all of it is stored."""
    target = Target("/datasets/d/v1/f.filepart", KEY, sent_as=f"{KEY}.filepart")
    content = os.urandom(2 * PART + 100)
    writer = await engine.open(alice, target)
    await send(writer, content)
    await writer.finish()
    looking = await engine.resume(alice, target)
    assert looking is not None
    engine.live.clear()
    async with database.writing() as tx:
        await tx.execute(update(Upload).values(instance="dead", lease_until=now() - timedelta(minutes=1)))
    await engine.recover(even_leased=False)
    (row,) = await rows(database)
    assert (row.state, row.size) == (UploadState.SEALED, len(content))
    engine.budget.release(engine.budget.used, alice.user_id)
    await engine.commit(alice, row, always, only_new=False)
    assert memory.objects[KEY].body == content


async def test_a_rename_in_doubt_is_tried_again(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database
) -> None:
    target = Target("/datasets/d/v1/f.filepart", KEY, sent_as=f"{KEY}.filepart")
    content = os.urandom(2 * PART + 100)
    writer = await engine.open(alice, target)
    await send(writer, content)
    await writer.finish()
    memory.fault = lambda method, key: Unavailable("away") if method == "complete_upload" else None
    with pytest.raises(Unavailable):
        await engine.commit(alice, (await rows(database))[0], always, only_new=False)
    memory.fault = lambda method, key: None
    (row,) = await rows(database)
    assert row.state is UploadState.COMPLETING
    assert (await engine.commit(alice, row, always, only_new=False)).size == len(content)
    assert memory.objects[KEY].body == content
    assert [row.state for row in await rows(database)] == [UploadState.DONE]


# ---- limits ----------------------------------------------------------------------------------------------------
async def test_uploads_that_run_count_as_those_that_wait(engine: Uploads, alice: Caller, bob: Caller) -> None:
    """Else whoever lets many of them break off at once has no limit."""
    await engine.quotas.set_by_operator(Holder.USER, "alice", {Resource.UPLOADS: 2})
    running = [await engine.open(alice, Target(f"/{n}", f"k{n}")) for n in range(3)]
    for writer in running[:2]:
        await send(writer, os.urandom(2 * PART))
    with pytest.raises(OverQuota, match="2 unfinished uploads"):
        await send(running[2], os.urandom(2 * PART))
    other = await engine.open(bob, Target("/b", "b"))
    await send(other, os.urandom(2 * PART))


async def test_memory_for_the_last_bytes_of_a_sealed_upload_is_not_lost(
    engine: Uploads, memory: MemoryStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("/datasets/d/v1/f.filepart", KEY, sent_as=f"{KEY}.filepart")
    writer = await engine.open(alice, target)
    await send(writer, os.urandom(2 * PART + 100))
    await writer.finish()
    monkeypatch.setattr(engine.rows, "change", AsyncMock(side_effect=Unavailable("the database is away")))
    with pytest.raises(Unavailable):
        await engine.resume(alice, target)
    monkeypatch.undo()
    assert engine.budget.used == 0


# ---- parts of what is ended ------------------------------------------------------------------------------------
async def test_parts_of_an_aborted_upload_go_when_the_store_is_back(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, changes: Changes
) -> None:
    """No listing shows them, and nobody else remembers their id."""
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(2 * PART + 1))
    await writer.abandon()
    (row,) = await rows(database)
    transfers = Transfers(database, engine.rows._audit, changes, engine)
    memory.fault = lambda method, key: Unavailable("away") if method == "abort_upload" else None
    await transfers.abort(alice, row.id)
    assert await transfers.list(alice) == []
    assert await engine.resume(alice, TARGET) is None
    memory.fault = lambda method, key: None
    assert memory.uploads
    await engine.recover(even_leased=False)
    assert not memory.uploads
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]


async def test_parts_of_what_is_deleted_go_when_the_store_is_back(
    engine: Uploads, memory: MemoryStore, alice: Caller, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    datasets = Datasets(database, audit, changes, memory)
    await datasets.create(alice, "d")
    await datasets.create_version(alice, "d", "v1")
    writer = await engine.open(alice, TARGET)
    await send(writer, os.urandom(2 * PART + 1))
    memory.fault = lambda method, key: Unavailable("away") if method == "abort_upload" else None
    deletion = await datasets.delete(alice, "d")
    memory.fault = lambda method, key: None
    with pytest.raises(Conflict, match="ended"):
        await writer.finish()
    await Deletions(database, audit, changes, memory).carry_out(deletion)
    assert not memory.uploads
    assert not memory.objects
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]
