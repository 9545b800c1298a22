"""A Docker engine behind TLS: `tcp://host:2376` with certificates of both sides.

asyncio's TLS cannot end one direction, and a program in a container that reads to the end of its input would wait for
ever. TLS itself can: `close_notify` ends our direction, and Go's server (the Engine) takes it so. Hence this channel,
which moves the records itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass

from backends.compute.docker.lines import Carriers, dial
from storage.errors import Unavailable
from storage.names import printable

_PIECE = 256 * 1024
_HANDSHAKE_SECONDS = 10.0


@dataclass(frozen=True)
class Certificates:
    """PEM files: who may be over there, and who we are. Empty: the system's authorities, nobody."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """Unavailable: a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable("its ca_file, cert_file or key_file cannot be used") from error
        return context


class TlsLine:
    """An Engine that speaks TLS. The certificate must be for `host`."""

    is_here = False

    def __init__(self, host: str, port: int, certificates: Certificates) -> None:
        self.address = f"tcp://{host}:{port}"
        self._host, self._port = host, port
        self._certificates = certificates
        self._context: ssl.SSLContext | None = None
        self._carriers = Carriers()

    async def connect(self) -> socket.socket:
        if self._context is None:
            self._context = await asyncio.to_thread(self._certificates.context)
        channel = TlsChannel(await dial(self._host, self._port), self._context, self._host)
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await channel.handshake()
        except ssl.SSLError as error:
            channel.close()
            reason = printable(getattr(error, "verify_message", "") or error.reason or "no reason given", limit=100)
            raise Unavailable(f"TLS with it was not possible: {reason}") from error
        except BaseException:
            channel.close()
            raise
        return self._carriers.carry(channel, self.address)

    async def close(self) -> None:
        await self._carriers.close()


class TlsChannel:
    """TLS on a connected, non-blocking socket, which it owns; each direction ends by itself."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._raw = raw
        self._received, self._sending = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sending, server_hostname=host)
        self._early = bytearray()
        self._lock = asyncio.Lock()

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            else:
                await self._flush()
                return

    async def read(self) -> bytes:
        while True:
            if self._early:
                data = bytes(self._early)
                self._early.clear()
                return data
            try:
                return self._tls.read(_PIECE)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self._flush()
            await self._receive()

    async def write(self, data: bytes) -> None:
        # A memory BIO takes everything, so this never asks to be called again.
        self._tls.write(data)
        await self._flush()

    async def write_eof(self) -> None:
        # OpenSSL looks for the answer to close_notify at once, and data that it found instead would be lost.
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while piece := self._tls.read(_PIECE):
                self._early += piece
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    def close(self) -> None:
        self._raw.close()

    async def _receive(self) -> None:
        piece = await asyncio.get_running_loop().sock_recv(self._raw, _PIECE)
        if not piece:
            raise ConnectionResetError("the connection ended without a goodbye")
        self._received.write(piece)

    async def _flush(self) -> None:
        async with self._lock:  # or records of two tasks would be mixed up
            while self._sending.pending:
                await asyncio.get_running_loop().sock_sendall(self._raw, self._sending.read())
