"""The menu: time to its first paint, and what a menu that nobody touches costs in memory."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.bed import Bed
from tests.bench.measure import Figure, Result
from tests.stories.clients import Terminal

IDLE = 20
FIRST = r"\x1b\[\?1049h.*box"


def results(bed: Bed) -> Iterator[Result]:
    yield Figure("menu, first paint, login included", "ms", statistics.median(_paint(bed) for _ in range(6)) * 1000)
    assert bed.gateway.process is not None
    before = _memory(bed.gateway.process.pid)
    with ExitStack() as stack:
        for _ in range(IDLE):
            terminal = stack.enter_context(Terminal(bed.ours("alice")))
            terminal.expect(FIRST)
        time.sleep(2)
        grown = _memory(bed.gateway.process.pid) - before
    yield Figure("memory per idle menu (gateway and workers)", "MiB", grown / IDLE / (1 << 20))


def _paint(bed: Bed) -> float:
    start = time.perf_counter()
    with Terminal(bed.ours("alice")) as terminal:
        terminal.expect(FIRST)
        return time.perf_counter() - start


def _memory(pid: int) -> int:
    """Proportional bytes of a process and everything below it, but for the object store."""
    total = 0
    if b"weed" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(_memory(int(child)) for child in children.read_text().split())
    return total
