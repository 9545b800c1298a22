"""Cron expressions: what is taken, and when they come, also when clocks are put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.schedule import is_cron, last_time, next_time, zone_of

BERLIN = zone_of("Europe/Berlin")
assert BERLIN is not None


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["0 8 * * MON-FRI", "*/5 * * * *", "0  8 1 jan,jul *", "0 0 L * *"])
def test_cron(text: str) -> None:
    assert is_cron(text)


@pytest.mark.parametrize(
    "text",
    ["", "x", "8", "@daily", "0 8 * *", "0 0 8 * * *", "60 8 * * *", "0 24 * * *", "0 0 30 2 *", "0 0 * * 5L/2",
     "0 8 * * MON-FRI" + ",1" * 60, "٣ 8 * * *", "0 8 * * ²L", "9" * 90 + " 0 * * *"],
)  # fmt: skip
def test_no_cron(text: str) -> None:
    """Seconds, nicknames and days that never come are refused, and nothing that is typed breaks the reader."""
    assert not is_cron(text)


@pytest.mark.parametrize("name", ["", "Europe", "../etc/passwd", "/etc/localtime", "Moon/Base", "a" * 80, "Europe/\0"])
def test_no_zone(name: str) -> None:
    assert zone_of(name) is None


def test_an_hour_that_clocks_jump_over_comes_at_its_end() -> None:
    """29 March 2026: 02:00 is 03:00 at once."""
    assert next_time("30 2 * * *", BERLIN, at("2026-03-29T00:30")) == at("2026-03-29T01:00")
    for later in ("2026-03-29T01:00", "2026-03-29T01:05", "2026-03-29T23:00"):
        assert last_time("30 2 * * *", BERLIN, at(later)) == at("2026-03-29T01:00")


def test_an_hour_that_clocks_show_twice_comes_once() -> None:
    """25 October 2026: 03:00 is 02:00 again. Times of one zone compare by what its clock shows, which is a trap here:
    looked at in the second hour, the first showing is the last time, and there is none to come."""
    first = at("2026-10-25T00:30")
    assert next_time("30 2 * * *", BERLIN, at("2026-10-25T00:20")) == first
    assert next_time("30 2 * * *", BERLIN, at("2026-10-25T00:40")) == at("2026-10-26T01:30")
    for later in ("2026-10-25T00:30", "2026-10-25T00:59", "2026-10-25T01:10", "2026-10-25T01:40"):
        assert last_time("30 2 * * *", BERLIN, at(later)) == first


def test_eight_in_the_morning_is_eight_all_year() -> None:
    assert next_time("0 8 * * *", BERLIN, at("2026-01-10T00:00")) == at("2026-01-10T07:00")
    assert next_time("0 8 * * *", BERLIN, at("2026-07-10T00:00")) == at("2026-07-10T06:00")


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
    st.sampled_from(["30 2 * * *", "0 8 * * MON-FRI", "*/7 1-4 * * *", "0 0 29 2 *"]),
)
def test_the_last_time_is_the_one_after_which_the_next_comes(naive: datetime, text: str) -> None:
    moment = naive.replace(tzinfo=UTC)
    last, coming = last_time(text, BERLIN, moment), next_time(text, BERLIN, moment)
    assert last is not None
    assert coming is not None
    assert last <= moment < coming
    if not text.startswith("*/7"):  # those run by the clock of the wall, through both hours
        assert next_time(text, BERLIN, last - timedelta(seconds=1)) == last
        assert next_time(text, BERLIN, last) == coming
