"""Whole objects or none: every way in which an upload can end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select, update

from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, NotAllowed, NotFound, Unavailable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import Body
from storage.objects.s3 import S3Store
from storage.records import FileFact, Upload, UploadState
from storage.settings import ObjectSettings
from storage.upload_writer import Target, UploadWriter, etag_of
from storage.uploads import Uploads
from tests.databases import KINDS

DATABASES = KINDS

MIB = 1024 * 1024
KEY = "datasets/team/d/v1/f"
TARGET = Target("/datasets/d/v1/f", KEY)


async def _send(writer: UploadWriter, content: bytes, step: int = 32768) -> None:
    for start in range(0, len(content), step):
        await writer.write(start, content[start : start + step])


def digest(content: bytes) -> str:
    """To compare large contents without a diff of them."""
    return hashlib.sha256(content).hexdigest()


async def _rows(database: Database) -> Sequence[Upload]:
    async with database.reading() as tx:
        return (await tx.scalars(select(Upload))).all()


async def _is_missing(store: S3Store) -> bool:
    try:
        await store.head(KEY)
    except NotFound:
        return True
    return False


@pytest.mark.parametrize(
    "size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 17 * MIB + 123], ids=lambda size: f"{size}B"
)
async def test_what_arrives_is_what_is_stored(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller, size: int
) -> None:
    content = os.urandom(size)
    writer = await uploads.open(alice, TARGET, mtime=1_234_567_890)
    await _send(writer, content, 261120)
    assert writer.size == size
    node = await writer.finish()
    assert (node.name, node.size, node.mtime) == ("f", size, 1_234_567_890)
    assert digest(await store.get(KEY)) == digest(content)
    async with database.reading() as tx:
        fact = await tx.get_one(FileFact, KEY)
    assert (fact.size, fact.mtime) == (size, 1_234_567_890)
    assert fact.etag == (await store.head(KEY)).etag
    assert all(row.state is UploadState.DONE for row in await _rows(database))
    assert uploads.budget.used == 0


async def test_tiny_writes(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    content = os.urandom(6 * MIB)
    writer = await uploads.open(alice, TARGET)
    await _send(writer, content, 4096)
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(content)


async def test_writes_out_of_order_and_twice(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    content = os.urandom(12 * MIB + 5)
    step = 100_000
    pieces = [(start, content[start : start + step]) for start in range(0, len(content), step)]
    writer = await uploads.open(alice, TARGET)
    for index in range(0, len(pieces), 4):
        for start, piece in reversed(pieces[index : index + 4]):
            await writer.write(start, piece)
    await writer.write(len(content) - 5, content[-5:])
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_gap_is_never_padded(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    writer = await uploads.open(alice, TARGET)
    await writer.write(0, b"x" * 10)
    await writer.write(20, b"x" * 10)
    with pytest.raises(BadInput, match="from 10 on"):
        await writer.finish()
    assert await _is_missing(store)
    assert uploads.budget.used == 0


async def test_a_gap_of_whole_parts(uploads: Uploads, store: S3Store, database: Database, alice: Caller) -> None:
    writer = await uploads.open(alice, TARGET)
    await writer.write(5 * MIB, os.urandom(5 * MIB))
    await writer.write(10 * MIB, b"end")
    with pytest.raises(BadInput, match="from 0 on"):
        await writer.finish()
    assert await _is_missing(store)
    assert [row.state for row in await _rows(database)] == [UploadState.ABORTED]


async def test_bytes_that_are_stored_cannot_be_rewritten(uploads: Uploads, alice: Caller) -> None:
    writer = await uploads.open(alice, TARGET)
    await writer.write(0, os.urandom(5 * MIB))
    with pytest.raises(BadInput, match="in place"):
        await writer.write(0, b"header")
    await writer.abandon()


async def test_too_far_out_of_order(uploads: Uploads, alice: Caller) -> None:
    writer = await uploads.open(alice, TARGET)
    for n in range(1, 5):
        await writer.write(n * 5 * MIB, b"x")
    with pytest.raises(BadInput, match="out of order"):
        await writer.write(25 * MIB, b"x")
    await writer.abandon()
    assert uploads.budget.used == 0


async def test_a_lost_connection_before_a_part_is_full_leaves_nothing(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller
) -> None:
    writer = await uploads.open(alice, TARGET)
    await _send(writer, os.urandom(100))
    await writer.abandon()
    assert await _is_missing(store)
    assert await _rows(database) == []
    for attempt in (writer.write(100, b"more"), writer.finish()):
        with pytest.raises(BadInput):
            await attempt


async def test_a_lost_connection_parks_the_parts_that_are_stored(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller
) -> None:
    writer = await uploads.open(alice, TARGET)
    await _send(writer, os.urandom(12 * MIB))
    await writer.abandon()
    assert await _is_missing(store)
    (row,) = await _rows(database)
    assert (row.state, row.size, row.instance) == (UploadState.PARKED, 10 * MIB, "")
    assert [part.number for part in await store.list_parts(KEY, row.s3_upload_id)] == [1, 2]
    assert uploads.budget.used == 0
    for attempt in (writer.write(12 * MIB, b"more"), writer.finish()):
        with pytest.raises(BadInput):
            await attempt


async def test_the_old_version_stays_until_the_new_one_is_whole(
    uploads: Uploads, store: S3Store, alice: Caller
) -> None:
    await store.put(KEY, b"old")
    writer = await uploads.open(alice, TARGET)
    await _send(writer, os.urandom(6 * MIB))
    await writer.flush()
    assert await store.get(KEY) == b"old"
    await writer.abandon()
    assert await store.get(KEY) == b"old"


async def test_the_last_writer_to_finish_wins(uploads: Uploads, store: S3Store, alice: Caller, bob: Caller) -> None:
    first, second = await uploads.open(alice, TARGET), await uploads.open(bob, TARGET)
    content = os.urandom(7 * MIB)
    await asyncio.gather(_send(first, content), _send(second, b"short"))
    await second.finish()
    assert await store.get(KEY) == b"short"
    await first.finish()
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_caller_that_goes_while_it_finishes(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    content = os.urandom(6 * MIB)
    writer = await uploads.open(alice, TARGET)
    await _send(writer, content)
    finishing = asyncio.create_task(writer.finish())
    await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    await writer.abandon()  # what the door does when the connection is gone: the decision stands
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_guard_that_refuses(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    async def refuse() -> None:
        raise NotAllowed("published meanwhile")

    async def put(size: int) -> None:
        writer = await uploads.open(alice, Target(TARGET.path, KEY, refuse))
        try:
            await _send(writer, os.urandom(size))
        finally:
            await writer.finish()

    for size in (10, 6 * MIB):
        with pytest.raises(NotAllowed):
            await put(size)
    assert await _is_missing(store)
    assert uploads.budget.used == 0


async def test_truncate(uploads: Uploads, store: S3Store, alice: Caller) -> None:
    writer = await uploads.open(alice, TARGET)
    await writer.write(0, b"wrong")
    await writer.truncate(5)
    with pytest.raises(BadInput):
        await writer.truncate(100)
    await writer.truncate(0)
    await writer.write(0, b"right!")
    await writer.finish()
    assert await store.get(KEY) == b"right!"


class _BrokenStore(S3Store):
    """A store that fails where it is told to."""

    fail_part = 0
    lose_answer = False

    async def put_part(self, key: str, upload_id: str, number: int, body: Body) -> str:
        if number == self.fail_part:
            raise Unavailable("the object store failed")
        return await super().put_part(key, upload_id, number, body)

    async def complete_upload(self, *arguments: Any, **options: Any) -> str:
        etag = await super().complete_upload(*arguments, **options)
        if self.lose_answer:
            raise Unavailable("the answer was lost")
        return etag


@pytest.fixture
async def broken(store: S3Store, object_settings: ObjectSettings) -> Any:
    broken = _BrokenStore(object_settings)
    yield broken
    await broken.close()


async def test_a_part_that_cannot_be_stored(
    broken: _BrokenStore, database: Database, audit: AuditTrail, changes: Changes, object_settings: ObjectSettings,
    alice: Caller, store: S3Store,
) -> None:  # fmt: skip
    broken.fail_part = 2
    uploads = Uploads(database, broken, audit, changes, object_settings)
    writer = await uploads.open(alice, TARGET)
    with contextlib.suppress(Unavailable):  # the next write may know already
        await _send(writer, os.urandom(16 * MIB))
    with pytest.raises(Unavailable):
        await writer.finish()
    assert await _is_missing(store)
    assert uploads.budget.used == 0
    await uploads.close()


async def test_a_lost_answer_to_complete(
    broken: _BrokenStore, database: Database, audit: AuditTrail, changes: Changes, object_settings: ObjectSettings,
    alice: Caller, store: S3Store,
) -> None:  # fmt: skip
    broken.lose_answer = True
    uploads = Uploads(database, broken, audit, changes, object_settings)
    content = os.urandom(11 * MIB)
    writer = await uploads.open(alice, TARGET)
    await _send(writer, content)
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(content)
    await uploads.close()


# ---- what a dead process left ----------------------------------------------------------------------------------
async def _die_while_open(uploads: Uploads, alice: Caller, database: Database) -> Upload:
    """A row and parts as a process leaves them that is killed; the writer itself is forgotten."""
    writer = await uploads.open(alice, TARGET)
    await _send(writer, b"a" * (11 * MIB))
    await writer.flush()
    uploads.forget(writer)
    async with database.writing() as tx:
        await tx.execute(update(Upload).values(instance="dead"))
    return (await _rows(database))[0]


async def test_recovery_parks_open_uploads(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller, audit: AuditTrail, admin: Caller
) -> None:
    row = await _die_while_open(uploads, alice, database)
    assert await uploads.recover() == 1
    assert await uploads.recover() == 0
    assert await _is_missing(store)
    (parked,) = await _rows(database)
    assert (parked.id, parked.state, parked.size) == (row.id, UploadState.PARKED, 10 * MIB)
    assert [event.outcome for event in await audit.search(admin, action="upload.settle")] == ["ok"]


@pytest.mark.parametrize("completed", [False, True], ids=["before complete", "after complete"])
async def test_recovery_finishes_what_was_being_completed(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller, completed: bool
) -> None:
    row = await _die_while_open(uploads, alice, database)
    parts = await store.list_parts(KEY, row.s3_upload_id)
    pairs = [(part.number, part.etag) for part in parts]
    async with database.writing() as tx:
        await tx.execute(
            update(Upload).values(
                state=UploadState.COMPLETING, size=sum(p.size for p in parts), etag=etag_of(parts), mtime=77
            )
        )
    if completed:
        await store.complete_upload(KEY, row.s3_upload_id, pairs)
    assert await uploads.recover() == 1
    assert (await store.head(KEY)).size == 10 * MIB
    async with database.reading() as tx:
        assert (await tx.get_one(FileFact, KEY)).mtime == 77
    assert [row.state for row in await _rows(database)] == [UploadState.DONE]


async def test_recovery_does_not_take_another_object_for_ours(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller
) -> None:
    row = await _die_while_open(uploads, alice, database)
    await store.abort_upload(KEY, row.s3_upload_id)
    await store.put(KEY, b"somebody else's")
    async with database.writing() as tx:
        await tx.execute(update(Upload).values(state=UploadState.COMPLETING, size=10 * MIB, etag="0-2"))
    assert await uploads.recover() == 1
    assert [row.state for row in await _rows(database)] == [UploadState.LOST]
    assert await store.get(KEY) == b"somebody else's"


# ---- memory ----------------------------------------------------------------------------------------------------
async def test_many_writers_share_little_memory(
    database: Database, store: S3Store, audit: AuditTrail, changes: Changes, object_settings: ObjectSettings,
    alice: Caller, bob: Caller,
) -> None:  # fmt: skip
    settings = object_settings.model_copy(update={"memory_mib": 20})
    uploads = Uploads(database, store, audit, changes, settings)
    content = os.urandom(12 * MIB)
    peak = 0

    async def send(n: int) -> None:
        nonlocal peak
        writer = await uploads.open(alice if n % 2 else bob, Target(f"/f{n}", f"{KEY}{n}"))
        for start in range(0, len(content), 262144):
            await writer.write(start, content[start : start + 262144])
            peak = max(peak, uploads.budget.used)
        await writer.finish()

    await asyncio.gather(*(send(n) for n in range(8)))
    assert peak <= 20 * MIB
    assert uploads.budget.used == 0
    for n in range(8):
        assert digest(await store.get(f"{KEY}{n}")) == digest(content)
    await uploads.close()


async def test_the_budget_is_fair() -> None:
    budget = MemoryBudget(100)
    await budget.acquire(50, "a")
    greedy = asyncio.create_task(budget.acquire(10, "a"))
    await asyncio.sleep(0)
    assert not greedy.done()  # half is the most for one owner
    other = asyncio.create_task(budget.acquire(40, "b"))
    await asyncio.sleep(0)
    budget.release(20, "a")
    await asyncio.wait_for(asyncio.gather(greedy, other), 30)
    assert budget.used == 80


async def test_one_who_gives_up_waiting_takes_nothing() -> None:
    budget = MemoryBudget(10)
    await budget.acquire(10, "a")
    waiting = asyncio.create_task(budget.acquire(10, "b"))
    next_one = asyncio.create_task(budget.acquire(10, "c"))
    await asyncio.sleep(0)
    waiting.cancel()
    budget.release(10, "a")
    await asyncio.wait_for(next_one, 30)
    assert budget.used == 10
    budget.release(10, "c")
    assert budget.used == 0


_DOOMED = """
import asyncio, sys
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from storage.upload_writer import Target
from storage.uploads import Uploads

