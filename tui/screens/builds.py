"""My builds of images: what waits, runs and became of each; from here to their logs, and to a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from backends.builds import BuildRoom, BuildView
from storage.clock import now
from storage.records import BuildState
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import age_words
from tui.texts.quotas import quota_words
from tui.texts.sentences import in_language
from tui.widgets.dialogs import Confirm
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_STATES = {
    BuildState.QUEUED: (mark("queued"), "busy"),
    BuildState.BUILDING: (mark("building"), "busy"),
    BuildState.PUSHING: (mark("pushing"), "busy"),
    BuildState.SUCCESS: (mark("success"), "good"),
    BuildState.FAILED: (mark("failed"), "bad"),
    BuildState.CANCELLED: (mark("cancelled"), "dim"),
}


class BuildsScreen(Page):
    """The list, the newest first; why the selected one failed is below it."""

    TITLE_TEXT = mark("Image builds")
    TOPICS = ("build", "build-log", "quota")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("enter,l", "log", mark("Log"), key_display="Enter"),
        Binding("n", "edit", mark("New")),
        Binding("e", "edit(True)", mark("Edit and build again")),
        Binding("d", "cancel", mark("Stop it")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, views: Sequence[BuildView], room: BuildRoom) -> None:
            super().__init__()
            self.views = views
            self.room = room

    class LogWanted(Message):
        """Somebody wants to read the log of a build."""

        def __init__(self, title: str, number: int) -> None:
            super().__init__()
            self.title = title
            self.number = number

    class EditWanted(Message):
        """Somebody wants to write a Dockerfile, beginning with that of `before`."""

        def __init__(self, before: BuildView | None) -> None:
            super().__init__()
            self.before = before

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._views: Mapping[str, BuildView] = {}

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("IMAGE"), most=60, wide=True),
                Column(t("BUILD"), most=6, rank=1, right=True),
                Column(t("STATE"), most=12),
                Column(t("BASE"), most=40, rank=3),
                Column(t("AGE"), most=8, rank=2, right=True),
            ],
            id="builds",
        )
        yield Plain(id="commands")
        yield Line(id="status")

    async def load(self) -> Message:
        builds, caller = self.desk.services.builds, self.desk.caller
        return self.Loaded(await builds.list(caller), await builds.room(caller))

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        moment = now()
        self._views = {view.id: view for view in event.views}
        self.query_one(Table).show_rows([_row(self.texts, view, moment) for view in event.views])
        words = self.texts.plural("{n} build", "{n} builds", len(event.views))
        status = words if event.views else self.texts("Nothing was built yet: press n.")
        self.query_one("#status", Line).show(status, quota_words(self.texts, event.room.quotas))
        self._show_selected()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_selected()

    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self.action_log()

    def _show_selected(self) -> None:
        view = self._selected()
        self.query_one("#commands", Plain).show(in_language(self.texts, view.reason) if view else "")

    def _selected(self) -> BuildView | None:
        return self._views.get(self.query_one(Table).key or "")

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_log(self) -> None:
        if view := self._selected():
            self.post_message(self.LogWanted(view.title, view.number))

    def action_edit(self, again: bool = False) -> None:
        self.post_message(self.EditWanted(self._selected() if again else None))

    def action_cancel(self) -> None:
        view = self._selected()
        if view is None or view.state.is_over:
            return
        title = view.title

        def answered(yes: bool | None) -> None:
            if yes:
                stopped = self.texts("The build was stopped.")
                self.attempt(lambda: self.desk.services.builds.cancel(self.desk.caller, title), stopped)

        question = self.texts("Stop the build of {name}?", name=title)
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Stop it")), answered)


def _row(texts: Texts, view: BuildView, moment: datetime) -> Row:
    word, tone = _STATES[view.state]
    return Row(
        view.id,
        (
            Cell(view.title, "strong"),
            Cell(str(view.number)),
            Cell(texts(word), tone),
            Cell(view.base, "dim"),
            Cell(age_words(texts, view.created, moment), "dim"),
        ),
    )
