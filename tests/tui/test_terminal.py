"""What is guessed of a terminal from its name and the client's variables."""

from __future__ import annotations

import pytest

from tui.terminal import ColorDepth, ScreenSize, capabilities


@pytest.mark.parametrize(
    ("term", "variables", "color"),
    [
        ("xterm-256color", {}, ColorDepth.PALETTE),
        ("xterm-256color", {"COLORTERM": "truecolor"}, ColorDepth.TRUE),
        ("xterm-kitty", {}, ColorDepth.TRUE),
        ("xterm", {}, ColorDepth.PALETTE),
        ("putty-256color", {}, ColorDepth.PALETTE),
        ("linux", {}, ColorDepth.BASIC),
        ("vt220", {}, ColorDepth.BASIC),
        ("xterm-kitty", {"NO_COLOR": "1"}, ColorDepth.NONE),
        ("xterm-kitty", {"NO_COLOR": ""}, ColorDepth.TRUE),
        ("dumb", {}, ColorDepth.NONE),
    ],
)
def test_color_depth(term: str, variables: dict[str, str], color: ColorDepth) -> None:
    assert capabilities(term, variables).color is color


@pytest.mark.parametrize("term", ["", "dumb", "DUMB", "unknown"])
def test_terminals_without_cursor_addressing_get_plain_prompts(term: str) -> None:
    assert not capabilities(term, {}).fullscreen
    assert not capabilities(term, {}).mouse


@pytest.mark.parametrize(
    ("variables", "charset", "language"),
    [
        ({}, "utf-8", "en"),
        ({"LANG": "C"}, "utf-8", "en"),
        ({"LANG": "zh_CN.UTF-8"}, "utf-8", "zh"),
        ({"LANG": "zh_CN.GBK"}, "gb18030", "zh"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW.UTF-8"}, "utf-8", "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_GB.utf8"}, "utf-8", "en"),
        ({"LC_CTYPE": "de_DE.ISO-8859-15@euro"}, "iso-8859-15", "en"),
        ({"LANG": "x.rot13"}, "ascii", "en"),
    ],
)
def test_charset_and_language(variables: dict[str, str], charset: str, language: str) -> None:
    found = capabilities("xterm", variables)
    assert (found.charset, found.language) == (charset, language)


@pytest.mark.parametrize(
    ("size", "clamped"),
    [
        (ScreenSize(0, 0), ScreenSize(80, 24)),
        (ScreenSize(65535, 65535, 1 << 31, 5), ScreenSize(500, 200, 65535, 5)),
        (ScreenSize(1, 1), ScreenSize(10, 4)),
        (ScreenSize(110, 34, 990, 714), ScreenSize(110, 34, 990, 714)),
    ],
)
def test_sizes_are_clamped(size: ScreenSize, clamped: ScreenSize) -> None:
    assert size.clamped() == clamped
