"""How commands print: tables for people, JSON for programs.

Whatever came from outside goes through `printable` here, so no command has to think of it. Widths are those of
terminals, where a Chinese character is two cells wide. No command prints on its own.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum

from gateway.commands.context import Context
from storage.names import printable

Value = str | int | float | bool | None | datetime | Sequence["Value"] | Mapping[str, "Value"]
Row = Mapping[str, Value]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def table(context: Context, rows: Sequence[Row], columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    """Print `rows` as a JSON list, or as a table of `columns` (key → heading); `empty` when there is none.

    On a terminal a line is cut at its right edge; into a pipe it goes whole.
    """
    if as_json:
        context.out(to_json(rows))
        return
    if not rows:
        context.err(f"{empty}\n")
        return
    cells = [list(columns.values())] + [[human(row.get(key)) for key in columns] for row in rows]
    widths = [max(cell_len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        text = "  ".join(pad(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
        context.out(f"{cut(text, context.width) if context.has_terminal else text}\n")


def facts(context: Context, thing: Row, *, as_json: bool) -> None:
    """Print one thing as a JSON object, or as `key  value` lines; what is empty is left out for people."""
    if as_json:
        context.out(to_json(thing))
        return
    shown = {key.replace("_", " "): human(value) for key, value in thing.items()}
    width = max((cell_len(key) for key, text in shown.items() if text), default=0)
    for key, text in shown.items():
        if text:
            context.out(f"{pad(key, width)}  {text}\n")


def to_json(value: Value) -> str:
    """One JSON text and a newline. Escaped to ASCII: nothing in it can move a terminal's cursor."""
    return json.dumps(_plain(value), ensure_ascii=True, indent=2) + "\n"


def to_json_line(value: Value) -> str:
    """The same in one line, so that a program can read look by look."""
    return json.dumps(_plain(value), ensure_ascii=True) + "\n"


def human(value: Value) -> str:
    """A value as people read it, harmless for a terminal."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(key)}={human(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(human(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value.value if isinstance(value, Enum) else str(value))


def moment(when: datetime | None) -> str:
    """`2025-01-31 12:00Z`, always in UTC; empty for None."""
    return when.strftime("%Y-%m-%d %H:%MZ") if when is not None else ""


def amount(size: int) -> str:
    """Bytes for people: `512MiB`, `1.5GiB`, `0B`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".rstrip("0").rstrip(".") + _UNITS[unit]


def cell_len(text: str) -> int:
    """Columns that `text` takes on a terminal: 2 for wide characters, 0 for combining ones."""
    return sum(_cells(character) for character in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, with an ellipsis if something is missing."""
    if width < 1 or cell_len(text) <= width:
        return text
    used, kept = 1, ""
    for character in text:
        used += _cells(character)
        if used > width:
            break
        kept += character
    return kept + "…"


def _cells(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _plain(value: Value) -> object:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
