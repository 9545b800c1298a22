"""The home screen: what it shows, follows and asks for."""

from __future__ import annotations

import pytest
from textual.widgets import Input

from backends.lifecycle import LifecycleChoice
from backends.planning import Request
from storage.access import Caller
from storage.clock import now
from storage.errors import Unavailable
from storage.records import EnvironmentState, Lifecycle, Wish
from tests.tui.conftest import Menu
from tests.tui.house import FakeTerminal, House
from tests.tui.screen_text import assert_fits, assert_harmless, lines, shows, text, until
from tui.screens.environments import EnvironmentsScreen
from tui.widgets.table import Table


async def make(house: House, caller: Caller, name: str = "train", **state: object) -> None:
    await house.environments.create(caller, Request(name, "docker"))
    if state:
        await house.becomes(name, **state)


async def test_newcomers_are_greeted(menu: Menu) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome, alice.", "Press n to make one", "0 environments, 20 allowed", "gpu.example.org")
        assert_fits(app)


async def test_the_list_follows_what_happens(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "Welcome")
        await make(house, alice)
        await shows(pilot, "train", "requested", "debian:bookworm")
        await house.becomes("train", state=EnvironmentState.CREATING, progress="pulling debian:bookworm 61 %")
        await shows(pilot, "creating", "pulling debian:bookworm 61 %")
        await house.becomes("train", state=EnvironmentState.FAILED, progress="", reason="there is no image 'x'")
        await shows(pilot, "failed", "there is no image 'x'")
        await house.becomes("train", state=EnvironmentState.RUNNING, reason="")
        await shows(pilot, "running", "ssh -p 2022 alice+train@gpu.example.org")
        assert_fits(app)


async def test_the_cursor_stays_on_its_environment(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice, "middle")
    await make(house, alice, "zebra")
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "zebra")
        await pilot.press("down")
        await make(house, alice, "ant")
        await shows(pilot, "ant")
        assert app.screen.query_one(Table).key == "zebra"


@pytest.mark.parametrize("key", ["enter", "c"])
async def test_connect_opens_a_shell(menu: Menu, house: House, alice: Caller, terminal: FakeTerminal, key: str) -> None:
    await make(house, alice)
    terminal.shell_status = 3
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "train")
        await pilot.press(key)
        await shows(pilot, "ended with status 3")
        assert terminal.shells == ["train"]


@pytest.mark.parametrize("key", ["l", "a"])
async def test_logs_and_access_open_no_shell(
    menu: Menu, house: House, alice: Caller, terminal: FakeTerminal, key: str
) -> None:
    """A handler of a message also gets messages that are derived from it: one key would do two things."""
    await make(house, alice)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press(key)
        await until(pilot, lambda: not isinstance(app.screen, EnvironmentsScreen))
        await pilot.press("escape")
        await shows(pilot, "train")
        assert terminal.shells == []


async def test_connect_says_why_it_cannot(menu: Menu, house: House, alice: Caller, terminal: FakeTerminal) -> None:
    await make(house, alice)
    terminal.shell_error = Unavailable("'train' failed: [no] such image")
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "train")
        await pilot.press("enter")
        await shows(pilot, "'train' failed: [no] such image")


async def test_start_stop_and_restart(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice, state=EnvironmentState.RUNNING)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "running")
        await pilot.press("x")
        await shows(pilot, "Stop train?")
        await pilot.press("enter")  # Cancel has the focus
        assert (await house.environments.show(alice, "train")).wish is Wish.RUNNING
        await pilot.press("x", "left", "shift+tab", "enter")
        await pilot.pause(0.2)
        assert (await house.environments.show(alice, "train")).wish is Wish.STOPPED
        await pilot.press("s")
        await pilot.pause(0.2)
        assert (await house.environments.show(alice, "train")).wish is Wish.RUNNING
        await pilot.press("r", "shift+tab", "enter")
        await pilot.pause(0.2)
        assert (await house.environments.show(alice, "train")).restarts == 1


async def test_delete_wants_the_name_typed(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press("d")
        await shows(pilot, "Type train to confirm.")
        await pilot.press(*"trai", "enter")
        assert app.screen.query_one("#yes").disabled
        await pilot.press("n", "enter")
        await shows(pilot, "deleting")
        gone = await house.environments.show(alice, "train")
        assert (gone.wish, gone.keep_output_days) == (Wish.DELETED, 0)


async def test_delete_asks_for_how_long_the_output_is_kept(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice)
    await house.environments.set_keep_output(alice, "train", 14)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "output kept for 14 d")
        await pilot.press("d")
        await shows(pilot, "Days to keep /gemini/output", "14", "Type train to confirm.")
        assert_fits(app)
        app.screen.query_one("#days", Input).value = "soon"
        await pilot.press(*"train", "enter")
        await shows(pilot, "'soon' is no number of days")
        app.screen.query_one("#days", Input).value = "30"
        await pilot.press("enter")
        await shows(pilot, "deleting")
        gone = await house.environments.show(alice, "train")
        assert (gone.wish, gone.keep_output_days) == (Wish.DELETED, 30)


