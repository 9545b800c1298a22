"""A loop that brings things to where they should be: woken by hints, and by a timer in case a hint was lost.

Knows keys only. What a key stands for, and what is to be done about it, are its owner's `look` and `act`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from storage.changes import Change, Changes
from storage.errors import AshoreError

log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


class ReconcilerLoop:
    """One action per key at a time, `parallel` of them at once.

    `look` names the keys that need an action; it is asked at the start and every `pause` seconds. `act` does what
    one key needs, and may be called when there is nothing to do. An error of either is logged; an `act` that failed
    is tried again after 1, 2, 4 … 60 seconds, or sooner when a hint comes.
    """

    def __init__(
        self,
        name: str,
        topic: str,
        *,
        changes: Changes,
        look: Callable[[], Awaitable[Iterable[str]]],
        act: Callable[[str], Awaitable[None]],
        pause: float,
        parallel: int = 8,
    ) -> None:
        self._name = name
        self._topic = topic
        self._changes = changes
        self._look = look
        self._act = act
        self._pause = pause
        self._slots = asyncio.Semaphore(parallel)
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Until cancelled; actions under way are cancelled too, and have ended when this returns."""
        try:
            with self._changes.subscribe(self._topic) as hints:
                while True:
                    await self._look_at_all()
                    await self._listen(hints)
        finally:
            for retry in self._retries.values():
                retry.cancel()
            tasks = tuple(self._busy.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, key: str) -> None:
        """See to `key` now, or once more if that is being done."""
        if (retry := self._retries.pop(key, None)) is not None:
            retry.cancel()
        if key in self._busy:
            self._again.add(key)
            return
        task = asyncio.create_task(self._work(key), name=f"{self._name} {key}")
        self._busy[key] = task
        task.add_done_callback(lambda _: self._busy.pop(key, None))

    async def _look_at_all(self) -> None:
        try:
            keys = await self._look()
        except AshoreError as error:
            log.warning("%s: cannot look: %s", self._name, error.message)
            return
        except Exception:
            # The wall of this loop: a defect in one look must not end all looking.
            log.exception("%s: looking failed", self._name)
            return
        for key in keys:
            if key not in self._busy and key not in self._retries:
                self.wake(key)

    async def _listen(self, hints: asyncio.Queue[Change]) -> None:
        """Pass hints on until it is time to look at everything again."""
        try:
            async with asyncio.timeout(self._pause):
                while not hints.full():
                    key = (await hints.get()).key
                    if not key:
                        return
                    self.wake(key)
        except TimeoutError:
            return
        while not hints.empty():  # some were not taken in: look at everything
            hints.get_nowait()

    async def _work(self, key: str) -> None:
        async with self._slots:
            while True:
                self._again.discard(key)
                if await self._tried(key):
                    self._failures.pop(key, None)
                else:
                    self._retry_later(key)
                    return
                if key not in self._again:
                    return

    async def _tried(self, key: str) -> bool:
        try:
            await self._act(key)
        except AshoreError as error:
            log.warning("%s %s: %s", self._name, key, error.message)
            return False
        except Exception:
            # The wall between keys: a defect that one of them meets must not stop the others.
            log.exception("%s %s failed", self._name, key)
            return False
        return True

    def _retry_later(self, key: str) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(count - 1, 10))
        # A hint that came while it was failing counts as answered: the retry looks again.
        self._retries[key] = asyncio.get_running_loop().call_later(pause, self._retry, key)

    def _retry(self, key: str) -> None:
        self._retries.pop(key, None)
        self.wake(key)
