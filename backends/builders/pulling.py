"""The pull of a base in the log of its build: one line now and then for the whole of it.

An engine tells of each layer some times a second, which would fill a log. What is said about a pull is the engine's
client's business (`compute.docker.engine`): here it is thinned out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from backends.builders.contract import Write

_STEP = 10
"""Percent."""
_PAUSE_SECONDS = 5.0
_PERCENT = re.compile(r" (\d{1,3}) %$")


class PullLines:
    """Takes every line of a pull; writes the first, and one for each tenth or five seconds that brought something."""

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._shown = ""
        self._percent = 0
        self._moment = 0.0

    def see(self, line: str) -> None:
        found = _PERCENT.search(line)
        percent = int(found[1]) if found is not None else self._percent
        is_tenth = percent >= self._percent + _STEP or percent == 100
        is_late = self._clock() - self._moment >= _PAUSE_SECONDS  # also with fewer percent: there is more to fetch
        if line != self._shown and (is_tenth or is_late or not self._shown):
            self._shown, self._percent, self._moment = line, percent, self._clock()
            self._write(f"{line}\n".encode("utf-8", "replace"))
