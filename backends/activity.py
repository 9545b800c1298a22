"""Signs of life of environments: noted here at no cost for each byte, written down together from time to time.

Strong signs are a key pressed, output of a program, a GPU that computes, and bytes that are more than an editor or a
file manager sends while nobody touches it. An open connection is none, but it is noted as well: nothing is deleted
below somebody. What follows from all that is `lifecycle`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from sqlalchemy import or_, update

from backends.settings import LifecycleSettings
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError
from storage.records import Environment

log = logging.getLogger(__name__)
TOPIC = "lifecycle"
_WINDOW = 60.0
_LEAST_PAUSE = 1.0


class Activity:
    """The signs of life that this process sees. Others write theirs to the same rows; the newest holds."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        settings: LifecycleSettings,
        clock: Clock = now,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._changes = changes
        self._settings = settings
        self._clock = clock
        self._seconds = seconds
        self._active: dict[str, datetime] = {}
        self._typed: dict[str, datetime] = {}
        self._left: dict[str, datetime] = {}
        self._present: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """Environment → bytes in it, and when that was so."""
        self._warned: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._writer = asyncio.create_task(self._write_for_ever(), name="signs of life")

    async def close(self) -> None:
        """Write what is known, then stop."""
        if self._writer is not None:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
        await self._flush_or_keep()

    # ---- what doors tell -------------------------------------------------------------------------------------
    def sign(self, environment_id: str) -> None:
        """A strong sign of life."""
        self._active[environment_id] = self._clock()

    def typed(self, environment_id: str) -> None:
        """Somebody typed; where people were warned it is written at once."""
        self._active[environment_id] = self._typed[environment_id] = self._clock()
        if environment_id in self._warned:
            self._wake.set()

    async def arrive(self, environment: Environment) -> None:
        """Somebody comes in: a sign of life, written at once where it is about to be stopped.

        Unavailable: it cannot be written.
        """
        self.sign(environment.id)
        if environment.warned is not None:
            await self.flush()
            self._changes.tell(TOPIC, environment.id)

    def traffic(self, environment_id: str, size: int) -> None:
        """`size` bytes that a program may have sent by itself: a sign of life when they are many.

        A bucket that leaks empty in a minute: what trickles never fills it, however long; what bursts does.
        """
        full = self._settings.traffic_kib * 1024
        moment = self._seconds()
        level, since = self._buckets.get(environment_id, (0.0, moment))
        level = max(0.0, level - (moment - since) * full / _WINDOW) + size
        if level > full:
            level = 0.0
            self.sign(environment_id)
        self._buckets[environment_id] = level, moment

    @contextmanager
    def presence(self, environment_id: str) -> Iterator[None]:
        """Somebody is connected while the block runs. By itself that is no sign of life: browsers and editors connect
        all day long."""
        self._present[environment_id] = self._present.get(environment_id, 0) + 1
        try:
            yield
        finally:
            self._left[environment_id] = self._clock()
            self._present[environment_id] -= 1
            if not self._present[environment_id]:
                del self._present[environment_id]

    def watch(self, warned: frozenset[str]) -> None:
        """People in these environments were warned."""
        self._warned = warned

    # ---- writing ---------------------------------------------------------------------------------------------
    async def flush(self) -> None:
        """Write what was noted. It stays noted if that fails."""
        active, typed, left = dict(self._active), dict(self._typed), dict(self._left)
        left |= dict.fromkeys(self._present, self._clock())
        if not active and not left:
            return
        async with self._database.writing() as tx:
            for column, moments in (
                (Environment.last_active, active), (Environment.last_typed, typed), (Environment.last_used, left),
            ):  # fmt: skip
                for environment_id, moment in moments.items():
                    older = or_(column.is_(None), column < moment)
                    query = update(Environment).where(Environment.id == environment_id, older)
                    await tx.execute(query.values({column: moment}))
        for noted, written in ((self._active, active), (self._typed, typed), (self._left, left)):
            for environment_id, moment in written.items():
                if noted.get(environment_id) == moment:
                    del noted[environment_id]
        self._forget_empty_buckets()
        for environment_id in self._warned & (active.keys() | left.keys()):
            self._changes.tell(TOPIC, environment_id)

    def _forget_empty_buckets(self) -> None:
        moment = self._seconds()
        for environment_id, (_, since) in list(self._buckets.items()):
            if moment - since > _WINDOW:
                del self._buckets[environment_id]

    async def _flush_or_keep(self) -> None:
        try:
            await self.flush()
        except AshoreError as error:
            log.warning("signs of life are not written yet: %s", error.message)

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(_LEAST_PAUSE, self._settings.write_seconds))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._settings.write_seconds - _LEAST_PAUSE)):
                    await self._wake.wait()
            self._wake.clear()
            await self._flush_or_keep()
