"""Builds in the menu: writing with problems at their line, the log while it is written, the list, stopping."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from textual.widgets import Input, TextArea

from backends.build_log import LogWriter
from backends.builds import BuildView
from storage.access import Caller
from storage.quota_limits import Resource
from storage.records import Build, BuildState, Holder
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text, until


async def ask(house: House, owner: Caller, name: str = "tools", **values: object) -> BuildView:
    view = await house.builds.request(owner, name, "v1", base="debian:bookworm", text="RUN echo a\n")
    if values:
        async with house.database.writing() as tx:
            await tx.execute(update(Build).where(Build.id == view.id).values(**values))
        house.changes.tell("build", view.id)
    return view


async def test_a_text_is_written_corrected_and_built(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("b")
        await shows(pilot, "Nothing was built yet: press n.")
        await pilot.press("n")
        await shows(pilot, "ffmpeg", "This can be built.", "FROM is put in front")
        app.screen.query_one("#name", Input).value = "tools:v2"
        area = app.screen.query_one(TextArea)
        area.text = "RUN true\nUSER root\nADD http://x /y\n"
        await shows(pilot, "line 2: USER is not allowed", "line 3: ADD of an address", "2 problems")
        await pilot.press("ctrl+s")
        await shows(pilot, "This cannot be built yet")
        assert area.cursor_location == (1, 0)
        area.text = "RUN true\n"
        await shows(pilot, "This can be built.")
        await pilot.press("ctrl+s")
        await shows(pilot, "tools:v2 #1", "It is followed while it is written.")
        (view,) = await house.builds.list(alice)
        assert (view.title, view.base, view.dockerfile) == ("tools:v2", "debian:bookworm", "RUN true\n")
        await pilot.press("escape")
        await shows(pilot, "tools:v2", "queued", "1 build")
        await pilot.press("e")
        await shows(pilot, "RUN true")
        await pilot.press("ctrl+s")
        await shows(pilot, "is being made already")


async def test_a_full_quota_is_said_while_one_writes(menu: Menu, house: House, alice: Caller) -> None:
    await house.quotas.set_by_operator(Holder.USER, "alice", {Resource.BUILDS: 1})
    await ask(house, alice)
    app = menu("zh")
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "欢迎")
        await pilot.press("b")
        await shows(pilot, "tools:v1", "未结束的构建 1/1")
        await pilot.press("n")
        await shows(pilot, "您的未结束的构建配额为 1", "有空位时即可构建")


async def test_a_log_is_followed_with_its_colours(menu: Menu, house: House, alice: Caller) -> None:
    view = await ask(house, alice)
    app = menu()
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        with LogWriter(house.builds.log_path(view.id), most=10**7, told=lambda: house.changes.tell("build-log")) as log:
            log.write(b"Step 1/2 : RUN a\n\x1b[31mred words\x1b[0m \x1b[2J\x1b]0;x\x07[@click=app.quit]\n")
            await pilot.press("b")
            await shows(pilot, "tools:v1")
            await pilot.press("enter")
            await shows(pilot, "Step 1/2", "red words", "[@click=app.quit]")
            log.write(b"more of it\n")
            await shows(pilot, "more of it")
            assert "Only the end" not in text(app)
            log.write(b"many\n" * 5_000)
            await shows(pilot, "Only the end of the log is here. All of it: ssh ", "image log tools:v1", "--build 1")
            assert_harmless(app)
            async with house.database.writing() as tx:
                await tx.execute(update(Build).values(state=BuildState.SUCCESS, digest="sha256:1"))
        house.changes.tell("build", view.id)
        await shows(pilot, "The image is ready.")
        await pilot.press("escape")
        await shows(pilot, "success")


async def test_of_a_long_log_the_end_is_shown_soon(menu: Menu, house: House, alice: Caller) -> None:
    """100,000 lines: the menu stays usable, as it reads only what a person can scroll back to."""
    view = await ask(house, alice, state=BuildState.FAILED, reason="step 3 of 5 (line 2) failed: exit status 1")
    with LogWriter(house.builds.log_path(view.id), most=10**8, told=lambda: None) as log:
        for number in range(100_000):
            log.write(f"line {number} of a program that says much\n".encode())
    app = menu("zh")
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "欢迎")
        await pilot.press("b")
        await shows(pilot, "tools:v1", "第 3/5 步（第 2 行）失败：退出状态 1")
        await pilot.press("enter")
        await shows(pilot, "line 99999 of a program", "第 3/5 步")
        await shows(pilot, "这里只显示日志末尾。完整日志：ssh ", "image log tools:v1 --build 1")
        await pilot.press("g")
        await until(pilot, lambda: "line 99999" not in text(app))


async def test_one_that_runs_is_stopped(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    await ask(house, alice, state=BuildState.BUILDING)
    await ask(house, bob, "secret")
    app = menu()
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("colon", *"builds", "enter")
        await shows(pilot, "building")
        assert "secret" not in text(app)
        await pilot.press("d")
        await shows(pilot, "Stop the build of tools:v1?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "The build was stopped.", "cancelled")


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_every_size_and_language(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    view = await ask(house, alice, reason="x[/oops]\x1b]52;c;aGk=\x07\u202egnp 数据" * 5, state=BuildState.FAILED)
    with LogWriter(house.builds.log_path(view.id), most=10**6, told=lambda: None) as log:
        log.write("数据 [/oops] \x1b[2J \u202e very long line ".encode() * 20 + b"\n")
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("b")
        await shows(pilot, "tools:v1")
        assert_fits(app)
        assert_harmless(app)
        await pilot.press("n")
        await pilot.pause(0.5)
        app.screen.query_one(TextArea).text = "USER [/oops] 数据\nFROM a\nONBUILD x\nNOPE"
        await pilot.pause(0.8)
        assert_fits(app)
        assert_harmless(app)
        await pilot.press("escape")
        await pilot.pause(0.2)
        await pilot.press("enter")
        await shows(pilot, "oops")
        assert_fits(app)
        assert_harmless(app)
