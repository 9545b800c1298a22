"""`-L`, `-D` and socket forwards into an environment, each with a ledger of its bytes both ways.

Destinations are resolved inside the environment, and `decide()` allows its own loopback only. Where the environment's
network can be entered from here the connection is a plain socket; else it goes through the guest. One audit event each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol

import asyncssh

from backends.environments import owned
from backends.lifecycle import fell_asleep
from storage.access import Action, Caller, Destination, SocketPath, require
from storage.audit import Event
from storage.errors import AshoreError, Failed, Unavailable
from storage.names import printable
from storage.records import Environment

if TYPE_CHECKING:
    from gateway.connection import Connection


class End(Protocol):
    """One end of a forward, as the other end uses it."""

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


class Ledger(Protocol):
    """What an end tells of its connection."""

    def carried(self, size: int) -> None:
        """So many bytes went through."""
        ...

    def over(self) -> None:
        """One end is gone; may be said twice."""
        ...


class ChannelEnd(asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """An end that is an SSH channel: always the client's, and the environment's when the guest carries it."""

    def __init__(self, forward: Ledger) -> None:
        self._forward = forward
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._kept: list[bytes] = []
        self._eof = False
        self.other: End | None = None
        self.received = 0

    # ---- what asyncssh calls ---------------------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:  # type: ignore[override]
        self._channel = chan
        # A server that speaks first may have done so before this end was confirmed.
        for data in self._kept:
            chan.write(data)
        self._kept.clear()
        if self._eof:
            chan.write_eof()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.received += len(data)
        self._forward.carried(len(data))
        if self.other is not None:
            self.other.send(data)

    def eof_received(self) -> bool:
        if self.other is not None:
            self.other.send_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        if self.other is not None:
            self.other.close()
        self._forward.over()

    # ---- what the other end uses -----------------------------------------------------------------------------
    def send(self, data: bytes) -> None:
        if self._channel is None:
            self._kept.append(data)
        elif not self._channel.is_closing():
            self._channel.write(data)

    def send_eof(self) -> None:
        if self._channel is None:
            self._eof = True
        elif not self._channel.is_closing():
            self._channel.write_eof()

    def pause_reading(self) -> None:
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


class SocketEnd(asyncio.Protocol):
    """The environment's end when it is a plain socket."""

    def __init__(self, forward: Ledger) -> None:
        self._forward = forward
        self._transport: asyncio.Transport | None = None
        self._sent_eof = False
        self._got_eof = False
        self.other: End | None = None
        self.received = 0

    # ---- what asyncio calls ----------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._forward.carried(len(data))
        if self.other is not None:
            self.other.send(data)

    def eof_received(self) -> bool:
        self._got_eof = True
        if self.other is not None:
            self.other.send_eof()
        return not self._sent_eof

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.other is not None:
            self.other.close()
        self._forward.over()

    # ---- what the other end uses -----------------------------------------------------------------------------
    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def send_eof(self) -> None:
        self._sent_eof = True
        if self._transport is None or self._transport.is_closing():
            return
        if self._got_eof:
            self._transport.close()
        else:
            self._transport.write_eof()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._got_eof:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._got_eof:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Forward:
    """Both ends of one forwarded connection, and its ledger."""

    def __init__(
        self, connection: Connection, caller: Caller, environment: Environment, action: Action, where: str
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._environment = environment
        self._activity = connection.house.services.environments.activity
        self._presence = ExitStack()
        self._presence.enter_context(self._activity.presence(environment.id))
        self._action = action
        self._where = where
        self._started = time.monotonic()
        self._over = False
        self._far: ChannelEnd | SocketEnd | None = None
        self.client = ChannelEnd(self)

    def channel_end(self) -> ChannelEnd:
        """The environment's end, for the guest to carry."""
        self._far = far = ChannelEnd(self)
        far.other, self.client.other = self.client, far
        return far

    def socket_end(self) -> SocketEnd:
        """The environment's end, for a socket."""
        self._far = far = SocketEnd(self)
        far.other, self.client.other = self.client, far
        return far

    def carried(self, size: int) -> None:
        """So many bytes went through."""
        self._activity.traffic(self._environment.id, size)

    def over(self) -> None:
        """One end is gone, and so is the other; the ledger is written once."""
        if self._over:
            return
        self._over = True
        self._presence.close()
        self._connection.forwards -= 1
        event = Event.by(
            self._caller,
            self._action,
            thing=self._environment.name,
            to=self._where,
            bytes_in=self.client.received,
            bytes_out=self._far.received if self._far is not None else 0,
            seconds=round(time.monotonic() - self._started, 3),
        )
        self._connection.spawn(self._connection.house.services.audit.record(event), "forward ledger")


async def open_tcp(connection: Connection, host: str, port: int) -> ChannelEnd:
    """The client's end of a connection to `host`:`port` inside the environment of this connection."""
    where = f"{printable(host, limit=100)}:{port}"

    async def join(forward: Forward, caller: Caller, environment: Environment) -> None:
        services = connection.house.services
        dialled = await services.environments.dial(caller, environment, host, port)
        if dialled is not None:
            await asyncio.get_running_loop().create_connection(forward.socket_end, sock=dialled)
            return
        guest = await services.guests.connect(caller, environment)
        await guest.create_connection(forward.channel_end, host, port)

    def thing(environment: Environment) -> Destination:
        return Destination(owned(environment), host, port)

    return await _open(connection, Action.FORWARD_TCP, where, thing, join)


async def open_socket(connection: Connection, path: str) -> ChannelEnd:
    """The client's end of a connection to the socket `path` inside the environment of this connection."""
    where = printable(path, limit=200)

    async def join(forward: Forward, caller: Caller, environment: Environment) -> None:
        guest = await connection.house.services.guests.connect(caller, environment)
        await guest.create_unix_connection(forward.channel_end, path)

    def thing(environment: Environment) -> SocketPath:
        return SocketPath(owned(environment), path)

    return await _open(connection, Action.FORWARD_SOCKET, where, thing, join)


async def _open(
    connection: Connection,
    action: Action,
    where: str,
    thing: Callable[[Environment], Destination | SocketPath],
    join: Callable[[Forward, Caller, Environment], Awaitable[None]],
) -> ChannelEnd:
    try:
        connection.check_forwards()
        connection.forwards += 1
        forward: Forward | None = None
        try:
            caller, target = await connection.identity()
            environment = await _allowed(connection, caller, target.environment, action, thing)
            forward = Forward(connection, caller, environment, action, where)
            await join(forward, caller, environment)
        except BaseException:
            if forward is None:
                connection.forwards -= 1
            else:
                forward.over()
            raise
    except AshoreError as error:
        raise await refused(connection, action, where, error) from error
    except OSError as error:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.strerror or "connection failed") from error
    return forward.client


