"""What a client sends on a channel, to be read as a stream; and writing that waits for the client.

For protocols that take turns (scp) and for programs that read stdin. Back-pressure holds both ways.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.channel import Channel, Size

_PAUSE_AT = 4 * 1024 * 1024
_RESUME_AT = 1024 * 1024
_LONGEST_BACKLOG = 8 * 1024 * 1024


class ByteStream:
    """A `gateway.channel.Consumer` that is read from. One reader at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.ended = False
        """No more bytes will come: end of file, or the channel is gone."""
        self.lost = False

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, as soon as there are any; empty at the end."""
        while not self._chunks:
            if self.ended:
                return b""
            self._news.clear()
            await self._news.wait()
        first = self._chunks.popleft()
        if len(first) > limit:
            self._chunks.appendleft(first[limit:])
            first = first[:limit]
        self._held -= len(first)
        if self._paused and self._held < _RESUME_AT:
            self._paused = False
            self._channel.resume_reading()
        return first

    @property
    def is_drained(self) -> bool:
        """Everything that came has been read, and no more will come."""
        return self.ended and not self._chunks

    async def read_line(self, limit: int) -> bytes:
        """One line without its end; empty at the end of the stream. ValueError: longer than `limit`."""
        line = bytearray()
        while piece := await self.read(1):
            if piece == b"\n":
                break
            line += piece
            if len(line) > limit:
                raise ValueError("this line is too long")
        return bytes(line)

    async def write(self, data: bytes) -> None:
        """Send `data`; waits while the client does not take what was sent before."""
        self._channel.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
        # Clients with huge windows never make the channel pause; what waits to leave is bounded all the same.
        while self._channel.backlog() > _LONGEST_BACKLOG and not self.lost:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    # ---- what the channel calls ------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        if self._held > _PAUSE_AT and not self._paused:
            self._paused = True
            self._channel.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        self.ended = True
        self._news.set()

    def resized(self, size: Size) -> None:
        pass

    def signal_received(self, name: str) -> None:
        if name in ("INT", "TERM", "HUP"):
            self.closed()

    def output_unwanted(self) -> None: ...

    def break_received(self, milliseconds: int) -> None:
        self.closed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def closed(self) -> None:
        self.ended = self.lost = True
        self._news.set()
        self._writable.set()
