"""Deletions are recorded, go on after a crash, and never touch what a successor of the same name has stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from backends.reconcilers.deletions import DeletionReconciler
from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.errors import Conflict, InUse, NotAllowed, NotFound, Unavailable
from storage.objects.contract import ObjectFacts, Usage
from storage.records import AssetKind, Deletion, FileFact, Upload, UploadState
from storage.uses import Mount, Uses
from tests.databases import KINDS

DATABASES = KINDS


class Shelf:
    """Objects in a dictionary, in pages of ten; `refuses` makes it go away after so many calls."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.aborted: list[tuple[str, str]] = []
        self.answers = 1_000_000

    def _answer(self) -> None:
        self.answers -= 1
        if self.answers < 0:
            raise Unavailable("the object store does not answer")

    async def list(self, prefix: str, *, delimiter: bool = False) -> AsyncGenerator[Sequence[ObjectFacts]]:
        self._answer()
        found = [key for key in sorted(self.objects) if key.startswith(prefix)]
        for start in range(0, len(found), 10):
            yield [ObjectFacts(key, len(self.objects[key])) for key in found[start : start + 10]]

    async def delete_many(self, keys: Iterable[str]) -> None:
        self._answer()
        for key in list(keys):
            self.objects.pop(key, None)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        self.aborted.append((key, upload_id))

    async def usage(self, prefix: str) -> Usage:
        sizes = [len(data) for key, data in self.objects.items() if key.startswith(prefix)]
        return Usage(len(sizes), sum(sizes))


class Hands:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.time = now()

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def datasets(database: Database, audit: AuditTrail, changes: Changes, shelf: Shelf, clock: Hands) -> Datasets:
    return Datasets(database, audit, changes, shelf, clock)  # type: ignore[arg-type]


@pytest.fixture
def deletions(database: Database, audit: AuditTrail, changes: Changes, shelf: Shelf, clock: Hands) -> Deletions:
    return Deletions(database, audit, changes, shelf, clock)  # type: ignore[arg-type]


@pytest.fixture
async def running(deletions: Deletions, changes: Changes) -> AsyncIterator[None]:
    """The loop, as the gateway runs it."""
    loop = asyncio.create_task(DeletionReconciler(deletions, changes).run(), name="deletions reconciler")
    yield
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def fill(datasets: Datasets, shelf: Shelf, caller: Caller, name: str, count: int) -> None:
    await datasets.create(caller, name)
    await datasets.create_version(caller, name, "v1")
    shelf.objects |= {f"datasets/team/{name}/v1/{number:03}": b"x" for number in range(count)}


async def gone(shelf: Shelf, deletions: Deletions) -> None:
    async with asyncio.timeout(60):
        while shelf.objects or await deletions.pending():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_small_ones_are_gone_at_once_and_large_ones_in_the_background(
    datasets: Datasets, deletions: Deletions, shelf: Shelf, alice: Caller, running: None
) -> None:
    await fill(datasets, shelf, alice, "small", 5)
    await datasets.delete(alice, "small")
    assert not shelf.objects
    await datasets.create(alice, "small")
    await fill(datasets, shelf, alice, "large", 35)
    deletion = await datasets.delete(alice, "large")
    with pytest.raises(NotFound):
        await datasets.find(alice, "large")
    await gone(shelf, deletions)
    told = await deletions.get(deletion)
    assert told is not None
    assert (told.title, told.removed, told.reason) == ("large", 35, "")
    assert told.finished is not None


async def test_a_store_that_is_away_only_delays(
    datasets: Datasets, deletions: Deletions, shelf: Shelf, alice: Caller, bob: Caller, admin: Caller
) -> None:
    await fill(datasets, shelf, alice, "d", 25)
    shelf.answers = 2  # one page, and then nothing more
    deletion = await datasets.delete_version(alice, "d", "v1")
    (shown,) = await deletions.show(alice, AssetKind.DATASET)
    assert (shown.id, shown.title, shown.removed) == (deletion, "d:v1", 10)
    assert "does not answer" in shown.reason
    assert await deletions.show(bob, AssetKind.DATASET) == []
    assert len(await deletions.show(admin, AssetKind.DATASET)) == 1
    with pytest.raises(Conflict, match="still being deleted"):
        await datasets.create_version(alice, "d", "v1")
    with pytest.raises(Unavailable):
        await deletions.carry_out(deletion)
    shelf.answers = 1000
    assert await deletions.carry_out(deletion)
    assert not shelf.objects
    await datasets.create_version(alice, "d", "v1")


