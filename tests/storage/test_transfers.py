"""Rates and progress of uploads: arithmetic on what the rows say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from storage.transfers import Progress, Rates, TransferView

MIB = 1024 * 1024
START = datetime(2025, 1, 1, tzinfo=UTC)
VIEW = TransferView("u", "alice", "/x", Progress.SENDING, 0, 0, START, START)


def at(seconds: float, size: int, progress: Progress = Progress.SENDING) -> TransferView:
    return replace(VIEW, size=size, touched=START + timedelta(seconds=seconds), progress=progress)


def test_the_first_look_tells_the_average() -> None:
    assert Rates().of([at(10, 50 * MIB)]) == {"u": 5 * MIB}
    assert Rates().of([at(0, 0)]) == {}


def test_later_looks_tell_what_happened_between_them() -> None:
    rates = Rates()
    rates.of([at(10, 50 * MIB)])
    assert rates.of([at(20, 50 * MIB)])["u"] == pytest.approx(2 * MIB)
    assert rates.of([at(20, 50 * MIB)])["u"] == pytest.approx(2 * MIB)  # nothing new is known
    assert rates.of([at(30, 150 * MIB)])["u"] == pytest.approx(6.8 * MIB)


def test_what_stalled_is_not_moving_and_what_was_forgotten_begins_anew() -> None:
    rates = Rates()
    rates.of([at(10, 50 * MIB)])
    assert rates.of([at(10, 50 * MIB, Progress.STALLED)]) == {"u": 0.0}
    assert rates.of([at(10, 50 * MIB, Progress.PARKED)]) == {}
    rates.of([at(20, 60 * MIB)])
    assert rates.of([at(30, 10 * MIB)]) == {}  # begun anew


@pytest.mark.parametrize(
    ("size", "expected", "progress", "percent"),
    [
        (5, 0, Progress.SENDING, None), (5, 10, Progress.SENDING, 50), (10, 10, Progress.SENDING, 99),
        (10, 10, Progress.SEALED, 100), (20, 10, Progress.DONE, 100),
    ],
)  # fmt: skip
def test_percent(size: int, expected: int, progress: Progress, percent: int | None) -> None:
    assert replace(VIEW, size=size, expected=expected, progress=progress).percent == percent
