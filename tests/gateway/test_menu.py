"""The menu over SSH: a real client, a real channel, and the demo menu in this process or in a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backends.composition import HouseSettings
from gateway.channel import Channel, Consumer, Size, Terminal
from gateway.menu import InProcessMenu, MenuWorkers
from storage.access import Caller
from storage.errors import NotFound, Unavailable
from storage.settings import ObjectSettings
from tests.gateway.screen import MenuSite, leave, menu_site
from tests.tui.demo_menu import DemoMenu, caller_for, menus_alive, run_plain, services
from tui.terminal import RESET
from tui.terminal import Terminal as MenuTerminal

F2, F3, F4, F5 = b"\x1bOQ", b"\x1bOR", b"\x1bOS", b"\x1b[15~"


def workers(data: Path, count: int = 1) -> MenuWorkers:
    settings = data / "settings.json"
    settings.write_text("{}")
    return MenuWorkers(data, settings, count=count, kit="tests.tui.demo_menu:kit")


@pytest.fixture(params=["here", "workers"])
async def site(request: pytest.FixtureRequest, data_dir: Path) -> AsyncIterator[MenuSite]:
    menu = InProcessMenu(services(), DemoMenu, run_plain) if request.param == "here" else workers(data_dir)
    async with menu_site(menu) as site:
        yield site


@pytest.fixture
async def pool(data_dir: Path) -> AsyncIterator[MenuSite]:
    async with menu_site(workers(data_dir)) as site:
        yield site


@pytest.fixture
async def here() -> AsyncIterator[MenuSite]:
    async with menu_site(InProcessMenu(services(), DemoMenu, run_plain)) as site:
        yield site


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


class Echo:
    """A shell that shouts back, and ends at the word `exit`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._channel.write(data.upper())
        if b"exit" in data and not self.done.done():
            self.done.set_result(5)

    def resized(self, size: Size) -> None:
        self._channel.write(f"<{size.columns}x{size.rows}>".encode())

    def closed(self) -> None:
        if not self.done.done():
            self.done.set_result(255)

    def eof_received(self) -> None: ...
    def signal_received(self, name: str) -> None: ...
    def break_received(self, milliseconds: int) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


async def echo(channel: Channel, environment: str) -> int:
    shell = Echo(channel)
    channel.attach(shell)
    # As a full-screen program that was killed would leave it.
    channel.write(b"welcome to the shell\r\n\x1b[?1049h\x1b[?1003h\x1b[5;10r")
    try:
        return await shell.done
    finally:
        channel.detach(shell)


async def test_two_people_and_a_clean_end(site: MenuSite) -> None:
    alice, bob = await site.person("alice"), await site.person("bob")
    await alice.sees("hello alice in zh")
    await bob.sees("hello bob in zh")
    alice.type(F2 + F2)
    bob.type(F2)
    await alice.sees("clicks=2")
    await bob.sees("clicks=1")
    alice.type(b"\x11")
    await alice.closed.wait()
    assert alice.status == 0
    assert alice.raw.endswith(b"\x1b[?1049l\x1b[?25h")
    bob.type(F2)
    await bob.sees("clicks=2")
    await leave(alice)
    await leave(bob)
    await until(lambda: site.active == 0)


async def test_chinese_typing_paste_and_resize(site: MenuSite) -> None:
    person = await site.person()
    await person.sees("hello alice")
    person.type("数据".encode()[:4])
    person.type("数据".encode()[4:] + b"\x1b[200~pasted\x1b[201~")
    await person.sees("length=8")
    person.resize(70, 20)
    person.type(F2)
    await person.sees("clicks=1")
    person.resize(65535, 65535)
    person.resize(0, 0)
    person.resize(90, 25)
    person.type(F2)
    await person.sees("clicks=2")
    await leave(person)


async def test_control_c_and_signals(site: MenuSite) -> None:
    person = await site.person()
    await person.sees("hello alice")
    person.type(b"\x03\x03\x1a")
    person.send_signal("INT")
    person.type(F2)
    await person.sees("clicks=1")
    person.send_signal("HUP")
    await person.closed.wait()
    assert person.status == 0
    await leave(person)


