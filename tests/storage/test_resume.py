"""Going on with what broke off, appending, temporary names, promises of size: on a real store, in all their orders."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, NotFound, OverQuota, Unavailable
from storage.hashing import HashJobs
from storage.namespace import DataTree
from storage.objects.contract import NoSuchUpload
from storage.objects.s3 import S3Store
from storage.overlay import final_key
from storage.parked import UploadSweep
from storage.quota_limits import Resource
from storage.records import FileFact, Holder, Upload, UploadState
from storage.settings import ObjectSettings
from storage.tree import Node, Writer
from storage.uploads import Uploads
from tests.storage.conftest import Desk

MIB = 1024 * 1024
KEY = "datasets/team/d/v1/f"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def send(writer: Writer, content: bytes, start: int = 0, end: int | None = None, step: int = 261_120) -> None:
    end = len(content) if end is None else end
    for offset in range(start, end, step):
        await writer.write(offset, content[offset : min(offset + step, end)])


async def put(writer: Writer, content: bytes, start: int = 0) -> None:
    await send(writer, content, start)
    await writer.finish()


async def rows(database: Database) -> list[Upload]:
    async with database.reading() as tx:
        return list((await tx.scalars(select(Upload).order_by(Upload.created))).all())


class Sender:
    """Alice and her file `/datasets/d/v1/f`."""

    def __init__(self, desk: Desk, root: str) -> None:
        self.desk, self.tree, self.alice, self.root = desk, desk.tree, desk.caller, root
        self.path = f"{root}/f"

    async def open(self, name: str = "f", *, truncate: bool = True) -> Writer:
        return await self.tree.open_writer(self.alice, f"{self.root}/{name}", truncate=truncate)

    async def stat(self, name: str = "f") -> Node:
        return await self.tree.stat(self.alice, f"{self.root}/{name}")

    async def park(self, content: bytes, end: int, name: str = "f") -> int:
        """Send `content` up to `end` and lose the connection; what is stored."""
        writer = await self.open(name)
        await send(writer, content, 0, end)
        await writer.abandon()
        return (await self.stat(name)).size

    async def stored(self, name: str = "f") -> str:
        return digest(await self.desk.get(f"{self.root}/{name}"))


@pytest.fixture
def sender(desk: Desk, root: str) -> Sender:
    return Sender(desk, root)


@pytest.fixture
async def other(
    database: Database, store: S3Store, audit: AuditTrail, changes: Changes, object_settings: ObjectSettings
) -> AsyncIterator[Uploads]:
    """The uploads of another process."""
    uploads = Uploads(database, store, audit, changes, object_settings)
    yield uploads
    await uploads.close()


# ---- resume ----------------------------------------------------------------------------------------------------
async def test_a_parked_upload_is_seen_by_its_owner_and_gone_on_with(
    sender: Sender, tree: DataTree, bob: Caller, database: Database
) -> None:
    content = os.urandom(17 * MIB + 3)
    assert await sender.park(content, 13 * MIB) == 10 * MIB
    node = await sender.stat()
    assert (node.unfinished, node.mode) == (True, 0o600)
    assert [n.size async for n in tree.list(sender.alice, sender.root)] == [10 * MIB]
    assert [n async for n in tree.list(bob, sender.root)] == []
    with pytest.raises(NotFound):
        await tree.stat(bob, sender.path)
    with pytest.raises(Conflict, match="reput"):
        await tree.open_reader(sender.alice, sender.path)
    writer = await sender.open(truncate=False)
    assert writer.size == 10 * MIB
    await send(writer, content, 10 * MIB)
    assert (await writer.finish()).size == len(content)
    assert await sender.stored() == digest(content)
    assert (await sender.stat()).mode == 0o644
    assert [row.state for row in await rows(database)] == [UploadState.DONE]


async def test_the_old_file_is_read_until_the_new_one_is_whole(sender: Sender, tree: DataTree, bob: Caller) -> None:
    await sender.desk.put(sender.path, b"old")
    content = os.urandom(12 * MIB)
    await sender.park(content, 11 * MIB)
    assert (await sender.stat()).size == 10 * MIB
    assert (await tree.stat(bob, sender.path)).size == 3
    assert await sender.desk.get(sender.path) == b"old"
    writer = await sender.open(truncate=False)
    await send(writer, content, writer.size)
    await writer.finish()
    assert await Desk(tree, bob).get(sender.path) == content


async def test_a_second_connection_takes_over(sender: Sender, database: Database) -> None:
    content = os.urandom(13 * MIB)
    first = await sender.open()
    await send(first, content, 0, 12 * MIB)
    second = await sender.open(truncate=False)
    assert second.size == 10 * MIB
    with pytest.raises(Conflict, match="another connection"):
        await first.write(12 * MIB, b"late")
    await send(second, content, second.size)
    await second.finish()
    with pytest.raises(Conflict):
        await first.finish()
    assert await sender.stored() == digest(content)
    assert [row.epoch for row in await rows(database)] == [2]


async def test_another_process_takes_over(sender: Sender, tree: DataTree, other: Uploads, uploads: Uploads) -> None:
    content = os.urandom(13 * MIB)
    first = await sender.open()
    await send(first, content, 0, 12 * MIB)
    await first.flush()
    target = first.target  # type: ignore[attr-defined]
    second = await other.resume(sender.alice, target)
    assert second is not None
    assert second.size == 10 * MIB
    with pytest.raises(Conflict):
        await first.finish()
    await send(second, content, second.size)
    await second.finish()
    assert await sender.stored() == digest(content)
    assert (uploads.budget.used, other.budget.used) == (0, 0)


async def test_an_upload_that_was_ended_elsewhere(sender: Sender, database: Database) -> None:
    writer = await sender.open()
    await send(writer, os.urandom(6 * MIB))
    await writer.flush()
    async with database.writing() as tx:
        await tx.execute(update(Upload).values(state=UploadState.ABORTED))
    with pytest.raises(Conflict, match="ended"):
        await writer.finish()
    with pytest.raises(NotFound):
        await sender.stat()


async def test_parts_beyond_a_gap_do_not_count(sender: Sender, store: S3Store, database: Database) -> None:
    content = os.urandom(19 * MIB)
    await sender.park(content, 6 * MIB)
    (row,) = await rows(database)
    await store.put_part(KEY, row.s3_upload_id, 3, b"x" * (5 * MIB))
    await store.put_part(KEY, row.s3_upload_id, 7, b"beyond the end")
    writer = await sender.open(truncate=False)
    assert writer.size == 5 * MIB
    await send(writer, content, writer.size)
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_parts_that_the_store_has_lost(
    sender: Sender, store: S3Store, database: Database, audit: AuditTrail, admin: Caller
) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    (row,) = await rows(database)
    await store.abort_upload(KEY, row.s3_upload_id)
    with pytest.raises(Conflict, match="thrown away"):
        await sender.open(truncate=False)
    assert [row.state for row in await rows(database)] == [UploadState.LOST]
    assert [event.thing for event in await audit.search(admin, action="upload.lost")] == [sender.path]
    await sender.desk.put(sender.path, b"again")
    assert await sender.desk.get(sender.path) == b"again"


async def test_parts_that_are_lost_while_they_are_sent(sender: Sender, store: S3Store, database: Database) -> None:
    writer = await sender.open()
    await send(writer, os.urandom(6 * MIB))
    await writer.flush()
    (row,) = await rows(database)
    await store.abort_upload(KEY, row.s3_upload_id)
    with pytest.raises(Conflict, match="thrown away"):
        await writer.finish()
    assert [row.state for row in await rows(database)] == [UploadState.LOST]


async def test_sending_from_the_beginning_without_truncation_begins_anew(sender: Sender) -> None:
    """What scp does."""
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    content = os.urandom(7 * MIB)
    writer = await sender.open(truncate=False)
    await send(writer, content)
    await writer.truncate(len(content))
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_any_other_offset_is_refused_and_the_file_does_not_appear(sender: Sender, database: Database) -> None:
    content = os.urandom(12 * MIB)
    await sender.park(content, 11 * MIB)
    writer = await sender.open(truncate=False)
    with pytest.raises(BadInput, match="in place"):
        await writer.write(3 * MIB, b"in the middle")
    with pytest.raises(BadInput, match="in place"):  # a client that has sent ahead learns to stop
        await send(writer, content, 10 * MIB)
    with pytest.raises(BadInput):
        await writer.finish()
    assert [row.state for row in await rows(database)] == [UploadState.PARKED]


async def test_only_looking_changes_nothing(sender: Sender, database: Database) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    for end in ("finish", "abandon"):
        writer = await sender.open(truncate=False)
        await getattr(writer, end)()
        assert [(row.state, row.size) for row in await rows(database)] == [(UploadState.PARKED, 5 * MIB)]


async def test_an_exact_multiple_of_a_part_leaves_something_to_send(sender: Sender) -> None:
    """Clients that find the size of their own file think that they are done, and never close it."""
    content = os.urandom(10 * MIB)
    assert await sender.park(content, 10 * MIB) == 5 * MIB
    writer = await sender.open(truncate=False)
    await send(writer, content, writer.size)
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_truncation_throws_the_parked_upload_away(sender: Sender, store: S3Store, database: Database) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    (row,) = await rows(database)
    await sender.desk.put(sender.path, b"new")
    assert await sender.desk.get(sender.path) == b"new"
    with pytest.raises(NoSuchUpload):
        await store.list_parts(KEY, row.s3_upload_id)
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]


async def test_remove_ends_a_parked_upload_and_leaves_the_old_file(sender: Sender, database: Database) -> None:
    await sender.desk.put(sender.path, b"old")
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    await sender.tree.remove(sender.alice, sender.path)
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]
    assert (await sender.stat()).size == 3
    await sender.tree.remove(sender.alice, sender.path)
    with pytest.raises(NotFound):
        await sender.stat()


async def test_a_directory_with_an_unfinished_file_is_not_empty(sender: Sender) -> None:
    await sender.tree.mkdir(sender.alice, f"{sender.root}/dir")
    await sender.park(os.urandom(6 * MIB), 6 * MIB, "dir/sub/f")
    assert await sender.desk.names(sender.root) == ["dir/"]
    assert await sender.desk.names(f"{sender.root}/dir") == ["sub/"]
    with pytest.raises(Conflict, match="not empty"):
        await sender.tree.rmdir(sender.alice, f"{sender.root}/dir")


# ---- append ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [10, 5 * MIB, 7 * MIB + 1])
async def test_appending(sender: Sender, size: int, database: Database) -> None:
    content = os.urandom(size + 6 * MIB)
    await sender.desk.put(sender.path, content[:size])
    writer = await sender.open(truncate=False)
    assert writer.size == size
    await send(writer, content, size)
    await writer.finish()
    assert await sender.stored() == digest(content)
    copied = [row.copied for row in await rows(database)]
    assert copied[-1] == (size if size >= 5 * MIB else 0)


async def test_appending_that_breaks_off_is_gone_on_with(sender: Sender) -> None:
    content = os.urandom(20 * MIB)
    await sender.desk.put(sender.path, content[: 6 * MIB])
    writer = await sender.open(truncate=False)
    await send(writer, content, 6 * MIB, 13 * MIB)
    await writer.abandon()
    assert (await sender.stat()).size == 11 * MIB
    assert await sender.stored() == digest(content[: 6 * MIB])
    writer = await sender.open(truncate=False)
    await send(writer, content, 11 * MIB)
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_a_change_in_the_middle_that_breaks_off_leaves_nothing(sender: Sender, database: Database) -> None:
    await sender.desk.put(sender.path, os.urandom(12 * MIB))
    old = await sender.stored()
    writer = await sender.open(truncate=False)
    await writer.write(8 * MIB, os.urandom(3 * MIB))
    await writer.abandon()
    assert await sender.stored() == old
    assert not (await sender.stat()).unfinished
    assert UploadState.PARKED not in [row.state for row in await rows(database)]


async def test_a_gap_behind_the_end_is_refused_to_the_end(sender: Sender) -> None:
    await sender.desk.put(sender.path, b"0123456789")
    writer = await sender.open(truncate=False)
    with pytest.raises(BadInput, match="never padded"):
        await writer.write(11, b"x")
    with pytest.raises(BadInput):
        await writer.finish()
    assert await sender.desk.get(sender.path) == b"0123456789"


async def test_the_object_is_replaced_while_it_is_appended_to(sender: Sender) -> None:
    await sender.desk.put(sender.path, os.urandom(6 * MIB))
    writer = await sender.open(truncate=False)
    await sender.desk.put(sender.path, b"somebody was faster")
    with pytest.raises(Conflict):
        await put(writer, os.urandom(8 * MIB), 6 * MIB)
    await writer.abandon()
    assert await sender.desk.get(sender.path) == b"somebody was faster"


# ---- temporary names -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("a/x.tar.filepart", "a/x.tar"),
        ("a/x.tar.0123abcd.partial", "a/x.tar"),
        ("a/.in.x.tar", "a/x.tar"),
        ("x.filepart", "x"),
        ("a/x.0123ABCD.partial", "a/x.0123ABCD.partial"),
        ("a/.filepart", "a/.filepart"),
        ("a.filepart/x", "a.filepart/x"),
        ("a/.in.", "a/.in."),
    ],
)
def test_which_names_are_temporary(name: str, final: str) -> None:
    assert final_key(name) == final


@pytest.mark.parametrize("size", [0, 100, 10 * MIB, 11 * MIB + 7])
async def test_a_rename_commits_without_copying(sender: Sender, size: int, database: Database, bob: Caller) -> None:
    content = os.urandom(size)
    writer = await sender.open("f.filepart")
    await send(writer, content)
    assert (await writer.finish()).size == size
    assert (await sender.stat("f.filepart")).size == size
    await sender.tree.set_mtime(sender.alice, f"{sender.root}/f.filepart", 1_234_567_890)
    with pytest.raises(NotFound):
        await sender.stat("f")
    if size > 5 * MIB:
        assert [row.state for row in await rows(database)] == [UploadState.SEALED]
        known = await sender.tree.digest(sender.alice, f"{sender.root}/f.filepart", "md5")
        assert known == hashlib.md5(content, usedforsecurity=False).hexdigest()
        with pytest.raises(NotFound):
            await sender.tree.stat(bob, f"{sender.root}/f.filepart")
    await sender.tree.rename(sender.alice, f"{sender.root}/f.filepart", sender.path, replace=False)
    assert await sender.stored() == digest(content)
    assert (await sender.stat()).mtime == 1_234_567_890
    assert await sender.desk.names(sender.root) == ["f"]
    assert await sender.tree.digest(sender.alice, sender.path, "sha256") == digest(content)


async def test_a_rename_replaces_only_when_asked(sender: Sender) -> None:
    await sender.desk.put(sender.path, b"old")
    content = os.urandom(6 * MIB)
    writer = await sender.open("f.filepart")
    await send(writer, content)
    await writer.finish()
    part = f"{sender.root}/f.filepart"
    with pytest.raises(AlreadyExists):
        await sender.tree.rename(sender.alice, part, sender.path, replace=False)
    assert await sender.desk.get(sender.path) == b"old"
    await sender.tree.rename(sender.alice, part, sender.path, replace=True)
    assert await sender.stored() == digest(content)


async def test_a_rename_to_another_name(sender: Sender) -> None:
    content = os.urandom(6 * MIB)
    writer = await sender.open("f.filepart")
    await send(writer, content)
    await writer.finish()
    await sender.desk.put(sender.path, b"old")
    part, elsewhere = f"{sender.root}/f.filepart", f"{sender.root}/g"
    with pytest.raises(Conflict, match="rename it to that first"):
        await sender.tree.rename(sender.alice, part, elsewhere, replace=False)
    await sender.tree.remove(sender.alice, sender.path)
    await sender.tree.rename(sender.alice, part, elsewhere, replace=False)
    assert await sender.stored("g") == digest(content)
    assert await sender.desk.names(sender.root) == ["g"]


async def test_a_rename_before_the_end_is_refused(sender: Sender) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB, "f.filepart")
    with pytest.raises(Conflict, match="not complete"):
        await sender.tree.rename(sender.alice, f"{sender.root}/f.filepart", sender.path, replace=True)


@pytest.mark.parametrize("size", [6 * MIB + 11, 10 * MIB])
async def test_a_sealed_upload_can_be_gone_on_with(sender: Sender, size: int, store: S3Store) -> None:
    """WinSCP closes its file also when the person stops it, and goes on from its size."""
    content = os.urandom(14 * MIB)
    writer = await sender.open("f.filepart")
    await send(writer, content, 0, size)
    await writer.finish()
    size = (await sender.stat("f.filepart")).size
    writer = await sender.open("f.filepart", truncate=False)
    assert writer.size == size
    await send(writer, content, size)
    await writer.finish()
    await sender.tree.rename(sender.alice, f"{sender.root}/f.filepart", sender.path, replace=True)
    assert await sender.stored() == digest(content)
    assert [facts.key async for page in store.list(".ashore/") for facts in page if not facts.is_prefix] == []


# ---- promises --------------------------------------------------------------------------------------------------
async def test_fewer_bytes_than_promised(sender: Sender) -> None:
    content = os.urandom(12 * MIB)
    writer = await sender.open()
    writer.expect_size(len(content))
    await send(writer, content, 0, 11 * MIB)
    with pytest.raises(Conflict, match=f"received {11 * MIB} of {12 * MIB} bytes of '.*/f'; go on with reput"):
        await writer.finish()
    writer = await sender.open(truncate=False)
    assert writer.size == 10 * MIB
    await send(writer, content, writer.size)
    writer.expect_size(len(content))
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_a_doubtful_end_is_kept_in_mind(sender: Sender, database: Database) -> None:
    for size in (10, 6 * MIB):
        writer = await sender.open()
        await send(writer, os.urandom(size))
        writer.doubt()
        await writer.finish()
        async with database.reading() as tx:
            assert (await tx.get_one(FileFact, KEY)).suspect
    assert [row.suspect for row in await rows(database)] == [True]
    await sender.desk.put(sender.path, b"sure")
    async with database.reading() as tx:
        assert not (await tx.get_one(FileFact, KEY)).suspect


# ---- hashes ----------------------------------------------------------------------------------------------------
async def test_hashes_are_known_at_once_or_made_later(
    sender: Sender, database: Database, store: S3Store, changes: Changes
) -> None:
    content = os.urandom(11 * MIB)
    await sender.desk.put(f"{sender.root}/straight", content)
    await sender.park(content, 7 * MIB)
    writer = await sender.open(truncate=False)
    await send(writer, content, writer.size)
    await writer.finish()
    md5, sha256 = hashlib.md5(content, usedforsecurity=False).hexdigest(), digest(content)
    tree, alice = sender.tree, sender.alice
    assert await tree.digest(alice, f"{sender.root}/straight", "md5") == md5
    assert await tree.digest(alice, f"{sender.root}/straight", "sha256") == sha256
    assert await tree.digest(alice, sender.path, "md5") == ""
    jobs = HashJobs(database, store, changes)
    assert await jobs.work() == 1
    assert await jobs.work() == 0
    assert await tree.digest(alice, sender.path, "md5") == md5
    await tree.set_mtime(alice, sender.path, 1)
    await tree.rename(alice, sender.path, f"{sender.root}/renamed", replace=False)
    assert await tree.digest(alice, f"{sender.root}/renamed", "sha256") == sha256


async def test_what_another_tool_removed_is_forgotten(
    sender: Sender, database: Database, store: S3Store, changes: Changes
) -> None:
    await sender.desk.put(sender.path, b"x")
    async with database.writing() as tx:
        await tx.execute(update(FileFact).values(sha256=""))
    await store.delete(KEY)
    assert await HashJobs(database, store, changes).work() == 0
    async with database.reading() as tx:
        assert await tx.get(FileFact, KEY) is None


# ---- housekeeping ----------------------------------------------------------------------------------------------
async def test_the_sweep_settles_and_expires(
    sender: Sender, uploads: Uploads, database: Database, object_settings: ObjectSettings, audit: AuditTrail,
    admin: Caller, store: S3Store,
) -> None:  # fmt: skip
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    (row,) = await rows(database)
    sweep = UploadSweep(uploads, object_settings)
    async with database.writing() as tx:
        values = {"state": UploadState.OPEN, "instance": "dead", "lease_until": now() - timedelta(seconds=1)}
        await tx.execute(update(Upload).values(**values))
    await sweep.work()
    assert [(row.state, row.size) for row in await rows(database)] == [(UploadState.PARKED, 5 * MIB)]
    async with database.writing() as tx:
        await tx.execute(update(Upload).values(touched=now() - timedelta(days=8)))
    await UploadSweep(uploads, object_settings).work()
    assert [row.state for row in await rows(database)] == [UploadState.ABORTED]
    assert [event.thing for event in await audit.search(admin, action="upload.expire")] == [sender.path]
    with pytest.raises(NoSuchUpload):
        await store.list_parts(KEY, row.s3_upload_id)


async def test_the_sweep_leaves_live_uploads_of_other_processes_alone(
    sender: Sender, other: Uploads, object_settings: ObjectSettings
) -> None:
    content = os.urandom(11 * MIB)
    writer = await sender.open()
    await send(writer, content, 0, 6 * MIB)
    await writer.flush()
    await UploadSweep(other, object_settings).work()
    await send(writer, content, 6 * MIB)
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_too_much_that_waits(sender: Sender, uploads: Uploads) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    await uploads.quotas.set_by_operator(Holder.USER, "alice", {Resource.UPLOADS: 1})
    writer = await sender.open("g")
    with pytest.raises(OverQuota, match="upload abort [0-9a-f]+ "):
        await send(writer, os.urandom(6 * MIB))
    await writer.abandon()
    await sender.desk.put(f"{sender.root}/small", b"small files need no parts")
    writer = await sender.open(truncate=False)
    await send(writer, os.urandom(1 * MIB), 0)
    await writer.finish()


@pytest.mark.parametrize(("holder", "name"), [(Holder.WORKSPACE, "team"), (Holder.USER, "alice")])
async def test_no_room_for_a_file(sender: Sender, uploads: Uploads, holder: Holder, name: str) -> None:
    await uploads.quotas.set_by_operator(holder, name, {Resource.STORAGE: 12 * MIB})
    content = os.urandom(12 * MIB)
    await sender.desk.put(f"{sender.root}/other", content[: 4 * MIB])
    writer = await sender.open()
    sentence = "may hold 12MiB, 4MiB are stored: this file does not fit; remove something"
    with pytest.raises(OverQuota, match=sentence):
        await send(writer, content)
    assert writer.size == 10 * MIB  # told with the part that is too much, not at the end
    await writer.abandon()
    assert (await sender.stat()).unfinished
    space = await sender.tree.space(sender.alice, "/")
    assert (space.total, space.used) == (12 * MIB, 9 * MIB)
    other = await sender.open("another")
    with pytest.raises(OverQuota, match="and 5MiB are on their way or broke off: "):
        await put(other, content[: 4 * MIB])
    await sender.tree.remove(sender.alice, f"{sender.root}/other")
    writer = await sender.open(truncate=False)
    await send(writer, content, 5 * MIB)
    await writer.finish()
    assert await sender.stored() == digest(content)


async def test_what_is_deleted_with_its_data_set(sender: Sender, datasets: Datasets, database: Database) -> None:
    await sender.park(os.urandom(6 * MIB), 6 * MIB)
    writer = await sender.open("live")
    await send(writer, os.urandom(6 * MIB))
    await writer.flush()
    await datasets.delete(sender.alice, "d")
    with pytest.raises(Conflict):
        await writer.finish()
    assert {row.state for row in await rows(database)} == {UploadState.ABORTED}


async def test_progress_is_told_while_a_client_stalls(sender: Sender, database: Database, changes: Changes) -> None:
    with changes.subscribe("upload") as hints:
        writer = await sender.open()
        await send(writer, os.urandom(11 * MIB))
        for _ in range(100):
            if [row.size for row in await rows(database)] == [10 * MIB]:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("nobody can see how far it is")
        assert not hints.empty()
    await writer.abandon()


async def test_a_silent_client_gives_its_memory_to_those_who_wait(
    sender: Sender, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.upload_progress._IDLE", 0.5)
    uploads.budget.total = 10 * MIB
    silent = await sender.open("silent")
    await silent.write(0, os.urandom(8 * MIB))  # a part is stored, and three more MiB wait for the rest of theirs
    await silent.flush()
    content = os.urandom(12 * MIB)
    await asyncio.wait_for(put(await sender.open(), content), 30)
    assert await sender.stored() == digest(content)
    with pytest.raises(Unavailable, match="go on with reput"):
        await silent.finish()
    assert (await sender.stat("silent")).size == 5 * MIB
    assert uploads.budget.used == 0


async def test_a_slow_beginner_is_seen_too(sender: Sender, database: Database) -> None:
    writer = await sender.open()
    await writer.write(0, b"a few bytes")
    for _ in range(100):
        if await rows(database):
            break
        await asyncio.sleep(0.1)
    assert [(row.state, row.s3_upload_id) for row in await rows(database)] == [(UploadState.OPEN, "")]
    await writer.finish()
    assert [row.state for row in await rows(database)] == [UploadState.DONE]
