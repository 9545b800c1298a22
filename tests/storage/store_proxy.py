"""A TCP proxy before a store that can go away, stall, or answer 503: the bad days of a network, on demand."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class StoreProxy:
    """Passes bytes on, as long as nobody asks for trouble. `address` is what clients connect to."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (target.hostname or "", target.port or 80)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_away = False
        """Connections are closed, new ones at once."""
        self.is_busy = False
        """Every new request is answered with 503."""
        self.requests = 0
        """Connections and, on kept ones, bursts from the client: at least one per request."""
        self.withhold: re.Pattern[bytes] | None = None
        """The store gets requests that begin like this; nobody gets its answers."""
        self.withheld = 0
        """Connections on which an answer was held back."""
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        self._flowing.set()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def stall(self) -> None:
        """Nothing passes any more, in either direction, until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Close everything that is open."""
        for writer in tuple(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if not self.is_away:
                await self._relay(reader, writer)
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._writers.add(back)
        heard = asyncio.Event()
        heard.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(reader, back, writer, heard))
                group.create_task(self._answer(there, writer, heard))
        except* OSError:
            pass
        finally:
            self._writers.discard(back)
            back.close()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        heard: asyncio.Event,
    ) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            self.requests += 1
            if self.is_busy:
                client.write(_BUSY)
                break
            if self.withhold is not None and self.withhold.match(data):
                heard.clear()
            writer.write(data)
            await writer.drain()
        heard.set()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            if not heard.is_set():
                self.withheld += 1
                await heard.wait()
                break
            writer.write(data)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def store_proxy(endpoint: str) -> AsyncIterator[StoreProxy]:
    proxy = StoreProxy(endpoint)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
