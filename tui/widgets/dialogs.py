"""Small questions in the middle of the screen: yes or no, a name to type, a line to fill in."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input

from tui.texts import Texts, mark
from tui.widgets.line import Plain

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer]):
    """What questions have in common."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", mark("Cancel"))]

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.texts = texts

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        return {
            key: active._replace(binding=replace(active.binding, description=self.texts(active.binding.description)))
            for key, active in super().active_bindings.items()
        }

    def action_cancel(self) -> None:
        self.dismiss(None)


class Confirm(Dialog[bool]):
    """Yes or no; for what cannot be taken back, `typed` must be typed first. None or False: no."""

    def __init__(self, texts: Texts, question: str, *, yes: str, typed: str = "") -> None:
        super().__init__(texts)
        self._question = question
        self._yes = yes
        self._typed = typed

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", can_focus=False):
            yield Plain(self._question, id="question")
            if self._typed:
                yield Plain(self.texts("Type {name} to confirm.", name=self._typed), classes="hint")
                yield Input(compact=True, id="typed")
            with Horizontal(id="buttons"):
                yield Button(self._yes, id="yes", variant="error", compact=True, disabled=bool(self._typed))
                yield Button(self.texts("Cancel"), id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#typed" if self._typed else "#no").focus()

    @on(Input.Changed, "#typed")
    def _compare(self, event: Input.Changed) -> None:
        self.query_one("#yes", Button).disabled = event.value.strip() != self._typed

    @on(Input.Submitted, "#typed")
    def _submit(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._typed:
            self.dismiss(True)

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id == "yes")


class Ask(Dialog[str]):
    """One line of text; None: cancelled."""

    def __init__(self, texts: Texts, question: str, *, value: str = "", hint: str = "") -> None:
        super().__init__(texts)
        self._question = question
        self._value = value
        self._hint = hint

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", can_focus=False):
            yield Plain(self._question, id="question")
            yield Input(self._value, compact=True, id="answer", max_length=255)
            yield Plain(self._hint or self.texts("Enter: go on   Esc: cancel"), classes="hint")

    @on(Input.Submitted, "#answer")
    def _submit(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())
