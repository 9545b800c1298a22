"""What is deleted goes out of a real registry, what is in use stays, and the space comes back when it is quiet."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from backends.compute.contract import Compute, Progress
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.image_names import loaded_name
from backends.images import ImageFacts, Images
from backends.reconcilers import images
from backends.reconcilers.images import ImageReconciler
from backends.registry import Registry
from backends.registry_child import EmbeddedRegistry
from backends.settings import RegistrySettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import NotFound, Unavailable
from storage.records import Environment, EnvironmentState, Image, ImageKind
from tests.backends.test_image_registry import blobs, put_image


class House:
    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, child: EmbeddedRegistry, at: RegistrySettings
    ) -> None:
        self.database, self.child = database, child
        self.images = Images(database, audit, changes, at)
        self.registry = Registry(at)

        def reconciler_of(computes: Mapping[str, Compute]) -> ImageReconciler:
            return ImageReconciler(
                database, audit, changes, self.registry, child, images=self.images, computes=computes
            )  # fmt: skip

        self.reconciler_of = reconciler_of
        self.reconciler = reconciler_of({})
        self.without = ImageReconciler(database, audit, changes, None)

    async def image(self, owner: Caller, layer: bytes) -> Image:
        """Of alice's `model:v1`, made again if it is there."""
        async with self.database.writing() as tx:
            row = await self.images.begin(tx, owner, "model", "v1", kind=ImageKind.CUSTOM)
        digest = await put_image(self.registry, row.repository, "v1", layer)
        async with self.database.writing() as tx:
            await self.images.finish(tx, row.id, ImageFacts(digest))
            return await tx.get_one(Image, row.id)

    async def environment(self, image: Image, state: EnvironmentState = EnvironmentState.RUNNING) -> Environment:
        row = Environment(
            owner_id=image.owner_id, owner_name="alice", workspace_id=image.workspace_id, name=f"e{state.value}",
            compute="docker", image=image.title, image_id=image.id, image_digest=image.digest, state=state,
            created=now(),
        )  # fmt: skip
        async with self.database.writing() as tx:
            tx.add(row)
        return row

    async def remove(self, row: Environment) -> None:
        async with self.database.writing() as tx:
            await tx.delete(await tx.get_one(Environment, row.id))

    async def row(self, image: Image) -> Image | None:
        async with self.database.reading() as tx:
            return await tx.get(Image, image.id)

    async def round(self) -> None:
        for key in await self.reconciler.look():
            await self.reconciler.act(key)

    async def has(self, image: Image) -> bool:
        try:
            await self.registry.manifest(image.repository, image.digest)
        except NotFound:
            return False
        return True


