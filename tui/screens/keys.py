"""My SSH keys: what may log in as me, one more, one fewer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Button, TextArea

from storage.accounts import PublicKey
from storage.clock import now
from storage.errors import BadInput
from storage.keys import parse_public_key
from storage.records import SshKey
from tui.texts import Texts, mark
from tui.texts.formats import age_words
from tui.texts.sentences import in_language
from tui.widgets.dialogs import Confirm, Dialog
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table


class KeysScreen(Page):
    """The list of keys."""

    TITLE_TEXT = mark("SSH keys")
    TOPICS = ("key",)
    REFRESH_SECONDS = 15.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("n,a", "add", mark("Add"), key_display="n"),
        Binding("d", "remove", mark("Remove")),
        Binding("y", "copy", mark("Copy the fingerprint")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, keys: Sequence[SshKey]) -> None:
            super().__init__()
            self.keys = keys

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("TITLE"), most=30, wide=True),
                Column(t("TYPE"), most=12, rank=3),
                Column(t("FINGERPRINT"), most=50, rank=1),
                Column(t("ADDED"), most=8, rank=4, right=True),
                Column(t("USED"), most=8, rank=2, right=True),
            ],
            id="keys",
        )
        yield Line(id="status")

    async def load(self) -> Message:
        return self.Loaded(await self.desk.services.accounts.keys(self.desk.caller))

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        moment = now()
        self.query_one(Table).show_rows([_row(self.texts, key, moment) for key in event.keys])
        self.query_one("#status", Line).show(self.texts.plural("{n} key", "{n} keys", len(event.keys)))

    # ---- keys on the keyboard --------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_copy(self) -> None:
        if fingerprint := self.query_one(Table).key:
            self.app.copy_to_clipboard(fingerprint)
            self.post_message(self.Done(self.texts("Copied: {text}", text=fingerprint)))

    def action_add(self) -> None:
        def answered(key: PublicKey | None) -> None:
            if key is not None:
                added = self.texts("This key may log in from now on: {fingerprint}", fingerprint=key.fingerprint)
                self.attempt(lambda: self.desk.services.accounts.add_key(self.desk.caller, key), added)

        self.app.push_screen(PasteKey(self.texts), answered)

    def action_remove(self) -> None:
        fingerprint = self.query_one(Table).key
        if fingerprint is None:
            return
        wanted = fingerprint

        def answered(yes: bool | None) -> None:
            if yes:
                removed = self.texts("The key was removed.")
                self.attempt(lambda: self.desk.services.accounts.remove_key(self.desk.caller, wanted), removed)

        question = self.texts("Remove this key? Nobody can log in with it any more.") + f"\n{wanted}"
        self.app.push_screen(Confirm(self.texts, question, yes=self.texts("Remove")), answered)


class PasteKey(Dialog[PublicKey]):
    """A place to paste a public key into; it is judged while it is typed."""

    def __init__(self, texts: Texts) -> None:
        super().__init__(texts)
        self._key: PublicKey | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", can_focus=False, classes="large"):
            yield Plain(self.texts("Paste a public key (the file that ends in .pub):"), id="question")
            yield TextArea(id="paste", compact=True, soft_wrap=True, tab_behavior="focus")
            yield Plain(classes="hint", id="verdict")
            with Horizontal(id="buttons"):
                yield Button(self.texts("Add"), id="yes", variant="primary", compact=True, disabled=True)
                yield Button(self.texts("Cancel"), id="no", compact=True)

    @on(TextArea.Changed)
    def _judge(self, event: TextArea.Changed) -> None:
        event.stop()
        text = event.text_area.text
        try:
            self._key = parse_public_key(text)
            verdict = f"{self._key.fingerprint}  {self._key.title}"
        except BadInput as error:
            self._key = None
            verdict = in_language(self.texts, error.message) if text.strip() else ""
        self.query_one("#verdict", Plain).show(verdict)
        self.query_one("#yes", Button).disabled = self._key is None

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(self._key if event.button.id == "yes" else None)


def _row(texts: Texts, key: SshKey, moment: datetime) -> Row:
    return Row(
        key.fingerprint,
        (
            Cell(key.title or "-", "strong"),
            Cell(key.line.partition(" ")[0].removeprefix("ssh-").removesuffix("@openssh.com")),
            Cell(key.fingerprint, "dim"),
            Cell(age_words(texts, key.created, moment), "dim"),
            Cell(age_words(texts, key.last_used, moment) if key.last_used else texts("never"), "dim"),
        ),
    )
