"""Base of every App that is served to many people at once: what Textual assumes of a process of its own is
undone here.

`harden_textual` repairs what is global; `ServedApp` what each App takes from the server's environment,
prints or writes there. Nothing here knows a screen of Ashore.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Any, ClassVar

import textual.app as textual_app
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from textual._styles_cache import StylesCache
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.driver import Driver
from textual.filter import LineFilter, Monochrome, NoColor
from textual.screen import Screen
from textual.style import Style

from storage.names import printable
from tui.driver import ServedDriver
from tui.terminal import Terminal

log = logging.getLogger(__name__)
# Without a tab or a newline: a rendered line has neither. Bidirectional controls can turn a name round.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harden_textual() -> None:
    """Undo the process-wide assumptions of one App per process. Call it before the first App runs; twice is
    fine.

    App redirects `sys.stdout` while it runs; two Apps that do not end in the opposite order leave it
    pointing at a dead one. And `StylesCache.get_inner_outer` is a method with a shared cache that keeps
    dead widgets alive.
    """
    nothing: Any = lambda *_: contextlib.nullcontext()  # noqa: E731
    vars(textual_app).update(redirect_stdout=nothing, redirect_stderr=nothing)
    if getattr(StylesCache.get_inner_outer, "__wrapped__", None) is None:
        return

    @lru_cache(1024)
    def inner_outer(base: Color, background: Color) -> tuple[Style, Style]:
        return Style(background=base + background), Style(background=base)

    def get_inner_outer(_: StylesCache, base: Color, background: Color) -> tuple[Style, Style]:
        return inner_outer(base, background)

    setattr(StylesCache, "get_inner_outer", get_inner_outer)  # noqa: B010


class ControlFilter(LineFilter):
    """Last line of defence: no control character of any *content* reaches the terminal.

    Textual passes on ESC, OSC 52 and C1 bytes of whatever a widget shows, so a data set's name could write
    another person's clipboard. Names are made printable where they enter a widget; this sees every line
    that is drawn.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if not any(_UNSAFE.search(segment.text) for segment in segments):
            return segments
        return [
            segment if segment.control else Segment(_UNSAFE.sub("\ufffd", segment.text), segment.style)
            for segment in segments
        ]


class ServedApp(App[None]):
    """An App on somebody's `Terminal`. Ctrl-C interrupts nothing; ctrl+q and q leave."""

    ENABLE_COMMAND_PALETTE: ClassVar[bool] = True
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "Quit", show=False)]

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.started = asyncio.Event()
        """Set before the first frame is drawn."""
        super().__init__(driver_class=ServedDriver)
        # App took all of these from the server's own environment. Colours are always 24 bit here: see
        # tui.colors.
        self.features = frozenset()
        self.no_color = False
        self._filters = [f for f in self._filters if not isinstance(f, Monochrome | NoColor)]
        self._filters.append(ControlFilter())
        self.console = _console(terminal.capabilities.term)
        self.animation_level = "none"
        if terminal.capabilities.dark is False:
            self.theme = "textual-light"

    # ---- handing the terminal over -----------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def handover(self) -> AsyncIterator[Terminal]:
        """Leave the terminal to somebody else meanwhile; screens keep their state and nothing is drawn.

        Use it in a worker (`@work`), never in a message handler: the App must go on handling messages.
        """
        driver = self._driver
        if not isinstance(driver, ServedDriver):
            yield self.terminal
            return
        with self.batch_update():
            driver.stop_application_mode()
            try:
                yield self.terminal
            finally:
                if not self.terminal.is_closed:
                    driver.start_application_mode()
        self.repaint()

    async def open_shell(self, environment: str) -> int:
        """A login shell in `environment`, then the menu again; the exit status. AshoreError if it did not
        open.
        """
        async with self.handover() as terminal:
            return await terminal.open_shell(environment)

    # ---- drawing -----------------------------------------------------------------------------------------
    def repaint(self) -> None:
        """Draw everything anew."""
        if self._screen_stack and not self.terminal.is_closed:
            self.screen.refresh(layout=True)

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        # Dropped *before* it is rendered: that is where the time goes.
        if isinstance(self._driver, ServedDriver) and self._driver.drop_frame():
            self.post_display_hook()
            return
        super()._display(screen, renderable)

    async def _ready(self) -> None:
        await super()._ready()
        self.started.set()

    # ---- what must not happen on a server ----------------------------------------------------------------
    def action_suspend_process(self) -> None:
        return

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Without the screenshot, which writes into the server's file system."""
        return (c for c in super().get_system_commands(screen) if c.title != "Screenshot")

    def _fatal_error(self) -> None:
        # The base class renders a traceback with the values of all locals, secrets included.
        self.bell()
        log.error("a menu failed", exc_info=self._exception)
        self._close_messages_no_wait()

    def _print_error_renderables(self) -> None:
        for renderable in self._exit_renderables:
            text = "".join(s.text for s in renderable.segments) if isinstance(renderable, Segments) else ""
            log.error("a menu failed: %s", printable(text.strip() or type(renderable).__name__, limit=2000))
        self._exit_renderables.clear()

    def get_driver_class(self) -> type[Driver]:
        return ServedDriver


def _console(term: str) -> Console:
    return Console(
        color_system="truecolor",
        file=textual_app._NullFile(),  # type: ignore[arg-type]
        markup=True,
        highlight=False,
        emoji=False,
        legacy_windows=False,
        force_terminal=True,
        safe_box=False,
        soft_wrap=False,
        _environ={"TERM": term, "COLUMNS": "", "LINES": ""},
    )
