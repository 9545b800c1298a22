"""Text that is shown as it is: one line with two ends, and paragraphs. Never markup, always printable."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.geometry import Size
from textual.widgets import Static

from storage.names import printable


class Plain(Static):
    """Lines of foreign text."""

    def __init__(self, text: str = "", *, id: str | None = None, classes: str | None = None) -> None:
        self._text = _lines(text)
        super().__init__(self._text, markup=False, id=id, classes=classes)

    def show(self, text: str) -> None:
        self.show_text(_lines(text))

    def show_text(self, text: Text) -> None:
        """Styled text whose foreign parts have been made printable by the caller."""
        if text != self._text or text.spans != self._text.spans:
            self._text = text
            self.update(text)


class Line(Static):
    """One line: `left` at the left, `right` at the right as long as there is room."""

    def __init__(self, left: str = "", right: str = "", *, id: str | None = None) -> None:
        super().__init__(markup=False, id=id)
        self._left = printable(left, limit=200)
        self._right = printable(right, limit=200)

    def show(self, left: str, right: str = "") -> None:
        before = self._left, self._right
        self._left = printable(left, limit=200)
        self._right = printable(right, limit=200)
        if before != (self._left, self._right):
            self.refresh()

    def render(self) -> Text:
        width = self.content_size.width
        room = width - cell_len(self._left) - cell_len(self._right)
        line = self._left + " " * room + self._right if room >= 2 else self._left
        return Text(line, no_wrap=True, overflow="crop")

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 1


def _lines(text: str) -> Text:
    return Text("\n".join(printable(line, limit=2000) for line in text.split("\n")))
