"""How benches are measured and told: pairs of runs side by side, medians, and a ratio against a target."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))


@dataclass(frozen=True)
class Pairs:
    """What was measured: Ashore's value and the other's, one pair for each round."""

    rounds: tuple[tuple[float, float], ...]

    def scaled(self, factor: float) -> Pairs:
        return Pairs(tuple((own * factor, other * factor) for own, other in self.rounds))


@dataclass(frozen=True)
class Comparison:
    """Ashore and something else in the same minutes on the same machine; only their ratio means anything."""

    name: str
    unit: str
    pairs: Pairs
    other: str
    """What Ashore is compared with."""
    target: float
    at_least: bool = True
    """Whether the ratio should be at least the target, or at most."""

    @property
    def ours(self) -> float:
        return statistics.median(own for own, _ in self.pairs.rounds)

    @property
    def theirs(self) -> float:
        return statistics.median(other for _, other in self.pairs.rounds)

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.ours / self.theirs

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a single round: wide, and the machine was too busy to tell."""
        ratios = [own / other for own, other in self.pairs.rounds]
        return min(ratios), max(ratios)

    @property
    def passed(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


@dataclass(frozen=True)
class Figure:
    """A number of this machine; most have no target."""

    name: str
    unit: str
    value: float
    most: float | None = None
    """What it should be at most."""


Result = Comparison | Figure


def seconds(run: Callable[[], object]) -> float:
    """How long `run` took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


async def timed(work: Awaitable[object]) -> float:
    """How long `work` took."""
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


def interleaved(ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int = ROUNDS) -> Pairs:
    """The values of both, round by round, after one warm-up each; they take turns in who begins."""
    ours()
    theirs()
    pairs: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            other = theirs()
            pairs.append((ours(), other))
        else:
            own = ours()
            pairs.append((own, theirs()))
    return Pairs(tuple(pairs))
