"""What environments are made from: one's own images, official ones, those of others; and archives on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from backends.archives.views import ArchiveView
from backends.images import ImageView
from storage.access import Visibility
from storage.names import printable
from storage.records import ImageKind, ImageState
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
    ImageState.BUILDING: (mark("being made"), "busy"),
    ImageState.READY: (mark("ready"), "good"),
    ImageState.FAILED: (mark("failed"), "bad"),
    ImageState.DELETING: (mark("deleting"), "dim"),
}
_KINDS = {
    ImageKind.OFFICIAL: mark("official"),
    ImageKind.CUSTOM: mark("built here"),
    ImageKind.IMPORTED: mark("archive"),
}
_VISIBLE = {
    Visibility.PRIVATE: mark("only to you"),
    Visibility.WORKSPACE: mark("workspace"),
    Visibility.PUBLIC: mark("everybody"),
}
_NEXT = {
    Visibility.PRIVATE: Visibility.WORKSPACE,
    Visibility.WORKSPACE: Visibility.PUBLIC,
    Visibility.PUBLIC: Visibility.PRIVATE,
}
_ARCHIVE = "archive:"


class ImagesScreen(Page):
    """The list, live; what is known of the selected one below it."""

    TITLE_TEXT = mark("Images")
    TOPICS = ("image", "upload")
    REFRESH_SECONDS = 5.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("v", "visibility", mark("Who may use it")),
        Binding("d", "delete", mark("Delete")),
        Binding("y", "copy", mark("Copy the line")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, images: Sequence[ImageView], archives: Sequence[ArchiveView]) -> None:
            super().__init__()
            self.images = images
            self.archives = archives

    def __init__(self, desk: Desk, chosen: str = "") -> None:
        """`chosen`: the title of the image that is selected at first."""
        super().__init__(desk)
        self._chosen = chosen
        self._images: Mapping[str, ImageView] = {}
        self._archives: Mapping[str, ArchiveView] = {}

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("NAME"), least=10, most=200, wide=True),
                Column(t("KIND"), most=12, rank=3),
                Column(t("STATE"), most=14),
                Column(t("VISIBLE TO"), most=14, rank=1),
                Column(t("SIZE"), most=9, rank=2, right=True),
                Column("CUDA", most=10, rank=4),
            ],
            id="images",
        )
        yield Plain(id="commands")
        yield Line(id="status")

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        return self.Loaded(await services.images.list(caller), await services.archives.list(caller))

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        self._images = {view.title: view for view in event.images}
        self._archives = {_ARCHIVE + view.id: view for view in event.archives}
        rows = [_archive_row(self.texts, view) for view in event.archives]
        rows += [_row(self.texts, view) for view in event.images]
        self.query_one(Table).show_rows(rows)
        if self._chosen and self.query_one(Table).go_to(self._chosen):
            self._chosen = ""
        words = self.texts.plural("{n} image", "{n} images", len(event.images))
        if not rows:
            words = self.texts("No images yet. Send an archive: sftp> put model.tar /images/model_v1.tar")
        self.query_one("#status", Line).show(words)
        self._show_selected()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_selected()

    def _show_selected(self) -> None:
        key = self.query_one(Table).key or ""
        lines: list[str] = []
        if view := self._images.get(key):
            lines = self._details(view)
        elif archive := self._archives.get(key):
            lines = [archive.path, in_language(self.texts, archive.reason)]
        self.query_one("#commands", Plain).show("\n".join(filter(None, lines)))

    def _details(self, view: ImageView) -> list[str]:
        driver = self.texts("driver {version}", version=view.driver) if view.driver else ""
        facts = [view.architecture, f"CUDA {view.cuda}" if view.cuda else "", driver, view.digest[:19]]
        line = self._line(view) if view.is_usable else ""
        return [in_language(self.texts, view.reason), view.description, "  ".join(filter(None, facts)), line]

    def _line(self, view: ImageView) -> str:
        return f"env create NAME --image {view.title}"

    def _selected(self) -> ImageView | None:
        return self._images.get(self.query_one(Table).key or "")

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_copy(self) -> None:
        if view := self._selected():
            line = self._line(view)
            self.app.copy_to_clipboard(line)
            self.post_message(self.Done(self.texts("Copied: {text}", text=line)))

    def action_visibility(self) -> None:
        view = self._selected()
        if view is None or view.kind is ImageKind.OFFICIAL:
            return
        title, wanted = view.title, _NEXT[view.visibility]
        done = self.texts("{name} is visible to: {who}", name=title, who=self.texts(_VISIBLE[wanted]))

        def answered(yes: bool | None) -> None:
            if yes:
                self.attempt(lambda: self.desk.services.images.set_visibility(self.desk.caller, title, wanted), done)

        if wanted is Visibility.PRIVATE:
            answered(True)
            return
        who = self.texts(_VISIBLE[wanted])
        question = self.texts("Let others use {name}? It will be visible to: {who}.", name=title, who=who)
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Share it")), answered)

    def action_delete(self) -> None:
        view = self._selected()
        if view is None or view.kind is ImageKind.OFFICIAL:
            return
        title = view.title
        done = self.texts("{name} was deleted.", name=title)

        def answered(yes: bool | None) -> None:
            if yes:
                self.attempt(lambda: self.desk.services.images.delete(self.desk.caller, title), done)

        question = self.texts("Delete the image {name}?", name=printable(title, limit=100))
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Delete")), answered)


def _row(texts: Texts, view: ImageView) -> Row:
    word, tone = _STATES[view.state]
    return Row(
        view.title,
        (
            Cell(view.title, "strong"),
            Cell(texts(_KINDS[view.kind]), "dim"),
            Cell(texts(word), tone),
            Cell(texts(_VISIBLE[view.visibility])),
            Cell(size_words(view.size) if view.size else ""),
            Cell(view.cuda, "dim"),
        ),
    )


def _archive_row(texts: Texts, view: ArchiveView) -> Row:
    word, tone = STEPS[view.state]
    percent = "" if view.state.is_over else f" {view.percent}%"
    return Row(
        _ARCHIVE + view.id,
        (
            Cell(view.path.rpartition("/")[2], "strong"),
            Cell(texts("on its way"), "dim"),
            Cell(texts(word) + percent, tone),
            Cell(""),
            Cell(size_words(view.size)),
            Cell(""),
        ),
    )
