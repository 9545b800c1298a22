"""Many menus in one event loop: each connection says hello, gets its App, and is taken apart when it ends.

`MenuHost` knows frames and Apps, not processes: `tui.worker` runs one as a process, tests run one beside
the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from storage.access import Caller
from storage.errors import AshoreError
from storage.names import printable
from tui.frames import Back, Decoder, Frame, FrameError, Hello, Kind, decode_size, encode
from tui.served import ServedApp, harden_textual
from tui.terminal import Capabilities, Keyboard, ScreenSize, Terminal
from tui.texts import translator
from tui.texts.sentences import in_language

if TYPE_CHECKING:
    from backends.services import Services

log = logging.getLogger(__name__)

MakeMenu = Callable[[Terminal, "Services", Caller, str], ServedApp]
RunPlain = Callable[[Terminal, "Services", Caller, str], Awaitable[int]]
_STARTS_AT_ONCE = 2
_SLICE = 4096
"""Bytes of input that one menu handles before the others have their turn."""
_INPUT_HIGH = 64 * 1024
_CRASHED = {
    "en": "The menu had to stop: an internal error, which was logged. Please reconnect.",
    "zh": "菜单因内部错误而退出，错误已记录。请重新连接。",
}
EXIT_INTERNAL = 70


class _Sender(Protocol):
    """What a `HostedTerminal` needs of its connection."""

    def send(self, kind: Kind, payload: bytes = b"") -> None: ...


class HostedTerminal:
    """A `Terminal` at the end of a framed connection."""

    def __init__(self, connection: _Sender, capabilities: Capabilities, size: ScreenSize) -> None:
        self.capabilities = capabilities
        self.size = size
        self.is_closed = False
        self._connection = connection
        self._keyboard: Keyboard | None = None
        self._pauses: set[str] = set()
        self._back: asyncio.Future[int] | None = None
        self._kept = bytearray()
        self._has_ended = False

    def attach(self, keyboard: Keyboard) -> None:
        self._keyboard = keyboard
        if self._pauses:
            keyboard.pause_writing()
        kept, self._kept = bytes(self._kept), bytearray()
        if kept:
            keyboard.data_received(kept)
        if self._has_ended:
            keyboard.eof_received()

    def detach(self, keyboard: Keyboard) -> None:
        if self._keyboard is keyboard:
            self._keyboard = None

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self._connection.send(Kind.DATA, data)

    async def open_shell(self, environment: str) -> int:
        if self.is_closed or self._back is not None:
            raise AshoreError("the terminal is in use")
        self._back = asyncio.get_running_loop().create_future()
        self._connection.send(Kind.SHELL, environment.encode())
        try:
            return await self._back
        finally:
            self._back = None

    # ---- called by the connection ----------------------------------------------------------------------
    def type(self, data: bytes) -> None:
        if self._keyboard is not None:
            self._keyboard.data_received(data)
        elif len(self._kept) + len(data) <= _INPUT_HIGH:
            self._kept += data

    def end_of_input(self) -> None:
        self._has_ended = True
        if self._keyboard is not None:
            self._keyboard.eof_received()

    def resize(self, size: ScreenSize) -> None:
        self.size = size
        if self._keyboard is not None:
            self._keyboard.resized(size)

    def pause(self, why: str) -> None:
        self._pauses.add(why)
        if self._keyboard is not None and len(self._pauses) == 1:
            self._keyboard.pause_writing()

    def unpause(self, why: str) -> None:
        if why not in self._pauses:
            return
        self._pauses.discard(why)
        if self._keyboard is not None and not self._pauses:
            self._keyboard.resume_writing()

    def shell_over(self, back: Back) -> None:
        if self._back is None or self._back.done():
            return
        if back.error:
            self._back.set_exception(AshoreError(printable(back.error)))
        else:
            self._back.set_result(back.status)

    def close(self) -> None:
        self.is_closed = True
        keyboard, self._keyboard = self._keyboard, None
        if keyboard is not None:
            keyboard.closed()
        if self._back is not None and not self._back.done():
            self._back.cancel()


class Connection(asyncio.Protocol):
    """One menu's connection. Ends with an EXIT frame, unless the other end went first."""

    def __init__(self, host: MenuHost) -> None:
        self._host = host
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._terminal: HostedTerminal | None = None
        self._task: asyncio.Task[None] | None = None
        self._input = bytearray()
        self._feeding: asyncio.Handle | None = None
        self._is_reading = True

    # ---- asyncio's side --------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=128 * 1024)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._handle(frame)
        except FrameError as error:
            log.error("a connection spoke nonsense: %s", error)
            self._abort()

    def pause_writing(self) -> None:
        if self._terminal is not None:
            self._terminal.pause("socket")

    def resume_writing(self) -> None:
        if self._terminal is not None:
            self._terminal.unpause("socket")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._input.clear()
        if self._feeding is not None:
            self._feeding.cancel()
        if self._terminal is not None:
            self._terminal.close()
        if self._task is not None:
            self._task.cancel()

    # ---- frames ----------------------------------------------------------------------------------------
    def send(self, kind: Kind, payload: bytes = b"") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, payload))

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            self.send(Kind.PONG, frame.payload)
        elif frame.kind is Kind.HELLO:
            self._begin(Hello.from_payload(frame.payload))
        elif frame.kind is Kind.KILL:
            self._abort()
        elif self._terminal is None:
            raise FrameError(f"{frame.kind.name} before HELLO")
        elif frame.kind is Kind.DATA:
            self._take_input(frame.payload)
        else:
            self._control(self._terminal, frame)

    @staticmethod
    def _control(terminal: HostedTerminal, frame: Frame) -> None:
        if frame.kind is Kind.RESIZE:
            terminal.resize(decode_size(frame.payload))
        elif frame.kind is Kind.PAUSE:
            terminal.pause("client")
        elif frame.kind is Kind.UNPAUSE:
            terminal.unpause("client")
        elif frame.kind is Kind.EOF:
            terminal.end_of_input()
        elif frame.kind is Kind.BACK:
            terminal.shell_over(Back.from_payload(frame.payload))
        else:
            raise FrameError(f"{frame.kind.name} in the wrong direction")

    def _begin(self, hello: Hello) -> None:
        if self._terminal is not None:
            raise FrameError("a second HELLO")
        self._terminal = HostedTerminal(self, hello.capabilities, hello.size)
        serve = self._host.serve(self._terminal, hello)
        self._task = asyncio.create_task(self._run(serve), name=f"menu of {hello.user}")

    async def _run(self, serve: Awaitable[int]) -> None:
        status = EXIT_INTERNAL
        try:
            status = await serve
        finally:
            self.send(Kind.EXIT, bytes([status & 255]))
            if self._transport is not None:
                self._transport.close()
            self._task = None

    def _take_input(self, data: bytes) -> None:
        self._input += data
        self._host.note_input()
        if self._feeding is None:
            self._feed()
        if len(self._input) > _INPUT_HIGH and self._is_reading and self._transport is not None:
            self._is_reading = False
            self._transport.pause_reading()

    def _feed(self) -> None:
        self._feeding = None
        piece = bytes(self._input[:_SLICE])
        del self._input[:_SLICE]
        if self._terminal is not None:
            self._terminal.type(piece)
        if self._input:
            self._feeding = asyncio.get_running_loop().call_soon(self._feed)
        elif not self._is_reading and self._transport is not None:
            self._is_reading = True
            self._transport.resume_reading()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class MenuHost:
    """The menus of one event loop."""

    def __init__(self, services: Services, make_menu: MakeMenu, run_plain: RunPlain) -> None:
        harden_textual()
        self._services = services
        self._make_menu = make_menu
        self._run_plain = run_plain
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._running: set[asyncio.Task[int]] = set()
        self.ended = 0
        """Menus that are over since it was last set to 0: garbage waits to be collected."""
        self.last_input = 0.0
        """Time of the event loop when somebody typed last."""

    def connection(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self)

    def note_input(self) -> None:
        self.last_input = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End every menu; each leaves its terminal in order."""
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def serve(self, terminal: Terminal, hello: Hello) -> int:
        """One menu from hello to exit status. A crash is logged and told in one neutral sentence."""
        task = asyncio.create_task(self._serve(terminal, hello), name=f"App of {hello.user}")
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return 1
        finally:
            self._running.discard(task)
            self.ended += 1

    async def _serve(self, terminal: Terminal, hello: Hello) -> int:
        language = hello.language or hello.capabilities.language
        try:
            caller = await self._services.accounts.caller_for(
                hello.user, address=hello.address, connection=hello.connection
            )
            if not terminal.capabilities.fullscreen:
                return await self._run_plain(terminal, self._services, caller, language)
            return await self._run_app(partial(self._make_menu, terminal, self._services, caller, language), hello)
        except AshoreError as error:
            _say(terminal, in_language(translator(language), printable(error.message)))
            return error.exit_status
        except Exception:
            # The wall between menus: whatever happens in one, the others go on.
            log.exception("the menu of %s failed", printable(hello.user, limit=40))
        _say(terminal, _CRASHED.get(hello.language, _CRASHED["en"]))
        return EXIT_INTERNAL

    async def _run_app(self, make: Callable[[], ServedApp], hello: Hello) -> int:
        # A start costs a core for a tenth of a second; all at once, after a network failure, nobody would
        # get any.
        async with self._starts:
            app = make()
            running = asyncio.create_task(app.run_async(), name=f"Textual of {hello.user}")
            ready = asyncio.create_task(app.started.wait(), name=f"start of {hello.user}")
            try:
                await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                raise
            finally:
                ready.cancel()
        try:
            await running
        except asyncio.CancelledError:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            raise
        if app.return_code:
            _say(app.terminal, _CRASHED.get(hello.language, _CRASHED["en"]))
            return EXIT_INTERNAL
        return 0


def _say(terminal: Terminal, sentence: str) -> None:
    terminal.write(f"\r\n{sentence}\r\n".encode(terminal.capabilities.charset, "replace"))