async def test_a_crash_in_the_middle_loses_nothing(
    datasets: Datasets, deletions: Deletions, shelf: Shelf, alice: Caller, database: Database, clock: Hands
) -> None:
    await fill(datasets, shelf, alice, "d", 25)
    shelf.answers = 0
    deletion = await datasets.delete(alice, "d")
    async with database.writing() as tx:  # the process that was at it is gone, its name is not
        await tx.execute(update(Deletion).values(holder="dead"))
    shelf.answers = 1000
    assert not await deletions.carry_out(deletion)
    assert len(shelf.objects) == 25
    clock.time += timedelta(minutes=5)
    assert await deletions.carry_out(deletion)
    assert not shelf.objects
    await fill(datasets, shelf, alice, "e", 3)
    shelf.answers = 0
    deletion = await datasets.delete(alice, "e")
    async with database.writing() as tx:
        await tx.execute(update(Deletion).where(Deletion.id == deletion).values(holder="dead"))
    shelf.answers = 1000
    assert await deletions.recover() == 1  # the only process starts: nobody can be at it
    assert await deletions.carry_out(deletion)
    assert await deletions.pending() == []


async def test_two_workers_do_not_meet(datasets: Datasets, deletions: Deletions, shelf: Shelf, alice: Caller) -> None:
    """A second worker could remove what a successor of the same name stored after the first one was done."""
    await fill(datasets, shelf, alice, "d", 60)
    shelf.answers = 0
    deletion = await datasets.delete(alice, "d")
    shelf.answers = 1000
    outcomes = await asyncio.gather(*[deletions.carry_out(deletion) for _ in range(5)])
    assert sorted(outcomes) == [False, False, False, False, True]
    await fill(datasets, shelf, alice, "d", 3)
    assert not await deletions.carry_out(deletion)
    assert len(shelf.objects) == 3


async def test_uploads_on_their_way_there_are_ended(
    datasets: Datasets, shelf: Shelf, alice: Caller, database: Database
) -> None:
    await fill(datasets, shelf, alice, "d", 1)
    async with database.writing() as tx:
        for key, state in (("d/v1/a", UploadState.PARKED), ("d/v1/b", UploadState.DONE), ("dd/v1/c", UploadState.OPEN)):
            tx.add(
                Upload(
                    owner_id=alice.user_id, path=f"/datasets/{key}", key=f"datasets/team/{key}", s3_upload_id="u",
                    part_size=1, state=state, created=now(), touched=now(),
                )
            )  # fmt: skip
    await datasets.delete(alice, "d")
    assert shelf.aborted == [("datasets/team/d/v1/a", "u")]
    async with database.reading() as tx:
        states = dict((await tx.execute(select(Upload.path, Upload.state))).all())
    assert states["/datasets/d/v1/a"] is UploadState.ABORTED
    assert states["/datasets/dd/v1/c"] is UploadState.OPEN


async def test_what_is_mounted_stays(
    datasets: Datasets, shelf: Shelf, alice: Caller, bob: Caller, database: Database, clock: Hands
) -> None:
    await fill(datasets, shelf, alice, "d", 1)
    await datasets.create_version(alice, "d", "v2")
    uses = Uses(database, clock)
    version = (await datasets.find(bob, "d")).version("v1")
    async with database.writing() as tx:
        await uses.begin(tx, bob, version.id, Mount("e1", "train", "/gemini/data-1"))
    for attempt in (datasets.delete(alice, "d"), datasets.delete_version(alice, "d", "v1")):
        with pytest.raises(InUse, match=r"mounted in train \(bob\)"):
            await attempt
    assert len(shelf.objects) == 1
    await datasets.delete_version(alice, "d", "v2")
    async with database.writing() as tx:
        await uses.end(tx, "e1")
        await uses.end(tx, "e1")
    (use,) = await uses.history(alice, AssetKind.DATASET, "d")
    assert (use.environment, use.user, use.version, use.path) == ("train", "bob", "v1", "/gemini/data-1")
    assert use.unmounted is not None
    await datasets.delete(alice, "d")
    with pytest.raises(NotFound):
        async with database.writing() as tx:
            await uses.begin(tx, bob, version.id, Mount("e2", "late", "/gemini/data-1"))


async def test_what_may_not_be_seen_is_not_mounted(
    datasets: Datasets, shelf: Shelf, alice: Caller, bob: Caller, database: Database
) -> None:
    await fill(datasets, shelf, alice, "d", 1)
    await datasets.change(alice, "d", visibility="private")
    version = (await datasets.find(alice, "d")).version("v1")
    with pytest.raises(NotFound):
        async with database.writing() as tx:
            await Uses(database).begin(tx, bob, version.id, Mount("e1", "train", "/gemini/data-1"))


async def test_only_its_owner_deletes_and_facts_go_too(
    datasets: Datasets, shelf: Shelf, alice: Caller, bob: Caller, database: Database
) -> None:
    await fill(datasets, shelf, alice, "d", 2)
    async with database.writing() as tx:
        tx.add(FileFact(key="datasets/team/d/v1/000", size=1, mtime=1))
        tx.add(FileFact(key="datasets/team/d0/v1/000", size=1, mtime=1))
    with pytest.raises(NotAllowed):
        await datasets.delete(bob, "d")
    await datasets.delete(alice, "d")
    async with database.reading() as tx:
        assert (await tx.scalars(select(FileFact.key))).all() == ["datasets/team/d0/v1/000"]
        assert await tx.scalar(select(func.count()).select_from(Deletion)) == 1
