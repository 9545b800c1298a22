"""Textual on a `Terminal`: many Apps in one event loop, without threads, without a tty, without signals.

What differs from Textual's own drivers does so on purpose: 24-bit colours are translated here, frames are
dropped while the client does not keep up, nothing polls while nobody types, and no kitty keys are asked
for, because reporting all keys that way breaks Chinese input in several terminals. The driver uses private
names of Textual, which is why its version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from codecs import IncrementalDecoder, getincrementaldecoder
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TextIO

from textual import constants, events, messages
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.driver import Driver
from textual.geometry import Size
from textual.message import Message

from storage.names import printable
from tui.colors import downgrade
from tui.key_order import KeyOrder
from tui.terminal import NullTerminal, ScreenSize, Terminal

if TYPE_CHECKING:
    from tui.served import ServedApp

log = logging.getLogger(__name__)

PASTE_LIMIT = 256 * 1024
"""Characters of one paste that arrive; the rest is dropped, because each costs time that other menus wait
for.
"""
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?2004h"
_LEAVE = "\x1b[?2004l\x1b[?7h\x1b[0m\x1b[?1049l\x1b[?25h"
# Buttons, drags and wheel. Not 1003: every motion would be a packet and a restyled widget.
_MOUSE_ON = "\x1b[?1000h\x1b[?1002h\x1b[?1006h"
_MOUSE_OFF = "\x1b[?1006l\x1b[?1002l\x1b[?1000l"
# For terminals that are not UTF-8, or that draw these two cells wide, which would break every line.
_ASCII = {
    ord(shape): ascii_shape
    for shapes, ascii_shape in (
        ("─━═╌╍┄┅▁▔▂", "-"), ("│┃║┊┆▌▐▊▎", "|"), ("┌┍┎┏╔╭┐┑┒┓╗╮└┕┖┗╚╰┘┙┚┛╝╯├┣╠┤┫╣┬┳╦┴┻╩┼╋╬", "+"),
        ("▃▄▅▆▇█▀", "#"), ("░▒▓", ":"), ("●•", "*"), ("○", "o"), ("▶→", ">"), ("◀←", "<"), ("▲↑", "^"),
        ("▼↓", "v"), ("…", "~"), ("✓", "v"), ("✗", "x"),
    )
    for shape in shapes
}  # fmt: skip


class _Parser(XTermParser):
    """Without the cache on `_parse_extended_key`: it is shared by all parsers and keeps each of them, and
    through them whole dead Apps, alive.
    """

    _parse_extended_key = XTermParser._parse_extended_key.__wrapped__  # type: ignore[assignment]


class PasteLimiter:
    """Cuts pastes to `limit` characters and keeps their end mark, wherever the pieces are split."""

    def __init__(self, limit: int = PASTE_LIMIT) -> None:
        self._limit = limit
        self._left = 0
        self._is_pasting = False
        self._tail = ""
        """Outside of a paste: what was passed last. Inside: what may be the begin of the end mark, held
        back.
        """

    def feed(self, text: str) -> str:
        out: list[str] = []
        while text:
            text = self._inside(text, out) if self._is_pasting else self._outside(text, out)
        return "".join(out)

    def _outside(self, text: str, out: list[str]) -> str:
        # Nothing is held back here: a lone ESC must arrive at once.
        at = (self._tail + text).find(BRACKETED_PASTE_START)
        if at < 0:
            self._tail = (self._tail + text)[1 - len(BRACKETED_PASTE_START) :]
            out.append(text)
            return ""
        end = at + len(BRACKETED_PASTE_START) - len(self._tail)
        out.append(text[:end])
        self._is_pasting, self._left, self._tail = True, self._limit, ""
        return text[end:]

    def _inside(self, text: str, out: list[str]) -> str:
        text = self._tail + text
        body, mark, rest = text.partition(BRACKETED_PASTE_END)
        self._tail = ""
        if not mark:
            held = next(n for n in range(5, -1, -1) if text.endswith(BRACKETED_PASTE_END[:n]))
            body, self._tail = text[: len(text) - held], text[len(text) - held :]
        out += [body[: self._left], mark]
        self._left -= min(self._left, len(body))
        self._is_pasting = not mark
        return rest


class ServedDriver(Driver):
    """Driver of a `ServedApp`, and the `Keyboard` of its terminal while the menu is shown."""

    def __init__(
        self,
        app: ServedApp,
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._terminal: Terminal = app.terminal
        self._capabilities = app.terminal.capabilities
        now = app.terminal.size
        super().__init__(app, mouse=mouse and self._capabilities.mouse, size=(now.columns, now.rows))
        self._served = app
        self._keys = KeyOrder(app, app.post_message)
        self._parser: _Parser | None = None
        self._decoder: IncrementalDecoder | None = None
        self._pastes = PasteLimiter()
        self._pending: list[str] = []
        self._flushing: asyncio.Handle | None = None
        self._escape_timer: asyncio.TimerHandle | None = None
        self._is_active = False
        self._frame_dropped = False
        self._is_congested = False

    # ---- output ------------------------------------------------------------------------------------------
    def write(self, data: str) -> None:
        if not self._is_active:
            return  # somebody else has the terminal
        self._pending.append(data)
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """One packet for what Textual writes in three: begin of update, frame, end of update."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if not self._pending:
            return
        text = downgrade(self._capabilities.color, "".join(self._pending))
        self._pending.clear()
        if self._capabilities.ambiguous_wide or not self._capabilities.utf8:
            text = text.translate(_ASCII)
        self._terminal.write(text.encode(self._capabilities.charset, "replace"))

    def drop_frame(self) -> bool:
        """Whether the next frame is not to be drawn; a full one follows when the client has caught up."""
        self._frame_dropped = self._frame_dropped or self._is_congested
        return self._is_congested

    # ---- modes -------------------------------------------------------------------------------------------
    def start_application_mode(self) -> None:
        self._is_active = True
        self._parser = _Parser(False)
        self._decoder = getincrementaldecoder(self._capabilities.charset)("replace")
        self._pastes = PasteLimiter()
        self.write(_ENTER + (_MOUSE_ON if self._mouse else ""))
        self.flush()
        self.resized(self._terminal.size)
        if self._capabilities.sync_output:
            self.send_message(messages.TerminalSupportsSynchronizedOutput())
        self._terminal.attach(self)

    def disable_input(self) -> None:
        self._terminal.detach(self)
        self._keys.clear()
        if self._escape_timer is not None:
            self._escape_timer.cancel()
            self._escape_timer = None
        parser, self._parser = self._parser, None
        if parser is not None:
            with contextlib.suppress(Exception):
                # Let its generator end, or the frame keeps the last event and so the App alive.
                for _ in parser.feed(""):
                    pass

    def stop_application_mode(self) -> None:
        if not self._is_active:
            return
        self.disable_input()
        self.write((_MOUSE_OFF if self._mouse else "") + _LEAVE)
        self.flush()
        self._is_active = False

    def close(self) -> None:
        self.stop_application_mode()
        self._terminal = NullTerminal()

    # ---- input -------------------------------------------------------------------------------------------
    def send_message(self, message: Message) -> None:
        # The base class goes through another thread's door: a future, a wake-up and a task for every key.
        self._keys.put(message)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._decoder is None:
            return
        # Half a character decodes to nothing, and feeding nothing means end of file for ever.
        if text := self._pastes.feed(self._decoder.decode(data)):
            self._parse(text)
            self._await_escape(constants.ESCAPE_DELAY + 0.005)

    def _parse(self, text: str) -> None:
        if self._parser is None:
            return
        try:
            # We are called outside of every Textual task: lend its context.
            with self._served._context():
                for event in self._parser.feed(text) if text else self._parser.tick():
                    self.process_message(event)
        except (ValueError, OverflowError, RuntimeError, StopIteration):
            # A hostile sequence (a code point that cannot be) ends the parser's generator; begin anew.
            log.info("input of a menu could not be read")
            self._parser = _Parser(False)

    def _await_escape(self, delay: float) -> None:
        """A lone ESC counts after a moment. Armed only while the parser waits, so that idle menus cost
        nothing.
        """
        if self._escape_timer is None and self._parser is not None and self._parser._timeout_time is not None:
            self._escape_timer = self._loop.call_later(delay, self._escape_due)

    def _escape_due(self) -> None:
        self._escape_timer = None
        self._parse("")
        self._await_escape(0.02)

    def resized(self, size: ScreenSize) -> None:
        size = size.clamped()
        self._size = (size.columns, size.rows)
        cells = Size(size.columns, size.rows)
        pixels = Size(size.width, size.height) if size.width and size.height else None
        self._app.post_message(events.Resize(cells, cells, None, pixels))

    def pause_writing(self) -> None:
        self._is_congested = True

    def resume_writing(self) -> None:
        self._is_congested = False
        if self._is_active and self._frame_dropped:
            self._frame_dropped = False
            with self._served._context():
                self._served.repaint()

    def eof_received(self) -> None:
        self._app.exit()

    def closed(self) -> None:
        self._is_active = False
        self._pending.clear()

    # ---- what must not happen on a server ----------------------------------------------------------------
    @property
    def can_suspend(self) -> bool:
        # With True, ctrl+z would stop the whole process, and App.suspend() redirects its stdout.
        return False

    def open_url(self, url: str, new_tab: bool = True) -> None:
        """The base class starts a browser on the server: show the address instead."""
        self._app.notify(printable(url, limit=500), title="URL", timeout=20, markup=False)

    def deliver_binary(
        self,
        binary: BinaryIO | TextIO,
        *,
        delivery_key: str,
        save_path: Path,
        open_method: Literal["browser", "download"] = "download",
        encoding: str | None = None,
        mime_type: str | None = None,
        name: str | None = None,
    ) -> None:
        """The base class writes into the server's file system: refuse."""
        binary.close()
        refusal = PermissionError("files are fetched with sftp")
        self._app.post_message(events.DeliveryFailed(key=delivery_key, exception=refusal, name=name))
