"""The data tree behaves like a file system, on a store that is none."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import update

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, AshoreError, BadInput, Conflict, NotAllowed, NotFound
from storage.namespace import DataTree
from storage.objects.s3 import S3Store
from storage.records import AssetVersion, VersionState
from tests.storage.conftest import Desk

MIB = 1024 * 1024


async def test_the_top_of_the_tree(desk: Desk) -> None:
    assert await desk.names("/") == ["README.txt", "datasets/", "models/", "shared/"]
    assert await desk.names("/datasets") == ["d/"]
    assert await desk.names("/datasets/d") == ["v1/"]
    assert await desk.names("/datasets/d/v1") == []
    assert b"mkdir" in await desk.get("/README.txt")
    assert (await desk.tree.stat(desk.caller, "/README.txt")).size == len(await desk.get("/README.txt"))
    for path in ("/", "/datasets", "/datasets/d", "/datasets/d/v1"):
        assert (await desk.tree.stat(desk.caller, path)).is_directory


@pytest.mark.parametrize(
    "name",
    [
        "plain.bin",
        "with space",
        "a+b",
        "100%25",
        "数据 集.txt",
        "e\u0301-nfd",
        "q?x=1&y#z",
        "-dash",
        "'\"",
        "..x",
    ],
)
async def test_names_come_back_as_they_were(desk: Desk, root: str, name: str) -> None:
    await desk.put(f"{root}/{name}/{name}", b"content of " + name.encode())
    assert await desk.names(root) == [name + "/"]
    assert await desk.names(f"{root}/{name}") == [name]
    assert await desk.get(f"{root}/{name}/{name}") == b"content of " + name.encode()
    await desk.tree.rename(desk.caller, f"{root}/{name}/{name}", f"{root}/{name}2", replace=False)
    assert await desk.get(f"{root}/{name}2") == b"content of " + name.encode()


async def test_names_that_a_store_would_change_are_refused(desk: Desk, root: str) -> None:
    with pytest.raises(BadInput):
        await desk.put(f"{root}/a\\b", b"x")
    with pytest.raises(BadInput):
        await desk.put(f"{root}/" + "/".join(["x" * 199] * 6), b"x")
    assert await desk.names(root) == []


async def test_time_is_kept_and_can_be_changed(desk: Desk, root: str) -> None:
    await desk.put(f"{root}/f", b"x", mtime=1_000_000_000)
    assert (await desk.tree.stat(desk.caller, f"{root}/f")).mtime == 1_000_000_000
    await desk.tree.set_mtime(desk.caller, f"{root}/f", 1_100_000_000)
    nodes = [node async for node in desk.tree.list(desk.caller, root)]
    assert [(node.name, node.mtime, node.size) for node in nodes] == [("f", 1_100_000_000, 1)]
    await desk.tree.set_mtime(desk.caller, root, 5)  # directories: no error
    with pytest.raises(NotFound):
        await desk.tree.set_mtime(desk.caller, f"{root}/none", 5)


async def test_time_of_an_object_that_another_tool_replaced(desk: Desk, root: str, store: S3Store) -> None:
    await desk.put(f"{root}/f", b"x", mtime=1_000_000_000)
    await store.put("datasets/team/d/v1/f", b"other")
    node = await desk.tree.stat(desk.caller, f"{root}/f")
    assert node.size == 5
    assert node.mtime > 1_000_000_000
    await desk.tree.set_mtime(desk.caller, f"{root}/f", 1_200_000_000)
    assert (await desk.tree.stat(desk.caller, f"{root}/f")).mtime == 1_200_000_000


async def test_directories_stay_until_they_are_removed(desk: Desk, root: str) -> None:
    tree, alice = desk.tree, desk.caller
    await tree.mkdir(alice, f"{root}/dir")
    assert await desk.names(root) == ["dir/"]
    await desk.put(f"{root}/dir/sub/f", b"x")
    with pytest.raises(Conflict):
        await tree.rmdir(alice, f"{root}/dir")
    await tree.remove(alice, f"{root}/dir/sub/f")
    assert await desk.names(f"{root}/dir") == ["sub/"]
    assert await desk.names(f"{root}/dir/sub") == []
    await tree.rmdir(alice, f"{root}/dir/sub")
    await tree.rmdir(alice, f"{root}/dir")
    assert await desk.names(root) == []
    with pytest.raises(NotFound):
        await tree.rmdir(alice, f"{root}/dir")
    with pytest.raises(NotFound):
        await desk.names(f"{root}/dir")


async def test_no_file_below_a_file_and_none_over_a_directory(desk: Desk, root: str) -> None:
    await desk.put(f"{root}/f", b"x")
    await desk.put(f"{root}/dir/g", b"x")
    for path in (f"{root}/f/below", f"{root}/f/far/below", f"{root}/dir"):
        with pytest.raises(BadInput):
            await desk.put(path, b"y")
    for path in (f"{root}/f", f"{root}/dir", "/datasets", "/datasets/d", root, "/"):
        with pytest.raises(AlreadyExists):
            await desk.tree.mkdir(desk.caller, path)
    with pytest.raises(BadInput):
        await desk.tree.mkdir(desk.caller, f"{root}/f/dir")
    with pytest.raises(BadInput):
        await desk.tree.open_reader(desk.caller, f"{root}/dir")
    with pytest.raises(BadInput):
        await desk.tree.remove(desk.caller, f"{root}/dir")


async def test_rename_replaces_only_when_asked(desk: Desk, root: str) -> None:
    tree, alice = desk.tree, desk.caller
    await desk.put(f"{root}/a", b"A", mtime=1_000_000_000)
    await desk.put(f"{root}/b", b"B")
    with pytest.raises(AlreadyExists):
        await tree.rename(alice, f"{root}/a", f"{root}/b", replace=False)
    await tree.rename(alice, f"{root}/a", f"{root}/a", replace=False)
    await tree.rename(alice, f"{root}/a", f"{root}/b", replace=True)
    assert await desk.names(root) == ["b"]
    assert await desk.get(f"{root}/b") == b"A"
    assert (await tree.stat(alice, f"{root}/b")).mtime == 1_000_000_000
    with pytest.raises(NotFound):
        await tree.rename(alice, f"{root}/none", f"{root}/c", replace=True)


async def test_rename_of_a_directory(desk: Desk, root: str) -> None:
    tree, alice = desk.tree, desk.caller
    for n in range(12):
        await desk.put(f"{root}/old/deep/{n:02}", str(n).encode(), mtime=1_000_000_000 + n)
    await tree.mkdir(alice, f"{root}/old/empty")
    with pytest.raises(BadInput):
        await tree.rename(alice, f"{root}/old", f"{root}/old/inside", replace=False)
    await tree.rename(alice, f"{root}/old", f"{root}/new", replace=False)
    assert await desk.names(root) == ["new/"]
    assert await desk.names(f"{root}/new") == ["deep/", "empty/"]
    assert (await tree.stat(alice, f"{root}/new/deep/07")).mtime == 1_000_000_007
    await desk.put(f"{root}/file", b"")
    with pytest.raises(AlreadyExists):
        await tree.rename(alice, f"{root}/new", f"{root}/file", replace=True)


async def test_missing_parents_name_the_remedy(desk: Desk) -> None:
    for path in ("/datasets/none/v1/f", "/datasets/d/none/f", "/datasets/none/v1", "/datasets/d/none"):
        with pytest.raises(NotFound, match="mkdir /datasets/"):
            await desk.put(path, b"x")
    for path in ("/f", "/datasets/f", "/datasets/d/f", "/README.txt"):
        with pytest.raises((NotAllowed, NotFound)):
            await desk.put(path, b"x")


async def test_the_directory_of_a_version_brings_its_data_set(desk: Desk) -> None:
    """As `scp -r images gw:/datasets/new/v1` asks for it; a version's wrong name leaves nothing behind."""
    await desk.tree.mkdir(desk.caller, "/datasets/new/v1")
    await desk.put("/datasets/new/v1/f", b"x")
    assert await desk.names("/datasets/new") == ["v1/"]
    with pytest.raises(BadInput):
        await desk.tree.mkdir(desk.caller, "/datasets/other/No Version")
    assert await desk.names("/datasets") == ["d/", "new/"]
    with pytest.raises(AlreadyExists):
        await desk.tree.mkdir(desk.caller, "/datasets/new/v1")


