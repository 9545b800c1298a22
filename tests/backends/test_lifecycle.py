"""What is due for an environment by its life cycle, and what may be chosen; no clock but the tests' own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from backends.lifecycle import (
    Due,
    LifecycleChoice,
    Step,
    due,
    effective,
    fell_asleep,
    span_words,
    until_words,
    warning,
)
from backends.settings import LifecycleSettings
from storage.records import Environment, EnvironmentState, Lifecycle, Wish

SETTINGS = LifecycleSettings(idle_minutes=120, ephemeral_minutes=30, unused_minutes=600, warn_minutes=15)
BORN = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
"""A Monday."""


def at(text: str) -> datetime:
    """`09:30` of that Monday, or `TUE 09:30`."""
    day, _, clock = text.rpartition(" ")
    hours, minutes = clock.split(":")
    days = ["", "TUE", "WED"].index(day)
    return BORN.replace(hour=0) + timedelta(days=days, hours=int(hours), minutes=int(minutes))


def environment(lifecycle: Lifecycle, **values: Any) -> Environment:
    facts = {
        "id": "e1", "name": "train", "lifecycle": lifecycle, "created": BORN, "lifecycle_from": BORN, "started": BORN,
        "state": EnvironmentState.RUNNING, "wish": Wish.RUNNING, "idle_seconds": 0, "start_at": "", "stop_at": "",
        "timezone": "", "wish_reason": "",
    }  # fmt: skip
    return Environment(**(facts | values))


def step(one: Environment, moment: str) -> tuple[str, datetime] | None:
    found = due(one, SETTINGS, at(moment))
    return None if found is None else (found.step.value, found.at)


def test_nothing_happens_to_persistent_ones_and_to_what_is_being_deleted() -> None:
    assert step(environment(Lifecycle.PERSISTENT), "WED 23:00") is None
    assert step(environment(Lifecycle.EPHEMERAL, wish=Wish.DELETED), "WED 23:00") is None


# ---- on demand ---------------------------------------------------------------------------------------------------
def test_on_demand_sleeps_after_the_last_sign_of_life() -> None:
    one = environment(Lifecycle.ON_DEMAND)
    assert step(one, "07:00") == ("sleep", at("8:00"))
    one.last_active = at("7:30")
    assert step(one, "07:45") == ("sleep", at("9:30"))
    one.idle_seconds = 600
    assert step(one, "07:45") == ("sleep", at("7:40"))


def test_an_open_connection_is_no_sign_of_life() -> None:
    one = environment(Lifecycle.ON_DEMAND, last_used=at("7:59"))
    assert step(one, "08:00") == ("sleep", at("8:00"))


def test_a_start_counts_as_one() -> None:
    """It was last active before it slept; woken, it must not sleep again at once."""
    one = environment(Lifecycle.ON_DEMAND, last_active=at("7:00"), started=at("11:00"))
    assert step(one, "11:00") == ("sleep", at("13:00"))
    one.started, one.lifecycle_from = BORN, at("11:00")
    assert step(one, "11:00") == ("sleep", at("13:00"))


@pytest.mark.parametrize("state", [state for state in EnvironmentState if state is not EnvironmentState.RUNNING])
def test_only_what_runs_can_sleep(state: EnvironmentState) -> None:
    assert step(environment(Lifecycle.ON_DEMAND, state=state), "23:00") is None


def test_a_warning_lasts_half_of_a_short_idleness() -> None:
    found = due(environment(Lifecycle.ON_DEMAND, idle_seconds=60), SETTINGS, at("6:00"))
    assert found is not None
    assert found.notice == timedelta(seconds=30)


# ---- ephemeral ---------------------------------------------------------------------------------------------------
def test_ephemeral_is_deleted_after_its_last_session() -> None:
    one = environment(Lifecycle.EPHEMERAL, last_used=at("9:00"), last_active=at("8:00"))
    assert step(one, "09:00") == ("delete", at("9:30"))
    one.state = one.wish = EnvironmentState.STOPPED  # type: ignore[assignment]
    assert step(one, "09:00") == ("delete", at("9:30"))


def test_ephemeral_waits_longer_for_somebody_who_never_came() -> None:
    assert step(environment(Lifecycle.EPHEMERAL), "09:00") == ("delete", at("16:00"))


def test_a_life_cycle_chosen_later_counts_from_then() -> None:
    one = environment(Lifecycle.EPHEMERAL, last_used=at("7:00"), lifecycle_from=at("TUE 12:00"))
    assert step(one, "TUE 12:00") == ("delete", at("TUE 12:30"))


# ---- scheduled ---------------------------------------------------------------------------------------------------
def office(**values: Any) -> Environment:
    return environment(Lifecycle.SCHEDULED, start_at="0 8 * * *", stop_at="0 20 * * *", **values)


def asleep(**values: Any) -> Environment:
    return office(state=EnvironmentState.STOPPED, wish=Wish.STOPPED, **values)


def test_a_day_at_the_office() -> None:
    assert step(office(), "12:00") == ("stop", at("20:00"))
    assert step(asleep(lifecycle_from=at("20:00")), "21:00") == ("start", at("TUE 8:00"))
    assert step(asleep(lifecycle_from=at("20:00")), "TUE 8:01") == ("start", at("TUE 8:00"))


def test_what_was_missed_is_made_up_for_once_by_the_newest() -> None:
    """The gateway was down for two days: one start or one stop, whichever came last."""
    assert step(office(), "WED 21:00") == ("stop", at("WED 20:00"))
    assert step(asleep(), "WED 9:00") == ("start", at("WED 8:00"))
    assert step(asleep(), "WED 21:00") == ("start", at("WED 8:00") + timedelta(days=1))
    assert step(office(), "WED 9:00") == ("stop", at("WED 20:00"))


def test_what_somebody_did_by_hand_holds_until_the_next_time() -> None:
    assert step(office(lifecycle_from=at("21:00")), "23:00") == ("stop", at("TUE 20:00"))
    assert step(asleep(lifecycle_from=at("9:00")), "12:00") == ("start", at("TUE 8:00"))


def test_only_one_of_the_two() -> None:
    mornings = environment(Lifecycle.SCHEDULED, start_at="0 8 * * *")
    assert step(mornings, "12:00") is None
    evenings = environment(Lifecycle.SCHEDULED, stop_at="0 20 * * *", state=EnvironmentState.STOPPED, wish=Wish.STOPPED)
    assert step(evenings, "12:00") is None


def test_what_failed_gets_another_chance_in_the_morning() -> None:
    assert step(office(state=EnvironmentState.FAILED), "TUE 8:00") == ("start", at("TUE 8:00"))


def test_typing_puts_a_stop_off_and_other_signs_do_not() -> None:
    assert step(office(last_active=at("19:59"), last_used=at("19:59")), "19:59") == ("stop", at("20:00"))
    assert step(office(last_typed=at("19:44")), "19:59") == ("stop", at("20:00"))
    assert step(office(last_typed=at("19:50")), "19:59") == ("stop", at("20:20"))
    assert step(office(last_typed=at("20:10")), "20:15") == ("stop", at("20:40"))


def test_the_time_zone_is_the_environments_or_the_settings() -> None:
    shanghai = office(timezone="Asia/Shanghai")
    assert step(shanghai, "09:00") == ("stop", at("12:00"))
    found = due(office(), LifecycleSettings(timezone="Europe/Berlin"), at("09:00"))
    assert found is not None
    assert found.at == at("19:00")


# ---- warnings ----------------------------------------------------------------------------------------------------
def test_nobody_is_warned_for_less_than_a_whole_warning() -> None:
    """The gateway comes back long after the time: people still get their minutes."""
    one = environment(Lifecycle.ON_DEMAND, warned=at("12:00"))
    found = due(one, SETTINGS, at("12:00"))
    assert found is not None
    assert effective(one, found) == at("12:15")


def test_the_words_of_a_warning() -> None:
    one = office(timezone="Asia/Shanghai")
    coming = Due(Step.STOP, at("12:00"), timedelta(minutes=15), "")
    assert warning(one, SETTINGS, coming, at("11:45")) == (
        "train is stopped by its schedule in 15 min, at 20:00 Asia/Shanghai. Type something to put it off."
    )
    coming = Due(Step.SLEEP, at("12:00"), timedelta(minutes=15), "")
    assert warning(one, SETTINGS, coming, at("11:59")).startswith("train sleeps in 1 min, at 20:00 Asia/Shanghai. Any")


def test_until_when_others_wait() -> None:
    def words(one: Environment, moment: str) -> str:
        return until_words(one, SETTINGS, at(moment))

    assert words(environment(Lifecycle.PERSISTENT), "09:00") == ""
    scheduled = environment(Lifecycle.SCHEDULED, stop_at="0 20 * * *")
    assert words(scheduled, "09:00") == "20:00 UTC (its schedule)"
    scheduled.stop_at, scheduled.timezone = "0 20 * * WED", "Europe/Berlin"
    assert words(scheduled, "09:00") == "2026-03-04 20:00 Europe/Berlin (its schedule)"
    assert words(environment(Lifecycle.SCHEDULED, start_at="0 8 * * *"), "09:00") == ""
    assert words(environment(Lifecycle.ON_DEMAND), "07:00") == "08:00 UTC, or longer if it is used"
    assert (
        words(environment(Lifecycle.EPHEMERAL, last_used=at("7:00")), "07:10") == "07:30 UTC, or longer if it is used"
    )


def test_who_was_there_before_it_fell_asleep() -> None:
    one = asleep(wish_reason="no sign of life for 2 h", lifecycle_from=at("12:00"))
    assert fell_asleep(one, at("11:00"))
    assert not fell_asleep(one, at("12:30"))
    assert not fell_asleep(asleep(lifecycle_from=at("12:00")), at("11:00"))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (45, "45 s"), (60, "1 min"), (90, "90 s"), (601, "10 min"), (5400, "90 min"),
                           (7200, "2 h"), (86400, "1 d"), (90000, "25 h")],
)  # fmt: skip
def test_spans(seconds: int, words: str) -> None:
    assert span_words(timedelta(seconds=seconds)) == words


# ---- choices -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (LifecycleChoice(Lifecycle.SCHEDULED), "needs a time of start or stop"),
        (LifecycleChoice(Lifecycle.SCHEDULED, "8 o'clock"), "'8 o'clock' is no cron expression: write minute, hour"),
        (LifecycleChoice(Lifecycle.SCHEDULED, "0 8 * * *", "0 20 31 4 *"), "'0 20 31 4 *' is no cron expression"),
        (LifecycleChoice(Lifecycle.SCHEDULED, "0 8 */31 2 MON#5"), "never comes"),
        (LifecycleChoice(Lifecycle.SCHEDULED, "0 8 * * *", "0  8 * * *"), "at the same time"),
        (LifecycleChoice(Lifecycle.SCHEDULED, "0 8 * * *", timezone="Berlin"), "there is no time zone 'Berlin'"),
        (LifecycleChoice(Lifecycle.ON_DEMAND, stop_at="0 8 * * *"), "need the life cycle 'scheduled'"),
        (LifecycleChoice(timezone="Europe/Berlin"), "need the life cycle 'scheduled'"),
        (LifecycleChoice(idle_seconds=600), "needs the life cycle 'ephemeral' or 'on-demand'"),
        (LifecycleChoice(Lifecycle.ON_DEMAND, idle_seconds=59), "between 1 minute and 365 days"),
        (LifecycleChoice(Lifecycle.EPHEMERAL, idle_seconds=1 << 62), "between 1 minute and 365 days"),
    ],
)
def test_what_is_refused(choice: LifecycleChoice, words: str) -> None:
    (sentence,) = choice.refusals()
    assert words in sentence


@pytest.mark.parametrize(
    "choice",
    [
        LifecycleChoice(),
        LifecycleChoice(Lifecycle.ON_DEMAND, idle_seconds=60),
        LifecycleChoice(Lifecycle.EPHEMERAL),
        LifecycleChoice(Lifecycle.SCHEDULED, "0 8 * * MON-FRI", "0 20 * * *", "Asia/Shanghai"),
        LifecycleChoice(Lifecycle.SCHEDULED, stop_at="0 20 * * *"),
    ],
)
def test_what_is_taken(choice: LifecycleChoice) -> None:
    assert choice.refusals() == []


def test_settings_know_time_zones_too() -> None:
    with pytest.raises(ValidationError, match="no such time zone"):
        LifecycleSettings(timezone="Moon/Base")
