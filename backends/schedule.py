"""Times of a clock: cron expressions in a time zone. Pure.

Read as Debian's cron reads them, summer time included: a time that the clock jumps over comes at the end of the jump,
one that it shows twice comes once. Only `cronsim` knows more, and only this file knows `cronsim`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MOST_LETTERS = 100
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_FIELDS = 5
_ODDEST_SHIFT = timedelta(hours=3)
"""More than any clock has ever been put back by summer time."""


@cache
def zone_of(name: str) -> ZoneInfo | None:
    """The time zone `name`, or None if there is none."""
    if len(name) > 64 or not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: `Europe` is a directory
        return None


def is_cron(text: str) -> bool:
    """Whether it has the five fields of cron and they can be read."""
    if len(text) > MOST_LETTERS or len(text.split()) != _FIELDS:
        return False
    try:
        CronSim(text, datetime(2000, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError, AssertionError):
        # The last one: it asserts that a step begins at a plain number.
        return False
    return True


def next_time(text: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """The first time after `after`, in UTC; None: there is none in the next fifty years."""
    for moment in CronSim(text, after.astimezone(zone)):
        # Compared in UTC: two times of one zone compare by what the clock shows, and it shows an hour twice a year.
        if (found := moment.astimezone(UTC)) > after:
            return found
    return None


def last_time(text: str, zone: ZoneInfo, until: datetime) -> datetime | None:
    """The last time up to and with `until`, in UTC; None: there is none in the last fifty years."""
    # Begins later than `until`: in an hour that the clock shows twice, its first showing is searched for too.
    for moment in CronSim(text, (until + _ODDEST_SHIFT).astimezone(zone), reverse=True):
        if (found := moment.astimezone(UTC)) <= until:
            return found
    return None