async def test_a_published_version_refuses_every_change(
    desk: Desk, root: str, database: Database, changes: Changes
) -> None:
    tree, alice = desk.tree, desk.caller
    await desk.put(f"{root}/f", b"x")
    late = await tree.open_writer(alice, f"{root}/late", truncate=True)
    await late.write(0, b"too late")
    async with database.writing() as tx:
        await tx.execute(update(AssetVersion).values(state=VersionState.READY))
    # No hint came: an open file is refused at its end at the latest.
    unheard = await tree.open_writer(alice, f"{root}/unheard", truncate=True)
    with pytest.raises(NotAllowed, match="published"):
        await unheard.finish()
    changes.tell("dataset")
    for attempt in (
        tree.open_writer(alice, f"{root}/g", truncate=True),
        tree.mkdir(alice, f"{root}/dir"),
        tree.remove(alice, f"{root}/f"),
        tree.rename(alice, f"{root}/f", f"{root}/g", replace=True),
        tree.set_mtime(alice, f"{root}/f", 1),
        tree.rmdir(alice, root),
        late.finish(),
    ):
        with pytest.raises(NotAllowed, match="published"):
            await attempt
    assert await desk.names(root) == ["f"]
    assert (await tree.stat(alice, f"{root}/f")).mode == 0o444


