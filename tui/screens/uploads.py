"""Files on their way into the store: how far, how fast, what broke off and can be gone on with; and what becomes of
archives of images behind that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from backends.archives.views import ArchiveView
from storage.names import printable
from storage.records import ArchiveState
from storage.transfers import Progress, Rates, TransferView
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.archives import STEPS
from tui.texts.formats import size_words
from tui.texts.sentences import in_language
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
_ARCHIVE_ADVICE = {
    ArchiveState.RECEIVED: mark("All of it is stored; it waits for its turn to become an image."),
    ArchiveState.VERIFYING: mark("It is looked at: what is in it, and whether that can be an image."),
    ArchiveState.LOADING: mark("Its layers are checked and go to the image registry."),
    ArchiveState.PUSHING: mark("The image is entered in the registry."),
    ArchiveState.READY: mark("It is an image now: i shows it."),
    ArchiveState.FAILED: mark("It became no image. Send it again, or with reput if only its end is missing:"),
}
_ARCHIVE = "archive:"
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
        Binding("i", "images", mark("Its image")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, views: Sequence[TransferView], archives: Sequence[ArchiveView]) -> None:
            super().__init__()
            self.views = views
            self.archives = archives

    class ImageWanted(Message):
        """The image that an archive becomes, or all of them."""

        def __init__(self, title: str) -> None:
            super().__init__()
            self.title = title

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._everybody = False
        self._views: Mapping[str, TransferView] = {}
        self._archives: Mapping[str, ArchiveView] = {}
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
        services, caller = self.desk.services, self.desk.caller
        views = await services.transfers.list(caller, everybody=self._everybody)
        return self.Loaded(views, await services.archives.list(caller, everybody=self._everybody, ready=True))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.desk.caller.is_admin if action == "everybody" else True

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        rates = self._rates.of(event.views)
        self._views = {view.id: view for view in event.views}
        ordered = sorted(event.views, key=lambda view: not view.is_live)
        self._archives = {_ARCHIVE + view.id: view for view in event.archives}
        rows = [_row(self.texts, view, rates.get(view.id)) for view in ordered]
        waiting = [view for view in event.archives if not view.state.is_over]
        over = [view for view in reversed(event.archives) if view.state.is_over]
        archives = [_archive_row(self.texts, view) for view in [*waiting, *over]]
        self.query_one(Table).show_rows(rows + archives)
        live = sum(view.is_live for view in event.views) + len(waiting)
        words = self.texts.plural("{n} on its way", "{n} on their way", live)
        total = sum(rates.values())
        if total:
            words += "   " + self.texts("{size}/s together", size=size_words(round(total)))
        if not event.views and not event.archives:
            words = self.texts("Nothing is being sent, and nothing is left unfinished.")
        self.query_one("#status", Line).show(words)
        self._show_selected()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_selected()

    def _show_selected(self) -> None:
        if (archive := self._archive) is not None:
            self.query_one("#commands", Plain).show("\n".join(self._about(archive)))
            return
        view = self._selected()
        lines = [view.path] if view else []
        if view and (advice := _ADVICE.get(view.progress)):
            lines.append(self.texts(advice))
        if view and view.progress in _RESUMABLE:
            lines.append(self._line(view))
        self.query_one("#commands", Plain).show("\n".join(lines))

    def _about(self, view: ArchiveView) -> list[str]:
        lines = [view.path, in_language(self.texts, view.reason), self.texts(_ARCHIVE_ADVICE[view.state])]
        if view.state is ArchiveState.FAILED:
            lines.append(self.desk.sftp_command("/images"))
        return list(filter(None, lines))

    @property
    def _archive(self) -> ArchiveView | None:
        """The selected one, if it is an archive that has arrived."""
        return self._archives.get(self.query_one(Table).key or "")

    def _selected(self) -> TransferView | None:
        return self._views.get(self.query_one(Table).key or "")

    def _line(self, view: TransferView | ArchiveView) -> str:
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

    def action_images(self) -> None:
        self.post_message(self.ImageWanted(self._archive.image if self._archive else ""))

    def action_copy(self) -> None:
        view = self._archive or self._selected()
        if view is not None:
            line = self._line(view)
            self.app.copy_to_clipboard(line)
            self.post_message(self.Done(self.texts("Copied: {text}", text=line)))

    def action_abort(self) -> None:
        if self._archive is not None:
            self.post_message(self.Trouble(self.texts("It has arrived, and becomes an image: delete that.")))
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


def _archive_row(texts: Texts, view: ArchiveView) -> Row:
    word, tone = STEPS[view.state]
    is_under_way = not view.state.is_over and view.state is not ArchiveState.RECEIVED
    return Row(
        _ARCHIVE + view.id,
        (
            Cell(view.path.rpartition("/")[2], "strong"),
            Cell(view.owner, "dim"),
            Cell(texts("image: {state}", state=texts(word)), tone),
            Cell(_bar(view.percent) if is_under_way else ""),
            Cell(size_words(view.size)),
            Cell(""),
            Cell(""),
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
