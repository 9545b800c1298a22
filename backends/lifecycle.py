"""Life cycles of environments: what may be chosen, and what is due by it. Pure; times come in as arguments.

`reconcilers.expiry` carries out what is due here, `activity` collects the signs of life that it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from backends.schedule import is_cron, last_time, next_time, zone_of
from backends.settings import LifecycleSettings
from storage.clock import now
from storage.errors import BadInput
from storage.names import printable
from storage.records import Environment, EnvironmentState, Lifecycle, Wish

_LEAST_IDLE = 60
_MOST_IDLE = 365 * 24 * 3600
_MOST_KEPT = 3650
_AGAIN = timedelta(hours=1)
"""Before the deletion of an ephemeral environment whose output does not fit is tried again: that reads all of it."""
_IDLES = (Lifecycle.EPHEMERAL, Lifecycle.ON_DEMAND)


@dataclass(frozen=True)
class LifecycleChoice:
    """What somebody chose for an environment."""

    lifecycle: Lifecycle = Lifecycle.PERSISTENT
    start_at: str = ""
    """Cron expression, as `stop_at`."""
    stop_at: str = ""
    timezone: str = ""
    """Empty: as the settings say."""
    idle_seconds: int = 0
    """0: as the settings say."""

    def refusals(self) -> list[str]:
        """What speaks against it."""
        if self.lifecycle is Lifecycle.SCHEDULED:
            found = self._schedule_refusals()
        elif self.start_at or self.stop_at or self.timezone:
            found = ["times of start and stop need the life cycle 'scheduled'"]
        else:
            found = []
        if self.idle_seconds and self.lifecycle not in _IDLES:
            found.append("a time of idleness needs the life cycle 'ephemeral' or 'on-demand'")
        elif self.idle_seconds and not _LEAST_IDLE <= self.idle_seconds <= _MOST_IDLE:
            found.append("a time of idleness is between 1 minute and 365 days")
        return found

    def _schedule_refusals(self) -> list[str]:
        found = []
        if not self.start_at and not self.stop_at:
            found.append("a scheduled environment needs a time of start or stop, such as '0 8 * * MON-FRI'")
        for text in filter(None, (self.start_at, self.stop_at)):
            shown = printable(text, limit=60)
            if not is_cron(text):
                found.append(
                    f"'{shown}' is no cron expression: write minute, hour, day of month, month and day of week, "
                    "such as '0 8 * * MON-FRI'"
                )
            elif next_time(text, ZoneInfo("UTC"), now()) is None:
                found.append(f"'{shown}' never comes")
        if self.start_at and self.start_at.split() == self.stop_at.split():
            found.append("start and stop are at the same time")
        if self.timezone and zone_of(self.timezone) is None:
            found.append(f"there is no time zone '{printable(self.timezone, limit=40)}': write it like Europe/Berlin")
        return found

    def apply_to(self, environment: Environment) -> None:
        """Write it into a record."""
        environment.lifecycle = self.lifecycle
        environment.start_at = " ".join(self.start_at.split())
        environment.stop_at = " ".join(self.stop_at.split())
        environment.timezone = self.timezone
        environment.idle_seconds = self.idle_seconds


class Step(StrEnum):
    """What happens to an environment by itself; the value ends the name of its audit event."""

    START = "start"
    STOP = "stop"
    """By its schedule."""
    SLEEP = "sleep"
    """Stopped because nothing happens in it."""
    DELETE = "delete"

    @property
    def wish(self) -> Wish:
        if self is Step.START:
            return Wish.RUNNING
        return Wish.DELETED if self is Step.DELETE else Wish.STOPPED


@dataclass(frozen=True)
class Due:
    """The next step of one environment, as things stand."""

    step: Step
    at: datetime
    notice: timedelta
    """How long before, at least, its people are told."""
    reason: str


def due(environment: Environment, settings: LifecycleSettings, moment: datetime) -> Due | None:
    """What comes next, and when; None: nothing."""
    if environment.wish is Wish.DELETED:
        return None
    if environment.lifecycle is Lifecycle.EPHEMERAL:
        return _deletion(environment, settings)
    if environment.lifecycle is Lifecycle.ON_DEMAND:
        return _sleep(environment, settings)
    if environment.lifecycle is Lifecycle.SCHEDULED:
        return _scheduled(environment, settings, moment)
    return None


def effective(environment: Environment, coming: Due) -> datetime:
    """When `coming` is carried out: not before its people were told for long enough."""
    return max(coming.at, environment.warned + coming.notice) if environment.warned else coming.at


def is_warned(environment: Environment) -> bool:
    """Whether its people were told since the last sign of life that its life cycle goes by.

    A warning that is older was not taken back in time: the gateway was down, and who comes back must be told anew.
    """
    newest = {
        Lifecycle.EPHEMERAL: environment.last_used,
        Lifecycle.ON_DEMAND: environment.last_active,
        Lifecycle.SCHEDULED: environment.last_typed,
    }.get(environment.lifecycle)
    return environment.warned is not None and (newest is None or newest <= environment.warned)


def keep_days(environment: Environment, settings: LifecycleSettings) -> int:
    """For how many days its output is kept when it is deleted; 0: not at all."""
    chosen = environment.keep_output_days
    return usual_keep_days(environment.lifecycle, settings) if chosen is None else chosen


def usual_keep_days(lifecycle: Lifecycle, settings: LifecycleSettings) -> int:
    """The same, where nobody has chosen."""
    days = settings.keep_output_days
    return {
        Lifecycle.PERSISTENT: days.persistent,
        Lifecycle.ON_DEMAND: days.on_demand,
        Lifecycle.SCHEDULED: days.scheduled,
        Lifecycle.EPHEMERAL: days.ephemeral,
    }[lifecycle]


def check_keep_days(days: int | None) -> int | None:
    """BadInput if no output can be kept for so long; None: as the settings say."""
    if days is not None and not 0 <= days <= _MOST_KEPT:
        raise BadInput(f"an output is kept for 1 to {_MOST_KEPT} days, or not at all: 0")
    return days


def fell_asleep(environment: Environment, since: datetime) -> bool:
    """Whether it was stopped after `since` without anybody wishing so, and still is."""
    by_itself = environment.wish is Wish.STOPPED and bool(environment.wish_reason)
    return by_itself and counted_from(environment) > since


def counted_from(environment: Environment) -> datetime:
    """From when on the times of its life cycle count."""
    return environment.lifecycle_from or environment.created


def _deletion(environment: Environment, settings: LifecycleSettings) -> Due:
    seen = _latest(environment.last_used, environment.last_active)
    after = timedelta(seconds=environment.idle_seconds or settings.ephemeral_minutes * 60)
    if seen is None:
        after = max(after, timedelta(minutes=settings.unused_minutes))
        reason = f"nobody came within {span_words(after)}"
    else:
        reason = f"its last session ended {span_words(after)} ago"
    if environment.wish is Wish.STOPPED and environment.wish_reason:  # its deletion was called off: it cannot be kept
        after = max(after, _AGAIN)
    at = max(seen or environment.created, counted_from(environment)) + after
    return Due(Step.DELETE, at, _notice(settings, after), reason)


def _sleep(environment: Environment, settings: LifecycleSettings) -> Due | None:
    if environment.state is not EnvironmentState.RUNNING or environment.wish is not Wish.RUNNING:
        return None
    after = timedelta(seconds=environment.idle_seconds or settings.idle_minutes * 60)
    seen = _latest(environment.last_active, environment.started) or environment.created
    at = max(seen, counted_from(environment)) + after
    return Due(Step.SLEEP, at, _notice(settings, after), f"no sign of life for {span_words(after)}")


def _scheduled(environment: Environment, settings: LifecycleSettings, moment: datetime) -> Due | None:
    """What was missed is made up for by its newest time alone."""
    zone = zone_of(environment.timezone or settings.timezone) or ZoneInfo("UTC")
    base = counted_from(environment)
    started = _missed(environment.start_at, zone, base, moment)
    stopped = _missed(environment.stop_at, zone, base, moment)
    runs = environment.wish is Wish.RUNNING and environment.state is not EnvironmentState.FAILED
    if not runs:
        if started is not None and (stopped is None or started > stopped):
            return Due(Step.START, started, timedelta(), f"its schedule: {environment.start_at}")
        coming = next_time(environment.start_at, zone, moment) if environment.start_at else None
        return Due(Step.START, coming, timedelta(), f"its schedule: {environment.start_at}") if coming else None
    if stopped is not None and started is not None and started > stopped:
        stopped = None
    if stopped is None and environment.stop_at:
        stopped = next_time(environment.stop_at, zone, moment)
    if stopped is None:
        return None
    notice = timedelta(minutes=settings.warn_minutes)
    at = _put_off(stopped, environment.last_typed, notice)
    return Due(Step.STOP, at, notice, f"its schedule: {environment.stop_at}")


def _missed(text: str, zone: ZoneInfo, base: datetime, moment: datetime) -> datetime | None:
    """The newest time between `base` and now."""
    found = last_time(text, zone, moment) if text else None
    return found if found is not None and found > base else None


def _put_off(stop: datetime, typed: datetime | None, notice: timedelta) -> datetime:
    """Whoever types after the warning is left in peace for as long as a warning lasts, and then warned anew."""
    if typed is None or typed <= stop - notice:
        return stop
    return max(stop, typed + 2 * notice)


def _notice(settings: LifecycleSettings, after: timedelta) -> timedelta:
    return min(timedelta(minutes=settings.warn_minutes), after / 2)


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


def span_words(span: timedelta) -> str:
    """`2 h`, `90 min`, `45 s`: the largest unit that says it without a fraction, rounded from ten minutes on."""
    n = max(0, round(span.total_seconds()))
    if n and n % 86400 == 0:
        return f"{n // 86400} d"
    if n and n % 3600 == 0:
        return f"{n // 3600} h"
    if n >= 600 or (n and n % 60 == 0):
        return f"{round(n / 60)} min"
    return f"{n} s"


def time_words(environment: Environment, settings: LifecycleSettings, moment: datetime) -> str:
    """`20:00 UTC`: `moment` by the environment's own clock."""
    name = environment.timezone or settings.timezone
    return f"{moment.astimezone(zone_of(name) or ZoneInfo('UTC')):%H:%M} {name}"


