"""Lines from a terminal that is in raw mode: echo, erase by whole characters, end of input. No cursor is moved.

The client's side has no line discipline once it has given us its terminal, so this is ours, as small as can be.
"""

from __future__ import annotations

import asyncio
import codecs
import re

from rich.cells import cell_len

from tui.terminal import ScreenSize, Terminal

_LONGEST = 4096
_MOST_LINES = 256
# Arrow keys and the like; a lone ESC waits for the character behind it, which it swallows.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;:<=>?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:<=>?]*[ -/]*|O)?$")


class LineReader:
    """The `Keyboard` of plain prompts. `read` gives one line after the other, None at the end."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        charset = terminal.capabilities.charset
        self._decode = codecs.getincrementaldecoder(charset)("replace").decode
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._line = ""
        self._escape = ""
        self._last = ""
        self._is_over = False
        terminal.attach(self)

    async def read(self) -> str | None:
        """The next line without its end; None when the input has ended. Ctrl-C gives an empty line."""
        if self._is_over and self._lines.empty():
            return None
        return await self._lines.get()

    def write(self, text: str) -> None:
        """Show `text`, its line ends as terminals want them."""
        data = text.replace("\n", "\r\n").encode(self._terminal.capabilities.charset, "replace")
        self._terminal.write(data)

    def close(self) -> None:
        """Leave the terminal to somebody else; `resume` takes it back."""
        self._terminal.detach(self)

    def resume(self) -> None:
        self._terminal.attach(self)

    # ---- Keyboard --------------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        text = _SEQUENCE.sub("", self._escape + self._decode(data))
        unfinished = _UNFINISHED.search(text)
        self._escape = unfinished.group(0)[-32:] if unfinished else ""
        for character in text[: unfinished.start()] if unfinished else text:
            self._take(character)

    def resized(self, size: ScreenSize) -> None:
        return

    def eof_received(self) -> None:
        if self._line:
            self._finish(self._line)
        self._end()

    def pause_writing(self) -> None:
        return

    def resume_writing(self) -> None:
        return

    def closed(self) -> None:
        self._end()

    # ---- inside ----------------------------------------------------------------------------------------------
    def _take(self, character: str) -> None:
        last, self._last = self._last, character
        if character == "\n" and last == "\r":
            return
        if character in "\r\n":
            self.write("\n")
            self._finish(self._line)
        elif character in "\x7f\b":
            self._erase(1)
        elif character == "\x15":
            self._erase(len(self._line))
        elif character == "\x17":
            self._erase(len(self._line) - (self._line.rstrip().rfind(" ") + 1))
        elif character == "\x03":
            self.write("^C\n")
            self._finish("")
        elif character == "\x04":
            if not self._line:
                self.write("\n")
                self._end()
        elif character.isprintable() and len(self._line) < _LONGEST:
            self._line += character
            self.write(character)

    def _erase(self, count: int) -> None:
        gone = self._line[len(self._line) - count :] if count else ""
        self._line = self._line[: len(self._line) - len(gone)]
        cells = cell_len(gone)
        self.write("\b" * cells + " " * cells + "\b" * cells)

    def _finish(self, line: str) -> None:
        self._line = ""
        if self._lines.qsize() < _MOST_LINES:
            self._lines.put_nowait(line)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._lines.put_nowait(None)
