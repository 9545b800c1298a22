"""The port: one small asyncssh object per connection, from the first byte to the last.

Holds what asyncssh asks of a server and hands everything on: `login` proves who it is, `connection` serves what comes
after. asyncssh limits neither attempts nor addresses that never log in; that is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

import asyncssh

from gateway import jump, tuning
from gateway.connection import Connection
from gateway.doorstep import network_of
from gateway.house import House
from gateway.login import Login
from gateway.requests import OpenServer
from storage.audit import Event
from storage.errors import AshoreError
from storage.records import new_id

log = logging.getLogger(__name__)


class OuterServer(OpenServer):
    """A connection from outside: nothing is known of it but its address."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._failures = 0
        self._offers = 0
        self._asked_methods = False
        self._network = ""
        self._login: Login | None = None
        self._conn: asyncssh.SSHServerConnection | None = None
        self._begun: asyncio.Task[None] | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        peer = conn.get_extra_info("peername")
        # A dual-stack socket writes IPv4 addresses as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
        address = peer[0].removeprefix("::ffff:") if peer else ""
        self.connection = Connection(self._house, address=address, connection_id=new_id())
        self.connection.ssh = self._conn = conn
        self._login = Login(self._house.services.accounts, address=address, connection=self.connection.id)
        self._network = network_of(address)
        if self._house.bans.is_banned(self._network, time.monotonic()):
            # Not at once: asyncssh says its version after this, and OpenSSH shows no reason that comes before it.
            reason = "too many failed logins from this address, please come back later"
            asyncio.get_running_loop().call_soon(self._disconnect, reason)
            return
        self._house.doorstep.come(self.connection.id, self._network, self._send_away)
        tuning.on_failed_attempt(conn, self._count_failure)
        tuning.acknowledge_at_once(conn)

    async def begin_auth(self, username: str) -> bool:
        assert self._login is not None
        try:
            await self._login.begin(username)
        except AshoreError as error:
            log.warning("a login cannot be checked: %s", error.message)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._offers += 1
        return self._login is not None and self._login.name == username and self._login.accepts(key)

    async def auth_completed(self) -> None:
        assert self._login is not None
        if self._conn is not None:
            tuning.acknowledge_as_usual(self._conn)
        try:
            caller = await self._login.complete()
        except AshoreError as error:
            await self._audit_failure(error.message)
            self._disconnect(error.message)
            return
        assert self._login.target is not None
        self._house.doorstep.leave(self.connection.id)
        self._house.bans.succeeded(self._network)
        self.connection.identify(caller, self._login.target, fingerprint=self._login.fingerprint)
        self._house.live.people.add(self.connection)

    async def _open_tcp(self, host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
        _, target = await self.connection.identity()
        if target.environment:
            return await super()._open_tcp(host, port)
        return await self._walled_open(jump.answer(self.connection, host, port))

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.doorstep.leave(self.connection.id)
        self._house.live.people.discard(self.connection)
        tidy = asyncio.create_task(self._tidy(), name=f"end of connection {self.connection.id}")
        self._house.live.connections.add(tidy)
        tidy.add_done_callback(self._house.live.connections.discard)

    def _count_failure(self) -> None:
        if self._failures == 0 and not self._offers and not self._asked_methods:
            # The first request of every OpenSSH is "none", to learn the methods. An offered key is an attempt at once.
            self._asked_methods = True
            return
        self._failures += 1
        if self._failures >= self._house.settings.gateway.attempts:
            self._disconnect("too many authentication failures")

    def _send_away(self) -> None:
        self._disconnect("too many connections wait to log in, please try again")

    def _disconnect(self, reason: str) -> None:
        if self._conn is not None:
            self._conn.disconnect(asyncssh.DISC_BY_APPLICATION, reason)

    async def _tidy(self) -> None:
        if self.connection.caller is None and self._failures:
            banned = self._house.bans.failed(self._network, time.monotonic())
            await self._audit_failure(f"{self._failures} failed attempts" + (", address banned" if banned else ""))
        await self.connection.lost()

    async def _audit_failure(self, reason: str) -> None:
        name = self._login.name if self._login is not None else ""
        event = Event(
            "login",
            "refused",
            name if not name.startswith("invite-") else "invite",
            address=self.connection.address,
            connection=self.connection.id,
            detail={"reason": reason, "attempts": self._failures},
        )
        with suppress(AshoreError):
            await self._house.services.audit.record(event)
