"""The store goes away, stalls, is overloaded; the process dies at the worst moments. Never a wrong object."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from storage import upload_writer
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import NotFound, Unavailable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import ObjectFacts
from storage.objects.embedded import EmbeddedStore
from storage.objects.reading import ObjectReader
from storage.objects.s3 import S3Store
from storage.records import FileFact, Upload, UploadState
from storage.settings import ObjectSettings
from storage.tree import Node
from storage.upload_writer import Target, UploadWriter
from storage.uploads import Uploads
from tests.storage.memory_store import MemoryStore
from tests.storage.store_proxy import StoreProxy, store_proxy

MIB = 1024 * 1024
KEY = "datasets/team/d/v1/f"
TARGET = Target("/datasets/d/v1/f", KEY)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def send(writer: UploadWriter, content: bytes, start: int = 0, end: int | None = None) -> None:
    end = len(content) if end is None else end
    for offset in range(start, end, 261_120):
        await writer.write(offset, content[offset : min(offset + 261_120, end)])


async def only_row(database: Database) -> Upload:
    async with database.reading() as tx:
        return (await tx.scalars(select(Upload))).one()


async def is_missing(store: S3Store) -> bool:
    try:
        await store.head(KEY)
    except NotFound:
        return True
    return False


@pytest.fixture
async def proxy(object_settings: ObjectSettings) -> AsyncIterator[StoreProxy]:
    async with store_proxy(object_settings.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def behind(
    proxy: StoreProxy, object_settings: ObjectSettings, database: Database, audit: AuditTrail, changes: Changes,
    store: S3Store,
) -> AsyncIterator[Uploads]:  # fmt: skip
    """Uploads that reach the store through the proxy; `store` reaches it without."""
    settings = object_settings.model_copy(update={"endpoint": proxy.address})
    far = S3Store(settings)
    uploads = Uploads(database, far, audit, changes, settings)
    yield uploads
    proxy.flow()
    proxy.is_away = proxy.is_busy = False
    await uploads.close()
    await far.close()


async def resumed(uploads: Uploads, caller: Caller, content: bytes, *, at_least: int = 0) -> int:
    """Go on with `content` to its end; from where."""
    writer = await uploads.resume(caller, TARGET)
    assert writer is not None
    start = writer.size
    assert start >= at_least
    await send(writer, content, start)
    await writer.finish()
    return start


async def test_a_store_that_is_away_for_a_moment(
    behind: Uploads, proxy: StoreProxy, store: S3Store, alice: Caller
) -> None:
    content = os.urandom(22 * MIB)
    writer = await behind.open(alice, TARGET)
    await send(writer, content, 0, 6 * MIB)
    proxy.is_away = True
    proxy.cut()
    sending = asyncio.create_task(send(writer, content, 6 * MIB))
    await asyncio.sleep(1)
    assert not sending.done()  # three parts wait, and the client with them
    proxy.is_away = False
    await sending
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(content)


@pytest.mark.parametrize("trouble", ["is_away", "is_busy"])
async def test_a_store_that_stays_away_parks_the_upload(
    behind: Uploads, proxy: StoreProxy, store: S3Store, alice: Caller, database: Database, trouble: str
) -> None:
    content = os.urandom(24 * MIB)
    writer = await behind.open(alice, TARGET)
    await send(writer, content, 0, 11 * MIB)
    await writer.flush()
    setattr(proxy, trouble, True)
    proxy.cut()
    with contextlib.suppress(Unavailable):
        await send(writer, content, 11 * MIB)
    with pytest.raises(Unavailable):
        await writer.finish()
    assert behind.budget.used == 0
    assert await is_missing(store)
    row = await only_row(database)
    assert (row.state, row.size) == (UploadState.PARKED, 10 * MIB)
    setattr(proxy, trouble, False)
    assert await resumed(behind, alice, content) == 10 * MIB
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_store_that_stalls_holds_the_client_back(
    behind: Uploads, proxy: StoreProxy, store: S3Store, alice: Caller
) -> None:
    content = os.urandom(60 * MIB)
    writer = await behind.open(alice, TARGET)
    await send(writer, content, 0, 6 * MIB)
    await writer.flush()
    proxy.stall()
    sending = asyncio.create_task(send(writer, content, 6 * MIB))
    await asyncio.sleep(1.5)
    assert not sending.done()
    assert behind.budget.used <= 4 * 5 * MIB
    assert writer.size <= 30 * MIB
    proxy.flow()
    await sending
    await writer.finish()
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_connection_that_is_lost_while_the_store_stalls(
    behind: Uploads, proxy: StoreProxy, store: S3Store, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_writer, "_PATIENCE", 0.5)
    content = os.urandom(22 * MIB)
    writer = await behind.open(alice, TARGET)
    await send(writer, content, 0, 6 * MIB)
    await writer.flush()
    proxy.stall()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(send(writer, content, 6 * MIB), 1)
    await asyncio.wait_for(writer.abandon(), 20)
    assert behind.budget.used == 0
    proxy.flow()
    assert await resumed(behind, alice, content) >= 5 * MIB
    assert digest(await store.get(KEY)) == digest(content)


async def test_a_store_that_goes_away_before_the_upload_is_completed(
    behind: Uploads, proxy: StoreProxy, store: S3Store, alice: Caller, database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    content = os.urandom(12 * MIB)
    writer = await behind.open(alice, TARGET)
    await send(writer, content)
    complete = behind.store.complete_upload

    async def away(*arguments: object, **options: object) -> str:
        proxy.is_away = True
        proxy.cut()
        return await complete(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(behind.store, "complete_upload", away)
    with pytest.raises(Unavailable):
        await writer.finish()
    assert (await only_row(database)).state is UploadState.COMPLETING
    monkeypatch.undo()
    proxy.is_away = False
    assert await behind.recover(even_leased=False) == 1
    assert digest(await store.get(KEY)) == digest(content)
    assert (await only_row(database)).state is UploadState.DONE


async def test_progress_that_was_counted_before_does_not_change_what_is_being_completed(
    uploads: Uploads, alice: Caller, database: Database
) -> None:
    writer = await uploads.open(alice, TARGET)
    await send(writer, os.urandom(11 * MIB))
    await writer.flush()
    assert writer.held is not None
    await uploads.rows.change(writer.held, state=UploadState.COMPLETING, size=11 * MIB)
    assert await uploads.rows.tick([(writer.held, {"size": 5 * MIB})]) == set()
    assert (await only_row(database)).size == 11 * MIB


async def test_a_store_that_is_stopped_and_started_keeps_the_parts(
    tmp_path: Path, database: Database, audit: AuditTrail, changes: Changes, alice: Caller
) -> None:
    content = os.urandom(18 * MIB)
    service = EmbeddedStore(tmp_path / "objects")
    await service.start()
    settings = service.settings.model_copy(update={"part_mib": 5})
    store = S3Store(settings)
    await store.start()
    uploads = Uploads(database, store, audit, changes, settings)
    writer = await uploads.open(alice, TARGET)
    await send(writer, content, 0, 11 * MIB)
    await writer.flush()
    await service.close()
    with contextlib.suppress(Unavailable):
        await send(writer, content, 11 * MIB)
    with pytest.raises(Unavailable):
        await writer.finish()
    async with EmbeddedStore(tmp_path / "objects"):
        assert await resumed(uploads, alice, content) == 10 * MIB
        assert digest(await store.get(KEY)) == digest(content)
        await uploads.close()
        await store.close()


_DOOMED = """
import asyncio, os, sys
from pathlib import Path
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from storage.upload_writer import Target
from storage.uploads import Uploads

