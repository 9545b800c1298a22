"""The order of keys: one packet acts like the same keys one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Button, Input, Static, TextArea

from tests.tui.fake_terminal import FakeTerminal
from tui.driver import ServedDriver
from tui.served import ServedApp, harden_textual
from tui.terminal import ScreenSize

harden_textual()

LEFT, RIGHT, HOME, END, F2 = b"\x1b[D", b"\x1b[C", b"\x1b[H", b"\x1b[F", b"\x1bOQ"
BACKSPACE, CTRL_U, CTRL_K = b"\x7f", b"\x15", b"\x0b"
BEGIN_PASTE, END_PASTE = b"\x1b[200~", b"\x1b[201~"


class Form(Screen[str]):
    """Deep, so that a key bubbles through many queues; `escape` leaves it, `enter` by way of two messages."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]

    class Answered(Message): ...

    def compose(self) -> ComposeResult:
        with Vertical(), Vertical(), Vertical():
            yield Input(id="first")
            yield Input(id="second")
            yield Button("Fine", id="fine")

    def on_mount(self) -> None:
        self.query_one("#first").focus()

    def action_leave(self) -> None:
        self.dismiss("")

    @on(Input.Submitted)
    @on(Button.Pressed)
    def _answer(self) -> None:
        self.post_message(self.Answered())

    @on(Answered)
    def _leave_soon(self) -> None:
        self.dismiss("")


