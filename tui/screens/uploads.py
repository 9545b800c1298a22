"""Files on their way into the store: how far, how fast, what broke off and can be gone on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from storage.names import printable
from storage.transfers import Progress, Rates, TransferView
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import size_words
from tui.widgets.dialogs import Confirm
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_STATES = {
    Progress.SENDING: (mark("uploading"), "busy"),
    Progress.STALLED: (mark("stalled"), "bad"),
    Progress.FINISHING: (mark("finishing"), "busy"),
    Progress.PARKED: (mark("interrupted"), "bad"),
    Progress.SEALED: (mark("sent, not renamed"), "busy"),
    Progress.DONE: (mark("done"), "good"),
    Progress.SUSPECT: (mark("suspect"), "bad"),
    Progress.ENDED: (mark("ended"), "dim"),
    Progress.LOST: (mark("lost"), "bad"),
}
_ADVICE = {
    Progress.STALLED: mark("Nothing has come for a while; its connection is still there."),
    Progress.PARKED: mark("Go on with reput in sftp, or with this line:"),
    Progress.SEALED: mark("All of it is stored; it appears when the client gives it its name."),
    Progress.SUSPECT: mark("It ended as an interrupted upload does. If you stopped it, go on with reput:"),
    Progress.LOST: mark("The object store has thrown its parts away; send the file again."),
}
_RESUMABLE = (Progress.PARKED, Progress.SUSPECT)
_BAR = 12


class UploadsScreen(Page):
    """The list of uploads, live; what to do about the selected one below it."""

    TITLE_TEXT = mark("Uploads")
    TOPICS = ("upload",)
    REFRESH_SECONDS = 2.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("d", "abort", mark("End it")),
        Binding("a", "everybody", mark("Everybody's")),
        Binding("y", "copy", mark("Copy the line")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, views: Sequence[TransferView]) -> None:
            super().__init__()
            self.views = views

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._everybody = False
        self._views: Mapping[str, TransferView] = {}
        self._rates = Rates()

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("FILE"), most=200, wide=True),
                Column(t("USER"), most=16, rank=4),
                Column(t("STATE"), most=18, rank=1),
                Column(t("PROGRESS"), most=_BAR + 6, rank=2),
                Column(t("SENT"), most=9, right=True),
                Column(t("RATE"), most=11, rank=3, right=True),
                Column(t("LEFT"), most=8, rank=3, right=True),
            ],
            id="uploads",
        )
        yield Plain(id="commands")
        yield Line(id="status")

    async def load(self) -> Message:
        transfers, caller = self.desk.services.transfers, self.desk.caller
        return self.Loaded(await transfers.list(caller, everybody=self._everybody))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.desk.caller.is_admin if action == "everybody" else True

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        rates = self._rates.of(event.views)
        self._views = {view.id: view for view in event.views}
        ordered = sorted(event.views, key=lambda view: not view.is_live)
        self.query_one(Table).show_rows([_row(self.texts, view, rates.get(view.id)) for view in ordered])
        live = sum(view.is_live for view in event.views)
        words = self.texts.plural("{n} on its way", "{n} on their way", live)
        total = sum(rates.values())
        if total:
            words += "   " + self.texts("{size}/s together", size=size_words(round(total)))
        if not event.views:
            words = self.texts("Nothing is being sent, and nothing is left unfinished.")
        self.query_one("#status", Line).show(words)
        self._show_selected()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_selected()

    def _show_selected(self) -> None:
        view = self._selected()
        lines = [view.path] if view else []
        if view and (advice := _ADVICE.get(view.progress)):
            lines.append(self.texts(advice))
        if view and view.progress in _RESUMABLE:
            lines.append(self._line(view))
        self.query_one("#commands", Plain).show("\n".join(lines))

    def _selected(self) -> TransferView | None:
        return self._views.get(self.query_one(Table).key or "")

    def _line(self, view: TransferView) -> str:
        """The line that opens the directory of the file, where `reput` goes on."""
        return self.desk.sftp_command(view.path.rpartition("/")[0] or "/")

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_everybody(self) -> None:
        self._everybody = not self._everybody
        self.wake()

    def action_copy(self) -> None:
        if view := self._selected():
            line = self._line(view)
            self.app.copy_to_clipboard(line)
            self.post_message(self.Done(self.texts("Copied: {text}", text=line)))

    def action_abort(self) -> None:
        view = self._selected()
        if view is None:
            return
        wanted = view.id

        def answered(yes: bool | None) -> None:
            if yes:
                ended = self.texts("The upload was ended.")
                self.attempt(lambda: self.desk.services.transfers.abort(self.desk.caller, wanted), ended)

        path = printable(view.path, limit=200)
        question = self.texts("End the upload of {path}? What is stored of it is thrown away.", path=path)
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("End it")), answered)


def _row(texts: Texts, view: TransferView, rate: float | None) -> Row:
    word, tone = _STATES[view.progress]
    left = (view.expected - view.size) / rate if rate and view.expected else None
    return Row(
        view.id,
        (
            Cell(view.path.rpartition("/")[2], "strong"),
            Cell(view.owner, "dim"),
            Cell(texts(word), tone),
            Cell(_bar(view.percent)),
            Cell(size_words(view.size)),
            Cell(f"{size_words(round(rate))}/s" if rate is not None else ""),
            Cell(_left_words(texts, left) if left is not None else "", "dim"),
        ),
    )


def _bar(percent: int | None) -> str:
    """`####........  33%`; letters only, since some terminals draw blocks two cells wide."""
    if percent is None:
        return ""
    full = percent * _BAR // 100
    return f"{'#' * full}{'.' * (_BAR - full)} {percent:3}%"


def _left_words(texts: Texts, seconds: float) -> str:
    if seconds < 60:
        return texts("{n} s", n=round(seconds))
    if seconds < 3600:
        return texts("{n} min", n=round(seconds / 60))
    return texts("{n} h", n=round(seconds / 3600))
