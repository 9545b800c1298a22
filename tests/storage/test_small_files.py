"""What makes thousands of small files cheap, and that it never shows anything that is not so."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, select

from storage.access import Caller
from storage.accounts import Accounts
from storage.asset_cache import AssetCache
from storage.assets import Datasets
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.database.quick import Statement
from storage.errors import BadInput, NotAllowed, NotFound, Unavailable
from storage.fact_batch import FactBatch
from storage.hot_queries import found_around, is_known, is_open
from storage.namespace import DataTree
from storage.objects.s3 import S3Store
from storage.records import AssetKind, AssetVersion, FileFact, Move
from tests.databases import KINDS
from tests.storage.conftest import Desk

DATABASES = KINDS


def fact(key: str, size: int = 1) -> FileFact:
    return FileFact(key=key, size=size, etag="e", mtime=2, sha256="s", md5="m", suspect=False)


async def test_facts_that_come_together_are_written_together(database: Database) -> None:
    batch = FactBatch(database)
    await asyncio.gather(*(batch.add(fact(f"k{number}", number)) for number in range(200)))
    await asyncio.gather(batch.add(fact("k7", 70)), batch.add(fact("k7", 71)))
    async with database.reading() as tx:
        rows = (await tx.scalars(select(FileFact).order_by(FileFact.key))).all()
        assert len(rows) == 200
        assert (await tx.get_one(FileFact, "k7")).size == 71
        assert (await tx.get_one(FileFact, "k199")).sha256 == "s"


async def test_a_batch_that_cannot_be_written_is_told_to_all_and_the_next_goes_on(database: Database) -> None:
    batch = FactBatch(database)
    writing = database.quick_write

    async def away(*statements: Statement) -> None:
        raise Unavailable("away")

    database.quick_write = away  # type: ignore[method-assign]
    told = await asyncio.gather(*(batch.add(fact(f"k{n}")) for n in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [Unavailable] * 3
    database.quick_write = writing  # type: ignore[method-assign]
    await batch.add(fact("later"))
    assert await is_known(database, "later")


async def test_a_batch_that_fails_in_an_unforeseen_way_leaves_nobody_waiting(database: Database) -> None:
    batch = FactBatch(database)
    begun, go = asyncio.Event(), asyncio.Event()

    async def broken(*statements: Statement) -> None:
        begun.set()
        await go.wait()
        raise RuntimeError("disk image is malformed")

    database.quick_write = broken  # type: ignore[method-assign]
    first = asyncio.create_task(batch.add(fact("k1")), name="first")
    await begun.wait()
    second = asyncio.create_task(batch.add(fact("k2")), name="second")
    await asyncio.sleep(0)
    go.set()
    told = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 30)
    assert [type(error) for error in told] == [Unavailable] * 2


async def test_what_is_around_a_key(database: Database) -> None:
    batch = FactBatch(database)
    for key in ("v/a", "v/dir/x", "v/dir-not"):
        await batch.add(fact(key))
    assert await found_around(database, "v/dir", [], "u") == {"below": "v/dir/x"}
    assert await found_around(database, "v/a/b/c", ["v/a", "v/a/b"], "u") == {"above": "v/a"}
    assert await found_around(database, "v/di", ["w"], "u") == {}


@pytest.mark.parametrize("name", ["it's", 'a"b', "100%", "x:first", "数据", "; DROP TABLE uploads"])
async def test_names_are_values_and_no_sql(database: Database, name: str) -> None:
    await FactBatch(database).add(fact(f"v/{name}"))
    assert await is_known(database, f"v/{name}")
    assert await found_around(database, f"v/{name}/below", [f"v/{name}"], name) == {"above": f"v/{name}"}


async def test_a_version_is_open_until_something_changes(
    database: Database, datasets: Datasets, accounts: Accounts, alice: Caller, desk: Desk, root: str
) -> None:
    view = await datasets.find(alice, "d")

    async def is_still_open(owner_id: str = view.owner_id) -> bool:
        return await is_open(
            database, view.version("v1").id, owner_id=owner_id, workspace_id=view.workspace_id,
            caller_id=alice.user_id,
        )  # fmt: skip

    assert await is_still_open()
    assert not await is_still_open("somebody")
    move = Move(old="v/a", new="v/b", by_id="u", path="/a", to="/b", touched=now(), created=now())
    async with database.writing() as tx:
        tx.add(move)
    assert not await is_still_open()
    async with database.writing() as tx:
        await tx.delete(move)
    await accounts.set_disabled("alice", disabled=True, actor="operator")
    assert not await is_still_open()
    await accounts.set_disabled("alice", disabled=False, actor="operator")
    assert await is_still_open()
    async with database.writing() as tx:
        await tx.execute(delete(AssetVersion))
    assert not await is_still_open()


@pytest.mark.parametrize("size", [10, 6 * 1024 * 1024])
async def test_whoever_is_locked_out_finishes_nothing(
    tree: DataTree, accounts: Accounts, alice: Caller, desk: Desk, root: str, size: int
) -> None:
    """Though the connection may still be there."""
    writer = await tree.open_writer(alice, f"{root}/f", truncate=True)
    await writer.write(0, bytes(size))
    await accounts.set_disabled("alice", disabled=True, actor="operator")
    with pytest.raises(NotAllowed, match="locked"):
        await writer.finish()
    with pytest.raises(NotFound):
        await tree.stat(alice, f"{root}/f")


async def test_views_are_kept_for_a_second_or_until_a_hint(datasets: Datasets, alice: Caller, bob: Caller) -> None:
    changes, moment = Changes(), [100.0]
    cache = AssetCache(changes, lambda: moment[0])
    view = await datasets.create(alice, "d")
    kind = AssetKind.DATASET

    assert cache.get(alice, kind, "d") is None
    cache.put(alice, kind, "d", view, cache.begin())
    assert cache.get(alice, kind, "d") is view
    assert cache.get(bob, kind, "d") is None
    assert cache.get(alice, AssetKind.MODEL, "d") is None
    moment[0] += 1.0
    assert cache.get(alice, kind, "d") is None
    for topic in ("dataset", "model", "user"):
        cache.put(alice, kind, "d", view, cache.begin())
        changes.tell(topic)
        assert cache.get(alice, kind, "d") is None
    cache.put(alice, kind, "d", view, cache.begin())
    changes.tell("upload")
    assert cache.get(alice, kind, "d") is view


async def test_what_was_read_before_a_hint_is_not_kept(datasets: Datasets, alice: Caller, bob: Caller) -> None:
    """Though somebody else has taken the hint since, and it lives a second from its question on, however slow."""
    changes, moment = Changes(), [100.0]
    cache = AssetCache(changes, lambda: moment[0])
    view, kind = await datasets.create(alice, "d"), AssetKind.DATASET
    slow = cache.begin()
    changes.tell("dataset")
    assert cache.get(bob, kind, "d") is None
    cache.put(alice, kind, "d", view, slow)
    assert cache.get(alice, kind, "d") is None
    slow = cache.begin()
    moment[0] += 0.9
    cache.put(alice, kind, "d", view, slow)
    assert cache.get(alice, kind, "d") is view
    moment[0] += 0.2
    assert cache.get(alice, kind, "d") is None


async def test_a_new_directory_in_a_new_directory(desk: Desk, root: str, tree: DataTree) -> None:
    """It is a marker in the store alone, which the records do not know."""
    alice = desk.caller
    await tree.mkdir(alice, f"{root}/new")
    await tree.mkdir(alice, f"{root}/new/sub")
    with pytest.raises(BadInput, match="is a directory"):
        await desk.put(f"{root}/new/sub", b"x")
    await tree.mkdir(alice, f"{root}/other")
    await tree.mkdir(alice, f"{root}/young")
    await tree.rename(alice, f"{root}/other", f"{root}/young/moved", replace=False)
    with pytest.raises(BadInput, match="is a directory"):
        await desk.put(f"{root}/young/moved", b"x")


async def test_a_new_directory_knows_what_is_in_it(desk: Desk, root: str, tree: DataTree, store: S3Store) -> None:
    """Nothing is asked of the store there; what the records know still counts."""
    alice = desk.caller
    await tree.mkdir(alice, f"{root}/new")
    await desk.put(f"{root}/new/a", b"1")
    await desk.put(f"{root}/new/sub/b", b"2")
    for path in (f"{root}/new/sub", f"{root}/new"):
        with pytest.raises(BadInput, match="is a directory"):
            await desk.put(path, b"x")
    with pytest.raises(BadInput, match="nothing can be below it"):
        await desk.put(f"{root}/new/a/c", b"x")
    await tree.check(alice, f"{root}/new/a")
    await tree.check(alice, f"{root}/new/sub")
    with pytest.raises(NotFound):
        await tree.check(alice, f"{root}/new/none")
    assert await desk.names(f"{root}/new") == ["a", "sub/"]