class Desk(ServedApp):
    """Fields below which `n` asks for a form, by way of a message."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "form", "New"),
        Binding("f2", "slow", "Slow"),
        Binding("f4", "drop", "Drop"),
    ]
    CSS = "Input { border: none; height: 1; }"

    class FormWanted(Message): ...

    def __init__(self, terminal: FakeTerminal) -> None:
        super().__init__(terminal)
        self.pressed: list[str] = []
        self.forms: list[Form] = []
        self.go_on = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static("desk")
        with Vertical():
            yield Input(id="field")
            yield TextArea(id="area")

    def on_key(self, event: events.Key) -> None:
        self.pressed.append(event.key)

    def action_form(self) -> None:
        self.screen.post_message(self.FormWanted())

    @on(FormWanted)
    def _form(self) -> None:
        self.forms.append(Form())
        self.push_screen(self.forms[-1])

    async def action_slow(self) -> None:
        await self.go_on.wait()

    async def action_drop(self) -> None:
        await self.query_one("#field").remove()

    @property
    def field(self) -> Input:
        return self.screen_stack[0].query_one("#field", Input)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


@asynccontextmanager
async def running() -> AsyncIterator[Desk]:
    app = Desk(FakeTerminal())
    task = asyncio.create_task(app.run_async())
    # Textual gives the first field the focus a moment after the start; what a test does to it must come later.
    await until(lambda: (app.started.is_set() and app.focused is not None) or task.done())
    try:
        yield app
    finally:
        app.go_on.set()
        app.exit()
        await task


def send(app: Desk, data: bytes) -> None:
    assert isinstance(app._driver, ServedDriver)
    app._driver.data_received(data)


async def settled(app: Desk) -> None:
    """Until everything that was sent has had its effect."""
    assert isinstance(app._driver, ServedDriver)
    keys = app._driver._keys
    await until(lambda: not keys._held and keys._marker is None)
    await app.workers.wait_for_complete()
    for _ in range(3):
        done = asyncio.Event()
        app.screen.call_after_refresh(done.set)
        await done.wait()


@pytest.mark.parametrize(
    ("packet", "value", "cursor"),
    [
        (CTRL_U + b"menu-docker", "menu-docker", 11),
        (b"xy" + BACKSPACE + b"abcdef", "xabcdef", 7),
        (b"ac" + LEFT + b"b" + HOME + b"0" + END + b"d", "0abcd", 5),
        (b"one" + HOME + CTRL_K + b"two", "two", 3),
        (b"a" + BEGIN_PASTE + b"bcd" + END_PASTE + BACKSPACE + BEGIN_PASTE + b"x" + END_PASTE + b"y", "abcxy", 5),
        ("数据".encode() + BACKSPACE + "集".encode(), "数集", 2),
    ],
)
async def test_controls_and_text_in_one_packet(packet: bytes, value: str, cursor: int) -> None:
    async with running() as app:
        send(app, packet)
        await settled(app)
        assert (app.field.value, app.field.cursor_position) == (value, cursor)


KEYS = st.lists(
    st.sampled_from([b"a", b"b", "字".encode(), b" ", BACKSPACE, LEFT, RIGHT, HOME, END, CTRL_U, CTRL_K]), max_size=25
)


@settings(max_examples=25, deadline=None)
@given(keys=KEYS)
def test_one_packet_equals_one_by_one(keys: list[bytes]) -> None:
    async def both() -> None:
        async with running() as together, running() as alone:
            send(together, b"".join(keys))
            for key in keys:
                send(alone, key)
                await settled(alone)
            await settled(together)
            fields = together.field, alone.field
            assert fields[0].value == fields[1].value
            assert fields[0].cursor_position == fields[1].cursor_position

    asyncio.run(both())


async def test_text_goes_into_the_form_that_its_first_key_opened() -> None:
    async with running() as app:
        app.set_focus(None)
        send(app, b"n" + CTRL_U + b"name\tother" + BACKSPACE)
        await settled(app)
        (form,) = app.forms
        assert form.query_one("#first", Input).value == "name"
        assert form.query_one("#second", Input).value == "othe"
        assert app.field.value == ""


async def test_text_goes_on_below_the_form_that_a_key_closed() -> None:
    """By a binding, by an answer of a field and of a button that is removed meanwhile."""
    async with running() as app:
        for leave, text in ((b"\t\x1b[27u", "one"), (b"\r", "two"), (b"\t\t\r", "three")):
            app.set_focus(None)
            send(app, b"n" + b"name" + leave + text.encode())
            await settled(app)
            assert app.screen is app.screen_stack[0]
            assert app.field.value == text
        assert [form.is_running for form in app.forms] == [False] * 3


async def test_text_after_a_click_goes_where_the_click_went() -> None:
    async with running() as app:
        area = app.query_one("#area", TextArea)
        await until(lambda: area.region.y > 0)  # it has its place
        x, y = area.region.x + 2, area.region.y + 2
        send(app, b"in" + f"\x1b[<0;{x};{y}M\x1b[<0;{x};{y}m".encode() + b"area\rn")
        await settled(app)
        assert app.field.value == "in"
        assert area.text == "area\nn"


async def test_sizes_between_keys_arrive() -> None:
    async with running() as app:
        assert isinstance(app._driver, ServedDriver)
        send(app, b"xy" + BACKSPACE)
        app._driver.resized(ScreenSize(100, 30))
        send(app, CTRL_U + b"z")
        await settled(app)
        await until(lambda: app.size == (100, 30))
        assert app.field.value == "z"


async def test_a_slow_handler_holds_keys_up_only_for_a_moment() -> None:
    async with running() as app:
        assert isinstance(app._driver, ServedDriver)
        keys = app._driver._keys
        send(app, F2 + b"abc")
        await asyncio.sleep(0)
        assert len(keys._held) == 3
        await until(lambda: not keys._held)
        app.go_on.set()
        await until(lambda: app.field.value == "abc")


async def test_a_key_that_removes_what_has_the_focus() -> None:
    async with running() as app:
        send(app, b"ab\x1bOS\x1b[Bn")
        await settled(app)
        assert "f4" in app.pressed
        assert app.query_one("#area", TextArea).text == "n"


async def test_an_end_in_the_middle_leaves_nothing_behind() -> None:
    app = Desk(FakeTerminal())
    task = asyncio.create_task(app.run_async())
    await until(app.started.is_set)
    send(app, b"ab\x11cd\x7fef")
    driver = app._driver
    await task
    assert isinstance(driver, ServedDriver)
    assert not driver._keys._held
    assert driver._keys._timer is None


async def test_typing_before_the_app_has_started() -> None:
    terminal = FakeTerminal()
    app = Desk(terminal)
    task = asyncio.create_task(app.run_async())
    await until(lambda: terminal.keyboard is not None)
    send(app, CTRL_U + b"xy" + BACKSPACE + b"z")
    await until(app.started.is_set)
    await settled(app)
    assert app.field.value == "xz"
    app.exit()
    await task


async def test_apps_in_one_loop_do_not_wait_for_each_other() -> None:
    async with running() as slow, running() as quick:
        send(slow, F2 + b"abc")
        for app in (quick, slow):
            send(app, b"xy" + BACKSPACE)
        await settled(quick)
        assert quick.field.value == "x"
        assert slow.field.value == ""


async def test_text_in_a_row_is_handed_on_at_once() -> None:
    async with running() as app:
        assert isinstance(app._driver, ServedDriver)
        for letter in "letters":
            send(app, letter.encode())
            assert app._driver._keys._marker is None


async def seconds_of(app: Desk, packets: Iterable[bytes], length: int) -> float:
    start = time.perf_counter()
    for packet in packets:
        send(app, packet)
        await asyncio.sleep(0)
    await until(lambda: len(app.query_one("#area", TextArea).text) == length)
    return time.perf_counter() - start


async def test_a_paste_costs_no_more_than_its_handling() -> None:
    """A hundred thousand characters are one event, and those that follow a key wait only for that key."""
    size = 100 * 1024
    body = (b"0123456789abcde\n" * (size // 16))[:size]
    async with running() as app:
        area = app.query_one("#area", TextArea)
        area.focus()
        await settled(app)
        text = body.decode()
        start = time.perf_counter()
        app.post_message(events.Paste(text))
        await until(lambda: len(area.text) == size)
        bare = time.perf_counter() - start
        area.clear()
        whole = BEGIN_PASTE + body + END_PASTE
        pieces = [whole[at : at + 4096] for at in range(0, len(whole), 4096)]
        assert await seconds_of(app, pieces, size) < 10 * bare + 1.0
