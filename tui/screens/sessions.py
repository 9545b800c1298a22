"""My open SSH sessions, from anywhere, and a way to end one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from storage.clock import now
from storage.records import SshSession
from tui.texts import Texts, mark
from tui.texts.formats import age_words
from tui.widgets.dialogs import Confirm
from tui.widgets.line import Line
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_KINDS = {
    "menu": mark("menu"), "command": mark("command"), "shell": mark("shell"), "exec": mark("exec"),
    "sftp": mark("sftp"), "data": mark("data"), "forward": mark("forward"), "jump": mark("jump"),
    "hold": mark("hold"),
}  # fmt: skip


class SessionsScreen(Page):
    """The list of open sessions; this connection's are marked."""

    TITLE_TEXT = mark("Open sessions")
    TOPICS = ("session",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("d", "end", mark("End it")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, sessions: Sequence[SshSession]) -> None:
            super().__init__()
            self.sessions = sessions

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("KIND"), most=12),
                Column(t("ENVIRONMENT"), most=24, rank=1),
                Column(t("FROM"), most=40, rank=2),
                Column(t("DETAIL"), most=60, rank=3, wide=True),
                Column(t("SINCE"), most=8, right=True),
            ],
            id="sessions",
        )
        yield Line(id="status")

    async def load(self) -> Message:
        return self.Loaded(await self.desk.services.sessions.list(self.desk.caller))

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        moment, mine = now(), self.desk.caller.connection
        rows = [_row(self.texts, one, moment, here=one.connection == mine and bool(mine)) for one in event.sessions]
        self.query_one(Table).show_rows(rows)
        status = self.texts.plural("{n} open session", "{n} open sessions", len(rows))
        self.query_one("#status", Line).show(status)

    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_end(self) -> None:
        session_id = self.query_one(Table).key
        if session_id is None:
            return
        wanted = session_id

        def answered(yes: bool | None) -> None:
            if yes:
                asked = self.texts("The session was asked to end.")
                self.attempt(lambda: self.desk.services.sessions.kill(self.desk.caller, wanted), asked)

        question = self.texts("End this session? What runs in it may be lost.")
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("End it")), answered)


def _row(texts: Texts, one: SshSession, moment: datetime, *, here: bool) -> Row:
    return Row(
        one.id,
        (
            Cell(texts(_KINDS.get(one.kind, one.kind)), "strong"),
            Cell(one.environment or "-"),
            Cell(f"{one.address} {texts('(here)')}" if here else one.address, "good" if here else ""),
            Cell(texts(one.end_wanted and mark("ending")) or one.detail, "busy" if one.end_wanted else "dim"),
            Cell(age_words(texts, one.started, moment), "dim"),
        ),
    )
