"""Listens on published ports and carries what comes there into their environments, with a ledger like `forward`'s.

Anybody may connect, so nothing of it counts as a sign of life of the owner's, and nothing wakes an environment: there
is a listener only while its environment runs. Who may publish what is `backends.published`' business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from contextlib import suppress

import asyncssh

from backends.published import OpenPort
from backends.services import Services
from backends.settings import PortSettings
from gateway.forward import ChannelEnd, SocketEnd
from storage.audit import Event
from storage.errors import AshoreError

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
_INSIDE = "127.0.0.1"
_Key = tuple[int, str, int]
"""External port, environment, port inside."""


class PortListeners:
    """The loop that listens where it should. One process of a house runs it: a port has one owner."""

    def __init__(self, services: Services, settings: PortSettings) -> None:
        self._services = services
        self._settings = settings
        self._open: dict[_Key, _Listener] = {}
        self._complained: set[_Key] = set()

    async def run(self) -> None:
        """Until cancelled; then everything is closed."""
        try:
            with self._services.changes.subscribe("environment") as hints:
                while True:
                    await self._look()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(hints.get(), _LOOK_SECONDS)
                    while not hints.empty():
                        hints.get_nowait()
        finally:
            for key in list(self._open):
                self._close(key)

    async def _look(self) -> None:
        try:
            wanted = {_key(one): one for one in await self._services.published.to_serve()}
        except AshoreError as error:
            log.warning("which ports are published is not known: %s", error.message)
            return
        for key in [key for key in self._open if key not in wanted]:
            self._close(key)
        self._complained &= wanted.keys()
        for key, one in wanted.items():
            if key not in self._open:
                await self._listen(key, one)

    async def _listen(self, key: _Key, one: OpenPort) -> None:
        listener = _Listener(self._services, one, self._settings.connections)
        try:
            await listener.start(self._settings.address)
        except OSError as error:
            if key not in self._complained:
                why = os.strerror(error.errno) if error.errno else str(error)
                log.error("the published port %s cannot be opened: %s", one.external_port, why)
                self._complained.add(key)
            return
        self._open[key] = listener
        self._complained.discard(key)

    def _close(self, key: _Key) -> None:
        self._open.pop(key).close()


class _Listener:
    """One published port, and the connections through it."""

    def __init__(self, services: Services, port: OpenPort, most: int) -> None:
        self.services = services
        self.port = port
        self._most = most
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """OSError: the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, address or None, self.port.external_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.end()

    def _accept(self) -> _VisitorEnd:
        connection = _Connection(self, is_too_much=len(self._connections) >= self._most)
        self._connections.add(connection)
        return connection.visitor

    def spawn(self, work: Awaitable[None], name: str) -> None:
        """Run something for a connection, whether or not the listener goes on."""
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _VisitorEnd(SocketEnd):
    """The end of whoever connected. It reads nothing before the other end is there."""

    def __init__(self, connection: _Connection) -> None:
        super().__init__(connection)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pause_reading()
        peer = transport.get_extra_info("peername")
        self._connection.begin(str(peer[0]) if peer else "")


class _Connection:
    """Both ends of one connection to a published port, and its ledger: a `gateway.forward.Ledger`."""

    def __init__(self, listener: _Listener, *, is_too_much: bool) -> None:
        self._listener = listener
        self._is_too_much = is_too_much
        self._address = ""
        self._started = time.monotonic()
        self._over = False
        self._reason = ""
        self._far: ChannelEnd | SocketEnd | None = None
        self.visitor = _VisitorEnd(self)

    def begin(self, address: str) -> None:
        """The visitor is there."""
        self._address = address
        if self._is_too_much:
            self._refuse("too many connections")
            return
        self._listener.spawn(self._join(), f"published port {self._listener.port.external_port}")

    def end(self) -> None:
        self.visitor.close()

    # ---- what the ends call ----------------------------------------------------------------------------------
    def carried(self, size: int) -> None:
        """Strangers keep nothing awake."""

    def over(self) -> None:
        if self._over:
            return
        self._over = True
        self._listener.forget(self)
        self.visitor.close()
        if self._is_too_much:  # strangers could fill the trail with these
            return
        port = self._listener.port
        facts = {
            "owner": port.environment.owner_name,
            "port": port.port,
            "external_port": port.external_port,
            "bytes_in": self.visitor.received,
            "bytes_out": self._far.received if self._far is not None else 0,
            "seconds": round(time.monotonic() - self._started, 3),
        }
        facts |= {"reason": self._reason} if self._reason else {}
        event = Event(
            "environment.published-connection", "refused" if self._reason else "ok", "anybody",
            port.environment.name, self._address, "", facts,
        )  # fmt: skip
        self._listener.spawn(self._record(event), "ledger of a published port")

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _record(self, event: Event) -> None:
        with suppress(AshoreError):
            await self._listener.services.audit.record(event, lazily=True)

    def _refuse(self, reason: str) -> None:
        self._reason = reason
        self.visitor.close()

    async def _join(self) -> None:
        try:
            await self._dial()
        except AshoreError as error:
            self._refuse(error.message)
        except (OSError, asyncssh.Error):
            self._refuse(f"nothing answers on port {self._listener.port.port}")
        except BaseException:
            self._refuse("it could not be joined")
            raise
        else:
            if self._over and self._far is not None:
                self._far.close()
            self.visitor.resume_reading()

    async def _dial(self) -> None:
        services, port = self._listener.services, self._listener.port
        owner = await services.accounts.caller_for(port.environment.owner_name, connection="published")
        dialled = await services.environments.dial(owner, port.environment, _INSIDE, port.port)
        if dialled is not None:
            far = SocketEnd(self)
            self._pair(far)
            await asyncio.get_running_loop().create_connection(lambda: far, sock=dialled)
            return
        guest = await services.guests.connect(owner, port.environment)
        channel = ChannelEnd(self)
        self._pair(channel)
        await guest.create_connection(lambda: channel, _INSIDE, port.port)

    def _pair(self, far: ChannelEnd | SocketEnd) -> None:
        self._far = far
        far.other, self.visitor.other = self.visitor, far


def _key(one: OpenPort) -> _Key:
    return one.external_port, one.environment.id, one.port
