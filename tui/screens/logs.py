"""The last lines that an environment's main program wrote."""

from __future__ import annotations

import re
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Log

from storage.names import printable
from tui.desk import Desk
from tui.texts import mark
from tui.widgets.line import Line
from tui.widgets.page import Page

_TAIL = 1000
_MOST_BYTES = 1024 * 1024
_CONTROLS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)")


class LogsScreen(Page):
    """A scrolling log; F5 reads it again."""

    TITLE_TEXT = mark("Log")
    REFRESH_SECONDS = 3600.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("f5", "reload", mark("Reload"), key_display="F5"),
        Binding("j", "scroll(1)", mark("Down"), show=False),
        Binding("k", "scroll(-1)", mark("Up"), show=False),
        Binding("g", "end(False)", mark("Beginning"), show=False),
        Binding("G", "end(True)", mark("End"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, lines: list[str]) -> None:
            super().__init__()
            self.lines = lines

    def __init__(self, desk: Desk, name: str) -> None:
        super().__init__(desk)
        self._environment = name

    def compose_body(self) -> ComposeResult:
        yield Log(max_lines=5000, highlight=False, id="log")
        yield Line(printable(self._environment), id="status")

    async def load(self) -> Message:
        data = bytearray()
        logs = self.desk.services.environments.logs(self.desk.caller, self._environment, tail=_TAIL)
        async for piece in logs:
            data += piece
            del data[:-_MOST_BYTES]
        return self.Loaded(lines_of(bytes(data)))

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        log = self.query_one(Log)
        log.clear()
        log.write_lines(event.lines or [self.texts("Nothing was written.")])
        count = self.texts.plural("{n} line", "{n} lines", len(event.lines))
        self.query_one("#status", Line).show(self._environment, count)

    def action_back(self) -> None:
        self.dismiss(None)

    def action_scroll(self, step: int) -> None:
        self.query_one(Log).scroll_relative(y=step, animate=False)

    def action_end(self, is_last: bool) -> None:
        log = self.query_one(Log)
        if is_last:
            log.scroll_end(animate=False)
        else:
            log.scroll_home(animate=False)


def lines_of(data: bytes) -> list[str]:
    """The lines of a program's output, without its colours and other control sequences."""
    # Not splitlines(): a bare carriage return goes back to the beginning of the same line.
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")
    if not text:
        return []
    return [printable(_bare(line.rpartition("\r")[2] or line), limit=2000) for line in text.split("\n")]


def _bare(line: str) -> str:
    return _CONTROLS.sub("", line).expandtabs(8)
