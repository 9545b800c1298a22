"""The port of our own registry: it stays ours, and whoever misuses it takes nothing from the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends import registry_door
from backends.registry_door import RegistryDoor

RESET = struct.pack("ii", 1, 0)


class KeepAlive:
    """A server that answers each line, and never hangs up by itself."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def inner(tmp_path: Path) -> AsyncIterator[KeepAlive]:
    inner = KeepAlive()
    server = await asyncio.start_unix_server(inner.serve, tmp_path / "socket")
    yield inner
    server.close()


@pytest.fixture
async def port(tmp_path: Path, inner: KeepAlive) -> AsyncIterator[int]:
    door = RegistryDoor(tmp_path, "socket")
    yield door.open(0)
    await door.close()


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    return reader, writer


async def until_closed(inner: KeepAlive) -> None:
    async with asyncio.timeout(30):
        while inner.open:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_client_that_hangs_up(port: int, inner: KeepAlive) -> None:
    _, writer = await ask(port)
    assert inner.open == 1
    writer.close()
    await until_closed(inner)


async def test_clients_that_reset_take_no_room(port: int, inner: KeepAlive) -> None:
    """Each of them once kept a line to the registry for ever, and after 256 nobody got in."""
    for _ in range(300):
        _, writer = await ask(port)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    await until_closed(inner)
    _, writer = await ask(port)
    writer.close()
    await until_closed(inner)


async def test_who_says_nothing_is_sent_away(port: int, inner: KeepAlive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_door, "_FIRST_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    await until_closed(inner)
