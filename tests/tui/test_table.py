"""The table's arithmetic: widths, and what stays under the cursor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import App, ComposeResult

from tests.tui.screen_text import lines, shows
from tui.widgets.table import Cell, Column, Row, Table, fit

COLUMNS = [
    Column("NAME", least=6, most=20),
    Column("STATE", most=9, rank=1),
    Column("IMAGE", most=40, rank=2, wide=True),
    Column("AGE", most=6, rank=3, right=True),
]


def row(key: str, *cells: str) -> Row:
    return Row(key, tuple(Cell(cell) for cell in (key, *cells)))


class TableApp(App[None]):
    def compose(self) -> ComposeResult:
        yield Table(COLUMNS)


@given(st.lists(st.tuples(*[st.text(max_size=50)] * 4), max_size=5), st.integers(10, 200))
def test_widths_never_pass_the_screen(cells: list[tuple[str, ...]], width: int) -> None:
    rows = [Row(str(at), tuple(Cell(cell) for cell in each)) for at, each in enumerate(cells)]
    widths = fit(COLUMNS, rows, width)
    shown = [one for one in widths if one]
    assert widths[0] >= 4
    assert 2 + sum(shown) + 2 * len(shown) <= max(width, 8)


def test_columns_give_way_by_rank() -> None:
    rows = [row("train", "running", "debian:bookworm", "5 h")]
    assert [bool(one) for one in fit(COLUMNS, rows, 80)] == [True, True, True, True]
    assert [bool(one) for one in fit(COLUMNS, rows, 40)] == [True, True, True, False]
    assert [bool(one) for one in fit(COLUMNS, rows, 24)] == [True, True, False, False]
    assert [bool(one) for one in fit(COLUMNS, rows, 12)] == [True, False, False, False]


async def test_cells_are_cut_and_padded_by_what_they_take_on_screen() -> None:
    app = TableApp()
    async with app.run_test(size=(60, 6)) as pilot:
        app.query_one(Table).show_rows(
            [row("中文名称很长很长很长很长", "运行中", "x" * 90, "1 d"), row("e\u0301a", "", "", "")]
        )
        await pilot.pause()
        shown = lines(app)
        assert all(cell_len(line) == 60 for line in shown)
        assert "~" in shown[1]


async def test_the_cursor_follows_its_key_and_stays_in_sight() -> None:
    app = TableApp()
    async with app.run_test(size=(60, 6)) as pilot:
        table = app.query_one(Table)
        table.show_rows([row(f"n{at}", "", "", "") for at in range(50)])
        await pilot.press("end")
        assert table.key == "n49"
        await shows(pilot, "n49")
        table.show_rows([row(f"n{at}", "", "", "") for at in range(40, 60)])
        assert table.key == "n49"
        table.show_rows([row("n1", "", "", "")])
        assert table.key == "n1"
        await shows(pilot, "n1")
        table.show_rows([])
        assert table.key is None


async def test_many_rows_cost_no_more_than_few() -> None:
    app = TableApp()
    async with app.run_test(size=(60, 6)) as pilot:
        table = app.query_one(Table)
        table.show_rows([row(f"n{at}", "", "", "") for at in range(20_000)])
        await pilot.press("end", "pageup", "home", "pagedown")
        assert table.key == "n4"


async def test_a_scroll_bar_hides_no_column() -> None:
    app = TableApp()
    async with app.run_test(size=(60, 6)) as pilot:
        app.query_one(Table).show_rows([row(f"n{at}", "running", "", "123456") for at in range(50)])
        await shows(pilot, "123456  ")
        assert all(cell_len(line) == 60 for line in lines(app))
