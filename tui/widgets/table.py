"""A table that renders only the rows that are seen: ten thousand rows cost no more than ten.

Cells are plain text with a tone, never markup, and made printable here, so no name can style, crash or command a
terminal. Columns give way by rank when the screen is narrow. Selection follows a row's key through refreshes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from storage.names import printable

_LONGEST_CELL = 300
_MARK = 2
_GAP = 2
_LEAST_WIDE = 20


@dataclass(frozen=True)
class Column:
    """Widths in cells. `rank` 0 is always shown; the highest goes first when space is short. `wide` takes the rest."""

    label: str
    least: int = 0
    most: int = 24
    rank: int = 0
    wide: bool = False
    right: bool = False


@dataclass(frozen=True)
class Cell:
    """`tone` is one of good, busy, bad, dim, strong, or empty."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """`key` tells the row apart, also after a refresh."""

    key: str
    cells: tuple[Cell, ...]


def fit(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int]:
    """The width of each column in cells; 0: there is no room for it."""
    sample = rows[:200]
    wants = [
        min(column.most, max(column.least, cell_len(column.label), *(cell_len(row.cells[at].text) for row in sample)))
        for at, column in enumerate(columns)
    ]
    shown = [want > 0 for want in wants]

    def total() -> int:
        least = [min(want, _LEAST_WIDE) if column.wide else want for want, column in zip(wants, columns, strict=True)]
        return _MARK + sum(want + _GAP for want, show in zip(least, shown, strict=True) if show)

    for at in sorted(range(len(columns)), key=lambda at: -columns[at].rank):
        if total() <= width or columns[at].rank == 0:
            break
        shown[at] = False
    widths = [want if show else 0 for want, show in zip(wants, shown, strict=True)]
    stretchy = next((at for at, column in enumerate(columns) if column.wide and shown[at]), 0)
    others = sum(want + _GAP for at, want in enumerate(widths) if want and at != stretchy)
    widths[stretchy] = max(4, width - _MARK - _GAP - others)
    return widths


class Table(ScrollView, can_focus=True):
    """Rows with a cursor. Posts `Highlighted` when the cursor comes to another row, `Chosen` on Enter or click."""

    COMPONENT_CLASSES = {
        "table--header", "table--cursor", "table--good", "table--busy", "table--bad", "table--dim", "table--strong",
    }  # fmt: skip
    DEFAULT_CSS = "Table { height: 1fr; overflow-x: hidden; }"
    BINDINGS = [
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("end,G", "move(1000000000)", show=False),
        Binding("home,g", "move(-1000000000)", show=False),
        Binding("enter", "choose", show=False),
    ]

    class Highlighted(Message):
        """The cursor is on row `key`; None: there are no rows."""

        def __init__(self, table: Table, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> Table:
            return self.table

    class Chosen(Highlighted):
        """Somebody wants row `key` opened."""

    def __init__(self, columns: Sequence[Column], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = columns
        self._rows: Sequence[Row] = ()
        self._widths: list[int] = []
        self._width = 0
        self._cursor = 0

    @property
    def rows(self) -> Sequence[Row]:
        return self._rows

    @property
    def key(self) -> str | None:
        """Of the row under the cursor."""
        return self._rows[self._cursor].key if self._rows else None

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Replace all rows; the cursor stays on its key, or as near as can be."""
        if rows == self._rows:
            return
        before = self.key
        clean = [Row(row.key, tuple(_clean(cell) for cell in row.cells)) for row in rows]
        self._rows = clean
        self._cursor = min(self._cursor, max(0, len(rows) - 1))
        if before is not None and before != self.key:
            self._cursor = next((at for at, row in enumerate(rows) if row.key == before), self._cursor)
        self._refit()
        if self.key != before:
            self.post_message(self.Highlighted(self, self.key))

    def go_to(self, key: str) -> bool:
        """Put the cursor on row `key`; False if there is none."""
        found = next((at for at, row in enumerate(self._rows) if row.key == key), None)
        if found is None:
            return False
        self._move_to(found)
        return True

    def action_move(self, step: int) -> None:
        self._move_to(self._cursor + step)

    def action_page(self, direction: int) -> None:
        self._move_to(self._cursor + direction * max(1, self.size.height - 2))

    def action_choose(self) -> None:
        if self.key is not None:
            self.post_message(self.Chosen(self, self.key))

    def on_resize(self) -> None:
        self._refit()
        self._keep_in_sight()

    def on_click(self, event: events.Click) -> None:
        row = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or row >= len(self._rows):
            return
        again = row == self._cursor and event.chain > 1
        self._move_to(row)
        if again:
            self.action_choose()

    def render_line(self, y: int) -> Strip:
        # A scroll bar takes width away without a resize.
        if self._width != self.scrollable_content_region.width:
            self._width = self.scrollable_content_region.width
            self._widths = fit(self._columns, self._rows, self._width)
        if y == 0:
            cells = [Cell(column.label) for column in self._columns]
            style = self.get_component_rich_style("table--header")
            return self._strip("  ", cells, style, toned=False)
        at = y - 1 + self.scroll_offset.y
        if at >= len(self._rows):
            return Strip.blank(self._width, self.rich_style)
        if at == self._cursor and self.has_focus:
            style = self.rich_style + self.get_component_rich_style("table--cursor")
            return self._strip("> ", self._rows[at].cells, style, toned=True, dims=False)
        return self._strip("> " if at == self._cursor else "  ", self._rows[at].cells, self.rich_style, toned=True)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _strip(self, mark: str, cells: Sequence[Cell], style: Style, *, toned: bool, dims: bool = True) -> Strip:
        segments = [Segment(mark, style)]
        for cell, column, width in zip(cells, self._columns, self._widths, strict=False):
            if not width:
                continue
            own = style
            if toned and cell.tone and (dims or cell.tone != "dim"):
                own = style + Style(color=self.get_component_rich_style(f"table--{cell.tone}").color)
            segments += [Segment(_padded(cell.text, width, right=column.right), own), Segment(" " * _GAP, style)]
        strip = Strip(segments)
        return strip.adjust_cell_length(self._width, style)

    def _move_to(self, at: int) -> None:
        if not self._rows:
            return
        old, self._cursor = self._cursor, min(max(at, 0), len(self._rows) - 1)
        self._keep_in_sight()
        for line in {old, self._cursor}:
            self.refresh(Region(0, line - self.scroll_offset.y + 1, self.size.width, 1))
        if old != self._cursor:
            self.post_message(self.Highlighted(self, self.key))

    def _keep_in_sight(self) -> None:
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        if not top <= self._cursor < top + height:
            to = self._cursor if self._cursor < top else self._cursor - height + 1
            # By force: before the first layout there is no scroll bar, and nothing would move.
            self.scroll_to(y=to, animate=False, force=True)

    def _refit(self) -> None:
        self._width = self.scrollable_content_region.width
        self._widths = fit(self._columns, self._rows, self._width)
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        self.refresh()


def _clean(cell: Cell) -> Cell:
    return Cell(printable(cell.text, limit=_LONGEST_CELL), cell.tone)


def _padded(text: str, width: int, *, right: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "~"
    return " " * (width - length) + text if right else text + " " * (width - length)