async def test_delete_can_be_cancelled(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press("d")
        await shows(pilot, "Type train to confirm.")
        await pilot.press(*"train", "escape")
        await pilot.pause(0.2)
        assert (await house.environments.show(alice, "train")).wish is Wish.RUNNING


async def test_copy_shows_and_copies_the_command(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice)
    app = menu()
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await shows(pilot, "train")
        await pilot.press("y")
        await shows(pilot, "Copied: ssh -p 2022 alice+train@gpu.example.org")
        assert app.clipboard == "ssh -p 2022 alice+train@gpu.example.org"


async def test_filter_and_back(menu: Menu, house: House, alice: Caller) -> None:
    await make(house, alice, "train")
    await make(house, alice, "other")
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train", "other")
        await pilot.press("slash", *"rain", "enter")
        await shows(pilot, "1 of 2 with 'rain'")
        assert not any("other" in line for line in lines(app))
        await pilot.press("escape")
        await shows(pilot, "other", "2 environments")


async def test_the_language_changes_and_is_remembered(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome, alice.")
        await pilot.press("L")
        await shows(pilot, "欢迎，alice。", "新建", "退出")
        assert_fits(app)
        await pilot.pause(0.2)
        assert await house.accounts.language_of(alice) == "zh"
    again = menu("en")
    async with again.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "欢迎")


async def test_a_lost_database_is_one_sentence(menu: Menu, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(caller: Caller) -> None:
        raise Unavailable("the database is busy or away, please try again")

    monkeypatch.setattr(house.environments, "list", away)
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "the database is busy or away")
        await pilot.press("f5")
        await pilot.pause(0.8)
        assert text(app).count("the database is busy") == 1


async def test_a_hidden_screen_does_not_ask(
    menu: Menu, house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    ask = house.environments.list

    async def counted(caller: Caller) -> object:
        nonlocal count
        count += 1
        return await ask(caller)

    monkeypatch.setattr(house.environments, "list", counted)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("k")
        await shows(pilot, "SSH keys")
        await pilot.pause(0.5)
        before = count
        for _ in range(5):
            house.changes.tell("environment")
            await pilot.pause(0.1)
        assert count <= before + 1
        await pilot.press("escape")
        await until(pilot, lambda: count > before)


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36), (20, 5)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_are_shown_harmlessly_at_every_size(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    evil = "x[/oops][@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp"
    await make(house, alice, "train", state=EnvironmentState.FAILED, reason=evil, image=evil, compute=evil)
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await shows(pilot, "train")
        app.screen.post_message(EnvironmentsScreen.Trouble(evil))
        await pilot.pause(0.3)
        assert_harmless(app)
        assert_fits(app)
        await pilot.press("down", "up", "slash", *"x[/b]", "enter", "escape", "d")
        await pilot.pause(0.1)
        assert_harmless(app)
        assert isinstance(app.screen.query_one("#typed"), Input)


async def test_the_mouse_selects_and_opens(menu: Menu, house: House, alice: Caller, terminal: FakeTerminal) -> None:
    await make(house, alice, "one")
    await make(house, alice, "two")
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "two")
        await pilot.click(Table, offset=(4, 2))
        assert app.screen.query_one(Table).key == "two"
        await pilot.double_click(Table, offset=(4, 2))
        await until(pilot, lambda: terminal.shells == ["two"])


async def test_places_by_key_and_by_name(menu: Menu) -> None:
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        for key, title in [("f", "Files"), ("k", "SSH keys"), ("o", "Open sessions"), ("question_mark", "Help")]:
            await pilot.press(key)
            await shows(pilot, f"Ashore  {title}")
            await pilot.press("escape")
            await shows(pilot, "Ashore  Environments")
        await pilot.press("colon", *"keys", "enter")
        await shows(pilot, "Ashore  SSH keys")
        await pilot.press("colon", *"[/x]", "enter")
        await shows(pilot, "There is no screen '[/x]'")
        await pilot.press("colon", *"q", "enter")
        await until(pilot, lambda: not app.is_running)


async def test_the_log_is_read_without_its_colours(menu: Menu, house: House, alice: Caller) -> None:
    house.compute.log = b"\x1b[31mred\x1b[0m line [/b]\r\nprogress 1\rprogress 2\n\x9b2J\x1b]52;c;aGk=\x07\xff\n"
    await make(house, alice, handle="h1")
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press("l")
        await shows(pilot, "red line [/b]", "progress 2", "3 lines")
        assert "progress 1" not in text(app)
        assert_harmless(app)
        await pilot.press("g", "G", "j", "k", "escape")
        await shows(pilot, "Environments")


async def test_enter_twice_opens_one_shell(menu: Menu, house: House, alice: Caller, terminal: FakeTerminal) -> None:
    await make(house, alice)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        terminal.shell_gate.clear()
        await pilot.press("enter", "enter", "c")
        await pilot.pause(0.1)
        terminal.shell_gate.set()
        await pilot.pause(0.1)
        assert terminal.shells == ["train"]
        await pilot.press("enter")
        await until(pilot, lambda: terminal.shells == ["train", "train"])


@pytest.mark.parametrize(
    ("language", "coming", "asleep"),
    [("en", "on demand, sleeps at", "no sign of life for 2 h"), ("zh", "按需, 将于", "已有 2 小时 没有任何活动")],
)
async def test_what_its_life_cycle_does_next_and_why_it_sleeps(
    menu: Menu, house: House, alice: Caller, language: str, coming: str, asleep: str
) -> None:
    await house.environments.create(alice, Request("train", lifecycle=LifecycleChoice(Lifecycle.ON_DEMAND)))
    await house.becomes("train", state=EnvironmentState.RUNNING, started=now())
    app = menu(language)
    async with app.run_test(size=(100, 24)) as pilot:
        await shows(pilot, "train", coming)
        assert_fits(app)
        sleeping = {"state": EnvironmentState.STOPPED, "wish": Wish.STOPPED, "wish_reason": "no sign of life for 2 h"}
        await house.becomes("train", **sleeping)
        await shows(pilot, asleep)
