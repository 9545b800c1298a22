"""Directories that are renamed: seen at once, copied behind everybody's back, never lost and never overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AlreadyExists, Conflict, NotAllowed, NotFound, Unavailable
from storage.models import Models
from storage.moves import Moves, Names, Shown
from storage.namespace import DataTree
from storage.records import AssetKind, Deletion, FileFact, Move
from storage.settings import ObjectSettings
from storage.upload_target import always
from storage.uploads import Uploads
from tests.databases import KINDS
from tests.storage.conftest import Desk
from tests.storage.memory_store import MemoryStore

DATABASES = KINDS

FILES = 30


def _move(old: str, new: str, *, copied: bool = False) -> Move:
    return Move(old=old, new=new, copied=copied)


def test_what_a_move_shows() -> None:
    shown = Shown([_move("v/old/", "v/dir/new/")])
    assert shown.stored_at("v/dir/new") == "v/old"
    assert shown.stored_at("v/dir/new/") == "v/old/"
    assert shown.stored_at("v/dir/new/a/b") == "v/old/a/b"
    assert shown.stored_at("v/dir/newer") == "v/dir/newer"
    assert shown.is_hidden("v/old/x")
    assert not shown.is_hidden("v/older")
    assert shown.names_in("v/") == (set(), {"old"})
    assert shown.names_in("v/dir/") == ({"new"}, set())
    for busy in ("v/old", "v/old/x", "v/dir", "v/dir/new", "v"):
        assert shown.is_busy(busy)
    for free in ("v/older", "v/dir/x", "v/other"):
        assert not shown.is_busy(free)
    assert Shown([_move("v/old/", "v/new/", copied=True)]).stored_at("v/new/a") == "v/new/a"


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def room(
    database: Database, audit: AuditTrail, changes: Changes, memory: MemoryStore, alice: Caller
) -> AsyncIterator[Desk]:
    """A tree over a store that can be told to wait, with a directory `old` of 30 files."""
    uploads = Uploads(database, memory, audit, changes, ObjectSettings())
    datasets, models = Datasets(database, audit, changes, memory), Models(database, audit, changes, memory)
    tree = DataTree(database, audit, changes, memory, uploads, datasets, models)
    await tree.mkdir(alice, "/datasets/d")
    await tree.mkdir(alice, "/datasets/d/v1")
    desk = Desk(tree, alice)
    for n in range(FILES):
        await desk.put(f"/datasets/d/v1/old/{n % 3}/{n:03}", str(n).encode(), mtime=1_000_000_000 + n)
    await desk.put("/datasets/d/v1/other", b"x")
    yield desk
    await tree.moves.close()
    await uploads.close()


class Gate:
    """Lets `passes` copies through, then holds them up; with `done` only their answers."""

    def __init__(self, memory: MemoryStore, passes: int, *, done: bool = False) -> None:
        self.left = passes
        self.held = asyncio.Event()
        self._go = asyncio.Event()
        copy = memory.copy

        async def slow(source: str, target: str) -> str:
            etag = await copy(source, target) if done else ""
            if self.left <= 0:
                self.held.set()
                await self._go.wait()
            self.left -= 1
            return etag or await copy(source, target)

        memory.copy = slow  # type: ignore[method-assign]

    def open(self) -> None:
        self._go.set()


async def _rename(desk: Desk) -> asyncio.Task[None]:
    return asyncio.create_task(
        desk.tree.rename(desk.caller, "/datasets/d/v1/old", "/datasets/d/v1/new", replace=False), name="rename"
    )


async def _whole(desk: Desk) -> None:
    assert await desk.names("/datasets/d/v1") == ["new/", "other"]
    assert await desk.names("/datasets/d/v1/new") == ["0/", "1/", "2/"]
    for n in range(FILES):
        path = f"/datasets/d/v1/new/{n % 3}/{n:03}"
        assert await desk.get(path) == str(n).encode()
        assert (await desk.tree.stat(desk.caller, path)).mtime == 1_000_000_000 + n
    for path in ("old", "old/0", "old/0/000"):
        with pytest.raises(NotFound):
            await desk.tree.stat(desk.caller, f"/datasets/d/v1/{path}")
    with pytest.raises(NotFound):
        await desk.names("/datasets/d/v1/old")


async def test_the_new_name_is_seen_at_once(room: Desk, memory: MemoryStore, database: Database) -> None:
    gate = Gate(memory, 11)
    rename = await _rename(room)
    await gate.held.wait()
    await _whole(room)
    tree, alice, root = room.tree, room.caller, "/datasets/d/v1"
    for attempt in (
        room.put(f"{root}/new/0/late", b"x"),
        room.put(f"{root}/old/0/late", b"x"),
        tree.remove(alice, f"{root}/new/0/000"),
        tree.rename(alice, f"{root}/new", f"{root}/newer", replace=False),
        tree.rename(alice, f"{root}/other", f"{root}/old", replace=False),
    ):
        with pytest.raises(Conflict, match="being moved"):
            await attempt
    assert not rename.done()
    gate.open()
    await rename
    await _whole(room)
    assert not [key for key in memory.objects if "/old/" in key]
    async with database.reading() as tx:
        assert (await tx.scalars(select(Move))).all() == []
        assert not [key for key in await tx.scalars(select(FileFact.key)) if "/old/" in key]
    await room.put(f"{root}/new/0/late", b"x")
    await room.put(f"{root}/old/again", b"x")
    assert await room.names(f"{root}/old") == ["again"]


async def test_a_large_directory_is_answered_before_it_is_done(
    room: Desk, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.namespace._MOVED_AT_ONCE", 0.05)
    gate = Gate(memory, 3)
    await (await _rename(room))
    await _whole(room)
    gate.open()
    await asyncio.gather(*room.tree.moves._tasks.values())
    await _whole(room)


@pytest.mark.parametrize("copied", [0, 17, FILES])
async def test_a_process_that_dies_in_a_move(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes, copied: int
) -> None:
    gate = Gate(memory, copied)
    deleting = asyncio.Event()
    remove = memory.delete_many

    async def slow(keys: object) -> None:
        deleting.set()
        await asyncio.Event().wait()

    memory.delete_many = slow  # type: ignore[method-assign]
    rename = await _rename(room)
    await (deleting if copied == FILES else gate.held).wait()
    await room.tree.moves.close()
    await rename
    memory.delete_many = remove  # type: ignore[method-assign]
    gate.open()
    async with database.writing() as tx:
        await tx.execute(update(Move).values(instance=""))
    await _whole(room)
    successor = Moves(database, memory, audit, changes)
    assert await successor.recover() == 1
    await asyncio.gather(*successor._tasks.values())
    assert await successor.recover() == 0
    await room.tree.moves._look()
    await _whole(room)
    assert not [key for key in memory.objects if "/old/" in key]


async def _silence(database: Database) -> None:
    """As if nobody had worked on any move for two minutes."""
    async with database.writing() as tx:
        await tx.execute(update(Move).values(touched=now() - timedelta(minutes=2)))


async def test_a_store_that_fails_is_tried_again(
    room: Desk, memory: MemoryStore, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """By the same process, which may be the only one."""
    moves = room.tree.moves
    memory.fault = lambda method, key: Unavailable("away") if method == "copy" and key.endswith("7") else None
    await (await _rename(room))
    await _whole(room)
    assert "does not go on now" in caplog.text
    memory.fault = lambda method, key: None
    assert await moves.recover() == 0
    await _silence(database)
    assert await moves.recover() == 1
    await asyncio.gather(*moves._tasks.values())
    await _whole(room)
    assert not [key for key in memory.objects if "/old/" in key]


async def test_whoever_was_overtaken_removes_nothing(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    """A process that was away for a minute comes back when another one has finished its move."""
    copy = memory.copy
    gate = Gate(memory, FILES - 5, done=True)
    rename = await _rename(room)
    await gate.held.wait()
    memory.copy = copy  # type: ignore[method-assign]
    await _silence(database)
    successor = Moves(database, memory, audit, changes)
    assert await successor.recover() == 1
    await asyncio.gather(*successor._tasks.values())
    gate.open()
    await rename
    await room.tree.moves._look()
    await _whole(room)
    assert len([key for key in memory.objects if "/new/" in key]) == FILES


async def test_whoever_was_overtaken_while_he_removes_stops(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    """By then the old name may be somebody's new directory."""
    remove, held, go = memory.delete_many, asyncio.Event(), asyncio.Event()

    async def slow(keys: Iterable[str]) -> None:
        await remove(keys)
        held.set()
        await go.wait()

    memory.delete_many = slow  # type: ignore[method-assign]
    rename = await _rename(room)
    await held.wait()
    memory.delete_many = remove  # type: ignore[method-assign]
    await _silence(database)
    successor = Moves(database, memory, audit, changes)
    assert await successor.recover() == 1
    await asyncio.gather(*successor._tasks.values())
    await memory.put("datasets/team/d/v1/old/fresh", b"fresh")
    go.set()
    await rename
    await room.tree.moves._look()
    assert await room.get("/datasets/d/v1/old/fresh") == b"fresh"
    assert await room.names("/datasets/d/v1/new") == ["0/", "1/", "2/"]


