"""Imports from end to end: a real object store, a real web server that fails in every way, the hub's own library."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import huggingface_hub
import pytest
from sqlalchemy import select, update

from backends.imports import Imports, ImportView
from backends.reconcilers.imports import ImportReconciler
from backends.settings import ImportSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, Conflict, InUse, NotAllowed, NotFound
from storage.namespace import DataTree
from storage.objects.s3 import S3Store
from storage.records import AuditEvent, Import, ImportFile, ImportState
from storage.settings import ObjectSettings
from storage.uploads import Uploads
from storage.vault import Vault
from tests.backends.web import Web, WebFile
from tests.storage.conftest import (  # noqa: F401 - fixtures
    datasets,
    models,
    object_service,
    object_settings,
    store,
    tree,
    uploads,
)

MIB = 1024 * 1024
BIG = os.urandom(12 * MIB + 4321)
"""Two parts and a bit, at the parts of five MiB that tests use."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web
    huggingface_hub.close_session()


@dataclass
class Room:
    """The use cases and a reconciler over one house."""

    database: Database
    audit: AuditTrail
    changes: Changes
    accounts: Accounts
    tree: DataTree
    vault: Vault
    settings: ImportSettings
    imports: Imports

    @asynccontextmanager
    async def reconciling(self) -> AsyncIterator[None]:
        reconciler = ImportReconciler(
            self.database, self.audit, self.changes, self.accounts, self.tree, self.vault, self.settings
        )
        loop = asyncio.create_task(reconciler.run(), name="imports reconciler")
        try:
            yield
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    async def over(self, caller: Caller, view: ImportView) -> ImportView:
        async with asyncio.timeout(40):
            while not view.state.is_over:
                await asyncio.sleep(0.05)
                view = await self.imports.show(caller, view.id)
        return view

    async def imported(self, caller: Caller, source: str, name: str = "mnist", version: str = "v1") -> ImportView:
        view = await self.imports.request(caller, "dataset", name, version, source)
        async with self.reconciling():
            return await self.over(caller, view)

    async def read(self, caller: Caller, path: str) -> bytes:
        reader = await self.tree.open_reader(caller, path)
        pieces, offset = [], 0
        while piece := await reader.read(offset, MIB):
            pieces.append(piece)
            offset += len(piece)
        await reader.close()
        return b"".join(pieces)

    async def names(self, caller: Caller, path: str) -> list[str]:
        return [node.name async for node in self.tree.list(caller, path)]

    async def events(self) -> list[tuple[str, str]]:
        async with self.database.reading() as tx:
            query = select(AuditEvent.action, AuditEvent.outcome).where(AuditEvent.action.startswith("import"))
            return [(action, outcome) for action, outcome in await tx.execute(query.order_by(AuditEvent.seq))]


def settings_for(web: Web, **values: object) -> ImportSettings:
    return ImportSettings(
        allow_hosts=(web.host,), hf_endpoint=web.url, idle_seconds=3, attempts=4, files_parallel=3
    ).model_copy(update=values)


@pytest.fixture
def room(
    database: Database,
    audit: AuditTrail,
    changes: Changes,
    accounts: Accounts,
    tree: DataTree,  # noqa: F811
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
) -> Room:
    monkeypatch.setattr("backends.import_run._NOTE_SECONDS", 0.05)
    monkeypatch.setattr("backends.import_run._FIRST_PAUSE", 0.02)
    vault, settings = Vault(b"x" * 43 + b"="), settings_for(web)
    imports = Imports(database, audit, changes, tree, vault, settings)
    return Room(database, audit, changes, accounts, tree, vault, settings, imports)


# ---- it arrives ---------------------------------------------------------------------------------------------------
async def test_one_file_from_a_web_server(room: Room, alice: Caller, web: Web) -> None:
    web.files["/a/big file.bin"] = WebFile(BIG, headers={"Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"})
    view = await room.imported(alice, f"{web.url}/a/big%20file.bin?signature=hunter2")
    assert (view.state, view.reason) == (ImportState.DONE, "")
    assert (view.files, view.files_done, view.bytes, view.bytes_done) == (1, 1, len(BIG), len(BIG))
    assert view.percent == 100
    assert await room.read(alice, "/datasets/mnist/v1/big file.bin") == BIG
    assert (await room.tree.stat(alice, "/datasets/mnist/v1/big file.bin")).mtime == 1700000000
    assert "hunter2" not in view.source
    async with room.database.reading() as tx:
        row = await tx.get_one(Import, view.id)
        trail = [str(event.detail) + event.thing for event in await tx.scalars(select(AuditEvent))]
    assert "hunter2" not in row.sealed_source
    assert not any("hunter2" in line for line in trail)
    assert await room.events() == [("import.request", "ok"), ("import.done", "ok")]


