"""A long build log that is followed over SSH: what it costs the gateway, and how long the first line takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.bed import Bed
from tests.bench.measure import ROUNDS, Figure, Result
from tests.stories.clients import run

LINES = 100_000
_WORDS = "%06.0f: something that a program says of itself, in a line of usual length"


def results(bed: Bed) -> Iterator[Result]:
    text = f"RUN seq -f '{_WORDS}' {LINES}\n"
    try:
        bed.gateway.ssh(
            "alice", "image", "build", "long:v1", "--base", "debian:bookworm", "--wait", input=text.encode(),
            timeout=600,
        )  # fmt: skip
        rounds = [_followed(bed) for _ in range(ROUNDS + 1)][1:]
    finally:
        for image in run(["docker", "images", "-q", "--no-trunc", "--filter", "label=ashore.built"]).stdout.split():
            run(["docker", "rmi", "-f", image.decode()], check=False)
    name = f"following a build log of {LINES:,} lines"
    yield Figure(f"{name}, CPU", "s", statistics.median(cpu for cpu, _ in rounds), most=1.0)
    yield Figure("… its first line, login included", "ms", statistics.median(first for _, first in rounds) * 1000)


def _followed(bed: Bed) -> tuple[float, float]:
    """Seconds of CPU that the gateway took for the whole, and seconds until the first line was here."""
    assert bed.gateway.process is not None
    before, start = _cpu(bed.gateway.process.pid), time.perf_counter()
    with subprocess.Popen(
        [*bed.ours("alice"), "image", "log", "long:v1", "-f"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as client:
        assert client.stdout is not None
        client.stdout.readline()
        first = time.perf_counter() - start
        count = sum(b"something that a program says" in line for line in client.stdout)
    assert count >= LINES, f"{count} lines came"
    return _cpu(bed.gateway.process.pid) - before, first


def _cpu(pid: int) -> float:
    """Of one process, without those that it has started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