async def test_others_read_but_only_the_owner_writes(desk: Desk, root: str, tree: DataTree, bob: Caller) -> None:
    await desk.put(f"{root}/f", b"shared")
    theirs = Desk(tree, bob)
    assert await theirs.get(f"{root}/f") == b"shared"
    with pytest.raises(NotAllowed):
        await theirs.put(f"{root}/f", b"mine")
    with pytest.raises(NotAllowed):
        await tree.remove(bob, f"{root}/f")
    with pytest.raises(NotAllowed):
        await tree.rmdir(bob, "/datasets/d")


async def test_other_workspaces_see_nothing(desk: Desk, root: str, tree: DataTree, bob: Caller) -> None:
    await desk.put(f"{root}/f", b"secret")
    stranger = Desk(tree, Caller(bob.user_id, bob.name, False, "other", "other"))
    assert await stranger.names("/datasets") == []
    for attempt in (stranger.get(f"{root}/f"), stranger.put(f"{root}/f", b"x"), stranger.names(root)):
        with pytest.raises(NotFound):
            await attempt


async def test_random_and_sequential_reads_agree(desk: Desk, root: str) -> None:
    content = os.urandom(11 * MIB + 17)
    await desk.put(f"{root}/big", content)
    assert await desk.get(f"{root}/big") == content
    reader = await desk.tree.open_reader(desk.caller, f"{root}/big")
    for offset, size in ((9 * MIB, 100), (0, 10), (4 * MIB - 5, 10), (11 * MIB + 10, 100), (5 * MIB, 5 * MIB)):
        assert await reader.read(offset, size) == content[offset : offset + size]
    assert await reader.read(len(content), 10) == b""
    assert await reader.read(len(content) + 5 * MIB, 10) == b""
    await reader.close()


async def test_a_reader_never_mixes_two_versions(desk: Desk, root: str) -> None:
    await desk.put(f"{root}/f", os.urandom(20 * MIB))
    reader = await desk.tree.open_reader(desk.caller, f"{root}/f")
    await reader.read(0, 10)
    await desk.put(f"{root}/f", os.urandom(20 * MIB))
    with pytest.raises(Conflict):
        await reader.read(19 * MIB, 10)
    await reader.close()


async def test_readers_give_their_memory_back(desk: Desk, root: str, tree: DataTree) -> None:
    await desk.put(f"{root}/f", os.urandom(6 * MIB))
    reader = await tree.open_reader(desk.caller, f"{root}/f")
    await reader.read(0, 10)
    assert tree._uploads.budget.used > 0
    await reader.close()
    assert tree._uploads.budget.used == 0


async def test_space_counts_what_was_written(desk: Desk, root: str) -> None:
    await desk.put(f"{root}/f", b"12345")
    assert (await desk.tree.space(desk.caller, root)).used == 5