async def test_a_repository_of_the_hub(room: Room, alice: Caller, web: Web) -> None:
    files = {f"data/part-{number}.bin": os.urandom(2000 + number) for number in range(40)}
    files |= {"README.md": b"# mnist", "empty.txt": b"", "big.parquet": BIG}
    repository = web.publish("ylecun/mnist", "dataset", files, lfs=frozenset({"big.parquet"}))
    view = await room.imported(alice, "hf://datasets/ylecun/mnist@main")
    assert (view.state, view.reason, view.revision) == (ImportState.DONE, "", repository.commit)
    assert (view.files_done, view.bytes_done) == (len(files), sum(map(len, files.values())))
    for path, content in files.items():
        assert await room.read(alice, f"/datasets/mnist/v1/{path}") == content


async def test_a_prefix_of_a_bucket(
    room: Room,
    alice: Caller,
    web: Web,
    object_service: ObjectSettings,  # noqa: F811
    object_settings: ObjectSettings,  # noqa: F811
) -> None:
    other = object_settings.model_copy(update={"bucket": object_settings.bucket + "-other"})
    source = S3Store(other)
    await source.start()
    files = {"logs/a b+c.txt": b"one", "logs/deep/\u4e2d\u6587": b"two", "logs/big": BIG, "logsnot": b"three"}
    for key, content in files.items():
        await source.put(key, content)
    await source.close()
    keys = {"s3_endpoint": other.endpoint, "s3_access_key": other.access_key, "s3_secret_key": other.secret_key}
    room.settings = settings_for(web, **keys)
    room.imports = Imports(room.database, room.audit, room.changes, room.tree, room.vault, room.settings)
    view = await room.imported(alice, f"s3://{other.bucket}/logs")
    assert (view.state, view.reason, view.files_done) == (ImportState.DONE, "", 3)
    assert await room.read(alice, "/datasets/mnist/v1/a b+c.txt") == b"one"
    assert await room.read(alice, "/datasets/mnist/v1/deep/\u4e2d\u6587") == b"two"
    assert await room.read(alice, "/datasets/mnist/v1/big") == BIG
    single = await room.imported(alice, f"s3://{other.bucket}/logs/deep/\u4e2d\u6587", version="v2")
    assert (single.state, await room.names(alice, "/datasets/mnist/v2")) == (ImportState.DONE, ["\u4e2d\u6587"])
    nothing = await room.imported(alice, f"s3://{other.bucket}/nothing/", version="v3")
    assert (nothing.state, nothing.reason) == (ImportState.FAILED, "the source has no files there")


async def test_a_model(room: Room, alice: Caller, web: Web) -> None:
    web.publish("google-bert/bert", "model", {"config.json": b"{}", "model.safetensors": BIG})
    view = await room.imports.request(alice, "model", "bert", "", "hf://google-bert/bert")
    async with room.reconciling():
        view = await room.over(alice, view)
    assert (view.state, view.reason, view.target) == (ImportState.DONE, "", "bert:v1")
    assert await room.read(alice, "/models/bert/v1/model.safetensors") == BIG
    with pytest.raises(BadInput, match="model import"):
        await room.imports.request(alice, "dataset", "bert", "", "hf://google-bert/bert")


async def test_a_published_version_takes_no_import(
    room: Room,
    alice: Caller,
    web: Web,
    datasets: Datasets,  # noqa: F811
) -> None:
    web.files["/x"] = WebFile(b"x")
    assert (await room.imported(alice, f"{web.url}/x")).state is ImportState.DONE
    await datasets.publish(alice, "mnist", "v1")
    with pytest.raises(NotAllowed, match="published"):
        await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/x")


