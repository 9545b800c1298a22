"""The log of a build, while it is written."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import RichLog

from storage.errors import AshoreError
from tui.desk import Desk
from tui.texts import mark
from tui.texts.sentences import in_language
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page

_MOST_LINES = 5000
_MOST_BYTES = 512 * 1024
"""A menu shows the end of a log, and says so; `image log` gives all of it."""


class BuildLogScreen(Page):
    """Scrolls with what comes, unless somebody has scrolled back."""

    TITLE_TEXT = mark("Log")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("j", "scroll(1)", mark("Down"), show=False),
        Binding("k", "scroll(-1)", mark("Up"), show=False),
        Binding("g", "end(False)", mark("Beginning")),
        Binding("G", "end(True)", mark("End")),
    ]

    class Came(Message):
        """More of the log."""

        def __init__(self, data: bytes, offset: int) -> None:
            super().__init__()
            self.data = data
            self.offset = offset

    class Over(Message):
        """The build is over, and all of its log was shown."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    def __init__(self, desk: Desk, title: str, number: int) -> None:
        super().__init__(desk)
        self._title = title
        self._number = number
        self._lines = 0
        self._is_part = False

    def compose_body(self) -> ComposeResult:
        yield Plain(id="part")
        yield RichLog(max_lines=_MOST_LINES, wrap=True, markup=False, highlight=False, id="log")
        yield Line(id="status")

    def on_mount(self) -> None:
        self.query_one("#part").display = False
        self._say(self.texts("It is followed while it is written."))
        self.run_worker(self._read(), name="build log", group="data")

    async def _read(self) -> None:
        builds, caller = self.desk.services.builds, self.desk.caller
        try:
            async for piece in builds.follow(caller, self._title, self._number, last=_MOST_BYTES):
                self.post_message(self.Came(piece.data, piece.offset - len(piece.data)))
            view = await builds.show(caller, self._title, self._number)
        except AshoreError as error:
            self.trouble(error)
            return
        done = self.texts("The image is ready.")
        self.post_message(self.Over(in_language(self.texts, view.reason) or (done if view.digest else "")))

    @on(Came)
    def _came(self, event: Came) -> None:
        log = self.query_one(RichLog)
        lines = event.data.decode("utf-8", "replace").splitlines()
        self._tell_part(is_part=(not self._lines and event.offset > 0) or self._lines + len(lines) > _MOST_LINES)
        self._lines += len(lines)
        for line in lines[-_MOST_LINES:]:
            log.write(Text.from_ansi(line.expandtabs(8)), scroll_end=log.is_vertical_scroll_end)

    @on(Over)
    def _over(self, event: Over) -> None:
        self._say(event.sentence or self.texts("The build was stopped."))

    def _tell_part(self, *, is_part: bool) -> None:
        """Say once that the beginning is not here, and how to get it."""
        if not is_part or self._is_part:
            return
        self._is_part = True
        command = self.desk.gateway_command(f"image log {self._title} --build {self._number}")
        part = self.query_one("#part", Plain)
        part.show(self.texts("Only the end of the log is here. All of it: {command}", command=command))
        part.display = True

    def _say(self, sentence: str) -> None:
        self.query_one("#status", Line).show(f"{self._title} #{self._number}   {sentence}")

    def action_back(self) -> None:
        self.dismiss(None)

    def action_scroll(self, step: int) -> None:
        self.query_one(RichLog).scroll_relative(y=step, animate=False)

    def action_end(self, is_last: bool) -> None:
        log = self.query_one(RichLog)
        if is_last:
            log.scroll_end(animate=False)
        else:
            log.scroll_home(animate=False)
