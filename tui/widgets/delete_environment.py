"""The question before an environment goes: its name to type, and for how long its output is kept."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Button, Input

from storage.errors import BadInput
from storage.records import Environment
from tui.texts import Texts
from tui.texts.formats import parse_days
from tui.texts.sentences import in_language
from tui.widgets.dialogs import Dialog
from tui.widgets.line import Plain


class DeleteEnvironment(Dialog[int]):
    """The days for which the output is kept, 0: not at all. None: nothing is deleted."""

    def __init__(self, texts: Texts, environment: Environment, *, days: int) -> None:
        super().__init__(texts)
        self._name = environment.name
        self._days = days

    def compose(self) -> ComposeResult:
        t = self.texts
        with VerticalScroll(id="dialog", can_focus=False):
            yield Plain(t("Delete {name} with everything in it? This cannot be undone.", name=self._name),
                        id="question")  # fmt: skip
            yield Plain(t("Days to keep /gemini/output, below /artifacts (0: not at all):"), classes="hint")
            yield Input(str(self._days), compact=True, id="days", max_length=5)
            yield Plain(t("Type {name} to confirm.", name=self._name), classes="hint", id="hint")
            yield Input(compact=True, id="typed")
            with Horizontal(id="buttons"):
                yield Button(t("Delete"), id="yes", variant="error", compact=True, disabled=True)
                yield Button(t("Cancel"), id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#typed").focus()

    @on(Input.Changed, "#typed")
    def _compare(self, event: Input.Changed) -> None:
        self.query_one("#yes", Button).disabled = event.value.strip() != self._name

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.query_one("#typed", Input).value.strip() == self._name:
            self._finish()
        else:
            self.query_one("#typed").focus()

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "yes":
            self._finish()
        else:
            self.dismiss(None)

    def _finish(self) -> None:
        days = self.query_one("#days", Input)
        try:
            self.dismiss(parse_days(days.value) or 0)
        except BadInput as error:
            self.query_one("#hint", Plain).show(in_language(self.texts, error.message))
            days.focus()
