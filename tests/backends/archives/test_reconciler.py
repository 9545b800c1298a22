"""From the last byte to the image, whatever is away, full or cut off meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import timedelta

import pytest

from backends.reconcilers import archives
from backends.registry import Registry
from backends.registry_child import EmbeddedRegistry
from backends.settings import RegistrySettings
from storage.access import Caller
from storage.errors import Unavailable
from storage.records import ArchiveState
from tests.backends.archives.files import NOISE, SMALL, docker_archive, layer_of
from tests.backends.archives.house import House


@pytest.mark.parametrize("step", ["has_blob", "upload", "put_manifest"])
async def test_it_goes_on_after_a_crash(
    house: House, alice: Caller, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is cut off, the next process makes one image of it, and announces it once."""
    await house.put(alice, "model_v1.tar", docker_archive(SMALL, NOISE))
    with monkeypatch.context() as patch:

        def die(*_: object, **__: object) -> None:
            raise asyncio.CancelledError

        patch.setattr(Registry, step, die)
        with pytest.raises(asyncio.CancelledError):
            await house.work()
    await house.work()
    (row,) = await house.rows()
    assert (row.state, row.reason, row.attempts) == (ArchiveState.READY, "", 2)
    assert len(await house.images.list(alice)) == 1
    assert await house.objects() == []


async def test_one_that_ends_the_process_each_time_is_given_up(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    with monkeypatch.context() as patch:

        async def die(*_: object) -> None:
            raise asyncio.CancelledError

        patch.setattr("backends.archives.transfer.Transfer.look", die)
        for _ in range(10):
            with pytest.raises(asyncio.CancelledError):
                await house.work()
    await house.work()
    (row,) = await house.rows()
    assert row.state is ArchiveState.FAILED
    assert "too often" in row.reason


async def test_a_registry_that_is_away_is_waited_for(house: House, child: EmbeddedRegistry, alice: Caller) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    await child.close()
    with pytest.raises(Unavailable):
        await house.work()
    (row,) = await house.rows()
    assert not row.state.is_over
    assert "does not answer" in row.reason
    await house.registry.close()
    house.registry = Registry(await child.start(RegistrySettings()))  # with another password
    await house.work()
    assert (await house.rows())[0].state is ArchiveState.READY


async def test_after_six_hours_it_is_given_up(house: House, child: EmbeddedRegistry, alice: Caller) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    await child.close()
    with pytest.raises(Unavailable):
        await house.work()
    house.later = timedelta(hours=6, minutes=1)
    await house.work()
    (row,) = await house.rows()
    assert row.state is ArchiveState.FAILED
    assert await house.objects() == []


async def test_a_full_disk_is_waited_for(house: House, alice: Caller) -> None:
    house.free = 1000
    await house.put(alice, "model_v1.tar", docker_archive(NOISE))
    with pytest.raises(Unavailable, match="no room"):
        await house.work()
    house.free = None
    await house.work()
    assert (await house.rows())[0].state is ArchiveState.READY


async def test_a_resumed_one_gets_its_hash_nevertheless(house: House, alice: Caller) -> None:
    content = docker_archive(layer_of(os.urandom(20 << 20)))
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    for at in range(0, 18 << 20, 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.abandon()
    node = await house.shelf.stat(alice, "/model_v1.tar")
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=False)
    await writer.write(node.size, content[node.size : node.size + (1 << 20)])
    for at in range(node.size + (1 << 20), len(content), 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.finish()
    await house.work()
    (row,) = await house.rows()
    assert (row.state, row.sha256) == (ArchiveState.READY, hashlib.sha256(content).hexdigest())


async def test_no_layer_is_held_in_memory(house: House, alice: Caller) -> None:
    """Pieces of 4 MiB, a few of them; not one of the 100 MiB of this layer."""
    import tracemalloc

    await house.put(alice, "model_v1.tar", docker_archive(layer_of(os.urandom(100 << 20))))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    await house.work()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert (await house.rows())[0].state is ArchiveState.READY
    assert peak < 48 << 20


async def test_one_that_takes_too_long_lets_others_go_on(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(archives, "_SLOWEST", 1 << 60)
    row = await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    assert (row.state, "longer" in row.reason) == (ArchiveState.FAILED, True)
    assert await house.objects() == []