@pytest.fixture
async def house(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> AsyncIterator[House]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    house = House(database, audit, changes, child, await child.start(RegistrySettings()))
    yield house
    await house.registry.close()
    await child.close()


async def test_a_deleted_image_goes_with_its_space(house: House, alice: Caller, tmp_path: Path) -> None:
    image = await house.image(alice, os.urandom(1_000_000))
    await house.images.delete(alice, "model:v1")
    with pytest.raises(Unavailable, match="not there now"):
        await house.without.act(image.id)
    await house.round()
    assert not await house.has(image)
    assert await house.row(image) is None
    assert house.child.has_garbage
    await house.round()
    assert not house.child.has_garbage
    assert blobs(tmp_path) == 0
    assert (await house.image(alice, b"again" * 999)).id != image.id


async def test_what_was_pushed_for_nothing_goes_with_its_image(house: House, alice: Caller, tmp_path: Path) -> None:
    """A build that was cancelled while it pushed: its manifest has the tag, and no record knows the digest."""
    image = await house.image(alice, b"one" * 1000)
    await put_image(house.registry, image.repository, "v1", b"two" * 1000)
    await house.images.delete(alice, "model:v1")
    await house.round()
    assert await house.registry.tags(image.repository) == []
    await house.round()
    assert blobs(tmp_path) == 0


async def test_what_an_environment_was_made_from_stays(house: House, alice: Caller) -> None:
    """It is pinned: a rebuild of the environment, as for another GPU, needs the very same image."""
    first = await house.image(alice, b"one" * 1000)
    environment = await house.environment(first)
    second = await house.image(alice, b"two" * 1000)
    assert (second.id, second.former) == (first.id, [first.digest])
    await house.round()
    assert await house.has(first)
    source = await house.images.source(environment)
    assert source.reference.endswith(f"@{first.digest}")
    await house.remove(environment)
    await house.round()
    assert not await house.has(first)
    assert await house.has(second)
    row = await house.row(first)
    assert row is not None
    assert row.former == []


async def test_nothing_is_collected_while_something_is_on_its_way(house: House, alice: Caller) -> None:
    image = await house.image(alice, b"one" * 1000)
    house.child.note_garbage()
    environment = await house.environment(image, EnvironmentState.CREATING)
    await house.round()
    assert house.child.has_garbage
    await house.remove(environment)

    async def nothing() -> None:
        raise AssertionError("nobody collects now")

    async with house.child.gate.pushing(nothing):
        await house.round()
        assert house.child.has_garbage
    await house.round()
    assert not house.child.has_garbage


async def test_in_the_end_it_is_collected_whoever_pulls(house: House, alice: Caller, tmp_path: Path) -> None:
    image = await house.image(alice, b"one" * 1000)
    house.child.note_garbage()
    await house.environment(image, EnvironmentState.CREATING)
    seven_hours_ago = time.time() - 7 * 3600
    os.utime(tmp_path / "registry" / "garbage", (seven_hours_ago, seven_hours_ago))
    house.child.note_garbage()
    await house.round()
    assert not house.child.has_garbage


async def test_a_pinned_image_keeps_nobody_elses_garbage(house: House, alice: Caller) -> None:
    """Its former digest stays in its row for as long as the environment is there."""
    first = await house.image(alice, b"one" * 1000)
    await house.environment(first)
    second = await house.image(alice, b"two" * 1000)
    assert second.former == [first.digest]
    house.child.note_garbage()
    await house.round()
    assert not house.child.has_garbage
    assert await house.has(first)


class Engine(MemoryCompute):
    """It says what it was told to forget, if it is not one that hangs."""

    is_here = False

    def __init__(self, directory: Path, name: str, dropping: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(MemoryEngine(directory), name=name)
        self._dropping = dropping

    async def drop_image(self, reference: str) -> None:
        await self._dropping(reference)

    async def pull_image(self, reference: str, title: str, auth: str, progress: Progress) -> bool:
        raise NotImplementedError

    async def image_id(self, name: str) -> str:
        raise NotImplementedError

    async def load_image(self, archive: AsyncGenerator[bytes], title: str) -> None:
        raise NotImplementedError


async def test_a_host_that_hangs_keeps_no_image_from_being_deleted(
    house: House, alice: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others forget their copies, and before the row goes: it is all that knows the digest."""
    monkeypatch.setattr(images, "_DROP_SECONDS", 2.0)
    image, dropped = await house.image(alice, b"one" * 1000), list[str]()

    async def hang(reference: str) -> None:
        await asyncio.Event().wait()

    async def drop(reference: str) -> None:
        assert await house.row(image) is not None
        dropped.append(reference)

    reference = house.images.reference(image)
    computes = {name: Engine(tmp_path, name, does) for name, does in (("a", hang), ("b", hang), ("c", drop))}
    house.reconciler = house.reconciler_of(computes)
    await house.images.delete(alice, "model:v1")
    await house.round()
    assert await house.row(image) is None
    assert dropped == [reference, loaded_name(reference)]
    assert caplog.text.count("may keep its copy of 'model:v1': it did not answer") == 2


async def test_the_loop_wakes_by_itself(house: House, alice: Caller) -> None:
    image = await house.image(alice, b"one" * 1000)
    task = asyncio.create_task(house.reconciler.run())
    await house.images.delete(alice, "model:v1")
    async with asyncio.timeout(60):
        while await house.row(image) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
