"""Write a Dockerfile and build it: what is wrong is said while one types, with its line."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, Label, TextArea

from backends.builds import BuildView, DockerfileRefused
from backends.dockerfiles.source import Problem
from backends.image_names import parse_new
from storage.errors import AshoreError
from tui.desk import Desk
from tui.texts import mark
from tui.texts.sentences import in_language
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page

_CHECK_SECONDS = 0.3
_SHOWN = 4
_TEMPLATE = """RUN apt-get update \\
    && apt-get install -y --no-install-recommends ffmpeg libsm6 libxext6 python3-pip \\
    && rm -rf /var/lib/apt/lists/*
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir torch transformers numpy
ENV HF_HOME=/workspace/.cache/huggingface
RUN mkdir -p /gemini/code /gemini/output
"""


class EditBuildScreen(Page):
    """A name, a base, and the text that is built on it."""

    TITLE_TEXT = mark("Edit and build")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", mark("Back"), key_display="Esc"),
        Binding("ctrl+s,f10", "build", mark("Build"), key_display="^s", priority=True),
        Binding("f8", "jump", mark("To the first problem"), key_display="F8"),
    ]

    class Asked(Message):
        """A build was queued."""

        def __init__(self, view: BuildView) -> None:
            super().__init__()
            self.view = view

    def __init__(self, desk: Desk, before: BuildView | None = None) -> None:
        super().__init__(desk)
        self._before = before
        self._problems: list[Problem] = []
        self._is_asking = False
        self._pause: Timer | None = None

    def compose_body(self) -> ComposeResult:
        t, before = self.texts, self._before
        with Vertical(id="edit"):
            with Horizontal(classes="field"):
                yield Label(t("Name"), classes="label", markup=False)
                yield Input(before.title if before else "", id="name", compact=True, placeholder="tools:v1")
            with Horizontal(classes="field"):
                yield Label(t("Base"), classes="label", markup=False)
                yield Input(before.base if before else "", id="base", compact=True, placeholder="debian:bookworm")
            yield TextArea(
                before.dockerfile if before else _TEMPLATE, id="dockerfile", compact=True, soft_wrap=False,
                show_line_numbers=True, tab_behavior="indent",
            )  # fmt: skip
            yield Plain(id="problems")
        yield Line(id="status")

    def on_mount(self) -> None:
        self.query_one("#name").focus()
        self._look()

    @on(TextArea.Changed)
    def _changed(self, event: TextArea.Changed) -> None:
        event.stop()
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(_CHECK_SECONDS, self._look)

    def _look(self) -> None:
        self.run_worker(self._check(), name="check", group="check", exclusive=True)

    async def _check(self) -> None:
        builds, caller = self.desk.services.builds, self.desk.caller
        try:
            problems = await builds.check(caller, self.query_one(TextArea).text)
            room = await builds.room(caller)
        except AshoreError as error:
            self.trouble(error)
            return
        self._problems = list(problems)
        lines = [in_language(self.texts, refusal) for refusal in room.refusals]
        lines += [
            self.texts("line {line}: {sentence}", line=one.line, sentence=in_language(self.texts, one.message))
            for one in self._problems[:_SHOWN]
        ]
        self.query_one("#problems", Plain).show("\n".join(lines))
        count = len(self._problems)
        words = self.texts.plural("{n} problem", "{n} problems", count) if count else self.texts("This can be built.")
        if room.refusals and not count:
            words = self.texts("This can be built when there is room.")
        self.query_one("#status", Line).show(words, self.texts("FROM is put in front; there are no files to COPY."))

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_jump(self) -> None:
        if self._problems:
            first = self._problems[0]
            area = self.query_one(TextArea)
            area.focus()
            area.move_cursor((first.line - 1, first.column - 1), center=True)

    def action_build(self) -> None:
        if not self._is_asking:
            self._is_asking = True
            self.run_worker(self._ask(), name="ask for a build", group="action")

    async def _ask(self) -> None:
        base = self.query_one("#base", Input).value.strip() or "debian:bookworm"
        try:
            name, tag = parse_new(self.query_one("#name", Input).value.strip())
            view = await self.desk.services.builds.request(
                self.desk.caller, name, tag, base=base, text=self.query_one(TextArea).text
            )
        except DockerfileRefused:
            await self._check()
            self.action_jump()
            self.post_message(self.Trouble(self.texts("This cannot be built yet: see below the text.")))
        except AshoreError as error:
            self.trouble(error)
        else:
            self.post_message(self.Asked(view))
        finally:
            self._is_asking = False