async def test_into_a_shell_and_back(site: MenuSite) -> None:
    site.open_shell = echo
    person = await site.person()
    await person.sees("hello alice")
    person.type(F2)
    await person.sees("clicks=1")
    person.type(F3)
    await until(lambda: b"welcome to the shell" in person.raw)
    shell_at = person.raw.index(b"welcome")
    assert person.raw[:shell_at].endswith(b"\x1b[?1049l\x1b[?25h")
    person.type(b"abc")
    await until(lambda: b"ABC" in person.raw)
    person.resize(80, 20)
    await until(lambda: b"<80x20>" in person.raw)
    person.type(b"exit")
    await person.sees("shell ended with 5")
    back = person.raw[person.raw.index(b"EXIT") :]
    assert back.startswith(b"EXIT" + RESET + b"\x1b[?1049h")
    person.type(F2)
    await person.sees("clicks=2")
    assert site.shells == ["train"]
    await leave(person)


async def test_a_refused_shell_shows_its_sentence(site: MenuSite) -> None:
    async def refuse(channel: Channel, environment: str) -> int:
        raise NotFound("there is no environment 'train'")

    site.open_shell = refuse
    person = await site.person()
    await person.sees("hello alice")
    person.type(F3)
    await person.sees("refused: there is no environment 'train'")
    await leave(person)


async def test_a_failing_shell_does_not_take_the_menu_along(here: MenuSite) -> None:
    async def fail(channel: Channel, environment: str) -> int:
        raise RuntimeError("s3cr3t")

    here.open_shell = fail
    person = await here.person()
    await person.sees("hello alice")
    person.type(F3)
    await person.sees("refused: the shell failed")
    assert b"s3cr3t" not in person.raw
    await leave(person)


async def test_a_disconnect_in_the_shell_frees_everything(here: MenuSite) -> None:
    here.open_shell = echo
    person = await here.person()
    await person.sees("hello alice")
    person.type(F3)
    await until(lambda: b"welcome" in person.raw)
    person.connection.abort()
    await until(lambda: here.active == 0)
    await until(lambda: menus_alive() == 0)


async def test_a_crash_is_contained(site: MenuSite) -> None:
    alice, bob = await site.person("alice"), await site.person("bob")
    await alice.sees("hello alice")
    await bob.sees("hello bob")
    alice.type(F4)
    await alice.closed.wait()
    assert alice.status == 70
    assert "菜单因内部错误而退出" in alice.raw.decode()
    assert b"s3cr3t" not in alice.raw
    assert b"Traceback" not in alice.raw
    bob.type(F2)
    await bob.sees("clicks=1")
    await leave(alice)
    await leave(bob)


async def test_a_stranger_is_refused_in_one_line(site: MenuSite) -> None:
    person = await site.person("nobody")
    await person.closed.wait()
    assert person.status == 1
    assert "没有用户「nobody」".encode() in person.raw
    await leave(person)


async def test_dumb_terminals_get_prompts(site: MenuSite) -> None:
    person = await site.person(term="dumb")
    await until(lambda: b"plain menu of alice in zh> " in person.raw)
    assert b"\x1b" not in person.raw
    person.type(b"hi\r")
    await person.closed.wait()
    assert person.status == 3
    assert person.raw.endswith(b"bye hi\r\n")
    await leave(person)


async def test_dumb_terminals_get_no_escape_sequence_after_a_shell() -> None:
    async def shell_at_once(terminal: MenuTerminal, *_: object) -> int:
        status = await terminal.open_shell("train")
        terminal.write(f"ended with {status}\r\n".encode())
        return 0

    async def say_hi(channel: Channel, environment: str) -> int:
        channel.write(b"hi\r\n")
        return 5

    async with menu_site(InProcessMenu(services(), DemoMenu, shell_at_once)) as site:
        site.open_shell = say_hi
        person = await site.person(term="dumb")
        await person.closed.wait()
        assert bytes(person.raw) == b"hi\r\nended with 5\r\n"
        await leave(person)


