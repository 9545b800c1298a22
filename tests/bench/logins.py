"""Logins: the time of one, and how many per second with eight clients, against OpenSSH running `true`."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.bench.bed import Bed
from tests.bench.measure import Comparison, Result, interleaved, seconds

CLIENTS = 8
EACH = 6
SINGLE = 7


def results(bed: Bed) -> Iterator[Result]:
    ours = [*bed.ours("alice"), "whoami"]
    for theirs, other in ((bed.openssh, "OpenSSH"), (bed.openssh_alike, "OpenSSH, our algorithms")):
        command = [*theirs, "true"]
        pairs = interleaved(lambda: _one(ours), lambda command=command: _one(command))
        yield Comparison("login and a command", "ms", pairs.scaled(1000), other, 0.6, at_least=False)
        pairs = interleaved(lambda: _many(ours), lambda command=command: _many(command))
        yield Comparison(f"logins with {CLIENTS} clients", "1/s", pairs, other, 4.0)


def _login(arguments: list[str]) -> None:
    subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=True)


def _one(arguments: list[str]) -> float:
    return statistics.median(seconds(lambda: _login(arguments)) for _ in range(SINGLE))


def _many(arguments: list[str]) -> float:
    with ThreadPoolExecutor(CLIENTS) as clients:
        return CLIENTS * EACH / seconds(lambda: list(clients.map(_login, [arguments] * (CLIENTS * EACH))))
