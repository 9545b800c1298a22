"""What an SSH connection may ask for once its person is known: sessions and forwards. Remote forwards are refused.

The same for a connection from outside (`server`) and for one that came through a jump (`jump`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TypeVar

import asyncssh

from gateway import forward
from gateway.connection import Connection
from gateway.session import ClientSession
from storage.access import Action
from storage.errors import NotAllowed
from storage.names import printable

log = logging.getLogger(__name__)
_S = TypeVar("_S")


class OpenServer(asyncssh.SSHServer):
    """What a connection may ask for once it is open, from outside or through a jump."""

    connection: Connection

    def session_requested(self) -> ClientSession:
        try:
            self.connection.open_session()
        except NotAllowed as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, error.message) from None
        return ClientSession(self.connection)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[asyncssh.SSHTCPSession[bytes]]:
        return self._open_tcp(dest_host, dest_port)

    def unix_connection_requested(self, dest_path: str) -> Awaitable[asyncssh.SSHUNIXSession[bytes]]:
        return self._walled_open(forward.open_socket(self.connection, dest_path))

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        self._refuse_remote(f"{listen_host}:{listen_port}")
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        self._refuse_remote(listen_path)
        return False

    async def _open_tcp(self, host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
        return await self._walled_open(forward.open_tcp(self.connection, host, port))

    async def _walled_open(self, opening: Awaitable[_S]) -> _S:
        try:
            return await opening
        except asyncssh.ChannelOpenError:
            raise
        except Exception as error:
            log.exception("a forward failed")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "something went wrong here") from error

    def _refuse_remote(self, where: str) -> None:
        error = NotAllowed("remote forwards (-R) are not offered")
        work = forward.refused(self.connection, Action.FORWARD_REMOTE, printable(where, limit=100), error)

        async def audit() -> None:
            await work

        self.connection.spawn(audit(), "refusal of a remote forward")
