"""What `storage.objects.contract` promises, over a real S3 service and the store in memory that other tests use."""

from __future__ import annotations

import os

import pytest

from storage.errors import Conflict, NotFound, Unavailable
from storage.objects.contract import NoSuchUpload, ObjectStore
from storage.objects.parts import Schedule
from storage.objects.s3 import S3Store
from storage.upload_writer import etag_of
from tests.storage.memory_store import MemoryStore

MIB = 1024 * 1024
PART = 5 * MIB


@pytest.fixture(params=["s3", "memory"])
def any_store(request: pytest.FixtureRequest, store: S3Store) -> ObjectStore:
    return store if request.param == "s3" else MemoryStore()


async def test_objects(any_store: ObjectStore) -> None:
    etag = await any_store.put("a/b", memoryview(b"hello world"), metadata={"mtime": "7"})
    facts = await any_store.head("a/b")
    assert (facts.size, facts.etag, facts.metadata.get("mtime")) == (11, etag, "7")
    assert await any_store.get("a/b", offset=6, size=50) == b"world"
    assert await any_store.get("a/b", offset=11, size=1) == b""
    assert await any_store.get("a/b", etag=etag) == b"hello world"
    with pytest.raises(Conflict):
        await any_store.get("a/b", etag="0" * 32)
    with pytest.raises(Conflict):
        await any_store.put("a/b", b"x", only_new=True)
    assert await any_store.copy("a/b", "a/c") == etag
    pages = [[(f.key, f.is_prefix) for f in page] async for page in any_store.list("", delimiter=True)]
    assert pages == [[("a/", True)]]
    await any_store.delete_many(["a/b", "a/none"])
    assert [f.key async for page in any_store.list("a/") for f in page] == ["a/c"]
    for attempt in (any_store.head("a/b"), any_store.get("a/b"), any_store.copy("a/b", "x")):
        with pytest.raises(NotFound):
            await attempt


async def test_parts(any_store: ObjectStore) -> None:
    bodies = [os.urandom(PART), os.urandom(PART), b"end"]
    upload = await any_store.create_upload("f", metadata={"mtime": "7"})
    etags = {}
    for number, body in ((2, bodies[1]), (3, bodies[2]), (1, b"cut"), (1, bodies[0]), (9, b"unlisted")):
        etags[number] = await any_store.put_part("f", upload, number, body)
    listed = await any_store.list_parts("f", upload)
    assert {(n, etags[n]) for n in (1, 2, 3)} <= {(part.number, part.etag) for part in listed}
    assert [part.number for part in Schedule(PART).contiguous(listed)] == [1, 2]
    parts = [part for part in listed if etags[part.number] == part.etag and part.number < 9]
    etag = await any_store.complete_upload("f", upload, [(part.number, part.etag) for part in parts])
    assert etag == etag_of(parts)
    assert await any_store.get("f") == b"".join(bodies)
    assert (await any_store.head("f")).metadata.get("mtime") == "7"
    with pytest.raises(NoSuchUpload):
        await any_store.list_parts("f", upload)
    with pytest.raises(NoSuchUpload):
        await any_store.put_part("f", upload, 4, b"late")
    await any_store.abort_upload("f", upload)


async def test_parts_that_are_copied(any_store: ObjectStore) -> None:
    content = os.urandom(12 * MIB)
    await any_store.put("old +%/文", content)
    old = await any_store.head("old +%/文")
    upload = await any_store.create_upload("f")
    parts = [
        (1, await any_store.copy_part("f", upload, 1, old, offset=0, size=6 * MIB)),
        (2, await any_store.copy_part("f", upload, 2, old, offset=6 * MIB, size=6 * MIB)),
        (3, await any_store.put_part("f", upload, 3, b"more")),
    ]
    await any_store.complete_upload("f", upload, parts)
    assert await any_store.get("f") == content + b"more"
    upload = await any_store.create_upload("f")
    await any_store.put("old +%/文", b"another")
    with pytest.raises(Conflict):
        await any_store.copy_part("f", upload, 1, old, offset=0, size=3)
    await any_store.abort_upload("f", upload)


async def test_what_cannot_be_completed(any_store: ObjectStore) -> None:
    await any_store.put("f", b"old")
    upload = await any_store.create_upload("f")
    first = await any_store.put_part("f", upload, 1, b"too small")
    second = await any_store.put_part("f", upload, 2, b"end")
    with pytest.raises(Unavailable):
        await any_store.complete_upload("f", upload, [(1, first), (2, second)])
    with pytest.raises(Conflict):
        await any_store.complete_upload("f", upload, [(1, first)], only_new=True)
    assert await any_store.get("f") == b"old"
    await any_store.abort_upload("f", upload)


def test_the_schedule_goes_both_ways() -> None:
    for schedule in (
        Schedule(PART),
        Schedule(PART, PART),
        Schedule(8 * MIB, 1000 * MIB + 1),
        Schedule(PART, 300 * MIB),
    ):
        offset, number = 0, 0
        while number < 4000:
            slot = schedule.at(offset)
            assert slot is not None
            number += 1
            assert slot == schedule.numbered(number)
            assert (slot.number, slot.start) == (number, offset)
            assert schedule.at(slot.end - 1) == slot
            assert slot.size >= PART
            offset = slot.end
