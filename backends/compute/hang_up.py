"""Whether the other side of a socket pair is closed, and not just its writing half. For drivers that pump bytes."""

from __future__ import annotations

import asyncio
import select
import socket


def has_hung_up(end: socket.socket) -> bool:
    """Whether it is closed now."""
    poll = select.poll()
    poll.register(end, 0)
    return bool(poll.poll(0))


async def hang_up(end: socket.socket) -> None:
    """Return when it is closed."""
    # A socket at EOF is always readable, so the loop cannot tell; an epoll that asks for nothing reports hang-up only.
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    with select.epoll() as watch:
        watch.register(end, 0)
        loop.add_reader(watch.fileno(), seen.set)
        try:
            await seen.wait()
        finally:
            loop.remove_reader(watch.fileno())