async def test_what_is_being_imported_is_not_published(
    room: Room,
    alice: Caller,
    web: Web,
    datasets: Datasets,  # noqa: F811
) -> None:
    web.files["/x"] = WebFile(b"x")
    await room.imported(alice, f"{web.url}/x")
    view = await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/x")
    with pytest.raises(Conflict, match=f"import cancel {view.id}"):
        await datasets.publish(alice, "mnist", "v1")
    await room.imports.cancel(alice, view.id)
    assert (await datasets.publish(alice, "mnist", "v1")).sealed


async def test_versions_are_numbered_where_none_is_named(room: Room, alice: Caller, web: Web) -> None:
    web.files["/x"] = WebFile(b"x")
    made = [(await room.imports.request(alice, "dataset", "mnist", "", f"{web.url}/x")).target for _ in range(3)]
    assert made == ["mnist:v1", "mnist:v2", "mnist:v3"]


# ---- it breaks off and goes on ------------------------------------------------------------------------------------
async def test_a_connection_that_is_cut_again_and_again_goes_on_where_it_was(
    room: Room, alice: Caller, web: Web
) -> None:
    web.files["/big"] = WebFile(BIG, cuts=[0, 3 * MIB, 2 * MIB, 0, 1 * MIB, 4 * MIB])
    view = await room.imported(alice, f"{web.url}/big")
    assert (view.state, view.reason) == (ImportState.DONE, "")
    assert await room.read(alice, "/datasets/mnist/v1/big") == BIG
    starts = [int(asked[6:-1]) for asked in web.ranges_asked("/big") if asked]
    assert starts == sorted(starts)
    assert starts[0] > 0


async def test_a_server_without_ranges_is_read_again_but_not_written_again(room: Room, alice: Caller, web: Web) -> None:
    web.files["/big"] = WebFile(BIG, cuts=[0, 7 * MIB, 9 * MIB], ranges=False)
    view = await room.imported(alice, f"{web.url}/big")
    assert (view.state, view.bytes_done) == (ImportState.DONE, len(BIG))
    assert await room.read(alice, "/datasets/mnist/v1/big") == BIG


async def test_a_file_that_changes_in_the_middle_is_taken_from_its_beginning(
    room: Room, alice: Caller, web: Web
) -> None:
    other = os.urandom(len(BIG) - 1000)
    file = web.files["/big"] = WebFile(BIG, cuts=[0, 7 * MIB])
    view = await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/big")
    async with room.reconciling():
        async with asyncio.timeout(60):
            while len(web.ranges_asked("/big")) < 2 or file.cuts:  # noqa: ASYNC110 - a web server gets there
                await asyncio.sleep(0.001)
            file.content = other
        view = await room.over(alice, view)
    assert (view.state, view.reason) == (ImportState.DONE, "")
    assert await room.read(alice, "/datasets/mnist/v1/big") in (other, BIG)


async def test_without_a_validator_nothing_is_joined(room: Room, alice: Caller, web: Web) -> None:
    web.files["/big"] = WebFile(BIG, etag="-", cuts=[0, 7 * MIB])
    view = await room.imported(alice, f"{web.url}/big")
    assert view.state is ImportState.DONE
    assert await room.read(alice, "/datasets/mnist/v1/big") == BIG
    assert web.ranges_asked("/big") == ["", "", ""]


async def test_a_source_that_stays_away_fails_in_words_and_can_be_retried(room: Room, alice: Caller, web: Web) -> None:
    web.files["/big"] = WebFile(BIG, status=503)
    room.settings = settings_for(web, attempts=2)
    view = await room.imported(alice, f"{web.url}/big")
    assert (view.state, view.reason) == (ImportState.FAILED, "the source is overloaded or away (503)")
    web.files["/big"] = WebFile(BIG)
    view = await room.imports.retry(alice, view.id)
    assert view.state is ImportState.QUEUED
    async with room.reconciling():
        assert (await room.over(alice, view)).state is ImportState.DONE
    assert await room.read(alice, "/datasets/mnist/v1/big") == BIG
    assert [action for action, _ in await room.events()] == [
        "import.request", "import.failed", "import.retry", "import.done",
    ]  # fmt: skip


