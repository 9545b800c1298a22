"""What all screens are made of: a title line, a body, the keys, live data, and one way to report an outcome.

A page loads in a worker and posts what it found; only message handlers touch widgets. It reloads on hints from
`storage.changes` and, as the safety net, every few seconds, and rests while it is not seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from storage.errors import AshoreError
from storage.names import printable
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.sentences import in_language
from tui.widgets.line import Line

_CALM_SECONDS = 0.3
"""At most one reload in this time, however many hints come."""


class Page(Screen[None]):
    """Base of every full screen; subclasses give a title, a body, and `load`."""

    TITLE_TEXT: ClassVar[str] = ""
    TOPICS: ClassVar[tuple[str, ...]] = ()
    """Topics of `storage.changes` that this page shows."""
    REFRESH_SECONDS: ClassVar[float] = 5.0
    """Pause between two looks without any hint."""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("f5", "reload", mark("Reload"), show=False)]

    class Trouble(Message):
        """Something could not be done; `sentence` says what and why."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    class Done(Message):
        """Something was done as asked."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self._seen = asyncio.Event()
        self._wanted = asyncio.Event()
        self._complaint = ""

    @property
    def texts(self) -> Texts:
        return self.desk.texts

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """The keys, described in the person's language."""
        return {
            key: active._replace(binding=replace(active.binding, description=self.texts(active.binding.description)))
            for key, active in super().active_bindings.items()
        }

    def compose(self) -> ComposeResult:
        caller = self.desk.caller
        yield Line(f"Ashore  {self.texts(self.TITLE_TEXT)}", f"{caller.name}  {caller.workspace}", id="title")
        yield from self.compose_body()
        yield Footer(show_command_palette=False)

    def compose_body(self) -> ComposeResult:
        """The widgets between the title and the keys."""
        yield from ()

    async def load(self) -> Message | None:
        """Read what is shown and return it as a message to this page; runs in a worker. AshoreError is reported."""
        return None

    # ---- live data -------------------------------------------------------------------------------------------
    def on_mount(self) -> None:
        if self.TOPICS or type(self).load is not Page.load:
            self.run_worker(self._follow(), name=f"{self.name or type(self).__name__} data", group="data")

    def on_screen_resume(self) -> None:
        self._seen.set()
        self._wanted.set()

    def on_screen_suspend(self) -> None:
        self._seen.clear()

    def rest(self) -> None:
        """Stop reloading: the terminal belongs to somebody else for a while."""
        self._seen.clear()

    def wake(self) -> None:
        """Reload now, and go on reloading."""
        self._seen.set()
        self._wanted.set()

    def action_reload(self) -> None:
        self._wanted.set()

    async def _follow(self) -> None:
        with self.desk.services.changes.subscribe(*self.TOPICS) as hints:
            while True:
                await self._seen.wait()
                self._wanted.clear()
                await self._load_once()
                await asyncio.sleep(_CALM_SECONDS)
                await _first_of(hints.get(), self._wanted.wait(), within=self.REFRESH_SECONDS)
                while not hints.empty():
                    hints.get_nowait()

    async def _load_once(self) -> None:
        try:
            found = await self.load()
        except AshoreError as error:
            if error.message != self._complaint:
                self.trouble(error)
            self._complaint = error.message
            return
        self._complaint = ""
        if found is not None:
            self.post_message(found)

    def trouble(self, error: AshoreError) -> None:
        """Report what went wrong, in the person's language."""
        self.post_message(self.Trouble(in_language(self.texts, error.message)))

    # ---- doing things ----------------------------------------------------------------------------------------
    def attempt(self, work: Callable[[], Awaitable[object]], done: str = "") -> None:
        """Do `work` beside the event loop's handlers; its outcome becomes one sentence, then the page reloads."""
        self.run_worker(self._attempt(work, done), name="action", group="action")

    async def _attempt(self, work: Callable[[], Awaitable[object]], done: str) -> None:
        try:
            await work()
        except AshoreError as error:
            self.trouble(error)
        else:
            if done:
                self.post_message(self.Done(done))
        self._wanted.set()

    @on(Trouble)
    def _show_trouble(self, event: Trouble) -> None:
        event.stop()
        say(self, event.sentence, trouble=True)

    @on(Done)
    def _show_done(self, event: Done) -> None:
        event.stop()
        say(self, event.sentence)


def say(widget: Widget, sentence: str, *, trouble: bool = False) -> None:
    """One notification, never as markup."""
    text = printable(sentence, limit=400)
    widget.notify(text, severity="error" if trouble else "information", timeout=8 if trouble else 4, markup=False)


async def _first_of(*waits: Awaitable[object], within: float) -> None:
    """Until one of `waits` is over or `within` seconds have passed; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