async def _allowed(
    connection: Connection,
    caller: Caller,
    name: str,
    action: Action,
    thing: Callable[[Environment], Destination | SocketPath],
) -> Environment:
    """The environment, awake, once everything is allowed; asked before it is woken."""
    environments = connection.house.services.environments
    environment = await environments.show(caller, name)
    require(caller, Action.JUMP, owned(environment))
    require(caller, action, thing(environment))
    if fell_asleep(environment, connection.since):
        # A browser left open on a forward asks all day long, and would never let it sleep.
        raise Unavailable(f"'{environment.name}' sleeps: connect anew to wake it")
    return await environments.open(caller, Action.JUMP, name)


async def refused(connection: Connection, action: Action, where: str, error: AshoreError) -> asyncssh.ChannelOpenError:
    """Audit a refusal and make it the answer that SSH has for it (RFC 4254 §5.1)."""
    if connection.caller is not None and connection.target is not None:
        event = Event.by(
            connection.caller,
            action,
            thing=connection.target.environment,
            outcome="refused",
            to=where,
            reason=error.message,
            code=error.code,
        )
        with suppress(AshoreError):
            await asyncio.shield(connection.house.services.audit.record(event))
    is_broken = isinstance(error, (Failed, Unavailable))
    code = asyncssh.OPEN_CONNECT_FAILED if is_broken else asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    return asyncssh.ChannelOpenError(code, printable(error.message))
