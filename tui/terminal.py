"""What a menu needs of a screen: a `Terminal` to write to, what it can do, and how big it is.

Nothing here knows Textual, SSH or sockets, so the full-screen menu, the plain prompts and the tests share
it. What a terminal can do is guessed from its name and from the few variables that clients send; the
gateway's probe refines that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class ColorDepth(StrEnum):
    """How many colours a terminal shows."""

    TRUE = "truecolor"
    PALETTE = "256"
    BASIC = "16"
    NONE = "mono"


@dataclass(frozen=True)
class Capabilities:
    """What is known of a client's terminal."""

    term: str = "dumb"
    """TERM as the client said it, in lower case."""
    color: ColorDepth = ColorDepth.PALETTE
    charset: str = "utf-8"
    """Python codec for what is typed and shown: utf-8, gb18030, big5, iso-8859-1 or ascii."""
    ambiguous_wide: bool = False
    """East Asian ambiguous characters (box drawing, the ellipsis) take two cells."""
    sync_output: bool = False
    """Synchronized output (mode 2026): a frame appears at once."""
    mouse: bool = True
    dark: bool | None = None
    """Background of the terminal; None: it did not say."""
    language: str = "en"
    """`en` or `zh`."""
    fullscreen: bool = True
    """False: no cursor addressing; plain prompts serve instead of the menu."""

    @property
    def utf8(self) -> bool:
        return self.charset == "utf-8"


@dataclass(frozen=True)
class ScreenSize:
    """A screen's size in cells and in pixels (0: unknown)."""

    columns: int = 80
    rows: int = 24
    width: int = 0
    height: int = 0

    def clamped(self) -> ScreenSize:
        """A size that can be drawn: clients send 0×0 and 65535×65535, and a frame costs columns × rows."""
        return ScreenSize(
            min(max(self.columns or 80, 10), 500),
            min(max(self.rows or 24, 4), 200),
            min(max(self.width, 0), 65535),
            min(max(self.height, 0), 65535),
        )


class Keyboard(Protocol):
    """Takes what comes from a terminal. All methods are called on the event loop and must not block."""

    def data_received(self, data: bytes) -> None: ...

    def resized(self, size: ScreenSize) -> None: ...

    def eof_received(self) -> None:
        """The client types no more."""
        ...

    def pause_writing(self) -> None:
        """The client does not keep up: draw nothing until `resume_writing`."""
        ...

    def resume_writing(self) -> None: ...

    def closed(self) -> None:
        """The terminal is gone."""
        ...


class Terminal(Protocol):
    """One person's terminal. One `Keyboard` is attached at a time and gets what was typed before it came."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def size(self) -> ScreenSize: ...

    @property
    def is_closed(self) -> bool: ...

    def attach(self, keyboard: Keyboard) -> None: ...

    def detach(self, keyboard: Keyboard) -> None: ...

    def write(self, data: bytes) -> None:
        """Never blocks; does nothing once the terminal is closed."""
        ...

    async def open_shell(self, environment: str) -> int:
        """Give the terminal to a login shell in `environment`; its exit status when it is over.

        AshoreError with a sentence for people when it could not be opened. The caller has left the alternate
        screen before (`ServedApp.handover`); the terminal's modes are reset when this returns or raises.
        """
        ...


class NullTerminal:
    """A terminal that nobody looks at: for warming up, and in place of one that is gone."""

    capabilities = Capabilities(fullscreen=False)
    size = ScreenSize()
    is_closed = True

    def attach(self, keyboard: Keyboard) -> None:
        return

    def detach(self, keyboard: Keyboard) -> None:
        return

    def write(self, data: bytes) -> None:
        return

    async def open_shell(self, environment: str) -> int:
        return 1


# What a killed vim, htop or menu leaves behind, undone. `?1047l`, not `?1049l`: the latter moves the cursor
# even when the normal screen is shown already. `CSI r` homes the cursor, hence DECSC and DECRC around it.
# `CSI < u` pops kitty keys.
RESET = (
    b"\x1b[?2026l\x1b[?1047l\x1b[0m\x1b(B\x0f\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l"
    b"\x1b[?1006l\x1b[?1004l\x1b[?7h\x1b[4l\x1b7\x1b[r\x1b8\x1b[<u"
)

_DUMB = frozenset({"", "dumb", "unknown", "network", "emacs", "teletype"})
_TRUE_COLOR = (
    "kitty", "alacritty", "foot", "wezterm", "ghostty", "iterm", "contour", "mintty", "rio", "konsole",
    "st-256color", "vte", "direct",
)  # fmt: skip
_PALETTE = ("xterm", "screen", "tmux", "putty", "rxvt")
_CHARSETS = {
    "utf8": "utf-8", "gbk": "gb18030", "gb2312": "gb18030", "gb18030": "gb18030", "euccn": "gb18030",
    "big5": "big5", "iso88591": "iso-8859-1", "iso885915": "iso-8859-15", "latin1": "iso-8859-1",
}  # fmt: skip


def capabilities(term: str, variables: Mapping[str, str]) -> Capabilities:
    """The best guess from TERM and from what the client sent of COLORTERM, NO_COLOR, LANG and LC_*."""
    term = term.lower()[:64]
    locale = variables.get("LC_ALL") or variables.get("LC_CTYPE") or variables.get("LANG") or ""
    words = variables.get("LC_ALL") or variables.get("LC_MESSAGES") or variables.get("LANG") or ""
    charset = _charset(locale)
    color = _color(term, variables)
    return Capabilities(
        term=term,
        color=color,
        charset=charset,
        # A legacy East Asian terminal draws box characters two cells wide.
        ambiguous_wide=charset in ("gb18030", "big5"),
        # Without colours a cursor is shown in reverse, which a dark theme is made for.
        dark=True if color is ColorDepth.NONE else None,
        mouse=term not in _DUMB and not term.startswith(("linux", "vt", "ansi")),
        language="zh" if words.lower().startswith("zh") else "en",
        fullscreen=term not in _DUMB,
    )


def _color(term: str, variables: Mapping[str, str]) -> ColorDepth:
    if variables.get("NO_COLOR") or term in _DUMB or term.startswith(("vt52", "vt100-m", "xterm-mono")):
        return ColorDepth.NONE
    if variables.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return ColorDepth.TRUE
    if any(name in term for name in _TRUE_COLOR):
        return ColorDepth.TRUE
    # COLORTERM is not in OpenSSH's default SendEnv: an xterm-256color that said no more is taken at its word.
    if "256" in term or term in _PALETTE:
        return ColorDepth.PALETTE
    return ColorDepth.BASIC


def _charset(locale: str) -> str:
    """Only a charset that is *named* counts: `LANG=C` and no LANG at all are common on UTF-8 terminals."""
    _, dot, charset = locale.partition(".")
    if not dot:
        return "utf-8"
    key = "".join(c for c in charset.partition("@")[0].lower() if c.isalnum())
    return _CHARSETS.get(key, "ascii")
