"""The time, in one place: always UTC, always aware, so that tests can replace it.

Nothing here formats times for people; that belongs to the doors.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)
