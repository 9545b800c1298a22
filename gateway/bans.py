"""Addresses that failed to log in too often are turned away for a while, each time longer.

Kept in memory: a restart forgives. Pure but for the clock that it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

_REMEMBERED = 10_000
_LONGEST = 24 * 3600.0


@dataclass
class _Record:
    failures: list[float] = field(default_factory=list)
    banned_until: float = 0.0
    bans: int = 0


class Bans:
    """Counts failed connections per address."""

    def __init__(self, *, failures: int, seconds: float) -> None:
        self._failures = failures
        self._seconds = seconds
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def is_banned(self, address: str, now: float) -> bool:
        record = self._records.get(address)
        return record is not None and record.banned_until > now

    def failed(self, address: str, now: float) -> bool:
        """Count a connection that ended without a login; whether that bans the address."""
        record = self._records.setdefault(address, _Record())
        self._records.move_to_end(address)
        if len(self._records) > _REMEMBERED:
            self._records.popitem(last=False)
        record.failures = [moment for moment in record.failures if moment > now - self._seconds] + [now]
        if len(record.failures) < self._failures:
            return False
        record.banned_until = now + min(self._seconds * 2**record.bans, _LONGEST)
        record.bans += 1
        record.failures.clear()
        return True

    def succeeded(self, address: str) -> None:
        """A login from `address`: its failures are forgotten."""
        self._records.pop(address, None)
