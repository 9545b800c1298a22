"""One SSH connection whose person is known: its sessions, its limits, and the wall around each of them.

The same for a connection from outside and for one that came through a jump (whose identity the outer one has proven).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import asyncssh

from gateway import doors
from gateway.house import House
from gateway.languages import words_for
from gateway.routes import Door, resolve
from gateway.session import ClientSession
from gateway.target import Target
from storage.access import Caller
from storage.audit import Event
from storage.clock import now
from storage.errors import AshoreError, NotAllowed
from storage.records import new_id

log = logging.getLogger(__name__)


class Connection:
    """Everything that happens on one SSH connection."""

    def __init__(self, house: House, *, address: str, connection_id: str, outer: Connection | None = None) -> None:
        """`outer`: the connection that this one came through, as a jump; their limits are one."""
        self.house = house
        self._outer = outer
        self._jumps: set[Connection] = set()
        self.address = address
        self.id = connection_id
        self.caller: Caller | None = None
        self.target: Target | None = None
        self.ssh: asyncssh.SSHServerConnection | None = None
        self.since = now()
        self.fingerprint = ""
        """Of the key that let it in; empty for jumps, which end with their outer connection."""
        self.forwards = 0
        """Forwards and jumps that are open or on their way, without those of jumps."""
        self._sessions = 0
        self._known = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def identify(self, caller: Caller, target: Target, *, fingerprint: str = "") -> None:
        """From now on the person is known; what waited for it goes on."""
        self.caller, self.target, self.fingerprint = caller, target, fingerprint
        if self._outer is not None:
            self._outer._jumps.add(self)
        self._known.set()

    async def identity(self) -> tuple[Caller, Target]:
        """Who this is; waits, since channels may be asked for before the sign-in is written."""
        await self._known.wait()
        if self.caller is None or self.target is None:
            raise NotAllowed("this connection was not let in")
        return self.caller, self.target

    def serve(self, session: ClientSession) -> asyncio.Task[None]:
        """Serve a session in a task of its own."""
        return self.spawn(self._serve(session), f"session of {self.id}")

    def open_session(self) -> None:
        """Count one more session channel, also one that never asks for anything. NotAllowed: too many are open."""
        limit = self.house.settings.gateway.sessions_per_connection
        if sum(one._sessions for one in self._all()) >= limit:
            raise NotAllowed(f"a connection may have {limit} sessions at a time")
        self._sessions += 1

    def check_forwards(self) -> None:
        """NotAllowed: too many are open. Counted by who opens one, at once: others come while it is on its way."""
        limit = self.house.settings.gateway.forwards_per_connection
        if sum(one.forwards for one in self._all()) >= limit:
            raise NotAllowed(f"a connection may have {limit} forwards at a time")

    async def end(self, reason: str) -> None:
        """Close it with everything on it, and tell why."""
        if self.ssh is None or self.caller is None:
            return
        self.ssh.disconnect(asyncssh.DISC_BY_APPLICATION, reason)
        event = Event.by(self.caller, "connection.end", thing=self.caller.name, reason=reason)
        with suppress(AshoreError):
            await self.house.services.audit.record(event)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that ends with this connection at the latest."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def session_gone(self, session: ClientSession, task: asyncio.Task[None] | None) -> None:
        """The channel has closed; its task sees that through its consumer and ends by itself, or here in a while."""
        self._sessions -= 1
        if task is not None and not task.done():
            asyncio.get_running_loop().call_later(20, task.cancel)

    async def lost(self) -> None:
        """The connection has ended: wait for what it left, then make sure."""
        self._known.set()
        if self._outer is not None:
            self._outer._jumps.discard(self)
        await self.house.services.guests.release(self)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=20)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def transport_backlog(self) -> int:
        """Bytes that wait for the network."""
        if self.ssh is None:
            return 0
        transport = self.ssh.get_extra_info("transport")
        return transport.get_write_buffer_size() if transport is not None else 0

    @property
    def agent_path(self) -> str | None:
        """Unix socket of the client's agent, if it forwards one."""
        return None if self.ssh is None else self.ssh.get_agent_path()

    def _all(self) -> list[Connection]:
        """The connection from outside and what came through it; jumps do not nest."""
        first = self if self._outer is None else self._outer
        return [first, *first._jumps]

    async def _serve(self, session: ClientSession) -> None:
        door = Door.REFUSED
        try:
            _, target = await self.identity()
            route = resolve(target, session.asked)
            door = route.door
            await doors.enter(self, session, route)
        except AshoreError as error:
            await self._refuse(session, door, error)
        except asyncio.CancelledError:
            session.abort()
            raise
        except Exception:
            reference = new_id()
            log.exception("session failed (reference %s)", reference)
            session.say(f"ashore: something went wrong here; the operator finds it as {reference}")
            session.exit(70 if door is Door.COMMAND else 255)

    async def _refuse(self, session: ClientSession, door: Door, error: AshoreError) -> None:
        is_command = door in (Door.COMMAND, Door.DIGEST)
        words = str if is_command else await words_for(self.house.services.accounts, self.caller, session)
        session.say(f"ashore: {words(error.message)}")
        session.exit(error.exit_status if is_command else 255)
        if self.caller is None or self.target is None:
            return
        event = Event.by(
            self.caller,
            f"session.{door.value}",
            thing=self.target.environment,
            outcome="refused",
            reason=error.message,
            code=error.code,
        )
        with suppress(AshoreError):
            await self.house.services.audit.record(event)
