"""Data and images on their way to environments that start, beside the reconciler's loop: hours of transfer take no
slot of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from storage.records import Environment


class Fetches:
    """One task for each environment that waits for its data or its image. `fetch` tells whether they are here; `wake`
    is called with the environment's id at the end."""

    def __init__(self, fetch: Callable[[Environment], Awaitable[bool]], wake: Callable[[str], None]) -> None:
        self._fetch = fetch
        self._wake = wake
        self._tasks: dict[str, asyncio.Task[bool]] = {}

    def is_done(self, seen: Environment) -> bool:
        """True, once for each start, when they are here; False: they are on their way. Raises what went wrong."""
        task = self._tasks.get(seen.id)
        if task is not None and not task.done():
            return False
        if task is not None:
            del self._tasks[seen.id]
            if task.result():
                return True
        task = asyncio.create_task(self._run(seen), name=f"data of environment {seen.id}")
        self._tasks[seen.id] = task
        task.add_done_callback(lambda task: None if task.cancelled() else self._wake(seen.id))
        return False

    async def drop(self, environment_id: str) -> None:
        """Nobody waits for them any more; what is here stays for the next time."""
        task = self._tasks.pop(environment_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, seen: Environment) -> bool:
        return await self._fetch(seen)
