"""The directory /images: which names it takes, whose files it shows, and for how long."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from sqlalchemy import select

from backends.archives.shelf import ImageShelf
from backends.images import Images
from backends.settings import RegistrySettings
from storage.access import Caller
from storage.clock import now
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound, Unavailable
from storage.records import ArchiveState, Upload
from tests.backends.archives.files import NOISE, SMALL, docker_archive, layer_of
from tests.backends.archives.house import House


@pytest.mark.parametrize("name", ["model.zip", "a/b_v1.tar", "_v1.tar", "MODEL%_v1.tar"])
async def test_names_that_say_no_image_are_refused_at_once(house: House, alice: Caller, name: str) -> None:
    with pytest.raises((BadInput, NotFound)):
        await house.shelf.open_writer(alice, f"/{name}", truncate=True)
    assert await house.objects() == []


async def test_without_a_registry_nothing_is_taken(house: House, alice: Caller) -> None:
    house.images = Images(house.database, house.audit, house.changes, RegistrySettings())
    shelf = ImageShelf(
        house.database, house.audit, house.store, house.uploads, house.images, house.settings, None,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(Unavailable, match="docker-registry"):
        await shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    with pytest.raises(NotAllowed):
        await shelf.mkdir(alice, "/x")


async def test_two_people_send_the_same_name(house: House, alice: Caller, bob: Caller) -> None:
    one, other = docker_archive(SMALL), docker_archive(NOISE)
    await house.put(alice, "model_v1.tar", one)
    await house.put(bob, "model_v1.tar", other)
    assert [node.name async for node in house.shelf.list(alice, "/")] == ["model_v1.tar"]
    assert (await house.shelf.stat(alice, "/model_v1.tar")).size == len(one)
    await house.work()
    mine, theirs = await house.images.show(alice, "model:v1"), await house.images.show(bob, "model:v1")
    assert mine.digest != theirs.digest
    assert mine.reference != theirs.reference
    assert [view.owner for view in await house.archives.list(alice, ready=True)] == ["alice"]


async def test_a_client_still_finds_the_size_of_what_it_sent(house: House, alice: Caller) -> None:
    """It asks after CLOSE, and a small archive is an image by then."""
    content = docker_archive(SMALL)
    await house.sent(alice, "model_v1.tar", content)
    assert (await house.shelf.stat(alice, "/model_v1.tar")).size == len(content)
    house.later = timedelta(hours=2)
    with pytest.raises(NotFound):
        await house.shelf.stat(alice, "/model_v1.tar")


async def test_interrupted_uploads_are_swept_six_hours_after_their_last_byte(house: House, alice: Caller) -> None:
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    content = os.urandom(1 << 20)
    for at in range(20):
        await writer.write(at << 20, content)
    await writer.abandon()
    node = await house.shelf.stat(alice, "/model_v1.tar")
    assert node.unfinished
    assert node.size == 16 << 20
    await house.work()
    assert (await house.shelf.stat(alice, "/model_v1.tar")).unfinished
    async with house.database.writing() as tx:
        for row in await tx.scalars(select(Upload)):
            row.touched = now() - timedelta(hours=6, minutes=1)
    await house.work()
    with pytest.raises(NotFound):
        await house.shelf.stat(alice, "/model_v1.tar")


async def test_an_interrupt_that_looked_like_an_end_goes_on(house: House, alice: Caller) -> None:
    """OpenSSH's sftp closes the file at Ctrl-C as if it were whole: it is refused, kept, and reput sends the rest."""
    content = docker_archive(layer_of(os.urandom(20 << 20)))
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    for at in range(0, 18 << 20, 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    writer.doubt()
    await writer.finish()
    await house.work()
    assert [(row.state, "too early" in row.reason) for row in await house.rows()] == [(ArchiveState.FAILED, True)]
    node = await house.shelf.stat(alice, "/model_v1.tar")
    assert node.size == 18 << 20
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=False)
    for at in range(18 << 20, len(content), 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.finish()
    await house.work()
    assert [row.state for row in await house.rows()] == [ArchiveState.FAILED, ArchiveState.READY]
    assert await house.objects() == []


async def test_errors_of_the_tree_are_ours(house: House, alice: Caller) -> None:
    for question in (
        house.shelf.remove(alice, "/nothing_v1.tar"), house.shelf.rename(alice, "/a_v1.tar", "/b_v1.tar", replace=True),
        house.shelf.open_reader(alice, "/"), house.shelf.rmdir(alice, "/"), house.shelf.stat(alice, "/a/b"),
    ):  # fmt: skip
        with pytest.raises(AshoreError):
            await question
