"""Ways to a Docker engine: a Unix socket of this machine, TCP, TLS, or SSH to another machine.

A line gives connected sockets on which one speaks to the Engine in the clear; `engine` and `stream` know no more.
TLS and SSH carry the bytes behind a socket pair. What is said on a connection is none of this module's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

from backends.compute.hang_up import hang_up

_PIECE = 256 * 1024


class Line(Protocol):
    """The way to one engine. Make it inside a running event loop; `close` it at the end."""

    address: str
    """For people, such as `ssh://ops@gpu2`."""
    is_here: bool
    """The Engine sees this machine's files, and its containers are processes of this machine."""

    async def connect(self) -> socket.socket:
        """A new connection, non-blocking, which the caller owns. OSError or Unavailable: the Engine is away."""
        ...

    async def close(self) -> None:
        """End everything that goes through it."""
        ...


class UnixLine:
    """The Engine's socket on this machine."""

    is_here = True

    def __init__(self, path: str) -> None:
        self.address = f"unix://{path}"
        self._path = path

    async def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        return await _connected(connection, self._path)

    async def close(self) -> None:
        return


class TcpLine:
    """An Engine that listens without encryption: whoever reaches the port is root over there."""

    is_here = False

    def __init__(self, host: str, port: int) -> None:
        self.address = f"tcp://{host}:{port}"
        self._host, self._port = host, port

    async def connect(self) -> socket.socket:
        return await dial(self._host, self._port)

    async def close(self) -> None:
        return


async def dial(host: str, port: int, *, seconds: float = 10.0) -> socket.socket:
    """A TCP connection. OSError: there is none to be had in `seconds`."""
    loop = asyncio.get_running_loop()
    refusal: OSError = ConnectionRefusedError(f"{host}:{port} does not answer")
    async with asyncio.timeout(seconds):
        for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, proto)
            connection.setblocking(False)
            try:
                connection = await _connected(connection, address)
            except OSError as error:
                refusal = error
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return connection
    raise refusal


async def _connected(connection: socket.socket, address: object) -> socket.socket:
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)  # type: ignore[arg-type]
    except BaseException:
        connection.close()
        raise
    return connection


class LineConnector(aiohttp.UnixConnector):
    """aiohttp's connections, through a line. It counts none: the default of 100 would let the 101st hang for ever."""

    def __init__(self, line: Line) -> None:
        super().__init__("", limit=0)
        self._line = line

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        connection = await self._line.connect()
        try:
            _, protocol = await self._loop.create_connection(self._factory, sock=connection)
        except BaseException:
            connection.close()
            raise
        return protocol


# ---- behind a socket pair ----------------------------------------------------------------------------------------
class Channel(Protocol):
    """Bytes to and from an engine that do not come out of a plain socket."""

    async def read(self) -> bytes:
        """What has come; empty at the end. OSError: it was cut off."""
        ...

    async def write(self, data: bytes) -> None:
        """Send it, waiting while the other side is slow."""
        ...

    async def write_eof(self) -> None:
        """Nothing more will be sent; what the other side says goes on."""
        ...

    def close(self) -> None:
        """End both directions at once."""
        ...


class Carriers:
    """The tasks that carry bytes between channels and the sockets that were given out for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def carry(self, channel: Channel, name: str) -> socket.socket:
        """A socket that is the plain end of `channel`, which is closed with it."""
        given, kept = socket.socketpair()
        for end in (given, kept):
            end.setblocking(False)
        task = asyncio.create_task(_carry(kept, channel), name=f"line {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return given

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(end: socket.socket, channel: Channel) -> None:
    outbound = asyncio.create_task(_from_engine(end, channel), name="line out")
    inbound = asyncio.create_task(_to_engine(end, channel), name="line in")
    abandoned = asyncio.create_task(hang_up(end), name="line abandoned")
    tasks = (outbound, inbound, abandoned)
    try:
        await asyncio.wait((outbound, abandoned), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        channel.close()
        end.close()


async def _to_engine(end: socket.socket, channel: Channel) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(end, _PIECE):
            await channel.write(data)
        await channel.write_eof()


async def _from_engine(end: socket.socket, channel: Channel) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await channel.read():
            await loop.sock_sendall(end, data)
