"""Keeps pushes and the collection of garbage apart: layers that are being pushed belong to no image yet, so they would
be collected. One for each registry that this process writes to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

WAITS = "waits until the image registry has given space back"


class PushGate:
    """Any number of pushes, or a collection."""

    def __init__(self) -> None:
        self._pushes = 0
        self._open = asyncio.Event()
        self._open.set()

    @contextlib.asynccontextmanager
    async def pushing(self, waits: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Nothing is collected within; `waits` is called first if somebody has to wait for a collection."""
        if not self._open.is_set():
            await waits()
        await self._open.wait()  # without another wait behind it, so that the count is right
        self._pushes += 1
        try:
            yield
        finally:
            self._pushes -= 1

    @contextlib.contextmanager
    def collecting(self) -> Iterator[bool]:
        """True: nobody pushes within. False: somebody pushes now, so it must wait for another time."""
        if self._pushes or not self._open.is_set():
            yield False
            return
        self._open.clear()
        try:
            yield True
        finally:
            self._open.set()
