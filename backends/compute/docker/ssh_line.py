"""A Docker engine on another machine, reached through that machine's SSH server: `ssh://user@host[:port][/socket]`.

Each connection to the Engine is a channel to its Unix socket (`direct-streamlocal`). Where the server does not allow
that, it is a session with `docker system dial-stdio`; OpenSSH gives ten of those on one connection (MaxSessions), so
there may be several connections. The server's key is pinned in the settings: nobody is asked, nothing is learnt.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import asyncssh

from backends.compute.docker.lines import Carriers
from storage.errors import Unavailable
from storage.names import printable

log = logging.getLogger(__name__)
SOCKET = "/var/run/docker.sock"
SESSIONS = 10
"""OpenSSH's MaxSessions, unless it was changed; a server that gives fewer is noticed."""
_COMMAND = "docker system dial-stdio"
_PIECE = 256 * 1024
_CONNECT_SECONDS = 15.0
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Login:
    """Whom we are over there, and who must be there."""

    user: str
    host: str
    port: int
    key_file: str
    """Our private key, without a passphrase."""
    host_key: str
    """The server's public key, `ssh-ed25519 AAAA…`."""


@dataclass(eq=False)
class _Link:
    """One SSH connection and how many sessions it carries. `most` shrinks when the server gives fewer."""

    connection: asyncssh.SSHClientConnection
    sessions: int = 0
    most: int = SESSIONS


@dataclass(eq=False)
class _SshChannel:
    """A channel to the Engine; see `lines.Channel`. `ended` is called once, when it is closed."""

    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    ended: Callable[[], None] = field(default=lambda: None)

    async def read(self) -> bytes:
        try:
            return await self.reader.read(_PIECE)
        except asyncssh.Error as error:
            raise ConnectionResetError(str(error)) from error

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def write_eof(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.channel.abort()
        self.ended()


class SshLine:
    """An Engine behind an SSH server. `path` is its socket over there."""

    is_here = False

    def __init__(self, login: Login, path: str = SOCKET) -> None:
        port = "" if login.port == 22 else f":{login.port}"
        self.address = f"ssh://{login.user}@{login.host}{port}"
        self._login = login
        self._path = path
        self._carriers = Carriers()
        self._links: list[_Link] = []
        self._lock = asyncio.Lock()

    async def connect(self) -> socket.socket:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                channel = await self._open()
        except TimeoutError as error:
            raise Unavailable("its SSH server does not answer") from error
        return self._carriers.carry(channel, self.address)

    async def close(self) -> None:
        await self._carriers.close()
        links, self._links = self._links, []
        for link in links:
            link.connection.close()
            try:
                async with asyncio.timeout(2):
                    await link.connection.wait_closed()
            except TimeoutError:
                link.connection.abort()

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _open(self) -> _SshChannel:
        link = await self._link(lambda link: True)
        try:
            reader, writer = await _reached(link.connection.open_unix_connection(self._path, encoding=None))
        except asyncssh.ChannelOpenError as error:
            # OpenSSH says the same when sockets are forbidden and when nobody listens, so nothing is learnt from it.
            log.debug("%s: no way to %s (%s), trying '%s'", self.address, self._path, error.reason, _COMMAND)
            return await self._session()
        return _SshChannel(reader, writer)

    async def _session(self) -> _SshChannel:
        while True:
            link = await self._link(lambda link: link.sessions < link.most)
            link.sessions += 1
            try:
                process = await _reached(link.connection.create_process(_COMMAND, encoding=None))
            except asyncssh.ChannelOpenError as error:
                link.sessions -= 1
                if not link.sessions:
                    reason = printable(error.reason, limit=100)
                    raise Unavailable(f"its SSH server does not lead to the Docker engine: {reason}") from error
                link.most = link.sessions
            except BaseException:
                link.sessions -= 1
                raise
            else:
                return _SshChannel(process.stdout, process.stdin, partial(self._give_back, link))

    def _give_back(self, link: _Link) -> None:
        link.sessions -= 1
        if not link.sessions and link in self._links[1:]:
            self._links.remove(link)
            link.connection.close()

    async def _link(self, fits: Callable[[_Link], bool]) -> _Link:
        """A connection that `fits`, made if there is none."""
        async with self._lock:
            self._links = [link for link in self._links if not link.connection.is_closed()]
            found = next(filter(fits, self._links), None)
            if found is None:
                found = _Link(await self._connected())
                self._links.append(found)
            return found

    async def _connected(self) -> asyncssh.SSHClientConnection:
        login = self._login
        try:
            host_key = asyncssh.import_public_key(login.host_key)
            own_key = await asyncio.to_thread(asyncssh.read_private_key, login.key_file)
        except (OSError, asyncssh.KeyImportError) as error:
            raise Unavailable("its host_key or key_file cannot be used") from error
        return await _reached(
            asyncssh.connect(
                login.host, login.port, config=None, username=login.user, client_keys=[own_key],
                known_hosts=([host_key], [], []), agent_path=None, preferred_auth=["publickey"],
                gss_host=None, compression_algs=["none"], login_timeout=_CONNECT_SECONDS,
                keepalive_interval=15, keepalive_count_max=3,
            )
        )  # fmt: skip


async def _reached(question: Awaitable[_Found]) -> _Found:
    """The answer of an SSH server; Unavailable with a sentence when it gives none."""
    try:
        return await question
    except asyncssh.ChannelOpenError:
        raise
    except asyncssh.HostKeyNotVerifiable as error:
        raise Unavailable("its SSH server has another key than host_key says") from error
    except asyncssh.PermissionDenied as error:
        raise Unavailable("its SSH server does not take the key of key_file") from error
    except (OSError, asyncssh.Error) as error:
        log.debug("SSH: %s", error)
        raise Unavailable("its SSH server does not answer") from error