async def test_a_move_that_takes_long_is_not_taken_over(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One page of large files may take longer than a silence."""
    monkeypatch.setattr("storage.moves._BEAT", 0.05)
    gate = Gate(memory, 3)
    rename = await _rename(room)
    await gate.held.wait()
    await _silence(database)
    await asyncio.sleep(0.3)
    assert await Moves(database, memory, audit, changes).recover() == 0
    gate.open()
    await rename
    await _whole(room)


async def test_what_stands_in_the_way(room: Desk) -> None:
    tree, alice, root = room.tree, room.caller, "/datasets/d/v1"
    await room.put(f"{root}/there/x", b"x")
    with pytest.raises(AlreadyExists):
        await tree.rename(alice, f"{root}/old", f"{root}/there", replace=True)
    with pytest.raises(AlreadyExists):
        await tree.rename(alice, f"{root}/old", f"{root}/other", replace=True)
    writer = await tree.open_writer(alice, f"{root}/old/unfinished", truncate=True)
    await writer.write(0, bytes(9 * 1024 * 1024))
    with pytest.raises(Conflict, match="not finished"):
        await tree.rename(alice, f"{root}/old", f"{root}/new", replace=False)
    await writer.finish()
    await tree.rename(alice, f"{root}/old", f"{root}/new", replace=False)
    assert (await tree.stat(alice, f"{root}/new/unfinished")).size == 9 * 1024 * 1024


async def test_a_version_with_a_move_is_not_published(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    gate = Gate(memory, 11)
    rename = await _rename(room)
    await gate.held.wait()
    with pytest.raises(Conflict, match="being moved"):
        await Datasets(database, audit, changes, memory).publish(room.caller, "d", "v1")
    gate.open()
    await rename


async def test_a_move_that_is_ended_leaves_no_half_of_a_page(
    room: Desk, memory: MemoryStore, database: Database
) -> None:
    """What a deletion of the version does: it ends moves, then removes what it finds."""
    gate = Gate(memory, 11)
    rename = await _rename(room)
    await gate.held.wait()
    moment = now()
    async with database.writing() as tx:
        await tx.execute(delete(Move))
        tx.add(
            Deletion(
                asset_id="a",
                workspace_id="w",
                kind=AssetKind.DATASET,
                title="d:v1",
                prefix="datasets/team/d/v1/",
                by_id=room.caller.user_id,
                by_name="alice",
                created=moment,
                touched=moment,
            )  # fmt: skip
        )
    gate.open()
    await rename
    assert not [key for key in memory.objects if "/new/" in key]
    assert len([key for key in memory.objects if "/old/" in key]) == FILES


async def test_a_move_by_another_process_is_seen_at_once_by_what_is_finished(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    writer = await room.tree.open_writer(room.caller, "/datasets/d/v1/old/late", truncate=True)
    await writer.write(0, b"late")
    await room.tree.moves.shown()
    gate = Gate(memory, 0)
    other = Moves(database, memory, audit, changes)
    prefix = "datasets/team/d/v1/"
    task = await other.begin(room.caller, Names(f"{prefix}old/", f"{prefix}new/", "/old", "/new"), always)
    await gate.held.wait()
    with pytest.raises(Conflict, match="being moved"):
        await writer.finish()
    gate.open()
    await task
    await room.tree.moves._look()
    await _whole(room)


# ---- files -----------------------------------------------------------------------------------------------------
OTHER, RENAMED = "/datasets/d/v1/other", "/datasets/d/v1/renamed"


async def _rename_file(desk: Desk, *, replace: bool = True) -> asyncio.Task[None]:
    return asyncio.create_task(desk.tree.rename(desk.caller, OTHER, RENAMED, replace=replace), name="rename")


async def _moves(database: Database) -> list[Move]:
    async with database.reading() as tx:
        return list((await tx.scalars(select(Move))).all())


async def test_what_a_move_of_a_file_shows() -> None:
    """Readers see the old name until it is done; nobody writes either of them."""
    shown = Shown([_move("v/f", "v/dir/g")])
    for busy in ("v/f", "v/dir/g", "v/dir", "v", "v/f/x"):
        assert shown.is_busy(busy)
    for free in ("v/ff", "v/dir/gg", "v/dir/other"):
        assert not shown.is_busy(free)
    assert not shown.is_hidden("v/f")
    assert shown.stored_at("v/dir/g") == "v/dir/g"
    assert shown.names_in("v/") == shown.names_in("v/dir/") == (set(), set())


async def test_what_is_sent_while_a_file_is_renamed_is_refused_and_not_lost(
    room: Desk, memory: MemoryStore, database: Database
) -> None:
    gate = Gate(memory, 0, done=True)
    rename = await _rename_file(room)
    await gate.held.wait()
    for path in (OTHER, RENAMED):
        with pytest.raises(Conflict, match="being moved"):
            await room.put(path, b"fresh")
        with pytest.raises(Conflict, match="being moved"):
            await room.tree.remove(room.caller, path)
    assert await room.get(OTHER) == b"x"
    gate.open()
    await rename
    assert await room.get(RENAMED) == b"x"
    with pytest.raises(NotFound):
        await room.get(OTHER)
    await room.put(OTHER, b"fresh")
    assert await room.get(OTHER) == b"fresh"
    assert await _moves(database) == []


async def test_a_version_with_a_file_that_is_renamed_is_not_published(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    datasets = Datasets(database, audit, changes, memory)
    gate = Gate(memory, 0)
    rename = await _rename_file(room)
    await gate.held.wait()
    with pytest.raises(Conflict, match="being moved"):
        await datasets.publish(room.caller, "d", "v1")
    gate.open()
    await rename
    await datasets.publish(room.caller, "d", "v1")


async def test_a_version_that_is_published_just_before_keeps_its_files(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes
) -> None:
    """Between the question whether a rename is allowed and its record."""
    moves, datasets = room.tree.moves, Datasets(database, audit, changes, memory)
    record = moves._record

    async def late(*arguments: Any) -> Move:
        await datasets.publish(room.caller, "d", "v1")
        return await record(*arguments)

    moves._record = late  # type: ignore[method-assign]
    with pytest.raises(NotAllowed, match="published"):
        await room.tree.rename(room.caller, OTHER, RENAMED, replace=True)
    assert await _moves(database) == []
    assert await room.names("/datasets/d/v1") == ["old/", "other"]


@pytest.mark.parametrize("is_copied", [False, True])
async def test_a_process_that_dies_while_it_renames_a_file(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, changes: Changes, is_copied: bool
) -> None:
    """The file is not there twice for good."""
    held, remove = asyncio.Event(), memory.delete
    gate = Gate(memory, int(is_copied))

    async def slow(key: str) -> None:
        held.set()
        await asyncio.Event().wait()

    memory.delete = slow  # type: ignore[method-assign]
    rename = await _rename_file(room)
    await (held if is_copied else gate.held).wait()
    await room.tree.moves.close()
    await asyncio.gather(rename, return_exceptions=True)
    memory.delete = remove  # type: ignore[method-assign]
    gate.open()
    assert await room.get(OTHER) == b"x"
    await _silence(database)
    successor = Moves(database, memory, audit, changes)
    assert await successor.recover() == 1
    await asyncio.gather(*successor._tasks.values())
    await room.tree.moves._look()
    assert await room.names("/datasets/d/v1") == ["old/", "renamed"]
    async with database.reading() as tx:
        assert await tx.get(FileFact, "datasets/team/d/v1/other") is None
        assert (await tx.get_one(FileFact, "datasets/team/d/v1/renamed")).sha256


async def test_a_rename_that_the_store_refuses_changes_nothing(
    room: Desk, memory: MemoryStore, database: Database, audit: AuditTrail, admin: Caller
) -> None:
    memory.fault = lambda method, key: Unavailable("away") if method == "copy" else None
    with pytest.raises(Unavailable):
        await room.tree.rename(room.caller, OTHER, RENAMED, replace=True)
    memory.fault = lambda method, key: None
    assert await _moves(database) == []
    assert [event.outcome for event in await audit.search(admin, action="file.rename")] == ["failed", "ok"]
    await room.put(OTHER, b"again")
    assert await room.names("/datasets/d/v1") == ["old/", "other"]


async def test_a_file_that_is_being_finished_is_not_renamed(room: Desk, memory: MemoryStore, admin: Caller) -> None:
    """Not even by somebody else: what its sender is told is stored would be removed."""
    complete, held, go = memory.complete_upload, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **options: Any) -> str:
        held.set()
        await go.wait()
        return await complete(*arguments, **options)

    memory.complete_upload = slow  # type: ignore[method-assign]
    content = bytes(9 * 1024 * 1024)
    sending = asyncio.create_task(room.put(OTHER, content), name="put")
    await held.wait()
    try:
        with pytest.raises(Conflict, match="sent"):
            await room.tree.rename(admin, OTHER, RENAMED, replace=True)
    finally:
        go.set()
    await sending
    assert await room.get(OTHER) == content
