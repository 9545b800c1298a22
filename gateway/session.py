"""One SSH session channel: from the client's request to the door, and the client's end for whoever serves it.

Every callback that asyncssh makes is walled: an exception in one would close the whole connection with all its
channels. Data, end of file, signals and sizes that come before a consumer is attached are kept in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, cast

import asyncssh

from gateway.channel import Consumer, Size, Terminal
from gateway.routes import Asked
from storage.access import Action, Variable, decide
from storage.names import printable

if TYPE_CHECKING:
    from gateway.connection import Connection

log = logging.getLogger(__name__)
_KEPT_INPUT = 256 * 1024
_KEPT_CALL = 256
"""What a small piece costs while it is kept, bytes."""
_KEPT_NEWS = 100
_P = ParamSpec("_P")


def _walled(method: Callable[Concatenate[ClientSession, _P], None]) -> Callable[Concatenate[ClientSession, _P], None]:
    @wraps(method)
    def wall(self: ClientSession, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            log.exception("a session callback failed")
            self.abort()

    return cast("Callable[Concatenate[ClientSession, _P], None]", wall)


class ClientSession(asyncssh.SSHServerSession[bytes]):
    """The server's side of a session channel; implements `gateway.channel.Channel`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._terminal: Terminal | None = None
        self._command: str | None = None
        self._subsystem: str | None = None
        self._consumer: Consumer | None = None
        self._kept: deque[Callable[[Consumer], None]] = deque()
        self._kept_bytes = 0
        self._kept_news = 0
        self._is_size_new = False
        self._write_paused = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    # ---- what asyncssh calls ---------------------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Any) -> bool:
        self._terminal = Terminal(printable(term_type, limit=64), _size(*term_size), dict(term_modes))
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._subsystem = subsystem
        return True

    @_walled
    def session_started(self) -> None:
        self._task = self._connection.serve(self)

    @_walled
    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.bytes_in += len(data)
        if self._consumer is not None:
            self._consumer.data_received(data)
            return
        self._kept.append(lambda consumer: consumer.data_received(data))
        self._kept_bytes += len(data) + _KEPT_CALL
        if self._kept_bytes > _KEPT_INPUT:
            self.pause_reading()

    def eof_received(self) -> bool:
        self._tell(lambda consumer: consumer.eof_received())
        return True

    def eow_received(self) -> None:
        """The client's reader has gone away (eow@openssh.com)."""
        self._tell(lambda consumer: consumer.output_unwanted(), limited=True)

    def signal_received(self, signal: str) -> None:
        name = printable(signal, limit=20)
        self._tell(lambda consumer: consumer.signal_received(name), limited=True)

    def break_received(self, msec: int) -> bool:
        self._tell(lambda consumer: consumer.break_received(msec), limited=True)
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        size = _size(width, height, pixwidth, pixheight)
        if self._terminal is not None:
            self._terminal = Terminal(self._terminal.kind, size, self._terminal.modes)
        if self._consumer is None:
            self._is_size_new = True  # the last one is all that matters
        else:
            self._tell(lambda consumer: consumer.resized(size))

    @_walled
    def pause_writing(self) -> None:
        self._write_paused = True
        if self._consumer is not None:
            self._consumer.pause_writing()

    @_walled
    def resume_writing(self) -> None:
        self._write_paused = False
        if self._consumer is not None:
            self._consumer.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._farewell()
        self._connection.session_gone(self, self._task)

    def _farewell(self) -> None:
        self._kept.clear()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                consumer.closed()
            except Exception:
                log.exception("a consumer failed at the end of its channel")

    # ---- what doors use (gateway.channel.Channel) ------------------------------------------------------------
    @property
    def asked(self) -> Asked:
        return Asked(self._terminal is not None, self._command, self._subsystem)

    @property
    def terminal(self) -> Terminal | None:
        return self._terminal

    @property
    def variables(self) -> Mapping[str, str]:
        """What the client sent and `decide` allows; undecodable ones are dropped."""
        if self._channel is None or self._connection.caller is None:
            return {}
        caller = self._connection.caller
        sent = self._channel.get_environment_bytes()
        found = {}
        for raw_name, raw_value in sent.items():
            name, value = raw_name.decode("utf-8", "replace"), raw_value.decode("utf-8", "replace")
            if decide(caller, Action.SET_VARIABLE, Variable(name)).allowed and "\0" not in value:
                found[name] = value[:1024]
        return found

    @property
    def is_closed(self) -> bool:
        return self._closed

    def attach(self, consumer: Consumer) -> None:
        self._consumer = consumer
        while self._kept and self._consumer is consumer:
            self._kept.popleft()(consumer)
        self._kept_bytes = self._kept_news = 0
        if self._is_size_new and self._terminal is not None:
            self._is_size_new = False
            consumer.resized(self._terminal.size)
        if self._closed:
            consumer.closed()
            return
        self.resume_reading()
        if self._write_paused:
            consumer.pause_writing()

    def detach(self, consumer: Consumer) -> None:
        if self._consumer is consumer:
            self._consumer = None

    def write(self, data: bytes) -> None:
        if self._channel is not None and not self._closed and not self._channel.is_closing():
            self.bytes_out += len(data)
            self._channel.write(data)

    def write_stderr(self, data: bytes) -> None:
        if self._terminal is not None:
            self.write(data)
        elif self._channel is not None and not self._closed and not self._channel.is_closing():
            self.bytes_out += len(data)
            self._channel.write_stderr(data)

    def write_eof(self) -> None:
        if self._channel is not None and not self._closed and not self._channel.is_closing():
            self._channel.write_eof()

    def pause_reading(self) -> None:
        if self._channel is not None and not self._closed:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._channel is not None and not self._closed:
            self._channel.resume_reading()

    def exit(self, status: int) -> None:
        if self._channel is not None and not self._closed:
            self._channel.exit(status)

    def exit_with_signal(self, signal: str, core_dumped: bool, message: str) -> None:
        if self._channel is not None and not self._closed:
            self._channel.exit_with_signal(signal, core_dumped, message)

    def abort(self) -> None:
        """Close at once, throwing away what was not sent, and without waiting for the client to agree."""
        if self._channel is not None and not self._closed:
            self._channel.abort()
            self._closed = True
            self._farewell()

    def backlog(self) -> int:
        if self._channel is None or self._closed:
            return 0
        return self._channel.get_write_buffer_size() + self._connection.transport_backlog()

    def say(self, sentence: str) -> None:
        """One line for the person: on stderr, with the line end that the client's terminal needs."""
        end = "\r\n" if self._terminal is not None else "\n"
        self.write_stderr((printable(sentence) + end).encode())

    def _tell(self, news: Callable[[Consumer], None], *, limited: bool = False) -> None:
        """Hand `news` on, or keep it. `limited`: a client may send it as often as it likes, no window bounds it."""
        if self._consumer is None:
            self._kept_news += limited
            if not limited or self._kept_news <= _KEPT_NEWS:
                self._kept.append(news)
            return
        try:
            news(self._consumer)
        except Exception:
            log.exception("a consumer failed")
            self.abort()


def _size(width: int, height: int, pixel_width: int, pixel_height: int) -> Size:
    return Size(
        min(max(width, 1), 2000) if width else 80,
        min(max(height, 1), 1000) if height else 24,
        min(pixel_width, 65535),
        min(pixel_height, 65535),
    )
