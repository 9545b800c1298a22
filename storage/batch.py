"""Things that are written together: those that come while one batch is written form the next.

A mirror of thousands of files would otherwise be as many transactions, one behind the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from storage.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")


class Batch(Generic[T]):
    """`write` gets one or more things, and makes them durable or raises Unavailable."""

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]], name: str) -> None:
        self._write = write
        self._name = name
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, thing: T) -> None:
        """Return when `thing` is durable; Unavailable if it cannot be."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((thing, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run(), name=self._name)
        await asyncio.shield(done)

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: Unavailable | None = None
            try:
                await self._write([thing for thing, _ in batch])
            except Unavailable as known:
                error = known
            except Exception:
                # The wall: whoever waits must hear of it, and those who come next must not wait for ever.
                log.exception("a batch of %s was not written: %s", len(batch), self._name)
                error = Unavailable("the database did not take what was to be written")
            for _, done in batch:
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
        self._writer = None