def until_words(environment: Environment, settings: LifecycleSettings, moment: datetime) -> str:
    """Until when it runs, as things stand: `20:00 UTC (its schedule)`; empty: nobody knows."""
    coming = due(environment, settings, moment)
    if coming is None or coming.step is Step.START:
        return ""
    then_at = effective(environment, coming)
    at = time_words(environment, settings, then_at)
    if then_at - moment >= timedelta(days=1):
        zone = zone_of(environment.timezone or settings.timezone) or ZoneInfo("UTC")
        at = f"{then_at.astimezone(zone):%Y-%m-%d} {at}"
    return f"{at} (its schedule)" if coming.step is Step.STOP else f"{at}, or longer if it is used"


_WHAT = {
    Step.START: "starts",
    Step.STOP: "is stopped by its schedule",
    Step.SLEEP: "sleeps",
    Step.DELETE: "is deleted",
}


def coming_words(environment: Environment, settings: LifecycleSettings, coming: Due) -> str:
    """`sleeps at 20:00 UTC`."""
    return f"{_WHAT[coming.step]} at {time_words(environment, settings, effective(environment, coming))}"


def warning(environment: Environment, settings: LifecycleSettings, coming: Due, moment: datetime) -> str:
    """What its terminals are told before `coming`."""
    then_at = effective(environment, coming)
    left = max(then_at - moment, timedelta())
    if left > timedelta(minutes=2):
        left = timedelta(minutes=round(left.total_seconds() / 60))
    advice = {
        Step.SLEEP: "Any sign of life keeps it awake.", Step.STOP: "Type something to put it off.",
    }.get(coming.step, "")  # fmt: skip
    at = time_words(environment, settings, then_at)
    name, what, span = environment.name, _WHAT[coming.step], span_words(left)
    return f"{name} {what} in {span}, at {at}. {advice}" if advice else f"{name} {what} in {span}, at {at}."


def farewell(environment: Environment) -> str:
    """What its terminals are told when it is to run no longer."""
    if environment.wish is Wish.DELETED:
        return f"{environment.name} is deleted now."
    if environment.wish_reason:
        return f"{environment.name} is stopped now ({environment.wish_reason}): log in again, and it wakes."
    return f"{environment.name} is stopped now: log in again, and it wakes."