async def pause(*arguments, **options):
    print("now", flush=True)
    await asyncio.Event().wait()

async def main():
    data, endpoint, access, secret, bucket, user, path, key, moment, source = sys.argv[1:]
    settings = ObjectSettings(endpoint=endpoint, access_key=access, secret_key=secret, bucket=bucket, part_mib=5)
    database, store = Database.in_directory(Path(data)), S3Store(settings)
    uploads = Uploads(database, store, AuditTrail(database), Changes(), settings)
    if moment == "before commit":
        uploads.rows.record = pause
    if moment == "before complete":
        store.complete_upload = pause
    if moment == "before seal":
        uploads.sealing = pause
    content = Path(source).read_bytes()
    writer = await uploads.open(Caller(user, "alice", False, "w", "team"), Target(path, key), mtime=77)
    for offset in range(0, len(content), 262144):
        await writer.write(offset, content[offset : offset + 262144])
    await writer.flush()
    if moment == "before close":
        await pause()
    await writer.finish()

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["before close", "before seal", "before complete", "before commit"])
async def test_a_process_that_is_killed(
    uploads: Uploads, store: S3Store, database: Database, data_dir: Path, alice: Caller, tmp_path: Path,
    object_settings: ObjectSettings, moment: str,
) -> None:  # fmt: skip
    content = os.urandom(12 * MIB)
    (tmp_path / "source").write_bytes(content)
    arguments = [
        str(data_dir), object_settings.endpoint, object_settings.access_key,
        object_settings.secret_key.get_secret_value(), object_settings.bucket, alice.user_id, TARGET.path, KEY,
        moment, str(tmp_path / "source"),
    ]  # fmt: skip
    doomed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DOOMED, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert doomed.stdout is not None
    assert await doomed.stdout.readline() == b"now\n"
    doomed.kill()
    await doomed.wait()
    assert await is_missing(store) is (moment != "before commit")
    assert await uploads.recover() == 1
    row = await only_row(database)
    if moment in ("before close", "before seal"):
        assert (row.state, row.size) == (UploadState.PARKED, 10 * MIB)
        assert await is_missing(store)
        await resumed(uploads, alice, content, at_least=10 * MIB)
    else:
        assert row.state is UploadState.DONE
        async with database.reading() as tx:
            fact = await tx.get_one(FileFact, KEY)
        assert (fact.mtime, fact.sha256) == (77, digest(content))
    assert digest(await store.get(KEY)) == digest(content)
    assert await uploads.recover() == 0


class _Forgetful(MemoryStore):
    """A store that looks at no condition and answers with less than it was asked for."""

    most = sys.maxsize

    async def get(self, key: str, *, offset: int = 0, size: int | None = None, etag: str = "") -> bytes:
        return (await super().get(key, offset=offset, size=size))[: self.most]


async def test_a_store_that_gives_too_little_is_not_the_end_of_a_file() -> None:
    store = _Forgetful()
    etag = await store.put(KEY, b"0123456789")
    node = Node("f", is_directory=False, size=10, mtime=0, mode=0o644)
    for most, offset in ((4, 0), (0, 5)):
        store.most = most
        reader = ObjectReader(store, ObjectFacts(KEY, 10, etag), node, MemoryBudget(64 * MIB), "alice")
        with pytest.raises(Unavailable, match=f"gave {most} of "):
            await reader.read(offset, 10)
        await reader.close()
