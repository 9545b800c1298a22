"""The pull of an image before a start. It takes as long as it takes: only one that stands still has a limit.

Which image, and with which login, is in the spec; whether anybody still wants it is for whoever calls.
"""

from __future__ import annotations

import asyncio

from backends.compute.contract import HasPulls, Progress, WorkloadSpec
from storage.errors import Unavailable
from storage.names import printable


async def bring_image(compute: HasPulls, spec: WorkloadSpec, progress: Progress, *, stall_minutes: float) -> None:
    """Return when its engine has the image of `spec`. Unavailable: nothing came for so long.

    Every call of `progress` is a sign of life, also one with the line of before: 1 % of 50 GB takes its time.
    """
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
        raise Unavailable(f"the pull of its image stood still for {stall_minutes:g} min ({last})") from error
