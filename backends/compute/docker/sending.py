"""Sending an archive of any size to an engine, and giving up an engine that takes no more of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from storage.errors import Unavailable

_STALL_SECONDS = 300.0
"""An engine that takes no byte for so long is given up; the store's own patience is shorter."""


async def send(
    tar: AsyncGenerator[bytes],
    to: Callable[[AsyncIterator[bytes]], Awaitable[None]],
    *,
    title: str,
    settle_seconds: float = _STALL_SECONDS,
) -> None:
    """Give `tar` to `to`, which reads it as fast as the engine takes it; `tar` is closed at the end.

    `settle_seconds`: what the engine may take for what it has, once it has all. What goes wrong in `tar` is raised as
    it is.
    """
    body = _Body(tar)
    sending = asyncio.ensure_future(to(body.pieces()))
    try:
        seen = -1
        while not (await asyncio.wait([sending], timeout=settle_seconds if body.is_over else _STALL_SECONDS))[0]:
            if body.is_over and seen == body.sent:
                raise Unavailable(f"the Docker engine does not come to an end with {title}")
            if body.sent == seen:
                raise Unavailable("the Docker engine takes no more data")
            seen = body.sent
        if body.error is not None:  # the request's own error only tells that it was cut off
            raise body.error
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await tar.aclose()


class _Body:
    """An archive on its way, with what went wrong while it was made."""

    def __init__(self, tar: AsyncGenerator[bytes]) -> None:
        self._tar = tar
        self.sent = 0
        self.is_over = False
        self.error: Exception | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._tar:
                yield piece
                self.sent += len(piece)
        except Exception as error:  # raised again by `send`
            self.error = error
            raise
        self.is_over = True