async def test_removals_and_renames_are_audited(desk: Desk, root: str, audit: AuditTrail, admin: Caller) -> None:
    await desk.put(f"{root}/a", b"x")
    await desk.tree.rename(desk.caller, f"{root}/a", f"{root}/b", replace=False)
    await desk.tree.remove(desk.caller, f"{root}/b")
    events = {event.action: event.thing for event in await audit.search(admin)}
    assert events["file.rename"] == f"{root}/a"
    assert events["file.remove"] == f"{root}/b"


async def test_writing_on_without_truncation_keeps_the_rest(desk: Desk, root: str) -> None:
    tree, alice = desk.tree, desk.caller
    await desk.put(f"{root}/f", b"0123456789", mtime=1_000_000_000)

    writer = await tree.open_writer(alice, f"{root}/f", truncate=False)
    assert writer.size == 10
    assert (await writer.finish()).mtime == 1_000_000_000  # nothing written: nothing changed
    assert await desk.get(f"{root}/f") == b"0123456789"

    writer = await tree.open_writer(alice, f"{root}/f", truncate=False)
    await writer.write(10, b"abc")
    assert (await writer.finish()).size == 13
    assert await desk.get(f"{root}/f") == b"0123456789abc"

    writer = await tree.open_writer(alice, f"{root}/f", truncate=False)
    await writer.write(2, b"XY")
    await writer.finish()
    assert await desk.get(f"{root}/f") == b"01XY456789abc"

    writer = await tree.open_writer(alice, f"{root}/f", truncate=False)
    with pytest.raises(BadInput):
        await writer.write(99, b"a gap")
    await writer.abandon()

    writer = await tree.open_writer(alice, f"{root}/f", truncate=False)
    await writer.truncate(0)
    await writer.write(0, b"new")
    await writer.finish()
    assert await desk.get(f"{root}/f") == b"new"


async def test_exclusive_creation(desk: Desk, root: str) -> None:
    await desk.put(f"{root}/f", b"x")
    with pytest.raises(AlreadyExists):
        await desk.tree.open_writer(desk.caller, f"{root}/f", truncate=True, exclusive=True)
    writer = await desk.tree.open_writer(desk.caller, f"{root}/g", truncate=True, exclusive=True)
    await desk.put(f"{root}/g", b"somebody was faster")
    await writer.write(0, b"mine")
    with pytest.raises(Conflict):
        await writer.finish()
    assert await desk.get(f"{root}/g") == b"somebody was faster"


async def test_unfinished_files_are_listed_for_their_owner_only(
    desk: Desk, root: str, tree: DataTree, bob: Caller
) -> None:
    writer = await tree.open_writer(desk.caller, f"{root}/dir/big", truncate=True)
    await writer.write(0, os.urandom(6 * MIB))
    nodes = [node async for node in tree.list(desk.caller, f"{root}/dir")]
    assert [(node.name, node.unfinished) for node in nodes] == [("big", True)]
    with pytest.raises(NotFound):
        await Desk(tree, bob).names(f"{root}/dir")
    node = await tree.stat(desk.caller, f"{root}/dir/big")
    assert (node.name, node.unfinished, node.mode) == ("big", True, 0o600)
    with pytest.raises(NotFound):
        await tree.stat(bob, f"{root}/dir/big")
    await tree.remove(desk.caller, f"{root}/dir/big")
    with pytest.raises(Conflict):
        await writer.write(6 * MIB, b"more")
    assert await desk.names(root) == []


async def test_removing_data_sets_through_the_tree(desk: Desk, root: str, datasets: Datasets) -> None:
    await desk.put(f"{root}/f", b"x")
    for path in (root, "/datasets/d"):
        with pytest.raises(Conflict):
            await desk.tree.rmdir(desk.caller, path)
    await desk.tree.remove(desk.caller, f"{root}/f")
    await desk.tree.rmdir(desk.caller, root)
    await desk.tree.rmdir(desk.caller, "/datasets/d")
    assert await datasets.list(desk.caller) == []


@pytest.mark.parametrize(
    "path", ["/nothing", "/datasets/none", "/datasets/d/none", "/datasets/d/v1/none", "/etc/passwd"]
)
async def test_what_is_not_there(desk: Desk, path: str) -> None:
    for attempt in (desk.tree.stat(desk.caller, path), desk.names(path), desk.get(path)):
        with pytest.raises(AshoreError):
            await attempt
