"""What a screen shows, as lines of text, and waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.cells import cell_len
from textual.app import App
from textual.pilot import Pilot

_PATIENCE_SECONDS = 30.0


def lines(app: App[None]) -> list[str]:
    """The lines of the screen as they would be drawn, filters not applied."""
    strips = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip if not segment.control) for strip in strips]


def text(app: App[None]) -> str:
    return "\n".join(lines(app))


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Until `condition` holds; fails with the screen's text if it never does."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_SECONDS
    while True:
        await pilot.pause(0.02)
        if condition():
            return
        assert loop.time() < deadline, text(pilot.app)


async def shows(pilot: Pilot[None], *words: str) -> None:
    """Until the screen has all of `words` on it."""
    await until(pilot, lambda: all(word in text(pilot.app) for word in words))


def assert_fits(app: App[None]) -> None:
    """Every line is exactly as wide as the screen, in cells."""
    width = app.size.width
    assert [cell_len(line) for line in lines(app)] == [width] * app.size.height


def assert_harmless(app: App[None]) -> None:
    """Nothing on the screen is anything that a terminal would obey."""
    shown = "".join(lines(app))
    bad = [c for c in shown if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u202d\u2066\u2067"]
    assert not bad, bad
