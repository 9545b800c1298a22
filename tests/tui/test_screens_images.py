"""The screen of images: whose they are, archives on their way, harmless, in both languages."""

from __future__ import annotations

import pytest

from backends.images import ImageFacts
from storage.access import Caller, Visibility
from storage.clock import now
from storage.records import ArchiveState, ImageArchive, ImageKind
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text

DIGEST = "sha256:" + "1" * 64
EVIL = "x[/oops][@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp"


async def add(house: House, owner: Caller, name: str, *, failed: str = "") -> None:
    async with house.database.writing() as tx:
        row = await house.images.begin(tx, owner, name, "v1", kind=ImageKind.IMPORTED)
        if failed:
            await house.images.fail(tx, row.id, failed)
        else:
            await house.images.finish(tx, row.id, ImageFacts(DIGEST, 3 * 1024**3, "amd64", "12.4", ">=550"))
    house.images.tell(row.id)


async def archive(house: House, owner: Caller, state: ArchiveState, **values: object) -> None:
    facts: dict[str, object] = {"path": "/images/big_v2.tar", "size": 1000, "done": 420, "reason": ""}
    async with house.database.writing() as tx:
        tx.add(ImageArchive(
            owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, key="images/x", etag="e",
            state=state, created=now(), touched=now(), **(facts | values),
        ))  # fmt: skip
    house.changes.tell("upload", "")


async def test_images_are_shared_and_deleted(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    await add(house, alice, "model")
    await add(house, bob, "theirs")
    await archive(house, alice, ArchiveState.LOADING)
    app = menu(caller=alice)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("i")
        await shows(pilot, "big_v2.tar", "loading 42%", "model:v1", "3 GiB", "12.4", "only to you", "1 image")
        assert "theirs" not in text(app)
        await pilot.press("down")
        await shows(pilot, "env create NAME --image model:v1", "driver >=550")
        await pilot.press("v")
        await shows(pilot, "Let others use model:v1?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "model:v1 is visible to: workspace")
        assert (await house.images.show(bob, "alice/model:v1")).visibility is Visibility.WORKSPACE
        await pilot.press("d")
        await shows(pilot, "Delete the image model:v1?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "model:v1 was deleted.", "0 images")
        await pilot.press("escape")
        await shows(pilot, "Environments")


async def test_nothing_yet_and_what_failed(menu: Menu, house: House, alice: Caller) -> None:
    app = menu(caller=alice)
    async with app.run_test(size=(110, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("i")
        await shows(pilot, "No images yet")
        await archive(house, alice, ArchiveState.FAILED, reason="the archive ends too early")
        await shows(pilot, "failed", "the archive ends too early")


@pytest.mark.parametrize("size", [(80, 24), (40, 10)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_at_every_size(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    await add(house, alice, "model", failed=EVIL)
    await archive(house, alice, ArchiveState.VERIFYING, path=f"/images/{EVIL}.tar", reason=EVIL)
    app = menu(language, caller=alice)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("i")
        await shows(pilot, "model:v1")
        for keys in (("down",), ("d",), ("escape",), ("v",), ("escape",)):
            await pilot.press(*keys)
            await pilot.pause(0.1)
            assert_harmless(app)
        assert_fits(app)
