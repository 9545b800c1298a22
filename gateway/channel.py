"""The two sides of one SSH channel: the client's end, and whoever serves it at the moment.

A `Channel` hands what the client sends to exactly one `Consumer` at a time (a relay, the menu, a command, SFTP); while
there is none it keeps data, end of file, signals and sizes in order. So handing over is only a change of consumer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Size:
    """A terminal's size in cells and pixels (pixels may be 0)."""

    columns: int = 80
    rows: int = 24
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Terminal:
    """What the client said in its pty-req. `modes` are RFC 4254 §8 opcodes."""

    kind: str
    size: Size
    modes: Mapping[int, int]


class Consumer(Protocol):
    """Serves a channel. All methods are called on the event loop, must not block and must not raise."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> None: ...

    def resized(self, size: Size) -> None: ...

    def signal_received(self, name: str) -> None:
        """`name` as in RFC 4254 §6.10: INT, TERM, HUP …"""
        ...

    def break_received(self, milliseconds: int) -> None: ...

    def output_unwanted(self) -> None:
        """Nobody reads the client's output any more (`ssh … | head`): writing may stop for good."""
        ...

    def pause_writing(self) -> None:
        """The client does not take what was written; write no more than is under way."""
        ...

    def resume_writing(self) -> None: ...

    def closed(self) -> None:
        """The channel is gone; nothing written from now on arrives."""
        ...


class Channel(Protocol):
    """The client's end, as its consumer sees it."""

    @property
    def terminal(self) -> Terminal | None:
        """None without a PTY. `size` is the newest."""
        ...

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables that the client sent and policy allows."""
        ...

    @property
    def is_closed(self) -> bool: ...

    def attach(self, consumer: Consumer) -> None:
        """From now on `consumer` serves; it gets at once what has been kept."""
        ...

    def detach(self, consumer: Consumer) -> None:
        """`consumer` serves no longer; what comes is kept for the next one."""
        ...

    def write(self, data: bytes) -> None: ...

    def write_stderr(self, data: bytes) -> None: ...

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        """Let the client's window close."""
        ...

    def resume_reading(self) -> None: ...

    def exit(self, status: int) -> None:
        """Send the exit status and close, after everything written."""
        ...

    def exit_with_signal(self, signal: str, core_dumped: bool, message: str) -> None: ...

    def backlog(self) -> int:
        """Bytes that were written and have not left this machine."""
        ...
