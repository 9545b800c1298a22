"""Data sets and models: their versions, who may read them, and the line that fills or fetches one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message

from storage.access import Action, Visibility, decide
from storage.asset_views import AssetView, VersionView, parse_reference
from storage.assets import Assets
from storage.clock import now
from storage.deletions import DeletionView
from storage.errors import AlreadyExists
from storage.records import AssetKind, VersionState
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import age_words, size_words
from tui.widgets.dialogs import Ask, Confirm
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_KINDS = {AssetKind.DATASET: mark("data set"), AssetKind.MODEL: mark("model")}
_STATES = {
    VersionState.UPLOADING: (mark("open"), "busy"),
    VersionState.READY: (mark("published"), "good"),
    VersionState.ERROR: (mark("broken"), "bad"),
    VersionState.DELETING: (mark("deleting"), "busy"),
}
_VISIBILITIES = {
    Visibility.PRIVATE: mark("private"),
    Visibility.WORKSPACE: mark("workspace"),
    Visibility.PUBLIC: mark("public"),
}


@dataclass(frozen=True)
class Entry:
    """A row: a version, or an asset that has none yet."""

    asset: AssetView
    version: VersionView | None
    is_foreign: bool

    @property
    def key(self) -> str:
        return f"{self.asset.kind.value} {self.asset.workspace}/{self.title}"

    @property
    def title(self) -> str:
        return f"{self.asset.name}:{self.version.name}" if self.version else self.asset.name

    @property
    def path(self) -> str:
        """Where its files are in the data tree."""
        top = f"/shared/{self.asset.workspace}" if self.is_foreign else ""
        rest = f"/{self.version.name}" if self.version else ""
        return f"{top}/{self.asset.kind.folder}/{self.asset.name}{rest}"


class DatasetsScreen(Page):
    """One row for each version, one's own workspace first; what is known of the selected one below it."""

    TITLE_TEXT = mark("Data sets and models")
    TOPICS = ("dataset", "model")
    REFRESH_SECONDS = 10.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("enter", "open", mark("Files"), key_display="Enter"),
        Binding("n", "make('dataset')", mark("New")),
        Binding("m", "make('model')", mark("New model"), show=False),
        Binding("p", "publish", mark("Publish")),
        Binding("s", "share", mark("Share")),
        Binding("v", "visibility", mark("Visibility"), show=False),
        Binding("t", "tag", mark("Tags"), show=False),
        Binding("i", "describe", mark("Description"), show=False),
        Binding("d", "delete", mark("Delete")),
        Binding("D", "delete_all", mark("Delete all versions"), show=False),
        Binding("y", "copy", mark("Copy the line")),
        Binding("slash", "filter", mark("Filter"), show=False),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, entries: Sequence[Entry], going: Sequence[DeletionView]) -> None:
            super().__init__()
            self.entries = entries
            self.going = going

    class FilesWanted(Message):
        """Somebody wants the files at `path` of the data tree."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._entries: Mapping[str, Entry] = {}
        self._going: Sequence[DeletionView] = ()
        self._filter = ""
        self._select = ""

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("NAME"), least=12, most=80, wide=True),
                Column(t("KIND"), most=10, rank=3),
                Column(t("STATE"), most=10, rank=1),
                Column(t("FILES"), most=8, rank=4, right=True),
                Column(t("SIZE"), most=10, rank=2, right=True),
                Column(t("READ BY"), most=10, rank=5),
                Column(t("OWNER"), most=16, rank=7),
                Column(t("TAGS"), most=24, rank=6),
                Column(t("AGE"), most=8, rank=8, right=True),
            ],
            id="datasets",
        )
        with Vertical(id="details"):
            yield Plain(id="headline")
            yield Plain(id="facts")
        yield Line(id="status")
        yield Plain(id="commands")

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        entries: list[Entry] = []
        going: list[DeletionView] = []
        for kind in AssetKind:
            going += await services.deletions.show(caller, kind)
            entries += _entries(await self._assets(kind).list(caller), is_foreign=False)
        for kind in AssetKind:
            entries += _entries(await self._assets(kind).shared(caller), is_foreign=True)
        return self.Loaded(entries, going)

    def _assets(self, kind: AssetKind) -> Assets:
        return self.desk.services.datasets if kind is AssetKind.DATASET else self.desk.services.models

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        self._entries = {entry.key: entry for entry in event.entries}
        self._going = event.going
        self._show()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_details()

    def _show(self) -> None:
        moment = now()
        shown = [entry for entry in self._entries.values() if self._filter in _searched(self.texts, entry)]
        rows = [_row(self.texts, entry, moment) for entry in shown]
        table = self.query_one(Table)
        table.show_rows(rows + [_going_row(self.texts, one, moment) for one in self._going])
        if self._select and table.go_to(self._select):
            self._select = ""
        count = self.texts.plural("{n} version", "{n} versions", len(self._entries))
        if self._filter:
            count = self.texts("{shown} of {count} with '{filter}'  (Esc: all)",
                               shown=len(shown), count=len(self._entries), filter=self._filter)  # fmt: skip
        hint = "" if self._entries else self.texts("n: new data set   m: new model   or: put -r with sftp")
        self.query_one("#status", Line).show(count, hint)
        self._show_details()

    def _show_details(self) -> None:
        entry = self._selected()
        self.query_one("#details").display = entry is not None
        commands = self.query_one("#commands", Plain)
        if entry is None:
            commands.show(self.desk.sftp_command("/datasets"))
            return
        self.query_one("#headline", Plain).show(_headline(self.texts, entry))
        self.query_one("#facts", Plain).show(_facts(self.texts, entry))
        commands.show(f"{self._line(entry)}\n{self.desk.sftp_command(entry.path)}")

    def _line(self, entry: Entry) -> str:
        """What sends files there, or fetches them where nobody can send any."""
        if _is_open(self.desk, entry):
            return self.desk.upload_command(entry.asset.name, entry.path)
        return self.desk.lftp_command(entry.path)

    def _selected(self) -> Entry | None:
        return self._entries.get(self.query_one(Table).key or "")

    # ---- keys ------------------------------------------------------------------------------------------------
    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self.action_open()

    def action_open(self) -> None:
        if entry := self._selected():
            self.post_message(self.FilesWanted(entry.path))

    def action_back(self) -> None:
        if self._filter:
            self._filter = ""
            self._show()
        else:
            self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_copy(self) -> None:
        entry = self._selected()
        line = self._line(entry) if entry else self.desk.sftp_command("/datasets")
        self.app.copy_to_clipboard(line)
        self.post_message(self.Done(self.texts("Copied: {text}", text=line)))

    def action_filter(self) -> None:
        def answered(text: str | None) -> None:
            if text is not None:
                self._filter = text.lower()
                self._show()

        self.app.push_screen(Ask(self.texts, self.texts("Show only what contains:"), value=self._filter), answered)

    def action_make(self, kind: str) -> None:
        made = AssetKind(kind)
        entry = self._selected()
        value = f"{entry.asset.name}:" if entry and entry.asset.kind is made and not entry.is_foreign else ""

        def answered(text: str | None) -> None:
            if text:
                self.attempt(lambda: self._make(made, text.removesuffix(":")))

        t = self.texts
        question = t("New data set, or a version of one") if made is AssetKind.DATASET else t("New model, or a version")
        self.app.push_screen(Ask(t, question, value=value, hint=t("NAME or NAME:VERSION, such as mnist:v1")), answered)

    async def _make(self, kind: AssetKind, text: str) -> None:
        wanted, assets, caller = parse_reference(text, kind), self._assets(kind), self.desk.caller
        try:
            await assets.create(caller, wanted.asset)
        except AlreadyExists:
            if not wanted.version:
                raise
        if wanted.version:
            await assets.create_version(caller, wanted.asset, wanted.version)
        title = f"{wanted.name}:{wanted.version}" if wanted.version else wanted.name
        self._select = f"{kind.value} {caller.workspace}/{title}"

    def action_publish(self) -> None:
        entry = self._selected()
        if entry is None or entry.version is None:
            return
        title, version = entry.title, entry.version.name
        question = self.texts("Publish {name}? From then on nobody can change its files any more.", name=title)
        done = self.texts("{name} is published.", name=title)
        self._confirm(
            Confirm(self.texts, question, yes=self.texts("Publish"), typed=title),
            lambda: self._assets(entry.asset.kind).publish(self.desk.caller, _name(self.desk, entry), version), done,
        )  # fmt: skip

    def action_share(self) -> None:
        if (entry := self._selected()) is None:
            return
        assets, name = self._assets(entry.asset.kind), _name(self.desk, entry)

        def answered(text: str | None) -> None:
            if text:
                wanted, workspace = not text.startswith("-"), text.removeprefix("-").strip()
                said = mark("Shared with {workspace}.") if wanted else mark("No longer shared with {workspace}.")
                share = partial(assets.share, self.desk.caller, name, workspace, wanted=wanted)
                self.attempt(share, self.texts(said, workspace=workspace))

        t = self.texts
        question = t("Workspace that may read {name}", name=entry.asset.name)
        self.app.push_screen(Ask(t, question, hint=t("-NAME: share it no longer")), answered)

    def action_visibility(self) -> None:
        hint = self.texts("private: you   workspace: your workspace   public: everybody")
        self._ask_fact(self.texts("Who may read it?"), "visibility", lambda asset: asset.visibility.value, hint)

    def action_describe(self) -> None:
        self._ask_fact(self.texts("Description"), "description", lambda asset: asset.description)

    def action_tag(self) -> None:
        if (entry := self._selected()) is None:
            return
        assets, name, tags = self._assets(entry.asset.kind), _name(self.desk, entry), entry.asset.tags

        def answered(text: str | None) -> None:
            if text is not None:
                wanted = text.split()
                gone = [tag for tag in tags if tag not in wanted]
                self.attempt(lambda: assets.tag(self.desk.caller, name, add=wanted, remove=gone))

        question = self.texts("Tags of {name}, with spaces between them", name=entry.asset.name)
        self.app.push_screen(Ask(self.texts, question, value=" ".join(tags)), answered)

    def action_delete(self) -> None:
        entry = self._selected()
        if entry is None or entry.version is None:
            self.action_delete_all()
            return
        version = entry.version.name
        question = self.texts("Delete {name} with everything in it? This cannot be undone.", name=entry.title)
        self._confirm(
            Confirm(self.texts, question, yes=self.texts("Delete"), typed=entry.title),
            lambda: self._assets(entry.asset.kind).delete_version(self.desk.caller, _name(self.desk, entry), version),
        )

    def action_delete_all(self) -> None:
        if (entry := self._selected()) is None:
            return
        question = self.texts.plural(
            "Delete {name} with its {n} version? This cannot be undone.",
            "Delete {name} with all its {n} versions? This cannot be undone.",
            len(entry.asset.versions), name=entry.asset.name,
        )  # fmt: skip
        self._confirm(
            Confirm(self.texts, question, yes=self.texts("Delete"), typed=entry.asset.name),
            lambda: self._assets(entry.asset.kind).delete(self.desk.caller, _name(self.desk, entry)),
        )

    def _confirm(self, question: Confirm, work: Callable[[], Awaitable[object]], done: str = "") -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.attempt(work, done)

        self.app.push_screen(question, answered)

    def _ask_fact(self, question: str, fact: str, value: Callable[[AssetView], str], hint: str = "") -> None:
        if (entry := self._selected()) is None:
            return
        assets, name = self._assets(entry.asset.kind), _name(self.desk, entry)

        def answered(text: str | None) -> None:
            if text is not None:
                self.attempt(lambda: assets.change(self.desk.caller, name, **{fact: text}))

        self.app.push_screen(Ask(self.texts, question, value=value(entry.asset), hint=hint), answered)


def _entries(assets: Sequence[AssetView], *, is_foreign: bool) -> list[Entry]:
    return [Entry(asset, version, is_foreign) for asset in assets for version in asset.versions or (None,)]


def _name(desk: Desk, entry: Entry) -> str:
    """As the use cases take it."""
    return entry.asset.reference(desk.caller)


def _is_open(desk: Desk, entry: Entry) -> bool:
    """Whether this person may send files there, as far as the rules say."""
    write: Action = entry.asset.kind.action("write")
    return not entry.is_foreign and decide(desk.caller, write, entry.asset.owned(entry.version)).allowed


def _searched(texts: Texts, entry: Entry) -> str:
    asset = entry.asset
    words = [asset.workspace, entry.title, asset.owner, asset.description, texts(_KINDS[asset.kind]), *asset.tags]
    return " ".join([*words, asset.framework, asset.task, texts(_VISIBILITIES[asset.visibility])]).lower()


def _row(texts: Texts, entry: Entry, moment: datetime) -> Row:
    asset, version = entry.asset, entry.version
    title = f"{asset.workspace}/{entry.title}" if entry.is_foreign else entry.title
    is_default = version is not None and len(asset.versions) > 1 and asset.default_version is version
    return Row(
        entry.key,
        (
            Cell(f"{title} *" if is_default else title, "strong"),
            Cell(texts(_KINDS[asset.kind]), "dim"),
            _state(texts, version),
            Cell(str(version.files) if version else "-"),
            Cell(size_words(version.bytes) if version else "-"),
            Cell(texts(_VISIBILITIES[asset.visibility])),
            Cell(asset.owner, "dim"),
            Cell(" ".join(asset.tags), "dim"),
            Cell(age_words(texts, version.created if version else asset.created, moment), "dim"),
        ),
    )


def _going_row(texts: Texts, deletion: DeletionView, moment: datetime) -> Row:
    """What is being deleted; nothing can be done about it any more."""
    gone = texts("{n} gone", n=deletion.removed)
    cells = (Cell(deletion.title, "dim"), Cell(texts(_KINDS[deletion.kind]), "dim"), Cell(texts("deleting"), "busy"),
             Cell(gone, "dim"), Cell("-", "dim"), Cell("-", "dim"), Cell("-", "dim"), Cell(""),
             Cell(age_words(texts, deletion.created, moment), "dim"))  # fmt: skip
    return Row(f"deletion {deletion.id}", cells)


def _state(texts: Texts, version: VersionView | None) -> Cell:
    if version is None:
        return Cell(texts("no version"), "dim")
    if version.is_broken:
        return Cell(texts("broken"), "bad")
    word, tone = _STATES[version.state]
    return Cell(texts("link") if version.is_link else texts(word), tone)


def _headline(texts: Texts, entry: Entry) -> str:
    return "  ".join(part for part in (entry.title, _state(texts, entry.version).text, entry.asset.description) if part)


def _facts(texts: Texts, entry: Entry) -> str:
    asset, version = entry.asset, entry.version
    facts = [texts("owner: {name}", name=asset.owner), texts(_VISIBILITIES[asset.visibility])]
    if asset.shares and asset.visibility is not Visibility.PRIVATE:
        facts.append(texts("shared with {names}", names=", ".join(asset.shares.values())))
    facts += [fact for fact in (asset.framework, asset.task) if fact]
    if version and version.metrics:
        facts += [f"{name} {value:g}" for name, value in version.metrics.items()]
    if version and version.is_link:
        facts.append(texts("leads to {name}", name=version.link) if version.link else texts("leads nowhere any more"))
    return "   ".join(facts)
