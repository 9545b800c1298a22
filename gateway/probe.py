"""Ask a terminal what it can do, before the menu takes its input.

Every terminal answers DA1 (`CSI c`), so it is asked last and fences the others: what has not been answered
before it is not supported. Answers must never reach the menu, where they would count as key presses; what a
person types meanwhile must. Terminals that say nothing cost half a second, and their late answers are still
taken out of the input.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace

from gateway.channel import Channel, Size
from tui.terminal import Capabilities, ColorDepth

TIMEOUT = 0.5
"""How long the fence is waited for, seconds."""
_QUERY = (
    b"\x1b[?1049h\x1b[H"  # on the alternate screen, so that nothing stays
    b"\x1b[>0q"  # XTVERSION
    b"\x1b]11;?\x1b\\"  # background colour
    b"\x1b[48;2;1;2;3m\x1bP$qm\x1b\\\x1b[0m"  # DECRQSS: is a 24-bit colour kept?
    b"\x1b[?2026$p"  # synchronized output
    b"\x1b[H\xe2\x94\x80\x1b[6n"  # "─": the cursor is in column 2, or in 3 where ambiguous characters are wide
    b"\x1b[H\x1b[2K\x1b[c"  # the fence
    b"\x1b[?1049l"
)
_REPLY = re.compile(
    rb"\x1bP[^\x1b\x07]{0,256}\x1b\\|\x1b\][^\x1b\x07]{0,256}(?:\x07|\x1b\\)"
    rb"|\x1b\[\?[\d;]{0,64}(?:c|\$y)|\x1b\[\d{1,5};\d{1,5}R"
)
# The begin of an answer at the end of a packet. Not a lone ESC: that is a key, and must arrive at once.
_PARTIAL = re.compile(
    rb"\x1b(?:P[^\x1b\x07]{0,256}\x1b?|\][^\x1b\x07]{0,256}\x1b?|\[(?:\?[\d;]{0,64}\$?|\d[\d;]{0,11})?)\Z"
)
_FENCE = re.compile(rb"\x1b\[\?[\d;]*c")


class ReplyFilter:
    """Parts what a terminal answers from what a person types. Pure."""

    def __init__(self) -> None:
        self.replies = bytearray()
        self._held = b""

    @property
    def is_fenced(self) -> bool:
        """Whether the last answer is in."""
        return _FENCE.search(self.replies) is not None

    def feed(self, data: bytes) -> bytes:
        """What was typed. The begin of an answer is held until its end comes."""
        data, self._held = self._held + data, b""
        typed = bytearray()
        at = 0
        for match in _REPLY.finditer(data):
            typed += data[at : match.start()]
            self.replies += match[0]
            at = match.end()
        rest = data[at:]
        if not self.is_fenced and (partial := _PARTIAL.search(rest)):
            self._held = partial[0]
            rest = rest[: partial.start()]
        return bytes(typed + rest)

    def release(self) -> bytes:
        """What is still held: it was no answer."""
        held, self._held = self._held, b""
        return held


class _Listener:
    """Consumer of the channel while the question is out."""

    def __init__(self, channel: Channel) -> None:
        self.filter = ReplyFilter()
        self.typed = bytearray()
        self.has_eof = False
        self.done = asyncio.Event()
        self._channel = channel

    def data_received(self, data: bytes) -> None:
        self.typed += self.filter.feed(data)
        if self.filter.is_fenced or len(self.typed) > 65536:
            self.done.set()

    def eof_received(self) -> None:
        self.has_eof = True
        self.done.set()

    def resized(self, size: Size) -> None:
        return

    def signal_received(self, name: str) -> None:
        return

    def output_unwanted(self) -> None: ...

    def break_received(self, milliseconds: int) -> None:
        return

    def pause_writing(self) -> None:
        return

    def resume_writing(self) -> None:
        return

    def closed(self) -> None:
        self.done.set()


class Probed:
    """What came of a probe: what the terminal can do, and the input that came meanwhile."""

    def __init__(self, capabilities: Capabilities, listener: _Listener | None = None) -> None:
        self.capabilities = capabilities
        self.typed = b"" if listener is None else bytes(listener.typed)
        self.has_eof = listener is not None and listener.has_eof
        self.late: ReplyFilter | None = None
        """Set when the fence has not come: further input must pass through it until it has."""
        if listener is not None and not listener.filter.is_fenced:
            self.late = listener.filter


async def probe(channel: Channel, guess: Capabilities, *, timeout: float = TIMEOUT) -> Probed:
    """`guess` refined by the terminal's own answers; one round trip, at most `timeout` seconds."""
    # The Linux console shows some questions instead of answering them.
    if not guess.fullscreen or not guess.utf8 or guess.term.startswith("linux"):
        return Probed(guess)
    listener = _Listener(channel)
    channel.attach(listener)
    try:
        channel.write(_QUERY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await listener.done.wait()
    finally:
        channel.detach(listener)
    return Probed(interpret(bytes(listener.filter.replies), guess), listener)


def interpret(replies: bytes, guess: Capabilities) -> Capabilities:
    """`guess` with what the answers say. Pure; what is not answered stays as guessed."""
    found = guess
    background = re.search(rb"\]11;rgb:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})", replies)
    if background and found.dark is None:
        red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in background.groups())
        found = replace(found, dark=0.299 * red + 0.587 * green + 0.114 * blue < 0.5)
    keeps_24_bit = re.search(rb"\x1bP1\$r[^\x1b]*48[:;]2[:;]+1[:;]2[:;]3", replies)
    if keeps_24_bit and found.color is ColorDepth.PALETTE:
        found = replace(found, color=ColorDepth.TRUE)
    if match := re.search(rb"\x1b\[\?2026;(\d)\$y", replies):
        found = replace(found, sync_output=match[1] in (b"1", b"2"))
    if match := re.search(rb"\x1b\[\d+;(\d+)R", replies):
        found = replace(found, ambiguous_wide=int(match[1]) == 3)
    return found
