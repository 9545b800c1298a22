"""Copies that many environments share: made once, kept while there is room, never taken from under anybody."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.data_cache import DataCache
from backends.data_shelves import FolderShelf, Wanted
from backends.settings import CacheSettings
from storage.audit import AuditTrail
from storage.database.engine import Database
from storage.errors import AshoreError, Conflict, OverQuota, Unavailable
from storage.records import AuditEvent
from tests.storage.memory_store import MemoryStore

GIB = 1024**3
MIB = 1024**2


class Bed:
    """A cache over a store in memory; `used` is what environments have."""

    def __init__(self, folder: Path, audit: AuditTrail) -> None:
        self.folder, self.audit = folder / "cache", audit
        self.store = MemoryStore()
        self.used: set[str] = set()
        self.lists = 0
        self.store.fault = self.count
        self.cache = self.again()

    def again(self, **settings: int) -> DataCache:
        """Another cache over the same folder, as after a restart."""
        self.cache = DataCache(
            self.folder,
            FolderShelf(self.store),
            self.audit,
            CacheSettings(**({"spare_gib": 0} | settings)),
            self.in_use,
        )
        return self.cache

    async def in_use(self) -> Collection[str]:
        return self.used

    def count(self, method: str, key: str) -> AshoreError | None:
        self.lists += method == "list"
        return None

    async def version(self, name: str, *sizes: int, sealed: bool = True) -> Wanted:
        for number, size in enumerate(sizes):
            await self.store.put(f"datasets/main/{name}/v1/{number}", os.urandom(size))
        return Wanted(name, f"data {name}:v1", f"datasets/main/{name}/v1/", sealed)

    async def fetch(self, wanted: Wanted) -> list[str]:
        said: list[str] = []
        await self.cache.fetch(wanted, said.append)
        return said

    def here(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def bed(tmp_path: Path, audit: AuditTrail) -> Bed:
    return Bed(tmp_path, audit)


async def test_a_published_version_is_copied_once(bed: Bed, database: Database) -> None:
    wanted = await bed.version("a", 100, 200)
    said = await bed.fetch(wanted)
    assert said[0] == "data a:v1: looking at what is there"
    assert said[-1] == "data a:v1 100 %"
    assert sorted(path.name for path in (bed.folder / "a").iterdir()) == ["files", "state.json"]
    assert await bed.fetch(wanted) == []
    bed.again()
    assert await bed.fetch(wanted) == []
    assert bed.lists == 1
    async with database.reading() as tx:
        events = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == "cache.fill"))).all()
    assert [(event.thing, event.detail["files"], event.detail["bytes"]) for event in events] == [("data a:v1", 2, 300)]


async def test_a_version_that_is_not_published_is_compared_each_time(bed: Bed) -> None:
    wanted = await bed.version("a", 100, sealed=False)
    await bed.fetch(wanted)
    await bed.store.put("datasets/main/a/v1/new", b"more")
    await bed.fetch(wanted)
    assert ((bed.folder / "a" / "files") / "new").read_bytes() == b"more"
    await bed.fetch(Wanted("a", wanted.title, wanted.prefix, sealed=True))
    assert await bed.fetch(Wanted("a", wanted.title, wanted.prefix, sealed=True)) == []
    assert bed.lists == 3


async def test_an_empty_version_is_an_empty_folder(bed: Bed) -> None:
    said = await bed.fetch(await bed.version("a", sealed=False))
    assert said[-1] == "data a:v1 100 %"
    assert list((bed.folder / "a" / "files").iterdir()) == []


async def test_two_who_want_it_at_once_share_the_way(bed: Bed) -> None:
    wanted = await bed.version("a", *([1000] * 50))
    one, two = await asyncio.gather(bed.fetch(wanted), bed.fetch(wanted))
    assert bed.lists == 1
    assert one[-1] == two[-1] == "data a:v1 100 %"


async def test_one_who_gives_up_does_not_end_it_for_the_other(bed: Bed) -> None:
    wanted = await bed.version("a", *([1000] * 200))
    first = asyncio.create_task(bed.fetch(wanted))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(bed.fetch(wanted))
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert len(list((bed.folder / "a" / "files").iterdir())) == 200


async def test_work_in_progress_is_listed_again_when_it_moves(bed: Bed) -> None:
    wanted = await bed.version("a", 10, sealed=False)
    left = 2

    def moving(method: str, key: str) -> AshoreError | None:
        nonlocal left
        bed.count(method, key)
        if method == "get" and left > 0:
            left -= 1
            return Conflict("the file was replaced meanwhile")
        return None

    bed.store.fault = moving
    await bed.fetch(wanted)
    assert bed.lists == 3
    left = 100
    await bed.store.put("datasets/main/a/v1/0", b"x")
    with pytest.raises(Conflict, match="data a:v1 was changed while it was copied"):
        await bed.fetch(wanted)


async def test_a_published_version_that_changes_is_an_error_at_once(bed: Bed) -> None:
    wanted = await bed.version("a", 10)
    bed.store.fault = lambda method, key: Conflict("replaced") if bed.count(method, key) or method == "get" else None
    with pytest.raises(Conflict):
        await bed.fetch(wanted)
    assert bed.lists == 1


async def test_a_version_that_leads_nowhere(bed: Bed) -> None:
    for name in ("", "../x", "a/b"):
        with pytest.raises(Unavailable, match="leads nowhere"):
            await bed.cache.fetch(Wanted(name, "data x:v1", "x/", sealed=True), print)


# ---- room --------------------------------------------------------------------------------------------------------
@pytest.fixture
def small(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Bed:
    """A GiB is a MiB here, and the cache takes three of them."""
    monkeypatch.setattr("backends.data_cache.GIB", MIB)
    bed.again(gib=3)
    return bed


async def test_what_was_not_used_for_longest_goes_first(small: Bed, database: Database) -> None:
    versions = {name: await small.version(name, MIB) for name in "abcd"}
    for seconds, name in enumerate("abc"):
        await small.fetch(versions[name])
        os.utime(small.folder / name / "state.json", (seconds, seconds))
    await small.fetch(versions["a"])
    await small.fetch(versions["d"])
    assert small.here() == ["a", "c", "d"]
    async with database.reading() as tx:
        event = await tx.scalar(select(AuditEvent).where(AuditEvent.action == "cache.evict"))
    assert event is not None
    assert (event.thing, event.detail["reason"]) == ("data b:v1", "room was needed")


async def test_what_is_in_use_stays_and_the_refusal_tells_how_much_is_missing(small: Bed) -> None:
    versions = {name: await small.version(name, MIB) for name in "abcd"}
    for name in "abc":
        await small.fetch(versions[name])
    small.used = {"a", "b", "c"}
    with pytest.raises(OverQuota) as caught:
        await small.fetch(versions["d"])
    assert caught.value.message.startswith(
        "there is no room for data d:v1 on this machine: it has 1.0 GiB, 1.0 GiB too much"
    )
    small.used = {"a", "c"}
    await small.fetch(versions["d"])
    assert small.here() == ["a", "c", "d"]


async def test_nothing_is_evicted_for_what_would_not_fit_anyway(small: Bed) -> None:
    for name in "ab":
        await small.fetch(await small.version(name, MIB))
    with pytest.raises(OverQuota):
        await small.fetch(await small.version("huge", 4 * MIB))
    assert [name for name in small.here() if name != "huge"] == ["a", "b"]


async def test_whoever_begins_to_use_it_meanwhile_keeps_it(small: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {name: await small.version(name, MIB) for name in "abcd"}
    for name in "abc":
        await small.fetch(versions[name])
    asked = 0

    async def in_use() -> Collection[str]:
        nonlocal asked
        asked += 1
        return {"b", "c"} if asked == 1 else {"a", "b", "c"}

    monkeypatch.setattr(small.cache, "_in_use", in_use)
    await small.fetch(versions["d"])
    assert small.here() == ["a", "b", "c", "d"]


async def test_the_disk_is_asked_before(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    await bed.fetch(await bed.version("a", MIB))
    usage = shutil.disk_usage(bed.folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=GIB + MIB // 2))
    bed.again(spare_gib=1)
    wanted = await bed.version("b", MIB)
    bed.used = {"a"}
    with pytest.raises(OverQuota, match="no room for data b:v1"):
        await bed.fetch(wanted)
    assert not list((bed.folder / "b" / "files").iterdir())
    bed.used = set()
    await bed.fetch(wanted)
    assert bed.here() == ["b"]


# ---- order -------------------------------------------------------------------------------------------------------
async def test_the_sweep_removes_what_was_deleted_and_what_a_crash_left(bed: Bed) -> None:
    for name in ("kept", "gone", "gone-and-used"):
        await bed.fetch(await bed.version(name, 10))
    (bed.folder / ".gone-x-1" / "files").mkdir(parents=True)
    bed.used = {"gone-and-used"}

    async def still_there(names: Collection[str]) -> Collection[str]:
        return set(names) & {"kept"}

    await bed.again().sweep(still_there)
    assert bed.here() == ["gone-and-used", "kept"]


async def test_a_lower_limit_counts_from_the_next_sweep(small: Bed) -> None:
    for seconds, name in enumerate("abc"):
        await small.fetch(await small.version(name, MIB))
        os.utime(small.folder / name / "state.json", (seconds, seconds))
    small.again(gib=1)

    async def still_there(names: Collection[str]) -> Collection[str]:
        return names

    await small.cache.sweep(still_there)
    assert small.here() == ["c"]


async def test_a_state_that_cannot_be_read_is_made_anew(bed: Bed) -> None:
    wanted = await bed.version("a", 10)
    await bed.fetch(wanted)
    (bed.folder / "a" / "state.json").write_text("[")
    await bed.fetch(wanted)
    assert bed.lists == 2