async def test_a_gateway_that_dies_in_the_middle_goes_on_with_what_was_done(
    room: Room,
    alice: Caller,
    web: Web,
    database: Database,
    store: S3Store,  # noqa: F811
    audit: AuditTrail,
    changes: Changes,
    object_settings: ObjectSettings,  # noqa: F811
) -> None:
    files = {f"part-{number:02}": os.urandom(3000) for number in range(30)} | {"zz-big": BIG}
    web.publish("org/set", "dataset", files, lfs=frozenset({"zz-big"}))
    for path, file in web.files.items():
        file.pause = 0.02 if path.endswith("zz-big") else 0.0
    view = await room.imports.request(alice, "dataset", "mnist", "v1", "hf://datasets/org/set")
    async with room.reconciling():
        async with asyncio.timeout(60):
            while view.files_done < 30 or view.bytes_done < 7 * MIB:
                await asyncio.sleep(0.02)
                view = await room.imports.show(alice, view.id)
    # The loop was cut off; its row says that it runs. A crash leaves the same, and an upload row of a dead process.
    assert (await room.imports.show(alice, view.id)).state is ImportState.RUNNING
    survivors = Uploads(database, store, audit, changes, object_settings)
    await survivors.recover()
    seen = len(web.asked)
    for file in web.files.values():
        file.pause = 0.0
    async with room.reconciling():
        view = await room.over(alice, view)
    await survivors.close()
    assert (view.state, view.reason, view.files_done) == (ImportState.DONE, "", 31)
    for path, content in files.items():
        assert await room.read(alice, f"/datasets/mnist/v1/{path}") == content
    again = {asked.path.rpartition("/")[2] for asked in web.asked[seen:]}
    assert again == {"zz-big"}
    (start,) = [asked.headers["range"] for asked in web.asked[seen:]]
    assert int(start[6:-1]) >= 5 * MIB


async def test_cancelling_ends_it_at_once_and_keeps_what_has_arrived(room: Room, alice: Caller, web: Web) -> None:
    web.publish("org/set", "dataset", {"a": b"first", "zz-big": BIG})
    next(file for path, file in web.files.items() if path.endswith("zz-big")).pause = 0.2
    view = await room.imports.request(alice, "dataset", "mnist", "v1", "hf://datasets/org/set")
    async with room.reconciling():
        async with asyncio.timeout(60):
            while view.files_done < 1:
                await asyncio.sleep(0.02)
                view = await room.imports.show(alice, view.id)
        cancelled = await room.imports.cancel(alice, view.id)
        assert cancelled.state is ImportState.CANCELLED
        await asyncio.sleep(0.5)
        asked = len(web.asked)
        await asyncio.sleep(0.5)
        assert len(web.asked) == asked
    assert await room.names(alice, "/datasets/mnist/v1") == ["a"]
    with pytest.raises(Conflict, match="cancelled"):
        await room.imports.cancel(alice, view.id)
    assert (await room.events())[-1] == ("import.cancel", "ok")


# ---- what must not happen -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["lfs", "git"])
async def test_a_wrong_hash_leaves_no_file(room: Room, alice: Caller, web: Web, kind: str) -> None:
    repository = web.publish("org/set", "dataset", {"x": BIG}, lfs=frozenset({"x"} if kind == "lfs" else ()))
    wrong = bytearray(BIG)
    wrong[len(BIG) // 2] ^= 1
    web.files[f"/datasets/org/set/resolve/{repository.commit}/x"] = WebFile(bytes(wrong))
    view = await room.imported(alice, "hf://datasets/org/set")
    assert (view.state, "hash" in view.reason) == (ImportState.FAILED, True)
    assert await room.names(alice, "/datasets/mnist/v1") == []


async def test_a_wrong_hash_after_a_cut_leaves_no_file(room: Room, alice: Caller, web: Web) -> None:
    repository = web.publish("org/set", "dataset", {"x": BIG}, lfs=frozenset({"x"}))
    wrong = bytearray(BIG)
    wrong[-1] ^= 1
    web.files[f"/datasets/org/set/resolve/{repository.commit}/x"] = WebFile(bytes(wrong), cuts=[6 * MIB])
    view = await room.imported(alice, "hf://datasets/org/set")
    assert (view.state, "hash" in view.reason) == (ImportState.FAILED, True)
    assert await room.names(alice, "/datasets/mnist/v1") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "./x", "a/\x1b[31m"])
async def test_paths_that_climb_are_refused(room: Room, alice: Caller, web: Web, path: str) -> None:
    web.publish("org/set", "dataset", {"good": b"good", path: b"bad"})
    view = await room.imported(alice, "hf://datasets/org/set")
    assert view.state is ImportState.FAILED
    assert "\x1b" not in view.reason
    assert await room.names(alice, "/datasets/mnist/v1") == []


