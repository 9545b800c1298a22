"""Data sets and versions: made, counted, listed, deleted, and never half of it."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from storage.access import Caller
from storage.assets import AssetFile, Datasets, parse_version
from storage.audit import AuditTrail
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, NotAllowed, NotFound
from storage.objects.s3 import S3Store
from storage.records import Asset, AssetVersion, FileFact, VersionState
from tests.storage.conftest import Desk


def test_names_with_versions() -> None:
    assert parse_version("mnist") == ("mnist", "")
    assert parse_version("mnist:v1") == ("mnist", "v1")
    for bad in ("", ":", "mnist:", ":v1", "a:b:c", "Mnist", "a/b", "a:..", "-a"):
        with pytest.raises(BadInput):
            parse_version(bad)


async def test_create_show_and_list(datasets: Datasets, desk: Desk, audit: AuditTrail, admin: Caller) -> None:
    await desk.put("/datasets/d/v1/a/x", b"12345", mtime=100)
    await desk.put("/datasets/d/v1/b", b"1", mtime=200)
    await datasets.create(desk.caller, "empty")
    shown = await datasets.show(desk.caller, "d")
    assert (shown.name, shown.owner, shown.files, shown.bytes) == ("d", "alice", 2, 6)
    assert [(v.name, v.state, v.files) for v in shown.versions] == [("v1", VersionState.UPLOADING, 2)]
    listed = await datasets.list(desk.caller)
    assert [(view.name, view.files, view.bytes) for view in listed] == [("d", 2, 6), ("empty", 0, 0)]
    assert [file async for file in datasets.files(desk.caller, "d")] == [
        AssetFile("a/x", 5, 100),
        AssetFile("b", 1, 200),
    ]
    assert [file.path async for file in datasets.files(desk.caller, "d", "v1", "a")] == ["a/x"]
    made = {event.thing for event in await audit.search(admin, action="dataset.create")}
    assert made == {"d", "d:v1", "empty"}


async def test_names_are_taken_once(datasets: Datasets, alice: Caller) -> None:
    await datasets.create(alice, "d")
    await datasets.create_version(alice, "d", "v1")
    with pytest.raises(AlreadyExists):
        await datasets.create(alice, "d")
    with pytest.raises(AlreadyExists):
        await datasets.create_version(alice, "d", "v1")
    for bad in ("", "A", "a/b", "a:b", "..", "x" * 49):
        with pytest.raises(BadInput):
            await datasets.create(alice, bad)
        with pytest.raises(BadInput):
            await datasets.create_version(alice, "d", bad)


async def test_the_default_version(datasets: Datasets, alice: Caller, database: Database) -> None:
    await datasets.create(alice, "d")
    with pytest.raises(NotFound):
        (await datasets.find(alice, "d")).version()
    for name in ("v1", "v2", "v3"):
        await datasets.create_version(alice, "d", name)
    assert (await datasets.find(alice, "d")).version().name == "v3"
    async with database.writing() as tx:
        await tx.execute(update(AssetVersion).where(AssetVersion.name == "v2").values(state=VersionState.READY))
    found = await datasets.find(alice, "d")
    assert found.version().name == "v2"
    assert found.version("v1").name == "v1"
    with pytest.raises(NotFound):
        found.version("v9")


async def test_delete_leaves_nothing(datasets: Datasets, desk: Desk, store: S3Store, database: Database) -> None:
    for n in range(3):
        await desk.put(f"/datasets/d/v1/dir/{n}", b"x")
    await datasets.create_version(desk.caller, "d", "v2")
    await desk.put("/datasets/d/v2/f", b"x")
    await datasets.delete_version(desk.caller, "d", "v1")
    assert await desk.names("/datasets/d") == ["v2/"]
    await datasets.create_version(desk.caller, "d", "v1")
    assert await desk.names("/datasets/d/v1") == []
    await datasets.delete(desk.caller, "d")
    assert await datasets.list(desk.caller) == []
    assert [page async for page in store.list("datasets/")] == []
    async with database.reading() as tx:
        for record in (Asset, AssetVersion, FileFact):
            assert await tx.scalar(select(func.count()).select_from(record)) == 0


async def test_rights(datasets: Datasets, desk: Desk, bob: Caller, admin: Caller) -> None:
    with pytest.raises(NotAllowed):
        await datasets.create_version(bob, "d", "v2")
    with pytest.raises(NotAllowed):
        await datasets.delete(bob, "d")
    with pytest.raises(NotAllowed):
        await datasets.delete_version(bob, "d", "v1")
    assert (await datasets.show(bob, "d")).owner == "alice"
    with pytest.raises(NotFound):
        await datasets.delete_version(desk.caller, "d", "v9")
    await datasets.delete(admin, "d")
