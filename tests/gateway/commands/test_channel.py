"""A command on an SSH channel: through a real asyncssh server and the real `ssh`-side semantics of a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.channel import Consumer, Size, Terminal
from gateway.commands import ChannelContext, run
from gateway.settings import Settings
from storage.access import Caller
from tests.gateway.commands.conftest import Desk
from tests.gateway.commands.test_people import new_key


class Line:
    """A channel whose client end is the test."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self.terminal = terminal
        self.variables: Mapping[str, str] = {}
        self.is_closed = False
        self.consumer: Consumer | None = None
        self.out = b""
        self.err = b""
        self.reading = True
        self.kept: list[Callable[[Consumer], None]] = []

    def attach(self, consumer: Consumer) -> None:
        self.consumer = consumer
        for event in self.kept:
            event(consumer)

    def detach(self, consumer: Consumer) -> None:
        self.consumer = None

    def write(self, data: bytes) -> None:
        self.out += data

    def write_stderr(self, data: bytes) -> None:
        self.err += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def context(line: Line, desk: Desk, caller: Caller) -> ChannelContext:
    return ChannelContext(line, desk.services, caller, Settings(), host="gw", port=2022)  # type: ignore[arg-type]


@pytest.fixture
def terminal() -> Terminal:
    return Terminal("xterm", Size(100, 30), {})


async def started(line: Line) -> Consumer:
    for _ in range(100):
        if line.consumer is not None:
            return line.consumer
        await asyncio.sleep(0)
    raise AssertionError("the command does not serve the channel")


async def test_bytes_go_through_as_they_are(desk: Desk, alice: Caller) -> None:
    line = Line()
    assert await run(context(line, desk, alice), "whoami --json") == 0
    assert json.loads(line.out)["user"] == "alice"
    assert b"\r" not in line.out
    assert line.consumer is None


async def test_mistakes_go_to_stderr(desk: Desk, alice: Caller) -> None:
    line = Line()
    assert await run(context(line, desk, alice), "frobnicate") == 2
    assert (line.out, b"frobnicate" in line.err) == (b"", True)


async def test_a_terminal_gets_carriage_returns_and_everything_on_one_stream(
    desk: Desk, alice: Caller, terminal: Terminal
) -> None:
    line = Line(terminal)
    assert await run(context(line, desk, alice), "env list") == 0
    assert line.err == b""
    assert line.out.endswith(b"env create NAME\r\n")


async def test_input_that_came_before_the_command_and_after(desk: Desk, alice: Caller) -> None:
    text = new_key().encode()
    line = Line()
    line.kept.append(lambda consumer: consumer.data_received(text[:30]))
    running = asyncio.create_task(run(context(line, desk, alice), "key add"))
    consumer = await started(line)
    await asyncio.sleep(0.01)
    consumer.data_received(text[30:])
    consumer.eof_received()
    assert await running == 0


async def test_input_that_does_not_end_is_refused_and_not_kept(desk: Desk, alice: Caller) -> None:
    line = Line()
    running = asyncio.create_task(run(context(line, desk, alice), "key add"))
    consumer = await started(line)
    for _ in range(1000):
        if line.reading and line.consumer is not None:
            consumer.data_received(b"x" * 32768)
    assert not line.reading
    assert await running == 2


async def test_typing_is_echoed_and_ended_with_control_d(desk: Desk, alice: Caller, terminal: Terminal) -> None:
    line = Line(terminal)
    running = asyncio.create_task(run(context(line, desk, alice), "key add"))
    consumer = await started(line)
    await asyncio.sleep(0.05)
    assert b"Ctrl-D" in line.out
    text = new_key("typed")
    consumer.data_received(text.encode() + b"\r")
    assert text.encode() + b"\r\n" in line.out
    consumer.data_received(b"\x04")
    assert await running == 0


@pytest.mark.parametrize(
    "interrupt",
    [
        lambda consumer: consumer.signal_received("INT"),
        lambda consumer: consumer.signal_received("TERM"),
        lambda consumer: consumer.data_received(b"\x03"),
        lambda consumer: consumer.break_received(0),
        lambda consumer: consumer.closed(),
    ],
    ids=["INT", "TERM", "control-c", "break", "closed"],
)
async def test_interruptions_end_a_command_and_are_audited(
    desk: Desk, alice: Caller, admin: Caller, terminal: Terminal, interrupt: Callable[[Any], None]
) -> None:
    line = Line(terminal)
    running = asyncio.create_task(run(context(line, desk, alice), "key add"))
    consumer = await started(line)
    await asyncio.sleep(0.01)
    interrupt(consumer)
    assert await running == 130
    (event,) = await desk.services.audit.search(admin, action="command.run", limit=1)
    assert (event.thing, event.detail) == ("key add", {"exit_status": 130})


async def test_a_door_that_is_cancelled_ends_its_command(desk: Desk, alice: Caller, admin: Caller) -> None:
    line = Line()
    running = asyncio.create_task(run(context(line, desk, alice), "key add"))
    await started(line)
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert line.consumer is None
    assert (await desk.services.audit.search(admin, action="command.run", limit=1))[0].thing == "key add"


async def test_long_output_waits_for_a_slow_client(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create train --wait")
    line = Line()
    line.kept.append(lambda consumer: consumer.pause_writing())
    running = asyncio.create_task(run(context(line, desk, alice), "env logs train"))
    consumer = await started(line)
    done, _ = await asyncio.wait([running], timeout=0.3)
    assert not done
    consumer.resume_writing()
    assert await running == 0
    assert line.out == b"train is up\n"
