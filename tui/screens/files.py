"""The data tree as a browser: the same directories that sftp shows, with the line that opens the present one."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message

from storage.access import Visibility
from storage.names import printable
from storage.tree import Node, Tree, normalize
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import date_words, size_words
from tui.widgets.dialogs import Ask, Confirm, Dialog
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

PAGE = 1000
"""Entries that are read at a time; m reads as many again."""
_PREVIEW_BYTES = 32 * 1024
_UP = ".."
_ARTIFACTS = "/artifacts"
_OTHERS = 0o077


class FilesScreen(Page):
    """One directory at a time."""

    TITLE_TEXT = mark("Files")
    TOPICS = ("dataset", "model", "upload", "artifact")
    REFRESH_SECONDS = 15.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("backspace,left,h", "up", mark("Up"), key_display="Bksp"),
        Binding("n", "make", mark("New folder")),
        Binding("r", "rename", mark("Rename")),
        Binding("d", "delete", mark("Delete")),
        Binding("v", "share", mark("Who reads it")),
        Binding("m", "more", mark("More"), show=False),
        Binding("y", "copy", mark("Copy sftp")),
        Binding("right,l", "open", mark("Open"), show=False),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """The first entries of `path`; `is_all`: there are no more."""

        def __init__(self, path: str, nodes: Sequence[Node], *, is_all: bool) -> None:
            super().__init__()
            self.path = path
            self.nodes = nodes
            self.is_all = is_all

    class Previewed(Message):
        """The beginning of a file."""

        def __init__(self, name: str, text: str) -> None:
            super().__init__()
            self.name = name
            self.text = text

    def __init__(self, desk: Desk, path: str = "/") -> None:
        super().__init__(desk)
        self._path = path
        self._entries: dict[str, Node] = {}
        self._limit = PAGE
        self._select = ""

    @property
    def data(self) -> Tree:
        return self.desk.services.files

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Line(self._path, id="path")
        yield Table(
            [
                Column(t("NAME"), most=200, wide=True),
                Column(t("SIZE"), most=10, rank=1, right=True),
                Column(t("CHANGED (UTC)"), most=16, rank=2),
            ],
            id="files",
        )
        yield Line(id="status")
        yield Plain(id="commands")

    async def load(self) -> Message:
        path, limit = self._path, self._limit
        nodes: list[Node] = []
        async for node in self.data.list(self.desk.caller, path):
            if len(nodes) == limit:
                return self.Loaded(path, nodes, is_all=False)
            nodes.append(node)
        return self.Loaded(path, nodes, is_all=True)

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        if event.path != self._path:
            return
        self._entries = {node.name: node for node in event.nodes}
        ordered = sorted(event.nodes, key=lambda node: (not node.is_directory, node.name))
        rows = [_row(self.texts, node) for node in ordered]
        if self._path != "/":
            rows.insert(0, Row(_UP, (Cell(_UP, "dim"), Cell(""), Cell(""))))
        table = self.query_one(Table)
        table.show_rows(rows)
        if self._select and table.go_to(self._select):
            self._select = ""
        count = self.texts.plural("{n} entry", "{n} entries", len(event.nodes))
        if not event.is_all:
            count = self.texts("the first {n} entries, m: more", n=len(event.nodes))
        self.query_one("#status", Line).show(count)
        self.query_one("#path", Line).show(self._path)
        self.query_one("#commands", Plain).show(
            f"{self.desk.sftp_command(self._path)}\n{self.desk.lftp_command(self._path)}"
        )

    def _enter(self, path: str, *, select: str = "") -> None:
        self._path = path
        self.refresh_bindings()
        self._limit = PAGE
        self._select = select
        self._entries = {}
        self.query_one(Table).show_rows([])
        self.query_one("#path", Line).show(path)
        self.query_one("#status", Line).show(self.texts("reading"))
        self.wake()

    # ---- keys ------------------------------------------------------------------------------------------------
    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self.action_open()

    def action_open(self) -> None:
        key = self.query_one(Table).key
        if key == _UP:
            self.action_up()
        elif key is not None and key in self._entries:
            path = posixpath.join(self._path, key)
            if self._entries[key].is_directory:
                self._enter(path)
            else:
                self.run_worker(self._preview(key, path), name="preview", group="preview", exclusive=True)

    def action_up(self) -> None:
        if self._path != "/":
            parent, name = posixpath.split(self._path)
            self._enter(parent, select=name)

    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_more(self) -> None:
        self._limit += PAGE
        self.wake()

    def action_copy(self) -> None:
        command = self.desk.sftp_command(self._path)
        self.app.copy_to_clipboard(command)
        self.post_message(self.Done(self.texts("Copied: {text}", text=command)))

    def action_make(self) -> None:
        path = self._path

        def answered(name: str | None) -> None:
            if name:
                self._select = name
                self.attempt(lambda: self.data.mkdir(self.desk.caller, normalize(name, base=path)))

        question = self.texts("Name of the new folder in {path}", path=path)
        self.app.push_screen(Ask(self.texts, question), answered)

    def action_rename(self) -> None:
        node, path = self._selected(), self._path
        if node is None:
            return
        old = posixpath.join(path, node.name)

        def answered(name: str | None) -> None:
            if name and name != node.name:
                self._select = name
                self.attempt(lambda: self.data.rename(self.desk.caller, old, normalize(name, base=path), replace=False))

        question = self.texts("New name of {name}", name=printable(node.name, limit=80))
        self.app.push_screen(Ask(self.texts, question, value=node.name), answered)

    def action_delete(self) -> None:
        node = self._selected()
        if node is None:
            return
        path = posixpath.join(self._path, node.name)
        remove = self.data.rmdir if node.is_directory else self.data.remove

        def answered(yes: bool | None) -> None:
            if yes:
                gone = self.texts("Deleted: {path}", path=path)
                self.attempt(lambda: remove(self.desk.caller, path), gone)

        question = self.texts("Delete {path}? This cannot be undone.", path=printable(path, limit=200))
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Delete")), answered)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._path == _ARTIFACTS if action == "share" else True

    def action_share(self) -> None:
        """Of what an environment left: who may read it. Its mode tells who may now."""
        node, artifacts, caller = self._selected(), self.desk.services.artifacts, self.desk.caller
        if node is None:
            return
        is_shared = bool(node.mode & _OTHERS)
        wanted = Visibility.PRIVATE if is_shared else Visibility.WORKSPACE
        name = printable(node.name, limit=80)
        if is_shared:
            question = self.texts("Let nobody but its owner read {name}?", name=name)
            done = self.texts("Only its owner reads {name} now.", name=name)
        else:
            question = self.texts("Let everybody in the workspace read {name}?", name=name)
            done = self.texts("The workspace reads {name} now.", name=name)

        def answered(yes: bool | None) -> None:
            if yes:
                self.attempt(lambda: artifacts.share(caller, node.name, wanted), done)

        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Yes")), answered)

    def _selected(self) -> Node | None:
        return self._entries.get(self.query_one(Table).key or "")

    # ---- preview ---------------------------------------------------------------------------------------------
    async def _preview(self, name: str, path: str) -> None:
        await self._attempt(lambda: self._read_beginning(name, path), "")

    async def _read_beginning(self, name: str, path: str) -> None:
        reader = await self.data.open_reader(self.desk.caller, path)
        try:
            data = await reader.read(0, _PREVIEW_BYTES)
        finally:
            await reader.close()
        text = self.texts("This is not text.") if b"\0" in data else data.decode("utf-8", "replace")
        self.post_message(self.Previewed(name, text.expandtabs(4) or self.texts("This file is empty.")))

    @on(Previewed)
    def _previewed(self, event: Previewed) -> None:
        self.app.push_screen(Preview(self.texts, event.name, event.text))


class Preview(Dialog[None]):
    """The first lines of a file."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,enter,left,h", "cancel", show=False)]

    def __init__(self, texts: Texts, name: str, text: str) -> None:
        super().__init__(texts)
        self._title = name
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", classes="full"):
            yield Plain(self._title, id="question")
            yield Plain(self._text)


def _row(texts: Texts, node: Node) -> Row:
    name = f"{node.name}/" if node.is_directory else node.name
    size = "" if node.is_directory else size_words(node.size)
    changed = texts("on its way") if node.unfinished else date_words(node.mtime)
    tone = "strong" if node.is_directory else ""
    return Row(node.name, (Cell(name, tone), Cell(size), Cell(changed, "busy" if node.unfinished else "dim")))
