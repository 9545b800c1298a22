"""Bytes, sizes, signals, exit status and half-close between a client's channel and one in an environment.

The client's side is a `Channel`; the environment's side is a session of the guest connection. Copies nothing: what one
side receives is written to the other as it came, and a side that cannot keep up stops the other from reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import asyncssh

from gateway import tuning
from gateway.channel import Channel, Size
from storage.errors import Unavailable

# For clients that send no locale; what an image sets itself stays.
_DEFAULTS = {"LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Exit:
    """How a program ended: a status, or a signal (`KILL`); both None when the environment went away first."""

    status: int | None = None
    signal: str | None = None
    core_dumped: bool = False
    message: str = ""

    @property
    def code(self) -> int:
        """As a shell would show it."""
        if self.status is not None:
            return self.status
        return 255


class Tap(Protocol):
    """Watches what passes, without changing it: a recorder, an auditor. Must not block and must not raise."""

    def input(self, data: bytes) -> None:
        """The client sent `data`."""
        ...

    def output(self, data: bytes) -> None:
        """The environment sent `data`, on stdout or stderr."""
        ...

    def resized(self, size: Size) -> None: ...


class _Upstream(asyncssh.SSHClientSession[bytes]):
    """The environment's side; each callback hands on to the relay and never raises."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._relay.from_environment(data, is_stderr=datatype is not None)

    def eof_received(self) -> bool:
        self._relay.output_ended()
        return True

    def exit_status_received(self, status: int) -> None:
        self._relay.exit = Exit(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._relay.exit = Exit(None, signal, core_dumped, msg)

    def pause_writing(self) -> None:
        self._relay.channel.pause_reading()

    def resume_writing(self) -> None:
        self._relay.channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.finish()


class Relay:
    """One program in an environment, joined to one client channel."""

    def __init__(self, channel: Channel, tap: Tap | None, end_of_output: Callable[[], None]) -> None:
        """`end_of_output` is called when the program will write no more: it closes the client's input, or, where the
        channel is only lent, does nothing."""
        self.channel = channel
        self.end_of_output = end_of_output
        self.exit = Exit()
        self._tap = tap
        self._upstream: asyncssh.SSHClientChannel[bytes] | None = None
        self._has_client_ended = False
        self._done = asyncio.Event()

    async def run(
        self,
        connection: asyncssh.SSHClientConnection,
        *,
        command: str | None = None,
        subsystem: str | None = None,
    ) -> Exit:
        """Start it, stay until it has ended or the client is gone, and tell how it ended."""
        terminal = self.channel.terminal
        try:
            self._upstream, _ = await connection.create_session(
                lambda: _Upstream(self),
                command=command if command is not None else (),
                subsystem=subsystem if subsystem is not None else (),
                env=[f"{name}={value}" for name, value in (_DEFAULTS | dict(self.channel.variables)).items()],
                request_pty="force" if terminal is not None else False,
                term_type=terminal.kind if terminal is not None else (),
                term_size=_term_size(terminal.size) if terminal is not None else (),
                term_modes=dict(terminal.modes) if terminal is not None else (),
                encoding=None,
            )
        except (asyncssh.Error, OSError) as error:
            raise Unavailable("the environment did not open a session") from error
        self.channel.attach(self)
        try:
            await self._done.wait()
        finally:
            self.channel.detach(self)
            self._upstream.close()
        return self.exit

    def from_environment(self, data: bytes, *, is_stderr: bool) -> None:
        if is_stderr:
            self.channel.write_stderr(data)
        else:
            self.channel.write(data)
        if self._tap is not None:
            self._tap.output(data)

    def output_ended(self) -> None:
        """Pass the end of output on, unless the client sent its own already: OpenSSH's multiplexing client closes a
        channel that has ended both ways at once, and would miss the exit status, which closes the output anyway."""
        if not self._has_client_ended:
            self.end_of_output()

    def finish(self) -> None:
        self._done.set()

    # ---- Consumer: what the client does ----------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.write(data)
        if self._tap is not None:
            self._tap.input(data)

    def eof_received(self) -> None:
        self._has_client_ended = True
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.write_eof()

    def resized(self, size: Size) -> None:
        if self._upstream is not None:
            self._upstream.change_terminal_size(*_term_size(size))
        if self._tap is not None:
            self._tap.resized(size)

    def signal_received(self, name: str) -> None:
        if self._upstream is not None:
            self._upstream.send_signal(name)

    def break_received(self, milliseconds: int) -> None:
        if self._upstream is not None:
            self._upstream.send_break(milliseconds)

    def output_unwanted(self) -> None:
        if self._upstream is not None:
            tuning.send_end_of_write(self._upstream)

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def closed(self) -> None:
        self._done.set()


def _term_size(size: Size) -> tuple[int, int, int, int]:
    return (size.columns, size.rows, size.width, size.height)
