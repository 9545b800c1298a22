"""The menu on a channel: joins a client's channel to the process that draws, and to a shell in between.

The gateway keeps the channel and the state of the terminal; what is drawn comes in frames (`tui.frames`) from
a worker process, or in tests from this one. Textual is never imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.channel import Channel, Size
from gateway.menu_process import MenuProcess
from gateway.probe import Probed, ReplyFilter, probe
from storage.access import Caller
from storage.errors import AshoreError, Unavailable
from tui import sockets
from tui.frames import Back, Decoder, Frame, FrameError, Hello, Kind, encode, encode_size
from tui.terminal import RESET, ScreenSize, capabilities

if TYPE_CHECKING:
    from backends.services import Services
    from tui.host import MakeMenu, RunPlain

log = logging.getLogger(__name__)

OpenShell = Callable[[str], Awaitable[int]]
"""Gives the channel to a login shell in the environment of that name.

It attaches its own consumer and detaches it when the shell is over, leaves the channel open in *both*
directions, and returns the exit status; or raises AshoreError with a sentence that the menu then shows.
"""
BACKLOG = 16 * 1024
"""Bytes on their way to the client from which on nothing more is drawn."""
_PACE_SECONDS = 0.05
_LATE_SECONDS = 10.0
_WAIT_SECONDS = 15.0
_LOST = "菜单进程已退出，请重新连接 / the menu was lost, please reconnect"
_LONGEST_NAME = 200


@dataclass(frozen=True)
class _Shell:
    environment: str


@dataclass(frozen=True)
class _Exit:
    status: int


class _Lost:
    """The worker or the client is gone."""


class _Link(asyncio.Protocol):
    """The connection to a host of menus."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.send_raw(encode(kind, payload))

    def send_raw(self, frames: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._session.frame_received(frame)
        except FrameError as error:
            log.error("a TUI worker spoke nonsense: %s", error)
            self.close()

    def pause_writing(self) -> None:
        self._session.pause_input()

    def resume_writing(self) -> None:
        self._session.resume_input()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._session.lost()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Session:
    """Consumer of one channel, joined to one link."""

    def __init__(self, channel: Channel) -> None:
        self.link = _Link(self)
        self._channel = channel
        self._events: asyncio.Queue[_Shell | _Exit | _Lost] = asyncio.Queue()
        self._late: ReplyFilter | None = None
        self._late_until = 0.0
        self._holds: set[str] = set()
        self._pace_timer: asyncio.TimerHandle | None = None
        self._is_attached = False
        self._is_input_paused = False
        self._reset = b""

    # ---- the whole story -------------------------------------------------------------------------------
    async def run(self, hello: Hello, probed: Probed, open_shell: OpenShell) -> int:
        self._reset = RESET if hello.capabilities.fullscreen else b""
        self.link.send(Kind.HELLO, hello.to_payload())
        self._late = probed.late
        self._late_until = asyncio.get_running_loop().time() + _LATE_SECONDS
        if probed.typed:
            self.link.send(Kind.DATA, probed.typed)
        if probed.has_eof:
            self.link.send(Kind.EOF)
        self._attach()
        try:
            while True:
                match await self._events.get():
                    case _Shell(environment):
                        await self._lend_channel(environment, open_shell)
                    case _Exit(status):
                        return status
                    case _Lost():
                        return self._end_lost()
        finally:
            self._detach()
            self.link.close()

    async def _lend_channel(self, environment: str, open_shell: OpenShell) -> None:
        self._detach()
        try:
            back = Back(status=await open_shell(environment))
        except AshoreError as error:
            back = Back(error=error.message or "the shell could not be opened")
        except Exception:
            # A wall: a shell that fails in an unforeseen way must not take the menu along.
            log.exception("a shell from the menu failed")
            back = Back(error="the shell failed: an internal error, which was logged")
        finally:
            self._channel.write(self._reset)
        if self._channel.is_closed:
            self._events.put_nowait(_Lost())
            return
        if self._channel.terminal is not None:
            self.resized(self._channel.terminal.size)
        self.link.send(Kind.BACK, back.to_payload())
        self._attach()

    def _end_lost(self) -> int:
        if not self._channel.is_closed:
            self._channel.write(self._reset + f"\r\n{_LOST}\r\n".encode())
        return 1

    def _attach(self) -> None:
        if not self._channel.is_closed:
            self._is_attached = True
            self._channel.attach(self)
        else:
            self._events.put_nowait(_Lost())

    def _detach(self) -> None:
        if self._is_attached:
            self._is_attached = False
            self._channel.detach(self)
        self.resume_input()
        if self._pace_timer is not None:
            self._pace_timer.cancel()
            self._pace_timer = None
        for why in tuple(self._holds):
            self._release(why)

    # ---- from the host of menus ------------------------------------------------------------------------
    def frame_received(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            self._show(frame.payload)
        elif frame.kind is Kind.SHELL:
            self._events.put_nowait(_Shell(frame.payload.decode("utf-8", "replace")[:_LONGEST_NAME]))
        elif frame.kind is Kind.EXIT and frame.payload:
            self._events.put_nowait(_Exit(frame.payload[0]))
        else:
            raise FrameError(f"{frame.kind.name} in the wrong direction")

    def lost(self) -> None:
        self._events.put_nowait(_Lost())

    def _show(self, data: bytes) -> None:
        if not self._is_attached:
            return  # the shell has the terminal
        self._channel.write(data)
        if self._pace_timer is None and self._channel.backlog() > BACKLOG:
            self._hold("pace")
            self._pace_later()

    def _pace_later(self) -> None:
        self._pace_timer = asyncio.get_running_loop().call_later(_PACE_SECONDS, self._pace)

    def _pace(self) -> None:
        self._pace_timer = None
        if self._channel.backlog() > BACKLOG:
            self._pace_later()
        else:
            self._release("pace")

    def _hold(self, why: str) -> None:
        if not self._holds:
            self.link.send(Kind.PAUSE)
        self._holds.add(why)

    def _release(self, why: str) -> None:
        if why in self._holds:
            self._holds.discard(why)
            if not self._holds:
                self.link.send(Kind.UNPAUSE)

    def pause_input(self) -> None:
        """The host does not keep up with what is typed or pasted."""
        if self._is_attached:
            self._is_input_paused = True
            self._channel.pause_reading()

    def resume_input(self) -> None:
        if self._is_input_paused:
            self._is_input_paused = False
            self._channel.resume_reading()

    # ---- from the client (Consumer) --------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._late is not None:
            data = self._without_replies(self._late, data)
        if data:
            self.link.send(Kind.DATA, data)

    def _without_replies(self, late: ReplyFilter, data: bytes) -> bytes:
        typed = late.feed(data)
        if late.is_fenced or asyncio.get_running_loop().time() > self._late_until:
            self._late = None
            typed += late.release()
        return typed

    def eof_received(self) -> None:
        self.link.send(Kind.EOF)

    def resized(self, size: Size) -> None:
        self.link.send_raw(encode_size(_screen(size)))

    def signal_received(self, name: str) -> None:
        if name == "INT":
            self.link.send(Kind.DATA, b"\x03")
        elif name in ("HUP", "TERM"):
            self.link.send(Kind.EOF)

    def output_unwanted(self) -> None: ...

    def break_received(self, milliseconds: int) -> None:
        return

    def pause_writing(self) -> None:
        self._hold("channel")

    def resume_writing(self) -> None:
        self._release("channel")

    def closed(self) -> None:
        self.link.send(Kind.KILL)
        self._events.put_nowait(_Lost())


async def _run(
    link_socket: socket.socket, channel: Channel, caller: Caller, language: str, open_shell: OpenShell
) -> int:
    session = _Session(channel)
    await asyncio.get_running_loop().create_connection(lambda: session.link, sock=link_socket)
    try:
        terminal = channel.terminal
        guess = capabilities("" if terminal is None else terminal.kind, channel.variables)
        probed = await probe(channel, guess)
        hello = Hello(
            user=caller.name,
            address=caller.address,
            connection=caller.connection,
            language=language or guess.language,
            capabilities=probed.capabilities,
            size=ScreenSize() if channel.terminal is None else _screen(channel.terminal.size),
        )
        return await session.run(hello, probed, open_shell)
    finally:
        session.link.close()


def _screen(size: Size) -> ScreenSize:
    return ScreenSize(size.columns, size.rows, size.width, size.height)


def _sweep(directory: Path) -> None:
    """Remove the sockets of gateways that died."""
    for path in directory.glob("menu-*-*.sock"):
        pid = path.name.split("-")[1]
        if not pid.isdecimal() or int(pid) == os.getpid() or not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


class MenuWorkers:
    """The menu, drawn by a few worker processes; a new one goes where the fewest are."""

    def __init__(self, data: Path, settings: Path, *, count: int = 0, kit: str = "") -> None:
        """`settings` is a file of `HouseSettings`; `count` 0 means one process less than there are cores, and
        at least two. `kit` names what they serve instead of Ashore's menu (`tui.worker.Kit`).
        """
        count = count or max(2, (os.cpu_count() or 1) - 1)
        self._run = data / "run"
        # Several gateways may share a data directory: our process id keeps their sockets apart.
        self._processes = [
            MenuProcess(self._run / f"menu-{os.getpid()}-{number}.sock", data, settings, kit=kit)
            for number in range(count)
        ]

    async def start(self) -> None:
        """Start the processes; `run` waits until one is ready."""
        await asyncio.to_thread(_sweep, self._run)
        for process in self._processes:
            process.start()

    async def close(self) -> None:
        """End every menu and every process."""
        await asyncio.gather(*(process.close() for process in self._processes))
        await asyncio.to_thread(_sweep, self._run)

    async def run(self, channel: Channel, caller: Caller, *, language: str, open_shell: OpenShell) -> int:
        """Show the menu until the person leaves, the channel closes or the menu is lost; the exit status.

        Unavailable, before anything is written, when no process serves.
        """
        process, link = await self._connect()
        process.sessions += 1
        try:
            return await _run(link, channel, caller, language, open_shell)
        finally:
            process.sessions -= 1

    async def _connect(self) -> tuple[MenuProcess, socket.socket]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_SECONDS):
                while True:
                    process = await self._emptiest()
                    with contextlib.suppress(OSError):
                        return process, await sockets.connect(process.path)
                    await asyncio.sleep(_PACE_SECONDS)
        raise Unavailable("the menu is not ready; try again in a moment")

    async def _emptiest(self) -> MenuProcess:
        if not any(process.ready.is_set() for process in self._processes):
            waits = [asyncio.create_task(p.ready.wait(), name="a worker is ready") for p in self._processes]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        return min(self._processes, key=lambda p: (not p.ready.is_set(), p.sessions))


class InProcessMenu:
    """The menu, drawn in this very process: for tests. One slow screen would stall every other connection."""

    def __init__(
        self, services: Services, make_menu: MakeMenu | None = None, run_plain: RunPlain | None = None
    ) -> None:
        # Imported here: a gateway with workers never loads Textual.
        from tui.host import MenuHost
        from tui.worker import ashore

        if make_menu is None or run_plain is None:
            kit = ashore()
            make_menu, run_plain = make_menu or kit.make_menu, run_plain or kit.run_plain
        self._host = MenuHost(services, make_menu, run_plain)

    async def start(self) -> None:
        return

    async def close(self) -> None:
        await self._host.close()

    async def run(self, channel: Channel, caller: Caller, *, language: str, open_shell: OpenShell) -> int:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._host.connection, theirs)
        return await _run(ours, channel, caller, language, open_shell)
