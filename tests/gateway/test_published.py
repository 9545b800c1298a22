"""Published ports with sockets of this machine for what listens inside: limits, idleness, and ends that hang."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from backends.published import OpenPort
from backends.settings import PortSettings
from gateway import published, visits
from gateway.published import PortListeners
from storage.audit import Event
from storage.changes import Changes
from storage.records import Environment

BIG = b"x" * (32 << 20)
MORE_THAN_KERNELS_TAKE = b"x" * 40_000
_SMALL = 4096
"""What the kernel keeps of what nobody reads; what is beyond that is the gateway's."""


class Inside:
    """A program inside: it echoes, or never reads (`is_deaf`). Its connections are seen."""

    def __init__(self) -> None:
        self.is_deaf = False
        self.writers: list[asyncio.StreamWriter] = []
        self.events: list[Event] = []
        self.changes = Changes()
        self.ports: list[OpenPort] = []
        self._address: tuple[str, int] = ("", 0)

    @asynccontextmanager
    async def listens(self) -> AsyncIterator[None]:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        server = await asyncio.start_server(self._serve, sock=listening)
        self._address = server.sockets[0].getsockname()
        try:
            yield
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        if self.is_deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            return
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    # ---- services, as far as published ports reach them ------------------------------------------------------
    async def dial(self, *_: object) -> socket.socket:
        connected = socket.socket()
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL)
        await asyncio.get_running_loop().sock_connect(connected, self._address)
        return connected

    async def to_serve(self) -> list[OpenPort]:
        return self.ports

    async def caller_for(self, *_: object, **__: object) -> None:
        return

    async def record(self, event: Event, *, lazily: bool = False) -> None:
        self.events.append(event)

    @property
    def services(self) -> Any:
        mine = SimpleNamespace(to_serve=self.to_serve, dial=self.dial, caller_for=self.caller_for, record=self.record)
        return SimpleNamespace(changes=self.changes, published=mine, environments=mine, accounts=mine, audit=mine)


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    inside = Inside()
    async with inside.listens():
        yield inside


@asynccontextmanager
async def open_ports(inside: Inside, count: int, **settings: Any) -> AsyncIterator[list[int]]:
    """So many ports, published."""
    environment = Environment(id="e1", name="web", owner_name="alice")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        free = [one.getsockname()[1], other.getsockname()[1]][:count]
    inside.ports = [OpenPort(port, 8000 + number, environment) for number, port in enumerate(free)]
    listeners = PortListeners(inside.services, PortSettings(first=1, last=65535, address="127.0.0.1", **settings))
    task = asyncio.create_task(listeners.run())
    try:
        for port in free:
            await until(lambda port=port: is_open(port))
        await until(lambda: len(inside.events) == count)
        inside.events.clear()
        yield free
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


async def until(what: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while not what():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def visit(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A visitor who was let in: what it says comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def is_refused(port: int) -> bool:
    try:
        _, writer = await visit(port)
    except (OSError, asyncio.IncompleteReadError):
        return True
    writer.transport.abort()
    return False


async def test_all_ports_have_a_limit_together_and_refusals_are_told_of_once(inside: Inside) -> None:
    """Attack: a stranger connects as often as possible, to use up file descriptors and to fill the trail."""
    async with open_ports(inside, 2, all_connections=3) as (one, other):
        held = [await visit(one), await visit(one), await visit(other)]
        for _ in range(25):
            assert await is_refused(one)
            assert await is_refused(other)
        assert len(inside.writers) == 3 + 2  # none of them has reached the program
        told = [event for event in inside.events if event.outcome == "refused"]
        assert [event.detail["refused"] for event in told] == [1, 1]
        assert told[0].detail["reason"] == "too many connections through all published ports"
        for _, writer in held:
            writer.close()
        await until(lambda: sum(event.outcome == "ok" for event in inside.events) == 3)
        _, writer = await visit(other)
        writer.close()
    told = [event for event in inside.events if event.outcome == "refused"]
    assert sorted(event.detail["refused"] for event in told) == [1, 1, 24, 24]  # the rest when the ports were closed


async def test_a_port_has_a_limit_of_its_own(inside: Inside) -> None:
    async with open_ports(inside, 2, connections=1) as (one, other):
        _, first = await visit(one)
        assert await is_refused(one)
        _, second = await visit(other)
        for writer in (first, second):
            writer.close()


async def test_what_is_idle_is_closed_and_what_is_used_is_not(inside: Inside) -> None:
    async with open_ports(inside, 1, idle_seconds=3) as (port,):
        _, used = await visit(port)
        reader, idle = await visit(port)
        async with asyncio.timeout(60):
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                used.write(b"x")
                await asyncio.sleep(0.05)
        (event,) = inside.events
        assert (event.outcome, event.detail["ended"], event.detail["bytes_in"]) == ("ok", "idle", 5)
        assert not used.is_closing()
        for writer in (used, idle):
            writer.transport.abort()


async def test_a_visitor_who_stops_reading_is_cut_off(inside: Inside) -> None:
    """Trap: closing waits for what is still to be sent, so it would wait for ever."""
    async with open_ports(inside, 1, idle_seconds=2) as (port,):
        _, writer = await visit(port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(BIG)
        await until(lambda: inside.events)
        assert inside.events[0].detail["ended"] == "idle"
        writer.transport.abort()


async def test_a_program_that_stops_reading_keeps_no_connection(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: the owner of a deaf program and a friend leave connections behind that count nowhere."""
    monkeypatch.setattr(visits, "_LINGER_SECONDS", 2.0)
    monkeypatch.setattr(published, "_LOOK_SECONDS", 0.2)
    async with open_ports(inside, 1, connections=1) as (port,):
        inside.is_deaf = True
        inside.writers.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(MORE_THAN_KERNELS_TAKE)
        await until(lambda: inside.writers)
        await writer.drain()
        reset = struct.pack("ii", 1, 0)  # else an end is half a farewell, and the answer is waited for
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        await until(lambda: inside.events)
        (event,) = inside.events
        assert (event.outcome, event.detail["bytes_in"]) == ("ok", len(MORE_THAN_KERNELS_TAKE))
        assert event.detail["seconds"] >= 2
        inside.is_deaf = False
        _, writer = await visit(port)
        writer.close()
