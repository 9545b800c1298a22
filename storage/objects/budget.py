"""A fixed amount of memory that uploads and read-ahead share, handed out first come, first served.

A writer that waits here stops reading its channel, so the client's own TCP slows down: this is the back-pressure of
the whole data plane. No single owner may hold more than half, so one person cannot stop everybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from typing import Protocol


class Lender(Protocol):
    """Holds memory that it can do without."""

    def give_back(self) -> bool:
        """Release what was not used for a while; whether there was any."""
        ...


class MemoryBudget:
    """Counts bytes; keeps none."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.lenders: set[Lender] = set()
        """Asked by `reclaim`; whoever is in it leaves it when it is over."""
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[int, str, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        return self._held.total()

    @property
    def is_short(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    async def acquire(self, size: int, owner: str) -> None:
        """Wait for `size` bytes. More than an owner's share is given when that owner holds nothing at all."""
        if not self._waiting and self._fits(size, owner):
            self._held[owner] += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, owner, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size, owner)
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove((size, owner, turn))
                self._serve()
            raise

    def try_acquire(self, size: int, owner: str) -> bool:
        """`size` bytes at once, or none: never overtakes those who wait."""
        if self._waiting or not self._fits(size, owner):
            return False
        self._held[owner] += size
        return True

    def release(self, size: int, owner: str) -> None:
        self._held[owner] -= size
        if self._held[owner] <= 0:
            del self._held[owner]
        self._serve()

    def reclaim(self) -> bool:
        """Take back from one who does not use it; whether there was one."""
        return any(lender.give_back() for lender in tuple(self.lenders))

    def _fits(self, size: int, owner: str) -> bool:
        held = self._held.get(owner, 0)
        if held and held + size > self.total // 2:
            return False
        return not self._held or self.used + size <= self.total

    def _serve(self) -> None:
        # Those who wait for their own owner's share are passed over; they keep their place.
        still = deque[tuple[int, str, asyncio.Future[None]]]()
        blocked = False
        for size, owner, turn in self._waiting:
            if turn.done():
                continue
            fits = self._fits(size, owner)
            if not blocked and fits:
                self._held[owner] += size
                turn.set_result(None)
                continue
            over_share = owner in self._held and self._held[owner] + size > self.total // 2
            blocked = blocked or not over_share
            still.append((size, owner, turn))
        self._waiting = still
