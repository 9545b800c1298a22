"""What every connection needs of the house that it enters; built once by `gateway.app`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from backends.services import Services
from gateway.bans import Bans
from gateway.channel import Channel
from gateway.doorstep import Doorstep
from gateway.notices import Notices
from gateway.settings import Settings
from storage.access import Caller
from storage.errors import AshoreError

if TYPE_CHECKING:
    from gateway.connection import Connection

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
_FAREWELL_SECONDS = 0.5
"""So that the command that took a key away can still say so on a connection that the key let in."""


class Menu(Protocol):
    """Shows the menu on a channel; `gateway.menu` has the two ways to do it."""

    async def run(
        self,
        channel: Channel,
        caller: Caller,
        *,
        language: str,
        open_shell: Callable[[str], Awaitable[int]],
    ) -> int: ...


@dataclass
class Live:
    """The open sessions of this process, so that they can be ended from elsewhere."""

    ends: dict[str, Callable[[str], None]] = field(default_factory=dict)
    """Session id → ends it, with the reason that its person is told."""
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    people: set[Connection] = field(default_factory=set)
    """Connections from outside whose person is known."""

    async def end_wanted(self, services: Services) -> None:
        """End what somebody killed; runs until it is cancelled."""
        with services.changes.subscribe("session-end") as queue:
            while True:
                try:
                    wanted = await services.sessions.wanted_ends()
                except AshoreError as error:
                    log.warning("what should end is not known: %s", error.message)
                    wanted = {}
                for session_id, reason in wanted.items():
                    end = self.ends.get(session_id)
                    if end is not None:
                        end(reason)
                await queue.get()

    async def end_stale(self, services: Services) -> None:
        """End the connections of people who were locked out, and of keys that were taken away; runs until cancelled."""
        with services.changes.subscribe("user", "key") as queue:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await queue.get()
                await asyncio.sleep(_FAREWELL_SECONDS)
                people = list(self.people)
                logins = {(one.caller.user_id, one.fingerprint) for one in people if one.caller is not None}
                try:
                    stale = await services.accounts.stale(logins)
                except AshoreError as error:
                    log.warning("who was locked out is not known: %s", error.message)
                    continue
                for one in people:
                    if one.caller is not None and (one.caller.user_id, one.fingerprint) in stale:
                        await one.end("this key does not let you in any more")


@dataclass(frozen=True)
class House:
    """The one argument of everything that serves a connection."""

    settings: Settings
    services: Services
    menu: Menu
    bans: Bans
    live: Live
    doorstep: Doorstep
    notices: Notices = field(default_factory=Notices)
    host_keys: Sequence[str] = ()
    """The gateway's own public keys, `ssh-ed25519 AAAA…`, for lines that people put into known_hosts."""