@pytest.mark.parametrize(
    "source",
    ["http://169.254.169.254/latest/meta-data/", "https://127.0.0.1/x", "https://localhost:22/x", "http://10.0.0.1/x",
     "https://user:pass@example.org/x", "file:///etc/passwd", "mnist", "hf://org/model"],
)  # fmt: skip
async def test_what_may_not_be_asked_never_is(room: Room, alice: Caller, source: str) -> None:
    try:
        view = await room.imported(alice, source)
    except (BadInput, NotAllowed):
        return
    assert view.state is ImportState.FAILED
    assert "private address" in view.reason


async def test_only_who_may_write_may_import(room: Room, alice: Caller, bob: Caller, admin: Caller, web: Web) -> None:
    web.files["/x"] = WebFile(b"x")
    view = await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/x")
    with pytest.raises(NotAllowed):
        await room.imports.request(bob, "dataset", "mnist", "v1", f"{web.url}/x")
    for use in (room.imports.show, room.imports.cancel, room.imports.retry):
        with pytest.raises(NotFound):
            await use(bob, view.id)
    with pytest.raises(InUse, match=view.id):
        await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/x")
    assert await room.imports.list(bob) == []
    assert [one.id for one in await room.imports.list(alice)] == [view.id]
    assert [one.id for one in await room.imports.list(admin, everybody=True)] == [view.id]
    with pytest.raises(NotAllowed):
        await room.imports.list(alice, everybody=True)
    await room.imports.cancel(admin, view.id)


async def test_somebody_who_was_locked_out_imports_nothing_more(room: Room, alice: Caller, web: Web) -> None:
    web.files["/x"] = WebFile(b"x")
    view = await room.imports.request(alice, "dataset", "mnist", "v1", f"{web.url}/x")
    await room.accounts.set_disabled("alice", disabled=True, actor="operator")
    async with room.reconciling():
        view = await room.over(alice, view)
    assert (view.state, view.reason) == (ImportState.FAILED, "'alice' may not come in any more")
    assert web.asked == []


async def test_limits(room: Room, alice: Caller, web: Web) -> None:
    web.publish("org/set", "dataset", {"a": b"1", "b": b"2", "c": b"3"})
    room.settings = settings_for(web, most_files=2)
    view = await room.imported(alice, "hf://datasets/org/set")
    assert (view.state, view.reason) == (ImportState.FAILED, "the repository has more than 2 files")
    room.settings = settings_for(web, most_gib=0)
    view = await room.imported(alice, "hf://datasets/org/set", version="v2")
    assert (view.state, view.reason) == (ImportState.FAILED, "an import may have 0 GiB at most")


async def test_ashores_own_bucket_is_no_source(
    room: Room,
    alice: Caller,
    web: Web,
    object_settings: ObjectSettings,  # noqa: F811
) -> None:
    room.settings = settings_for(web, s3_endpoint=object_settings.endpoint)
    imports = Imports(
        room.database, room.audit, room.changes, room.tree, room.vault, room.settings, own=object_settings
    )
    with pytest.raises(NotAllowed, match="own bucket"):
        await imports.request(alice, "dataset", "mnist", "v1", f"s3://{object_settings.bucket}/datasets/main/secret")


async def test_a_file_that_is_there_already_with_its_digest_is_not_fetched(room: Room, alice: Caller, web: Web) -> None:
    web.publish("org/set", "dataset", {"x": BIG}, lfs=frozenset({"x"}))
    view = await room.imported(alice, "hf://datasets/org/set")
    async with room.database.writing() as tx:
        await tx.execute(update(ImportFile).values(done=False))
        await tx.execute(update(Import).values(state=ImportState.QUEUED))
    sha256 = hashlib.sha256(BIG).hexdigest()
    known = await room.tree.digest(alice, "/datasets/mnist/v1/x", "sha256") == sha256
    seen = len(web.asked)
    async with room.reconciling():
        view = await room.over(alice, await room.imports.show(alice, view.id))
    assert (view.state, view.files_done, view.bytes_done) == (ImportState.DONE, 1, len(BIG))
    assert (len(web.asked) == seen) == known
