"""`ssh -J alice@gw train`: the jump is answered here, by a second SSH server on the jump's own channel.

The identity is the outer connection's, already proven, so the inner one asks for nothing; everything after that is an
ordinary connection to `train`: same relay, same policy, same recording. The host key is the environment's, by its
name, and outlives every rebuild.
"""

from __future__ import annotations

import asyncio
from typing import cast

import asyncssh
from asyncssh.connection import SSHServerConnection

from backends.environments import owned
from gateway import tuning
from gateway.connection import Connection
from gateway.forward import refused
from gateway.requests import OpenServer
from gateway.target import Target, parse_host
from storage.access import Action, require
from storage.audit import Event
from storage.errors import AshoreError, NotAllowed
from storage.names import printable


async def answer(connection: Connection, host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
    """The SSH server of environment `host`, as the session of a direct-tcpip channel."""
    where = f"{printable(host, limit=100)}:{port}"
    try:
        connection.check_forwards()
    except AshoreError as error:
        raise await refused(connection, Action.JUMP, where, error) from error
    connection.forwards += 1
    try:
        return await _answer(connection, host, port, where)
    except BaseException:
        connection.forwards -= 1
        raise


async def _answer(connection: Connection, host: str, port: int, where: str) -> asyncssh.SSHTCPSession[bytes]:
    try:
        caller, _ = await connection.identity()
        if port != 22:
            raise NotAllowed("a jump leads to port 22 of an environment; use -L or -D with alice+env for others")
        services = connection.house.services
        environment = await services.environments.show(caller, parse_host(host, caller.name))
        require(caller, Action.JUMP, owned(environment))
        await services.audit.record(Event.by(caller, Action.JUMP, thing=environment.name))
        host_key = await services.guests.host_key(environment.owner_id, environment.name)
    except AshoreError as error:
        raise await refused(connection, Action.JUMP, where, error) from error

    def inner_server() -> JumpedServer:
        return JumpedServer(connection, Target(caller.name, environment.name))

    options = await asyncssh.SSHServerConnectionOptions.construct(
        None, server_factory=inner_server, **tuning.options(connection.house.settings, [host_key])
    )
    # An SSHConnection speaks the session callbacks of a channel: asyncssh itself tunnels this way, without a socket.
    inner = SSHServerConnection(asyncio.get_running_loop(), options)
    return cast("asyncssh.SSHTCPSession[bytes]", inner)


class JumpedServer(OpenServer):
    """A connection that came through a jump: its identity is the outer connection's."""

    def __init__(self, outer: Connection, target: Target) -> None:
        self._outer = outer
        self.connection = Connection(outer.house, address=outer.address, connection_id=outer.id, outer=outer)
        self._target = target

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection.ssh = conn
        if self._outer.caller is not None:
            self.connection.identify(self._outer.caller, self._target)

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._outer.forwards -= 1
        live = self._outer.house.live
        tidy = asyncio.create_task(self.connection.lost(), name=f"end of a jump of {self._outer.id}")
        live.connections.add(tidy)
        tidy.add_done_callback(live.connections.discard)
