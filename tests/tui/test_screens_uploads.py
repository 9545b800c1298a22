"""The screen of uploads: live, with bars and rates, harmless whatever the names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from backends.images import ImageFacts
from storage.access import Caller
from storage.clock import now
from storage.records import ArchiveState, ImageArchive, ImageKind, Upload, UploadState
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text

EVIL = "x[/oops][@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp"
MIB = 1024 * 1024


async def make(house: House, owner: Caller, name: str, **values: object) -> str:
    moment = now()
    row = Upload(**{
        "owner_id": owner.user_id, "path": f"/datasets/d/v1/{name}", "key": name, "s3_upload_id": "s3",
        "part_size": 8 * MIB, "size": 40 * MIB, "created": moment - timedelta(seconds=10), "touched": moment, **values,
    })  # fmt: skip
    async with house.database.writing() as tx:
        tx.add(row)
    house.changes.tell("upload", row.id)
    return row.id


async def archive(house: House, owner: Caller, state: ArchiveState, **values: object) -> None:
    facts: dict[str, object] = {"path": "/images/model_v1.tar", "size": 1000, "done": 0, "reason": ""}
    async with house.database.writing() as tx:
        tx.add(ImageArchive(
            owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, key="images/x", etag="e",
            state=state, created=now(), touched=now(), **(facts | values),
        ))  # fmt: skip
    house.changes.tell("upload", "")


async def becomes(house: House, owner: Caller, **values: object) -> None:
    async with house.database.writing() as tx:
        await tx.execute(update(ImageArchive).where(ImageArchive.owner_id == owner.user_id).values(**values))
    house.changes.tell("upload", "")


async def test_an_upload_is_watched_and_ended(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    app = menu()
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome", "u  watch your uploads")
        await pilot.press("u")
        await shows(pilot, "Nothing is being sent")
        upload = await make(house, alice, "big.tar")
        await make(house, bob, "secret")
        await shows(pilot, "big.tar", "uploading", "40 MiB", "4 MiB/s", "1 on its way", "/datasets/d/v1/big.tar")
        assert "secret" not in text(app)
        async with house.database.writing() as tx:
            await tx.execute(update(Upload).where(Upload.id == upload).values(state=UploadState.PARKED))
        house.changes.tell("upload", upload)
        await shows(pilot, "interrupted", "Go on with reput", "sftp -P 2022 alice@gpu.example.org:/datasets/d/v1")
        await pilot.press("y")
        await shows(pilot, "Copied:")
        await pilot.press("d")
        await shows(pilot, "End the upload of /datasets/d/v1/big.tar?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "The upload was ended.", "Nothing is being sent")
        assert house.parts_thrown_away == ["big.tar"]
        await pilot.press("escape")
        await shows(pilot, "Environments")


async def test_archives_are_followed_to_their_image(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    """Received, verifying, loading, pushing, ready: each with its percent, then the image itself."""
    await archive(house, bob, ArchiveState.LOADING, path="/images/secret_v1.tar")
    await archive(house, alice, ArchiveState.RECEIVED)
    app = menu()
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("u")
        await shows(pilot, "model_v1.tar", "image: received", "1 on its way", "waits for its turn")
        for state in (ArchiveState.VERIFYING, ArchiveState.LOADING, ArchiveState.PUSHING):
            await becomes(house, alice, state=state, done=420)
            await shows(pilot, f"image: {state.value}", "#####.......  42%")
        assert "secret" not in text(app)
        await pilot.press("d")
        await shows(pilot, "It has arrived, and becomes an image: delete that.")
        async with house.database.writing() as tx:
            row = await house.images.begin(tx, alice, "model", "v1", kind=ImageKind.IMPORTED)
            await house.images.finish(tx, row.id, ImageFacts("sha256:" + "1" * 64, 1000))
            other = await house.images.begin(tx, alice, "another", "v1", kind=ImageKind.IMPORTED)
            await house.images.finish(tx, other.id, ImageFacts("sha256:" + "2" * 64, 1000))
        await becomes(house, alice, state=ArchiveState.READY)
        await shows(pilot, "image: ready", "It is an image now: i shows it.", "0 on their way")
        await pilot.press("i")
        await shows(pilot, "2 images", "env create NAME --image model:v1")
        await pilot.press("escape")
        await shows(pilot, "image: ready")


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", ("image: failed", "It became no image.")), ("zh", ("镜像：失败", "归档提前结束", "未能变成镜像"))],
)
async def test_an_archive_that_failed_says_why(
    menu: Menu, house: House, alice: Caller, language: str, words: tuple[str, ...]
) -> None:
    reason = "the archive ends too early: it was cut off before it was sent, or is damaged"
    await archive(house, alice, ArchiveState.FAILED, reason=reason)
    app = menu(language)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("u")
        await shows(pilot, *words, "sftp -P 2022 alice@gpu.example.org:/images")
        assert (reason in text(app)) == (language == "en")
        await pilot.press("y")
        await pilot.pause(0.1)
        assert_fits(app)


async def test_administrators_see_everybodys(menu: Menu, house: House, bob: Caller, admin: Caller) -> None:
    await make(house, bob, "bobs")
    app = menu(caller=admin)
    async with app.run_test(size=(120, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("u")
        await shows(pilot, "Nothing is being sent", "Everybody's")
        await pilot.press("a")
        await shows(pilot, "bobs", "bob")
        await pilot.press("a")
        await shows(pilot, "Nothing is being sent")


async def test_by_name_and_in_chinese(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice, "big.tar", state=UploadState.PARKED)
    app = menu("zh")
    async with app.run_test(size=(110, 24)) as pilot:
        await shows(pilot, "欢迎")
        await pilot.press("colon", *"uploads", "enter")
        await shows(pilot, "上传", "已中断", "big.tar")
        assert_fits(app)


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_names_at_every_size(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    await make(house, alice, EVIL)
    await make(house, alice, "数据" * 60, state=UploadState.PARKED)
    await archive(house, alice, ArchiveState.FAILED, path=f"/images/{EVIL}", reason=EVIL)
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("u")
        await shows(pilot, "oops]")
        assert_fits(app)
        assert_harmless(app)
        await pilot.press("d")
        await pilot.pause(0.1)
        assert_harmless(app)
        await pilot.press("escape", "down", "y", "down", "y", "d")
        await pilot.pause(0.1)
        assert_fits(app)
        assert_harmless(app)
