"""The driver: a whole App on a terminal in memory."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START
from textual.widgets import Input

from tests.tui.demo_menu import DemoMenu, caller_for, menus_alive
from tests.tui.fake_terminal import FakeTerminal
from tui.driver import PASTE_LIMIT, PasteLimiter
from tui.served import harden_textual
from tui.terminal import Capabilities, ColorDepth, ScreenSize

harden_textual()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@asynccontextmanager
async def running(terminal: FakeTerminal) -> AsyncIterator[DemoMenu]:
    app = DemoMenu(terminal, None, await caller_for("alice"), "en")
    task = asyncio.create_task(app.run_async())
    await until(lambda: b"hello alice" in terminal.written or task.done())
    await until(lambda: terminal.keyboard is not None or task.done())
    try:
        yield app
    finally:
        app.exit()
        await task


def type_into(terminal: FakeTerminal, data: bytes) -> None:
    assert terminal.keyboard is not None
    terminal.keyboard.data_received(data)


def typed(app: DemoMenu) -> str:
    return app.query_one("#typed", Input).value


async def test_chinese_input_split_inside_a_character() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        for byte in "数据集 a".encode():
            type_into(terminal, bytes([byte]))
        await until(lambda: typed(app) == "数据集 a")


async def test_gbk_terminals_read_and_write_gbk() -> None:
    terminal = FakeTerminal(Capabilities(term="xterm", charset="gb18030"))
    async with running(terminal) as app:
        type_into(terminal, "数据".encode("gb18030"))
        await until(lambda: typed(app) == "数据")
        await until(lambda: "数据".encode("gb18030") in terminal.written)


@pytest.mark.parametrize("wide", [False, True])
async def test_terminals_with_wide_ambiguous_characters_get_ascii_borders(wide: bool) -> None:
    terminal = FakeTerminal(Capabilities(term="xterm", ambiguous_wide=wide))
    async with running(terminal):
        assert ("▊".encode() in terminal.written) is not wide


async def test_a_lone_escape_arrives_without_polling() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        type_into(terminal, b"\x1b")
        await until(lambda: "escape" in app.keys)


async def test_hostile_input_does_not_end_the_menu() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        for data in (b"\x1b[99999999999u", b"\x1b[<999999999999;1;1M", b"\xff\xfe\xc3(", b"\x1b]0;x\x07"):
            type_into(terminal, data)
        type_into(terminal, b"\x1b[13~")
        await until(lambda: b"shell ended with 7" in terminal.written)
        type_into(terminal, b"\x1bOQ")
        await until(lambda: app.clicks == 1)


async def test_control_c_and_control_z_end_nothing() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        type_into(terminal, b"\x03\x1a\x03")
        type_into(terminal, b"\x1bOQ")
        await until(lambda: app.clicks == 1)


@pytest.mark.parametrize("key", [b"\x11", b"\x1b[Zq"])
async def test_control_q_and_q_leave(key: bytes) -> None:
    terminal = FakeTerminal()
    app = DemoMenu(terminal, None, await caller_for("alice"), "en")
    task = asyncio.create_task(app.run_async())
    await until(lambda: terminal.keyboard is not None)
    await until(lambda: b"hello" in terminal.written)
    if key.endswith(b"q"):
        app.screen.set_focus(None)
        key = b"q"
    type_into(terminal, key)
    await task
    assert app.return_code == 0
    assert terminal.written.endswith(b"\x1b[?1049l\x1b[?25h")
    assert b"\x1b[?1000l" in terminal.written


async def test_neither_kitty_keys_nor_motion_nor_focus_events_are_asked_for() -> None:
    terminal = FakeTerminal()
    async with running(terminal):
        for sequence in (b"\x1b[>1u", b"\x1b[>25u", b"\x1b[?1003h", b"\x1b[?1004h"):
            assert sequence not in terminal.written


async def test_content_cannot_command_the_terminal() -> None:
    terminal = FakeTerminal()
    async with running(terminal):
        await until(lambda: b"[/oops]" in terminal.written)
        assert b"\x1b]52" not in terminal.written
        assert "\x9b".encode() not in terminal.written


async def test_two_menus_keep_their_own_color_depth() -> None:
    rich, poor = (FakeTerminal(Capabilities(term="x", color=depth)) for depth in (ColorDepth.TRUE, ColorDepth.BASIC))
    async with running(rich), running(poor):
        await until(lambda: b"orange" in rich.written and b"orange" in poor.written)
    assert b"48;2;" in rich.written
    assert b"48;2;" not in poor.written
    assert b"48;5;" not in poor.written


async def test_frames_are_dropped_while_the_client_does_not_keep_up() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        await asyncio.sleep(0.2)
        assert terminal.keyboard is not None
        terminal.keyboard.pause_writing()
        before = len(terminal.written)
        for _ in range(5):
            app.action_count()
            await asyncio.sleep(0.02)
        assert len(terminal.written) == before
        terminal.keyboard.resume_writing()
        await until(lambda: b"clicks=5" in terminal.written[before:])
        assert b"clicks=3" not in terminal.written
        # All of it is drawn anew, since what the terminal shows is unknown.
        await until(lambda: b"hello alice" in terminal.written[before:])


async def test_sizes_are_clamped_and_followed() -> None:
    terminal = FakeTerminal(size=ScreenSize(100, 30))
    async with running(terminal) as app:
        assert terminal.keyboard is not None
        assert app.size == (100, 30)
        terminal.keyboard.resized(ScreenSize(65535, 65535))
        await until(lambda: app.size == (500, 200))
        terminal.keyboard.resized(ScreenSize(0, 0))
        await until(lambda: app.size == (80, 24))


async def test_handover_leaves_and_comes_back() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        app.action_count()
        type_into(terminal, b"\x1bOR")
        await until(lambda: b"shell ended with 7" in terminal.written)
        shell = terminal.written.index(b"SHELL")
        assert terminal.written[:shell].endswith(b"\x1b[?1049l\x1b[?25h")
        assert terminal.written[shell + 5 :].startswith(b"\x1b[?1049h")
        assert b"clicks=1" in terminal.written[shell:]
        assert terminal.shells == ["train"]
        type_into(terminal, b"\x1bOQ")
        await until(lambda: app.clicks == 2)


async def test_a_crash_tells_no_secret(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    terminal = FakeTerminal()
    app = DemoMenu(terminal, None, await caller_for("alice"), "en")
    task = asyncio.create_task(app.run_async())
    await until(lambda: terminal.keyboard is not None)
    with caplog.at_level(logging.ERROR):
        type_into(terminal, b"\x1bOS")
        await task
    assert app.return_code == 1
    assert "boom" in caplog.text
    shown = terminal.written.decode() + "".join(capfd.readouterr())
    assert "s3cr3t" not in shown + caplog.text.replace('password = "s3cr3t"', "")
    assert "Traceback" not in shown


async def test_menus_leave_stdout_alone_and_the_browser_closed() -> None:
    before = (sys.stdout, sys.stderr)
    first, second = FakeTerminal(), FakeTerminal()
    async with running(first) as app:
        async with running(second):
            assert (sys.stdout, sys.stderr) == before
            type_into(first, b"\x1b[17~")
            await until(lambda: b"https://example.org/" in first.written)
        assert app.is_running
    assert (sys.stdout, sys.stderr) == before


async def test_the_palette_offers_no_screenshot() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        titles = [command.title for command in app.get_system_commands(app.screen)]
    assert "Quit" in titles
    assert "Screenshot" not in titles


async def test_nothing_stays_of_menus_that_ended() -> None:
    for _ in range(5):
        terminal = FakeTerminal()
        async with running(terminal):
            type_into(terminal, "字\x1b[200~paste\x1b[201~\x1b".encode())
            await asyncio.sleep(0)
    del terminal
    await asyncio.sleep(0)
    assert menus_alive() == 0
    gc.collect()


@given(
    before=st.text("ab\x1b[20~", max_size=8),
    body=st.text("ab\x1b[201", max_size=40),
    after=st.text("ab", max_size=5),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=60),
)
def test_pastes_are_cut_but_always_end(before: str, body: str, after: str, cuts: list[int]) -> None:
    text = before + BRACKETED_PASTE_START + body + BRACKETED_PASTE_END + after
    body = text.partition(BRACKETED_PASTE_START)[2].partition(BRACKETED_PASTE_END)[0]
    rest = text.partition(BRACKETED_PASTE_START)[2].partition(BRACKETED_PASTE_END)[2]
    limiter, out, at = PasteLimiter(limit=10), "", 0
    while at < len(text):
        step = cuts[at % len(cuts)]
        out += limiter.feed(text[at : at + step])
        at += step
    begin = text.partition(BRACKETED_PASTE_START)[0] + BRACKETED_PASTE_START
    assert out == begin + body[:10] + BRACKETED_PASTE_END + rest


async def test_a_huge_paste_is_cut() -> None:
    terminal = FakeTerminal()
    async with running(terminal) as app:
        type_into(terminal, b"\x1b[200~" + b"x" * (PASTE_LIMIT + 5000) + b"\x1b[201~y")
        await until(lambda: typed(app).endswith("y"))
        assert len(typed(app)) == PASTE_LIMIT + 1
