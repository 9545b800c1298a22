"""The screen of uploads: live, with bars and rates, harmless whatever the names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from storage.access import Caller
from storage.clock import now
from storage.records import Upload, UploadState
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
        await pilot.press("escape", "down", "y")
        await pilot.pause(0.1)
        assert_fits(app)
        assert_harmless(app)
