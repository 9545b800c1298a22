"""A small menu with a key for everything that the machinery must survive, and a kit that serves it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from textual import events, work
from textual.app import ComposeResult
from textual.widgets import Footer, Input, Static

from storage.access import Caller
from storage.errors import AshoreError
from tui.served import ServedApp
from tui.terminal import Keyboard, ScreenSize, Terminal
from tui.worker import Kit

HOSTILE = "name\x1b]52;c;aGVsbG8=\x07\x9b31m[/oops]"


class DemoMenu(ServedApp):
    BINDINGS = [
        ("f2", "count", "Count"),
        ("f3", "connect", "Shell"),
        ("f4", "crash", "Crash"),
        ("f5", "hang", "Hang"),
        ("f6", "open", "URL"),
        ("ctrl+z", "suspend_process", "Suspend"),
    ]

    def __init__(self, terminal: Terminal, services: Any, caller: Caller, language: str) -> None:
        super().__init__(terminal)
        self.caller = caller
        self.language = language
        self.clicks = 0
        self.keys: list[str] = []

    def compose(self) -> ComposeResult:
        yield Static(f"hello {self.caller.name} in {self.language}", id="hello")
        yield Static("clicks=0", id="clicks")
        yield Static("", id="report")
        yield Static(HOSTILE, markup=False)
        yield Input(id="typed")
        yield Static("", id="typed-length")
        yield Static("[on #ff8800]orange[/] [b]bold[/]")
        yield Footer()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one("#typed-length", Static).update(f"length={len(event.value)}")

    def on_key(self, event: events.Key) -> None:
        self.keys.append(event.key)

    def action_count(self) -> None:
        self.clicks += 1
        self.query_one("#clicks", Static).update(f"clicks={self.clicks}")

    @work
    async def action_connect(self) -> None:
        report = self.query_one("#report", Static)
        try:
            status = await self.open_shell("train")
        except AshoreError as error:
            report.update(f"refused: {error.message}")
            return
        report.update(f"shell ended with {status}")

    def action_crash(self) -> None:
        password = "s3cr3t"
        raise RuntimeError(f"boom {len(password)}")

    def action_hang(self) -> None:
        time.sleep(3600)

    def action_open(self) -> None:
        self.open_url("https://example.org/")


async def run_plain(terminal: Terminal, services: Any, caller: Caller, language: str) -> int:
    """A prompt that takes one line."""
    line = _Line()
    terminal.attach(line)
    terminal.write(f"plain menu of {caller.name} in {language}> ".encode())
    try:
        answer = await line.done
    finally:
        terminal.detach(line)
    terminal.write(b"bye " + answer + b"\r\n")
    return 3


class _Line(Keyboard):
    def __init__(self) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._line = b""

    def data_received(self, data: bytes) -> None:
        self._line += data
        if b"\r" in self._line and not self.done.done():
            self.done.set_result(self._line.partition(b"\r")[0])

    def resized(self, size: ScreenSize) -> None: ...
    def eof_received(self) -> None:
        if not self.done.done():
            self.done.set_result(b"")

    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def closed(self) -> None:
        self.eof_received()


async def caller_for(name: str, *, address: str = "", connection: str = "") -> Caller:
    if name == "nobody":
        raise AshoreError("there is no user 'nobody'")
    return Caller("1", name, False, "w", "team", address, connection)


def services() -> Any:
    return SimpleNamespace(accounts=SimpleNamespace(caller_for=caller_for))


def kit() -> Kit:
    @asynccontextmanager
    async def open_services(settings: Path, data: Path) -> AsyncIterator[Any]:
        yield services()

    return Kit(open_services, DemoMenu, run_plain)


def menus_alive() -> int:
    """DemoMenu objects in this process after a full collection."""
    gc.collect()
    return sum(type(thing) is DemoMenu for thing in gc.get_objects())