async def main():
    url, endpoint, access, secret, bucket, user, path, key = sys.argv[1:]
    settings = ObjectSettings(endpoint=endpoint, access_key=access, secret_key=secret, bucket=bucket, part_mib=5)
    database = Database(url)
    uploads = Uploads(database, S3Store(settings), AuditTrail(database), Changes(), settings)
    writer = await uploads.open(Caller(user, "alice", False, "w", "team"), Target(path, key))
    await writer.write(0, b"a" * (12 * 1024 * 1024))
    await writer.flush()
    print("sent", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_that_is_killed_in_the_middle(
    uploads: Uploads, store: S3Store, database: Database, alice: Caller, object_settings: ObjectSettings
) -> None:
    arguments = [
        database.url, object_settings.endpoint, object_settings.access_key,
        object_settings.secret_key.get_secret_value(), object_settings.bucket, alice.user_id, TARGET.path, KEY,
    ]  # fmt: skip
    doomed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DOOMED, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert doomed.stdout is not None
    assert await doomed.stdout.readline() == b"sent\n"
    doomed.kill()
    await doomed.wait()
    assert await _is_missing(store)
    (row,) = await _rows(database)
    assert len(await store.list_parts(KEY, row.s3_upload_id)) == 2
    assert await uploads.recover() == 1
    assert await _is_missing(store)
    writer = await uploads.resume(alice, TARGET)
    assert writer is not None
    assert writer.size == 10 * MIB
    await writer.write(10 * MIB, b"a" * (3 * MIB))
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(b"a" * (13 * MIB))
