"""The pull of an image before a start. It takes as long as it takes: only one that stands still has a limit, and one
whose registry is away is tried again for a while.

Which image, and with which login, is in the spec; whether anybody still wants it is for whoever calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from backends.compute.contract import HasPulls, Progress, RegistryAway, WorkloadSpec
from storage.names import printable

T = TypeVar("T")
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


async def bring_image(
    compute: HasPulls, spec: WorkloadSpec, progress: Progress, *, stall_minutes: float, retry_minutes: float
) -> None:
    """Return when its engine has the image of `spec`. RegistryAway: nothing has come of it for `retry_minutes`.

    An attempt during which nothing is heard for `stall_minutes` is given up. What the engine has got by then stays.
    """
    await again(lambda hear: _attempt(compute, spec, hear, stall_minutes), progress, retry_minutes=retry_minutes)


async def again(attempt: Callable[[Progress], Awaitable[T]], progress: Progress, *, retry_minutes: float) -> T:
    """What `attempt` gives. RegistryAway: nothing has been heard of it for `retry_minutes`, in all attempts."""
    loop = asyncio.get_running_loop()
    since, failures, first = loop.time(), 0, ""

    def hear(line: str) -> None:
        nonlocal since, failures, first
        first = first or line
        if line != first:  # that is said before anybody is asked
            since, failures = loop.time(), 0
        progress(line)

    while True:
        first = ""
        try:
            return await attempt(hear)
        except RegistryAway as error:
            if loop.time() - since >= retry_minutes * 60:
                raise
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10))
            progress(f"tried again in {pause:g} s: {error.message}")
        failures += 1
        await asyncio.sleep(pause)


async def _attempt(compute: HasPulls, spec: WorkloadSpec, progress: Progress, stall_minutes: float) -> None:
    """Every call of `progress` is a sign of life, also one with the line of before: 1 % of 50 GB takes its time."""
    seconds = stall_minutes * 60
    last = "nothing has come yet"

    def hear(line: str) -> None:
        nonlocal last
        last = printable(line, limit=200)
        if not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
        progress(line)

    try:
        async with asyncio.timeout(seconds) as limit:
            await compute.bring_image(spec, hear)
    except TimeoutError as error:
        raise RegistryAway(f"the pull of its image stood still for {stall_minutes:g} min ({last})") from error
