"""Colours for terminals that have fewer: every menu draws 24-bit colours, and this translates the escape
sequences.

Textual caches rendered SGR text on styles that all Apps of a process share, without the colour depth in the
key. With per-App colour systems the first one would win for everybody, so the depth is applied here, behind
all caches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from tui.terminal import ColorDepth

Rgb = tuple[int, int, int]
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_CUBE = (0, 95, 135, 175, 215, 255)
_BASE16: tuple[Rgb, ...] = (
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205),
    (229, 229, 229), (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0),
    (92, 92, 255), (255, 0, 255), (0, 255, 255), (255, 255, 255),
)  # fmt: skip
_CACHE = 4096


def downgrade(depth: ColorDepth, text: str) -> str:
    """`text` with its colours changed to what a terminal of `depth` shows."""
    if depth is ColorDepth.TRUE:
        return text
    translate = _TRANSLATORS[depth]
    return _SGR.sub(lambda match: translate(match[1]), text)


def _sequence(parameters: str, was: str) -> str:
    return f"\x1b[{parameters}m" if parameters or not was else ""


@lru_cache(_CACHE)
def _to_palette(parameters: str) -> str:
    out: list[str] = []
    for code, color in _split(parameters):
        if isinstance(color, tuple):
            out += [code, "5", str(_nearest_256(color))]
        elif color:
            out += [code, "5", color]
        else:
            out.append(code)
    return _sequence(";".join(out), parameters)


@lru_cache(_CACHE)
def _to_basic(parameters: str) -> str:
    out: list[str] = []
    chosen: dict[str, int] = {}
    for code, color in _split(parameters):
        if isinstance(color, tuple):
            chosen[code] = _nearest_16(color)
        elif color:
            chosen[code] = int(color) if color.isdigit() and int(color) < 16 else 7
        else:
            out.append(code)
    if chosen.get("38", -1) == chosen.get("48", -2):
        # Two shades that fall on the same colour would hide the text.
        chosen["38"] = 0 if sum(_BASE16[chosen["48"]]) > 382 else 15
    for code, index in chosen.items():
        base = 30 if code == "38" else 40
        out.append(str(base + index if index < 8 else base + 52 + index))
    return _sequence(";".join(out), parameters)


@lru_cache(_CACHE)
def _to_mono(parameters: str) -> str:
    out: list[str] = []
    for code, color in _split(parameters):
        if isinstance(color, tuple):
            # On a dark theme a bright background is a cursor, a selection or a button: show it in reverse.
            if code == "48" and sum(color) > 240:
                out.append("7")
        elif not color and not (code.isdigit() and (30 <= int(code) <= 49 or 90 <= int(code) <= 107)):
            out.append(code)
    return _sequence(";".join(out), parameters)


def _split(parameters: str) -> Iterator[tuple[str, Rgb | str]]:
    """Code with its colour: (r, g, b), a palette index, or an empty string."""
    codes = iter(parameters.split(";"))
    for code in codes:
        if code not in ("38", "48"):
            yield code, ""
        elif next(codes, "") == "2":
            red, green, blue = (min(int(next(codes, "0") or 0), 255) for _ in range(3))
            yield code, (red, green, blue)
        else:
            yield code, next(codes, "0") or "0"


def _nearest_256(color: Rgb) -> int:
    levels = [0 if v < 48 else 1 if v < 115 else (v - 35) // 40 for v in color]
    gray = min(max(round((sum(color) / 3 - 8) / 10), 0), 23)
    shade = 8 + gray * 10
    cube_error = sum((v - _CUBE[level]) ** 2 for v, level in zip(color, levels, strict=True))
    if sum((v - shade) ** 2 for v in color) < cube_error:
        return 232 + gray
    return 16 + 36 * levels[0] + 6 * levels[1] + levels[2]


def _nearest_16(color: Rgb) -> int:
    return min(range(16), key=lambda i: sum((x - y) ** 2 for x, y in zip(color, _BASE16[i], strict=True)))


_TRANSLATORS: dict[ColorDepth, Callable[[str], str]] = {
    ColorDepth.PALETTE: _to_palette,
    ColorDepth.BASIC: _to_basic,
    ColorDepth.NONE: _to_mono,
}
