"""Listens on published ports. What comes there is carried by `gateway.visits`.

There is a listener only while its environment runs, so nothing wakes one. Who may publish what is
`backends.published`' business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Awaitable
from contextlib import suppress

from backends.published import OpenPort
from backends.services import Services
from backends.settings import PortSettings
from gateway.visits import Visit
from storage.audit import Event
from storage.errors import AshoreError

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
_SETTLE_SECONDS = 2.0
_TELL_SECONDS = 60.0
"""Refusals of one port are told of once in this time, with their number: strangers decide how many there are."""
_Key = tuple[int, str, int]
"""External port, environment, port inside."""


class PortListeners:
    """The loop that listens where it should. One process of a house runs it: a port has one owner."""

    def __init__(self, services: Services, settings: PortSettings) -> None:
        self._services = services
        self._settings = settings
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        is_limited = files != resource.RLIM_INFINITY
        self._most = min(settings.all_connections, files // 4) if is_limited else settings.all_connections
        self._open: dict[_Key, _Listener] = {}
        self._closed: set[_Listener] = set()
        """Those that listen no more, but still have connections that are on their way out."""
        self._complained: set[_Key] = set()

    async def run(self) -> None:
        """Until cancelled; then everything is closed."""
        pause = min(_LOOK_SECONDS, self._settings.idle_seconds / 2)
        try:
            with self._services.changes.subscribe("environment") as hints:
                while True:
                    try:
                        await self._look()
                    except Exception:  # the wall of this loop: what is open stays open, and it looks again
                        log.exception("the look at published ports failed")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await hints.get()
                    while not hints.empty():
                        hints.get_nowait()
        finally:
            for key in list(self._open):
                self._close(key)
            await asyncio.gather(*(listener.settle() for listener in self._closed))

    def is_full(self) -> bool:
        """Whether all ports together have as many connections as they may."""
        return sum(len(one.visits) for one in (*self._open.values(), *self._closed)) >= self._most

    async def _look(self) -> None:
        for listener in (*self._open.values(), *self._closed):
            listener.look()
        self._closed = {listener for listener in self._closed if listener.visits}
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
        listener = _Listener(self, self._services, one, self._settings)
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
        listener = self._open.pop(key)
        listener.close()
        self._closed.add(listener)


class _Listener:
    """One published port, and the connections through it."""

    def __init__(self, all_of_them: PortListeners, services: Services, port: OpenPort, settings: PortSettings) -> None:
        self.services = services
        self.port = port
        self.visits: set[Visit] = set()
        self._all = all_of_them
        self._settings = settings
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0
        self._told = -_TELL_SECONDS
        self._last_refusal = ("", "")
        """Address and reason."""

    async def start(self, address: str) -> None:
        """OSError: the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, address or None, self.port.external_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for visit in list(self.visits):
            visit.end()
        self._tell()

    async def settle(self) -> None:
        """Wait for the ledgers of its connections, for a moment; what is left then is given up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_SETTLE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def look(self) -> None:
        """From time to time: end what is idle, and tell of what was refused."""
        for visit in list(self.visits):
            visit.end_if_idle(self._settings.idle_seconds)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell()

    def _accept(self) -> asyncio.Protocol:
        against = ""
        if len(self.visits) >= self._settings.connections:
            against = "too many connections"
        elif self._all.is_full():
            against = "too many connections through all published ports"
        visit = Visit(self, against)
        self.visits.add(visit)
        return visit.visitor

    # ---- what connections call -------------------------------------------------------------------------------
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

    def forget(self, visit: Visit) -> None:
        self.visits.discard(visit)

    def refused(self, address: str, reason: str) -> None:
        """One was turned away; told now if it is the first in a while, else with those that come."""
        self._refused += 1
        self._last_refusal = (address, reason)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell()

    def record(self, address: str, outcome: str, **facts: object) -> None:
        """Into the trail."""
        known = {
            "owner": self.port.environment.owner_name,
            "port": self.port.port,
            "external_port": self.port.external_port,
        }
        name, thing = "environment.published-connection", self.port.environment.name
        event = Event(name, outcome, "anybody", thing, address, "", {**known, **facts})
        self.spawn(self._record(event), "ledger of a published port")

    async def _record(self, event: Event) -> None:
        with suppress(AshoreError):
            await self.services.audit.record(event, lazily=True)

    def _tell(self) -> None:
        if not self._refused:
            return
        count, self._refused, self._told = self._refused, 0, time.monotonic()
        address, reason = self._last_refusal
        log.warning("published port %s: refused %s, the last: %s", self.port.external_port, count, reason)
        self.record(address, "refused", refused=count, reason=reason)


def _key(one: OpenPort) -> _Key:
    return one.external_port, one.environment.id, one.port
