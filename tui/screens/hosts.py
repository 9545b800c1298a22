"""The machines that run environments, for administrators: which answer, what is reserved of them, what is on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from backends.gpus import Card
from backends.hosts import HostView
from storage.clock import now
from storage.records import HostState
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import age_words, size_words
from tui.texts.gpus import mode_words
from tui.texts.sentences import in_language
from tui.widgets.dialogs import Ask, Confirm
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_STATES = {
    HostState.ONLINE: (mark("online"), "good"),
    HostState.OFFLINE: (mark("offline"), "bad"),
    HostState.MAINTENANCE: (mark("maintenance"), "busy"),
}
_MOST_NAMES = 12


class HostsScreen(Page):
    """The list of hosts, live; the environments of the selected one below it."""

    TITLE_TEXT = mark("Hosts")
    TOPICS = ("host", "environment")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("d", "drain", mark("Drain")),
        Binding("r", "resume", mark("Resume")),
        Binding("f", "forget", mark("Forget")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, views: Sequence[HostView]) -> None:
            super().__init__()
            self.views = views

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._views: Mapping[str, HostView] = {}

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("HOST"), least=8, most=32),
                Column(t("STATE"), most=12),
                Column(t("CPUS"), most=16, rank=1, right=True),
                Column(t("MEMORY"), most=22, rank=2, right=True),
                Column(t("GPUS"), most=10, rank=3, right=True),
                Column(t("RUNNING"), most=8, rank=4, right=True),
                Column(t("LAST SEEN"), most=10, rank=5, right=True),
            ],
            id="hosts",
        )
        yield Plain(id="commands")
        yield Line(id="status")

    async def load(self) -> Message:
        return self.Loaded(await self.desk.services.hosts.list(self.desk.caller))

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        moment = now()
        self._views = {view.name: view for view in event.views}
        self.query_one(Table).show_rows([_row(self.texts, view, moment) for view in event.views])
        words = self.texts.plural("{n} host", "{n} hosts", len(event.views))
        self.query_one("#status", Line).show(words)
        self._show_selected()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_selected()

    def _show_selected(self) -> None:
        view = self._selected()
        self.query_one("#commands", Plain).show(_details(self.texts, view) if view else "")

    def _selected(self) -> HostView | None:
        return self._views.get(self.query_one(Table).key or "")

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_drain(self) -> None:
        view = self._selected()
        if view is None:
            return
        name = view.name

        def answered(reason: str | None) -> None:
            if reason is not None:
                done = self.texts("Nothing new starts on {name}; what runs goes on.", name=name)
                self.attempt(lambda: self.desk.services.hosts.drain(self.desk.caller, name, reason), done)

        question = self.texts("Let nothing new start on {name}. Why? (shown to everybody, may stay empty)", name=name)
        self.app.push_screen(Ask(self.texts, question), answered)

    def action_resume(self) -> None:
        if view := self._selected():
            name = view.name
            done = self.texts("Environments may start on {name} again.", name=name)
            self.attempt(lambda: self.desk.services.hosts.resume(self.desk.caller, name), done)

    def action_forget(self) -> None:
        view = self._selected()
        if view is None:
            return
        name, hosts, caller = view.name, self.desk.services.hosts, self.desk.caller
        has_environments = bool(view.placed)

        def answered(yes: bool | None) -> None:
            if yes:
                done = self.texts("{name} is forgotten.", name=name)
                forget = hosts.forget_with_environments if has_environments else hosts.forget
                self.attempt(lambda: forget(caller, name), done)

        question = self.texts("Forget {name}? What is known of it goes, not what is on it.", name=name)
        if has_environments:
            question = self.texts(
                "Is {name} gone for ever? Its environments ({n}) are given up and their homes are lost: {names}",
                name=name, n=len(view.placed), names=_names(view),
            )  # fmt: skip
        typed = name if has_environments else ""
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Forget"), typed=typed), answered)


def _row(texts: Texts, view: HostView, moment: datetime) -> Row:
    word, tone = _STATES[view.state]
    room, seen = view.room, view.last_heartbeat
    return Row(
        view.name,
        (
            Cell(view.name, "strong"),
            Cell(texts(word), tone),
            Cell(f"{room.used_cpus:g} / {room.cpus_to_promise:g}"),
            Cell(f"{size_words(room.used_memory)} / {size_words(room.memory_to_promise)}"),
            Cell(f"{room.cards_in_use} / {len(room.cards)}" if room.cards else "-"),
            Cell(str(room.environments)),
            Cell(age_words(texts, seen, moment) if seen else "-", "dim"),
        ),
    )


def _details(texts: Texts, view: HostView) -> str:
    lines = [in_language(texts, view.room.reason)] if view.room.reason else []
    names = _names(view)
    lines.append(texts("Environments: {names}", names=names) if names else texts("No environment is on it."))
    lines.append(_data(texts, view))
    if view.gpu_driver:
        known = texts("Driver {version}, up to CUDA {cuda}", version=view.gpu_driver, cuda=view.cuda or "?")
        lines.append(known)
    if view.gpu_trouble:
        lines.append(texts("GPUs: {trouble}", trouble=in_language(texts, view.gpu_trouble)))
    lines += [_card(texts, card) for card in view.room.cards]
    return "\n".join(lines)


def _names(view: HostView) -> str:
    names = [f"{row.name} ({row.owner_name})" for row in view.placed]
    return ", ".join(names[:_MOST_NAMES]) + (" ..." if len(names) > _MOST_NAMES else "")


def _data(texts: Texts, view: HostView) -> str:
    cache = view.cache
    if view.shared_root:
        return texts("Data sets and models: the bucket is mounted at {path}", path=view.shared_root)
    size = size_words(cache.bytes) + (f" / {size_words(cache.limit)}" if cache.limit else "")
    return texts.plural("Data sets and models: {n} copy, {size}", "Data sets and models: {n} copies, {size}",
                        cache.copies, size=size)  # fmt: skip


def _card(texts: Texts, card: Card) -> str:
    """`NVIDIA A100  80 GiB  GPU-…  shared: train (alice), test (bob)`."""
    words = [card.words, size_words(card.memory), card.uuid]
    if not card.is_present:
        words.append(texts("lost"))
    if card.holders:
        names = ", ".join(f"{one.name} ({one.owner})" for one in card.holders)
        words.append(f"{mode_words(texts, card.holders[0].mode)}: {names}")
    return "  ".join(words)
