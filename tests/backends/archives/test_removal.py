"""The object of an archive goes when it is an image, or can be none; never one that came after it."""

from __future__ import annotations

import asyncio
import os

import pytest

from storage.access import Caller
from storage.errors import Unavailable
from storage.objects.contract import ObjectFacts
from storage.records import ArchiveState
from tests.backends.archives.files import NOISE, SMALL, digest_of, docker_archive, layer_of
from tests.backends.archives.house import House

FIRST = docker_archive(SMALL)
LARGE = docker_archive(layer_of(os.urandom(12 << 20)))


async def states(house: House) -> list[ArchiveState]:
    return [row.state for row in await house.rows()]


async def test_a_newer_file_of_the_name_is_another_archive(house: House, alice: Caller) -> None:
    """What is read is the very object that arrived; its successor is not removed with it."""
    await house.put(alice, "model_v1.tar", FIRST)
    reconciler = house.reconciler()
    (first,) = await reconciler.look()
    await house.put(alice, "model_v1.tar", docker_archive(NOISE))
    await reconciler.act(first)
    await house.work()
    assert await states(house) == [ArchiveState.FAILED, ArchiveState.READY]
    assert await house.objects() == []


@pytest.mark.parametrize("second", [docker_archive(NOISE), FIRST, LARGE], ids=["small", "the same", "large"])
async def test_one_that_is_sent_while_its_predecessor_is_removed(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch, second: bytes
) -> None:
    """A removal has no condition: what is stored between the look at the object and its removal would go with it."""
    await house.put(alice, "model_v1.tar", FIRST)
    reconciler = house.reconciler()
    (first,) = await reconciler.look()
    sending: list[asyncio.Task[None]] = []
    look = house.store.head

    async def head(key: str) -> ObjectFacts:
        found = await look(key)
        if not sending:
            sending.append(asyncio.create_task(house.put(alice, "model_v1.tar", second)))
            await asyncio.wait(sending, timeout=1.0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "head", head)
        await reconciler.act(first)
    await sending[0]
    await house.work()
    assert await states(house) == [ArchiveState.READY, ArchiveState.READY]
    assert await house.objects() == []
    assert await house.facts() == []


@pytest.mark.parametrize("second", [FIRST, LARGE], ids=["small", "large"])
async def test_one_that_is_on_its_way_keeps_its_predecessor(
    house: House, alice: Caller, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender had its row before the removal was said: the removal waits, and there is nothing to remove then."""
    await house.put(alice, "model_v1.tar", FIRST)
    held, go_on = asyncio.Event(), asyncio.Event()
    for method in ("put", "complete_upload"):
        real = getattr(house.store, method)

        async def late(*words: object, _real: object = real, **more: object) -> str:
            held.set()
            await go_on.wait()
            return await _real(*words, **more)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(house.store, method, late)
    sending = asyncio.create_task(house.put(alice, "model_v1.tar", second))
    await held.wait()
    with pytest.raises(Unavailable, match="another file of this name"):
        await house.work()
    go_on.set()
    await sending
    await house.work()
    assert await states(house) == [ArchiveState.READY, ArchiveState.READY]
    assert await house.objects() == []


async def test_the_same_file_may_be_sent_again_later(house: House, alice: Caller) -> None:
    """Its object is like the one before in all that a store tells, and was taken for that one."""
    for _ in range(2):
        assert (await house.sent(alice, "model_v1.tar", FIRST)).state is ArchiveState.READY
    assert await states(house) == [ArchiveState.READY, ArchiveState.READY]


async def test_a_removal_that_was_cut_off_goes_on(house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then whether the object is there: a new one waits until the next process has seen to it."""
    await house.put(alice, "model_v1.tar", FIRST)
    with monkeypatch.context() as patch:

        async def die(*_: object) -> None:
            raise asyncio.CancelledError

        patch.setattr(house.store, "delete", die)
        with pytest.raises(asyncio.CancelledError):
            await house.work()
    monkeypatch.setattr("backends.archives.shelf._REMOVAL_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="cannot be removed now"):
        await house.put(alice, "model_v1.tar", LARGE)
    await house.work()
    assert await house.objects() == []
    assert (await house.sent(alice, "model_v1.tar", LARGE)).state is ArchiveState.READY


@pytest.mark.parametrize("name", ["model_v1.tar.filepart", "model_v1.tar.0123abcd.partial", ".in.model_v1.tar"])
async def test_small_ones_under_temporary_names(house: House, alice: Caller, name: str) -> None:
    """WinSCP, rclone and lftp rename at the end, also what is smaller than a part: until then there is no archive."""
    await house.put(alice, name, FIRST)
    await house.work()
    assert await states(house) == []
    await house.shelf.rename(alice, f"/{name}", "/model_v1.tar", replace=True)
    await house.work()
    assert await states(house) == [ArchiveState.READY]
    assert (await house.images.show(alice, "model:v1")).digest != digest_of(b"")
    assert await house.objects() == []
