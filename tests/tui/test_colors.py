"""Colours for terminals that have fewer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.colors import downgrade
from tui.terminal import ColorDepth

_ORANGE = "\x1b[1;38;2;255;255;255;48;2;255;136;0mtext\x1b[0m"


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (ColorDepth.TRUE, _ORANGE),
        (ColorDepth.PALETTE, "\x1b[1;38;5;231;48;5;208mtext\x1b[0m"),
        (ColorDepth.NONE, "\x1b[1;7mtext\x1b[0m"),
    ],
)
def test_downgrade(depth: ColorDepth, expected: str) -> None:
    assert downgrade(depth, _ORANGE) == expected


def test_text_stays_visible_with_sixteen_colors() -> None:
    assert downgrade(ColorDepth.BASIC, "\x1b[38;2;1;1;1;48;2;9;9;9mx") == "\x1b[97;40mx"
    assert downgrade(ColorDepth.BASIC, "\x1b[38;2;250;250;250;48;2;255;255;255mx") == "\x1b[30;107mx"


def test_other_sequences_are_left_alone() -> None:
    text = "\x1b[2;3H\x1b]52;c;eA==\x07 38;2;1;1;1m \x1b[?25l\x1b[m"
    for depth in ColorDepth:
        assert downgrade(depth, text) == text


@given(st.lists(st.integers(0, 300), max_size=12))
def test_no_parameters_crash_it_and_no_24_bit_color_is_left(parameters: list[int]) -> None:
    text = f"\x1b[{';'.join(map(str, parameters))}mx"
    for depth in (ColorDepth.PALETTE, ColorDepth.BASIC, ColorDepth.NONE):
        out = downgrade(depth, text)
        assert re.fullmatch(r"(\x1b\[[\d;]*m)?x", out)
