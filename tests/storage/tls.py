"""A real TLS endpoint for tests: a small authority of our own, and a TLS listener in front of a plain one."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """An authority and one certificate that it signed, as PEM files."""

    ca_file: Path
    chain: Path
    key: Path

    @classmethod
    def made_in(cls, directory: Path, *, name: str = "127.0.0.1", hours: float = 1.0) -> Self:
        """Its certificate ends in so many hours; with less than nothing it has ended."""
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ashore's test authority")])
        ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, [], is_authority=True)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = _certificate(
            subject, ca_name, key.public_key(), ca_key, [_alternative(name)], is_authority=False, hours=hours
        )
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")
        made.ca_file.write_bytes(ca.public_bytes(Encoding.PEM))
        made.chain.write_bytes(leaf.public_bytes(Encoding.PEM))
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made

    def context(self) -> ssl.SSLContext:
        """For a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    *,
    is_authority: bool,
    hours: float = 1.0,
) -> x509.Certificate:
    moment = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(hours=2))
        .not_valid_after(moment + timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


Change = Callable[[bytes], bytes]


def unchanged(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def proxy(
    endpoint: str,
    *,
    tls: ssl.SSLContext | None = None,
    request: Change = unchanged,
    answer: Change = unchanged,
) -> AsyncIterator[int]:
    """A port that passes everything on to `endpoint`; what passes may be changed, but not its length."""
    target = urlsplit(endpoint)
    running: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(target.hostname, target.port)
        try:
            await asyncio.gather(_pump(reader, inner_writer, request), _pump(inner_reader, writer, answer))
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(carry(reader, writer), name="proxy")
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        tasks = tuple(running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports say goodbye


@asynccontextmanager
async def tls_in_front_of(endpoint: str, authority: Authority) -> AsyncIterator[str]:
    """`https://127.0.0.1:PORT` that ends TLS and passes everything on to `endpoint`."""
    async with proxy(endpoint, tls=authority.context()) as port:
        yield f"https://127.0.0.1:{port}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(change(data))
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()
