"""What a gateway command sees of the person who gave it: services, streams, and the size of their terminal.

`Context` is all that a command knows; `ChannelContext` is one on an SSH channel. Nothing here knows any particular
command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.channel import Channel, Size
from gateway.settings import Settings
from storage.access import Caller
from storage.errors import BadInput

if TYPE_CHECKING:
    from backends.services import Services

_HIGH_WATER = 256 * 1024
INTERRUPTED = 130


class Input(Protocol):
    """The command's standard input."""

    async def read_all(self, limit: int) -> bytes:
        """Everything up to the end of file; BadInput if that is more than `limit` bytes."""
        ...


async def no_wait() -> None:
    """For streams that take everything at once."""


@dataclass(frozen=True, eq=False)
class Context:
    """One command's surroundings. `out` and `err` take text with `\\n` and never block."""

    services: Services
    caller: Caller
    settings: Settings
    stdin: Input
    out: Callable[[str], None]
    err: Callable[[str], None]
    host: str
    """The name under which clients reach this gateway, and its port."""
    port: int
    has_terminal: bool = False
    width: int = 80
    """Columns, where there is a terminal."""
    host_keys: Sequence[str] = ()
    """The gateway's own public host keys, `ssh-ed25519 AAAA…`, for `config`."""
    raw: Callable[[str], None] | None = None
    """Like `out`, without a carriage return before each newline: for recorded terminal output."""
    drain: Callable[[], Awaitable[None]] = no_wait
    """Returns when the client has taken enough of what was written; call it between pieces of long output."""

    async def serve(self, work: Coroutine[None, None, int]) -> int:
        """Run the command; streams that can end early say so by cancelling it."""
        return await work


class ChannelContext(Context):
    """A command on an SSH channel. While it runs, the channel is served by its streams."""

    def __init__(
        self,
        channel: Channel,
        services: Services,
        caller: Caller,
        settings: Settings,
        *,
        host: str,
        port: int,
        host_keys: Sequence[str] = (),
    ) -> None:
        streams = ChannelStreams(channel)
        terminal = channel.terminal
        super().__init__(
            services=services, caller=caller, settings=settings, stdin=streams, out=streams.out, err=streams.err,
            host=host, port=port, has_terminal=terminal is not None,
            width=terminal.size.columns if terminal is not None else 80,
            host_keys=host_keys, raw=streams.raw, drain=streams.drain,
        )  # fmt: skip
        self._streams = streams

    async def serve(self, work: Coroutine[None, None, int]) -> int:
        """Run the command. A closed channel, Ctrl-C, and the signals INT, TERM and HUP end it with status 130."""
        return await self._streams.serve(work)


class ChannelStreams:
    """Joins a command's streams to an SSH channel: a `gateway.channel.Consumer`.

    Without a terminal, bytes go through as they are. With one, newlines become CR LF, stderr joins stdout, typed
    characters are echoed while somebody reads, and Ctrl-C and Ctrl-D mean what they always do.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._received = bytearray()
        self._limit = 0
        self._ended = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[int] | None = None

    async def serve(self, work: Coroutine[None, None, int]) -> int:
        """Attach to the channel, run `work` until it ends or the client wants it ended, and detach."""
        task = self._task = asyncio.create_task(work, name="gateway command")
        self._channel.attach(self)
        try:
            await asyncio.wait([task])
        finally:
            # Cancelled from outside, the command still gets to write its line into the audit trail.
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._channel.detach(self)
        return INTERRUPTED if task.cancelled() else task.result()

    # ---- what the command uses -------------------------------------------------------------------------------
    def out(self, text: str) -> None:
        self.raw(text.replace("\n", "\r\n") if self._channel.terminal is not None else text)

    def err(self, text: str) -> None:
        if self._channel.terminal is not None:
            self.out(text)
        elif not self._channel.is_closed:
            self._channel.write_stderr(text.encode("utf-8", "replace"))

    def raw(self, text: str) -> None:
        if not self._channel.is_closed:
            self._channel.write(text.encode("utf-8", "replace"))

    async def drain(self) -> None:
        await asyncio.sleep(0)
        await self._writable.wait()

    async def read_all(self, limit: int) -> bytes:
        """Everything up to the end of file; BadInput if that is more than `limit` bytes."""
        self._limit = limit
        self._channel.resume_reading()
        while not self._ended and len(self._received) <= limit:
            self._news.clear()
            await self._news.wait()
        if len(self._received) > limit:
            raise BadInput(f"the input is longer than {limit} bytes")
        return bytes(self._received)

    # ---- what the channel calls ------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._channel.terminal is not None:
            data = self._typed(data)
        self._received += data
        if len(self._received) > max(self._limit, _HIGH_WATER):
            self._channel.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        self._ended = True
        self._news.set()

    def resized(self, size: Size) -> None:
        """Commands print at the width that was there when they began."""

    def signal_received(self, name: str) -> None:
        if name in ("INT", "TERM", "HUP"):
            self._cancel()

    def output_unwanted(self) -> None:
        """`ssh gw … | head`: what is not read need not be made."""
        self.closed()

    def break_received(self, milliseconds: int) -> None:
        self._cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def closed(self) -> None:
        self._ended = True
        self._news.set()
        self._writable.set()
        self._cancel()

    def _typed(self, data: bytes) -> bytes:
        if b"\x03" in data:
            self._cancel()
            return b""
        data, control_d, _ = data.partition(b"\x04")
        data = data.replace(b"\r", b"\n")
        if data and self._limit:
            self.out(data.decode("ascii", "replace"))
        if control_d:
            self.eof_received()
        return data

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
