"""The browser of the data tree."""

from __future__ import annotations

import shlex

import pytest

from storage.access import Caller, Visibility
from storage.clock import now
from storage.records import Artifact, ArtifactState
from tests.tui.conftest import Menu
from tests.tui.house import House, MemoryTree
from tests.tui.screen_text import assert_fits, assert_harmless, shows, until
from tui.screens.files import FilesScreen
from tui.widgets.table import Table


def tree(house: House) -> MemoryTree:
    house.files = MemoryTree(
        {
            "/README.txt": b"read\tme [/b]\n",
            "/datasets": None,
            "/datasets/mnist": None,
            "/datasets/mnist/v1": None,
            "/datasets/mnist/v1/train.bin": b"\0" * 2048,
        }
    )
    return house.files


async def test_into_a_directory_and_back(menu: Menu, house: House) -> None:
    tree(house)
    app = menu()
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("f")
        await shows(pilot, "datasets/", "README.txt", "13 B", "sftp -P 2022 alice@gpu.example.org:/")
        await pilot.press("enter")
        await shows(pilot, "mnist/", "sftp -P 2022 alice@gpu.example.org:/datasets", "lftp -e 'cd /datasets'")
        await pilot.press("down", "enter")
        await shows(pilot, "v1/", "1 entry")
        await pilot.press("backspace")
        await shows(pilot, "mnist/")
        await until(pilot, lambda: app.screen.query_one(Table).key == "mnist")
        await pilot.press("home", "enter")
        await shows(pilot, "README.txt")
        await pilot.press("escape")
        await shows(pilot, "Environments")


async def test_make_rename_and_delete(menu: Menu, house: House) -> None:
    files = tree(house)
    app = menu()
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("f", "enter")
        await shows(pilot, "mnist/")
        await pilot.press("n", *"cifar", "enter")
        await shows(pilot, "cifar/")
        await until(pilot, lambda: app.screen.query_one(Table).key == "cifar")
        await pilot.press("r", "end", *"10", "enter")
        await shows(pilot, "cifar10/")
        await until(pilot, lambda: app.screen.query_one(Table).key == "cifar10")
        await pilot.press("d")
        await shows(pilot, "Delete /datasets/cifar10?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "Deleted: /datasets/cifar10")
        assert "/datasets/cifar10" not in files.entries
        await pilot.press("down", "d", "shift+tab", "enter")
        await shows(pilot, "'/datasets/mnist' is not empty")
        assert "/datasets/mnist" in files.entries


async def test_a_name_cannot_climb_out(menu: Menu, house: House) -> None:
    files = tree(house)
    app = menu()
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("f", "enter")
        await shows(pilot, "mnist/")
        await pilot.press("n", *"../../../etc", "enter")
        await until(pilot, lambda: "/etc" in files.entries)
        assert not any(".." in path for path in files.entries)


async def test_text_is_previewed_and_bytes_are_not(menu: Menu, house: House) -> None:
    tree(house)
    app = menu()
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("f", "down")
        await shows(pilot, "README.txt")
        await pilot.press("end", "enter")
        await shows(pilot, "read    me [/b]")
        await pilot.press("escape")
        app.push_screen(FilesScreen(app.desk, "/datasets/mnist/v1"))
        await shows(pilot, "train.bin", "2 KiB")
        await pilot.press("end", "enter")
        await shows(pilot, "This is not text.")


async def test_a_large_directory_is_read_in_pieces(menu: Menu, house: House) -> None:
    house.files = MemoryTree({f"/file-{number:05}": b"" for number in range(5000)})
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("f")
        await shows(pilot, "file-00000", "the first 1000 entries, m: more")
        assert house.files.read_count <= 1001
        await pilot.press("end")
        await shows(pilot, "file-00999")
        await pilot.press("m")
        await shows(pilot, "the first 2000 entries")
        await pilot.press("end")
        await shows(pilot, "file-01999")
        assert app.screen.query_one(Table).key == "file-01999"


async def test_a_directory_that_is_gone_is_one_sentence(menu: Menu, house: House) -> None:
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        app.push_screen(FilesScreen(app.desk, "/datasets/gone"))
        await shows(pilot, "there is no '/datasets/gone'")
        await pilot.press("backspace")
        await shows(pilot, "there is no '/datasets'")


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_names_at_every_size(menu: Menu, house: House, size: tuple[int, int], language: str) -> None:
    evil = "x[@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp[oops]"
    house.files = MemoryTree(
        {f"/{evil}": None, f"/{evil}/中文文件名很长很长很长很长很长很长.txt": f"[/b]{evil}".encode()}
    )
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("f")
        await shows(pilot, "x[@click=app.qu")
        assert_fits(app)
        assert_harmless(app)
        await pilot.press("d")
        await pilot.pause(0.1)
        assert_harmless(app)
        await pilot.press("escape", "r")
        await pilot.pause(0.1)
        assert_harmless(app)
        await pilot.press("escape", "enter")
        await shows(pilot, "中文")
        assert_fits(app)
        assert_harmless(app)
        await pilot.press("down", "y", "enter")
        await shows(pilot, "[/b]x")
        assert_harmless(app)


def test_the_lines_to_copy_are_quoted(menu: Menu) -> None:
    desk = menu().desk
    assert desk.sftp_command("/data sets/x'y") == """sftp -P 2022 'alice@gpu.example.org:/data sets/x'"'"'y'"""
    words = shlex.split(desk.lftp_command("/$(id) x"))
    assert words == ["lftp", "-e", "cd '/$(id) x'", "sftp://alice@gpu.example.org:2022"]


async def test_an_output_is_kept_to_oneself_and_shared(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    """The key is there below /artifacts only; the listing's permissions tell who may read now."""
    async with house.database.writing() as tx:
        tx.add(Artifact(
            id="a1", workspace_id=alice.workspace_id, owner_id=alice.user_id, owner_name="alice", environment_id="e1",
            environment_name="train", name="train-1", prefix="artifacts/team/train-1/", state=ArtifactState.READY,
            visibility=Visibility.WORKSPACE, created=now(),
        ))  # fmt: skip
    house.files.entries |= {"/artifacts": None, "/artifacts/train-1": None}
    assert [view.name for view in await house.artifacts.list(bob)] == ["train-1"]
    app = menu("zh")
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "欢迎")
        await pilot.press("f")
        await shows(pilot, "artifacts/")
        await pilot.press("v")
        await pilot.press("enter")
        await shows(pilot, "train-1/")
        await pilot.press("down", "v")
        await shows(pilot, "只允许其所有者读取 train-1？")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "现在只有其所有者可读取 train-1。")
    assert await house.artifacts.list(bob) == []
