"""The port of our own registry, held by this process for as long as it lives; the registry itself is behind a socket
file that only our account reaches.

So nobody else on the machine can take the port while the registry starts again, and be sent the password in its place:
whoever connects meanwhile waits. Bytes only; HTTP is not looked into.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

_PIECE = 256 * 1024
_MOST = 256
"""Connections at once; more wait in the kernel's queue. They must not take all files that the gateway may open."""
_PATIENCE_SECONDS = 30.0
"""How long a connection waits for a registry that starts again."""
_FIRST_SECONDS = 30.0
"""What comes in must say something within; anybody on this machine may connect."""
_IDLE_SECONDS = 900.0
"""How long nothing may come from either side: the registry reads a large layer again before it answers."""
_PAUSE = 0.05
_HOST = "127.0.0.1"


class RegistryDoor:
    """A port of loopback that leads to the socket file `name` of `directory`, from `open` to `close`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._port: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST)

    def open(self, wanted: int) -> int:
        """The port that is held now: `wanted`, or another one if somebody has that."""
        try:
            self._port = _listening(wanted)
        except OSError:
            self._port = _listening(0)
        self._accepting = asyncio.create_task(self._accept(self._port), name="door of the image registry")
        return int(self._port.getsockname()[1])

    async def close(self) -> None:
        tasks = [*self._running, *([self._accepting] if self._accepting else [])]
        self._accepting = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._port is not None:
            self._port.close()
            self._port = None

    async def connect(self) -> socket.socket:
        """A connection to the registry itself. OSError: it is not there."""
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        inner.setblocking(False)
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By the folder's number: the name of a socket file may have 107 letters, with all folders before it.
            await asyncio.get_running_loop().sock_connect(inner, f"/proc/self/fd/{folder}/{self._name}")
        except BaseException:
            inner.close()
            raise
        finally:
            os.close(folder)
        return inner

    async def _accept(self, port: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                outer, _ = await loop.sock_accept(port)
            except OSError:  # no files left, or a client that was gone at once
                self._room.release()
                await asyncio.sleep(_PAUSE)
                continue
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._serve(outer), name="connection to the image registry")
            self._running.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()

    async def _serve(self, outer: socket.socket) -> None:
        with outer, contextlib.suppress(OSError, TimeoutError):
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with await self._patiently() as inner:
                async with asyncio.timeout(_FIRST_SECONDS) as limit:
                    inbound = asyncio.create_task(_copy(outer, inner, limit), name="to the image registry")
                    try:
                        await _copy(inner, outer, limit)
                    finally:
                        inbound.cancel()
                        await asyncio.gather(inbound, return_exceptions=True)

    async def _patiently(self) -> socket.socket:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                try:
                    return await self.connect()
                except OSError:
                    await asyncio.sleep(_PAUSE)


async def _copy(source: socket.socket, target: socket.socket, limit: asyncio.Timeout) -> None:
    """All that comes, and its end, also the end of a client that resets: the registry would keep its line for ever."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_PIECE))
    try:
        while size := await loop.sock_recv_into(source, buffer):
            if not limit.expired():
                limit.reschedule(loop.time() + _IDLE_SECONDS)
            await loop.sock_sendall(target, buffer[:size])
    finally:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _listening(port: int) -> socket.socket:
    found = socket.create_server((_HOST, port), backlog=128)
    found.setblocking(False)
    return found
