"""Data sets and models in the menu."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from storage.access import Caller
from storage.asset_views import Reference
from storage.clock import now
from storage.records import Asset, AssetKind, User, VersionState, Workspace
from tests.tui.conftest import Menu
from tests.tui.house import House, MemoryTree
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text, until
from tui.screens.datasets import DatasetsScreen
from tui.screens.files import FilesScreen
from tui.widgets.table import Table

EVIL = "x[@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp[oops]"


async def eve_of(house: House, bob: Caller) -> Caller:
    """Bob, at work in the workspace `lab`."""
    async with house.database.writing() as tx:
        lab = Workspace(name="lab", created=now())
        tx.add(lab)
        await tx.flush()
        await tx.execute(update(User).where(User.id == bob.user_id).values(workspace_id=lab.id))
    return replace(bob, workspace_id=lab.id, workspace="lab")


async def mnist(house: House, alice: Caller) -> None:
    """`mnist:v1` with two files."""
    await house.datasets.create(alice, "mnist")
    await house.datasets.create_version(alice, "mnist", "v1")
    house.objects |= {"datasets/team/mnist/v1/a": 2048, "datasets/team/mnist/v1/b": 1024}


async def test_from_an_empty_list_to_a_published_version(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "Data sets and models", "0 versions", "n: new data set", "sftp -P 2022")
        await pilot.press("n", *"mnist:v1", "enter")
        await shows(
            pilot, "mnist:v1", "data set", "open", "workspace", "1 version", "mirror -c -R mnist /datasets/mnist/v1"
        )
        await pilot.press("p")
        await shows(pilot, "Publish mnist:v1?")
        await pilot.press(*"mnist", "enter")
        await pilot.pause(0.1)
        assert "Publish mnist:v1?" in text(app)
        await pilot.press(*":v1", "enter")
        await shows(pilot, "has no files: there is nothing to publish")
        house.objects = {"datasets/team/mnist/v1/a": 2048, "datasets/team/mnist/v1/b": 1024}
        await pilot.press("p", *"mnist:v1", "enter")
        await shows(pilot, "mnist:v1 is published.", "published", "3 KiB", "lftp -e 'cd /datasets/mnist/v1'")
        assert (await house.datasets.find(alice, "mnist")).version("v1").state is VersionState.READY
        await pilot.press("n", "end", *"v2", "enter")
        await shows(pilot, "mnist:v1 *", "mnist:v2", "2 versions")
        await until(pilot, lambda: app.screen.query_one(Table).key == "dataset team/mnist:v2")
        await pilot.press("escape")
        await shows(pilot, "Environments")


async def test_enter_opens_the_files_there(menu: Menu, house: House, alice: Caller) -> None:
    await mnist(house, alice)
    house.files = MemoryTree({"/datasets": None, "/datasets/mnist": None, "/datasets/mnist/v1": None})
    app = menu()
    async with app.run_test(size=(110, 30)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "mnist:v1")
        await pilot.press("y")
        await until(pilot, lambda: "mirror -c -R mnist /datasets/mnist/v1" in app.clipboard)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, FilesScreen))
        await shows(pilot, "sftp -P 2022 alice@gpu.example.org:/datasets/mnist/v1")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DatasetsScreen))


async def test_share_visibility_tags_and_description(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    await mnist(house, alice)
    await eve_of(house, bob)
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "mnist:v1")
        await pilot.press("s", *"nowhere", "enter")
        await shows(pilot, "there is no workspace 'nowhere'")
        await pilot.press("s", *"lab", "enter")
        await shows(pilot, "Shared with lab.", "shared with lab")
        await pilot.press("s", *"-lab", "enter")
        await shows(pilot, "No longer shared with lab.")
        await pilot.press("v", *"secret", "enter")
        await shows(pilot, "visibility is one of private, workspace, public")
        await pilot.press("v", *"private", "enter")
        await shows(pilot, "owner: alice   private")
        await pilot.press("t", *"vision small", "enter")
        await shows(pilot, "small vision")
        await pilot.press("t", "end", *["backspace"] * 7, "enter")
        await until(pilot, lambda: "vision" not in text(app))
        await pilot.press("i", *"digits", "enter")
        await shows(pilot, "mnist:v1  open  digits")
        await pilot.press("slash", *"digits", "enter")
        await shows(pilot, "1 of 1 with 'digits'")
        await pilot.press("slash", *"cats", "enter")
        await shows(pilot, "0 of 1 with 'cats'")
        await pilot.press("escape")
        await shows(pilot, "1 version")
    found = await house.datasets.find(alice, "mnist", shares=True)
    assert (found.tags, found.shares, found.visibility.value) == (("small",), {}, "private")


async def test_deleting_needs_the_name_and_is_seen_until_it_is_done(menu: Menu, house: House, alice: Caller) -> None:
    await mnist(house, alice)
    await house.datasets.create_version(alice, "mnist", "v2")
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "mnist:v1", "mnist:v2")
        await pilot.press("d")
        await shows(pilot, "Delete mnist:v1 with everything in it?")
        await pilot.press(*"mnist:v2", "enter")
        await pilot.pause(0.1)
        assert "Delete mnist:v1" in text(app)
        await pilot.press("escape", "d", *"mnist:v1", "enter")
        await until(pilot, lambda: "mnist:v1" not in text(app))
        assert not house.objects
        house.is_away = True
        await pilot.press("D")
        await shows(pilot, "Delete mnist with its 1 version?")
        await pilot.press(*"mnist", "enter")
        await shows(pilot, "deleting", "0 gone", "0 versions")
        await pilot.press("home", "enter", "d", "p", "s")  # nothing can be done about it any more
        house.is_away = False
        (deletion,) = await house.deletions.show(alice, AssetKind.DATASET)
        await house.deletions.carry_out(deletion.id)
        await until(pilot, lambda: "deleting" not in text(app))


async def test_what_others_share_can_only_be_read(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    eve = await eve_of(house, bob)
    await house.models.create(eve, "bert")
    await house.models.create_version(eve, "bert", "v1")
    house.objects = {"models/lab/bert/v1/w": 5}
    await house.models.publish(eve, "bert", "v1")
    await house.models.change(eve, "bert", visibility="public", framework="pytorch", task="nlp")
    await house.models.set_metrics(eve, "bert", "v1", {"accuracy": 0.93})
    await house.models.create(alice, "mine")
    await house.models.link(alice, "mine", "base", Reference("bert", "v1", "lab"))
    app = menu()
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "mine:base", "link", "leads to lab/bert:v1", "lab/bert:v1", "model")
        await pilot.press("down")
        await shows(pilot, "pytorch   nlp   accuracy 0.93", "/shared/lab/models/bert/v1")
        for key in ("d", "p"):
            await pilot.press(key, *"bert:v1", "enter")
            await shows(pilot, "belongs to another workspace")
        await house.models.change(eve, "bert", visibility="private")
        await shows(pilot, "1 version", "leads nowhere any more", "broken")


async def test_private_ones_of_others_are_not_there(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    await mnist(house, alice)
    await house.datasets.change(alice, "mnist", visibility="private")
    app = menu(caller=bob)
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("t")
        await shows(pilot, "0 versions")
        assert "mnist" not in text(app)


async def test_refusals_in_chinese(menu: Menu, house: House, alice: Caller) -> None:
    await mnist(house, alice)
    app = menu("zh")
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("t")
        await shows(pilot, "数据集与模型", "mnist:v1", "1 个版本")
        await pilot.press("n", *"mnist", "enter")
        await shows(pilot, "已经有名为「mnist」的数据集")
        await pilot.press("n", *"A_", "enter")
        await shows(pilot, "不能作为数据集的名称")


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_at_every_size(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    await mnist(house, alice)
    async with house.database.writing() as tx:  # what an older or foreign writer may have left
        await tx.execute(
            update(Asset).values(name=EVIL, owner_name=EVIL, description=EVIL, tags=[EVIL], framework=EVIL, task=EVIL)
        )
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("t")
        await shows(pilot, "x[@click")
        assert_fits(app)
        assert_harmless(app)
        for key in ("p", "s", "v", "t", "i", "d", "D", "n", "slash", "y"):
            await pilot.press(key)
            await pilot.pause(0.05)
            assert_harmless(app)
            if key != "y":
                await pilot.press("escape")
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert_harmless(app)
        assert_fits(app)