async def test_mute_terminals_and_early_typing(site: MenuSite) -> None:
    person = await site.person(answers=b"")
    person.type(F2)
    await person.sees("clicks=1")
    # The answer comes too late, in two pieces, and is no key press.
    person.type(b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?6")
    person.type(b"2;4c" + F2)
    await person.sees("clicks=2")
    assert "length=" not in person.text
    await leave(person)


async def test_answers_change_what_is_drawn(here: MenuSite) -> None:
    answers = (
        b"\x1bP>|XTerm(380)\x1b\\\x1b]11;rgb:0000/0000/0000\x1b\\"
        b"\x1bP1$r0;48:2::1:2:3m\x1b\\\x1b[?2026;2$y\x1b[1;2R\x1b[?62;4c"
    )
    person = await here.person(answers=answers)
    await person.sees("hello alice")
    assert b";2;255;136;0m" in person.raw
    assert b"\x1b[?2026h" in person.raw
    await leave(person)


async def test_fifty_people_come_and_go_and_nothing_stays(here: MenuSite) -> None:
    tasks = len(asyncio.all_tasks())
    for number in range(50):
        person = await here.person(f"u{number}")
        if number % 3 == 0:
            await person.sees("hello")
        if number % 5 == 0:
            person.type(b"\x11")
            await person.closed.wait()
        person.connection.abort()
        await person.connection.wait_closed()
    await until(lambda: here.active == 0)
    await until(lambda: menus_alive() == 0)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


def _pids(site: MenuSite) -> list[int]:
    assert isinstance(site.menu, MenuWorkers)
    return [process.pid for process in site.menu._processes if process.pid is not None]


async def test_a_killed_worker_is_told_and_replaced(pool: MenuSite) -> None:
    person = await pool.person()
    await person.sees("hello alice")
    (pid,) = _pids(pool)
    os.kill(pid, signal.SIGKILL)
    await person.closed.wait()
    assert person.status == 1
    lost = person.raw[person.raw.rindex(RESET) + len(RESET) :].decode()
    assert "please reconnect" in lost
    assert "请重新连接" in lost
    await leave(person)
    again = await pool.person()
    await again.sees("hello alice")
    assert _pids(pool) != [pid]
    await leave(again)


async def test_a_mute_worker_is_killed(pool: MenuSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.menu_process._MUTE_SECONDS", 0.5)
    monkeypatch.setattr("gateway.menu_process._PING_SECONDS", 0.05)
    person = await pool.person()
    await person.sees("hello alice")
    await asyncio.sleep(2.1)
    person.type(F5)
    await person.closed.wait()
    assert person.status == 1
    await leave(person)
    again = await pool.person()
    await again.sees("hello alice")
    await leave(again)


async def test_people_are_spread_over_the_workers(data_dir: Path) -> None:
    async with menu_site(workers(data_dir, count=2)) as site:
        assert isinstance(site.menu, MenuWorkers)
        processes = site.menu._processes
        await asyncio.gather(*(process.ready.wait() for process in processes))
        people = [await site.person(f"u{number}") for number in range(4)]
        for person in people:
            await person.sees("hello")
        assert [process.sessions for process in processes] == [2, 2]
        sockets = list((data_dir / "run").glob("menu-*.sock"))
        assert [oct(path.stat().st_mode & 0o777) for path in sockets] == ["0o600"] * 2
        for person in people:
            await leave(person)
        await until(lambda: [process.sessions for process in processes] == [0, 0])
    assert not list((data_dir / "run").glob("menu-*.sock"))


async def test_workers_end_in_order_and_leave_terminals_in_order(data_dir: Path) -> None:
    async with menu_site(workers(data_dir)) as site:
        person = await site.person()
        await person.sees("hello alice")
        (pid,) = _pids(site)
        await site.menu.close()
        await person.closed.wait()
        assert b"\x1b[?1049l\x1b[?25h" in person.raw
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await leave(person)


async def test_without_workers_people_are_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.menu._WAIT_SECONDS", 0.1)
    menu = workers(data_dir)
    no_channel: Any = _NoChannel()
    with pytest.raises(Unavailable, match="not ready"):
        await menu.run(no_channel, await caller_for("alice"), language="en", open_shell=_no_shell)


class _NoChannel:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the channel was touched: {name}")


async def _no_shell(environment: str) -> int:
    raise AssertionError


_PARENT = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "tui.worker", *sys.argv[1:]], stdin=-1, stdout=-1)
worker.stdout.readline()
print(worker.pid, flush=True)
worker.wait()
"""


async def test_an_orphaned_worker_ends(data_dir: Path) -> None:
    path, settings = str(data_dir / "w.sock"), str(data_dir / "settings.json")
    arguments = [path, str(data_dir), settings, "--kit", "tests.tui.demo_menu:kit"]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    worker = Path("/proc") / (await parent.stdout.readline()).decode().strip()
    parent.kill()
    await parent.wait()
    await until(lambda: not worker.exists() or ") Z " in (worker / "stat").read_text())


async def test_a_long_data_directory(data_dir: Path) -> None:
    deep = data_dir / ("d" * 100)
    deep.mkdir()
    async with menu_site(workers(deep)) as site:
        person = await site.person()
        await person.sees("hello alice")
        await leave(person)


class SlowChannel:
    """A client behind a thin line: takes what is written, and says how much is still under way."""

    def __init__(self) -> None:
        self.terminal = Terminal("xterm-256color", Size(80, 24), {})
        self.variables = {"LANG": "en_US.UTF-8"}
        self.is_closed = False
        self.written = bytearray()
        self.under_way = 0
        self.consumer: Consumer | None = None
        self.is_paused = False

    def attach(self, consumer: Consumer) -> None:
        self.consumer = consumer

    def detach(self, consumer: Consumer) -> None:
        self.consumer = None

    def write(self, data: bytes) -> None:
        self.written += data
        if b"\x1b[c" in data and self.consumer is not None:
            self.consumer.data_received(b"\x1b[?62c")

    def backlog(self) -> int:
        return self.under_way

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


async def test_nothing_is_drawn_while_the_line_is_full() -> None:
    menu = InProcessMenu(services(), DemoMenu, run_plain)
    channel = SlowChannel()
    any_channel: Any = channel
    task = asyncio.create_task(menu.run(any_channel, await caller_for("alice"), language="", open_shell=_no_shell))
    await until(lambda: b"hello alice in en" in channel.written)
    await asyncio.sleep(0.3)
    channel.under_way = 100_000
    assert channel.consumer is not None
    channel.consumer.data_received(F2)
    await until(lambda: b"clicks=1" in channel.written)
    await asyncio.sleep(0.1)
    before = len(channel.written)
    for _ in range(9):
        channel.consumer.data_received(F2)
        await asyncio.sleep(0.02)
    assert len(channel.written) == before
    channel.under_way = 0
    await until(lambda: b"clicks=10" in channel.written[before:])
    assert b"clicks=5" not in channel.written
    channel.consumer.data_received(b"\x11")
    assert await task == 0
    await menu.close()


async def test_a_flood_of_input_is_held_back_and_leaves_others_alone(pool: MenuSite) -> None:
    alice, bob = await pool.person("alice"), await pool.person("bob")
    await alice.sees("hello alice")
    await bob.sees("hello bob")
    alice.type(b"\x1b[200~" + b"x" * 3_000_000 + b"\x1b[201~")
    for number in range(1, 6):
        bob.type(F2)
        await bob.sees(f"clicks={number}")
    alice.type(F2)
    await alice.sees("clicks=1")
    await alice.sees("length=262144")
    await leave(alice)
    await leave(bob)


async def test_the_menu_of_ashore(data_dir: Path, alice: Caller) -> None:
    """The real thing: worker, services on the same database, screens; and prompts for a dumb terminal."""
    settings = data_dir / "house.json"
    # No screen of this test asks the object store for anything.
    HouseSettings(objects=ObjectSettings(endpoint="http://127.0.0.1:9")).save(settings)
    async with menu_site(MenuWorkers(data_dir, settings, count=1)) as site:
        person = await site.person("alice")
        await person.sees("alice")
        await person.sees("Ashore")
        person.type(b"q")
        await person.closed.wait()
        assert person.status == 0
        await leave(person)
        plain = await site.person("alice", term="dumb")
        await until(lambda: len(plain.raw) > 20)
        assert b"\x1b" not in plain.raw
        plain.type(b"q\r")
        await plain.closed.wait()
        assert plain.status == 0
        await leave(plain)
