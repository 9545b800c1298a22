"""Logs of builds: one file each, written by one process as lines come, read by any number of others from any offset.

Whole lines of clean text are appended and nothing is ever changed, so an offset means the same to everybody, always:
a snapshot up to one and what follows from it are the log without a gap and without a line twice.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_LONGEST_LINE = 16 * 1024
_TAIL = 64 * 1024
"""Of a log that is too long, so much of its end is kept: what went wrong stands there."""
_PIECE = 256 * 1024
_SGR = re.compile(r"\x1b\[[0-9;:]{0,64}m")
"""Longer ones are no colours: Python refuses to read numbers of thousands of digits, and so does who shows them."""
_ESCAPE = re.compile(
    rf"(?P<sgr>{_SGR.pattern})"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # CSI, also a broken one
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_RESET = "\x1b[0m"
_NOT_CLEAN = re.compile(rb"[^\t\n\x20-\x7e]")


def clean_line(line: str) -> str:
    """A line with its colours and without everything else that a terminal would obey. It ends in no colour, so that
    each line looks the same whatever stands before it."""
    found = _ESCAPE.sub(lambda match: match["sgr"] or "", line)
    colours: list[str] = _SGR.findall(found)
    is_open = bool(colours) and colours[-1] not in (_RESET, "\x1b[m")
    return found + _RESET if is_open else found


class LogWriter:
    """Appends to the log of one build, in the one process that builds. `told` is called after something was added."""

    def __init__(self, path: Path, *, most: int, told: Callable[[], None]) -> None:
        self._told = told
        self._most = most
        self._rest = b""
        self._tail = b""
        self._left_out = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = os.fstat(self._file).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """A piece of output; lines appear when they are whole, or very long."""
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        while len(rest) > _LONGEST_LINE:
            whole, newline, rest = whole + newline + rest[:_LONGEST_LINE], b"\n", rest[_LONGEST_LINE:]
        self._rest = rest
        if newline:
            self._append(whole + newline)

    def say(self, sentence: str, *, colour: str = "36") -> None:
        """A line of our own among those of the build."""
        self._flush()
        self._append(f"\x1b[{colour}m{clean_line(sentence)}{_RESET}\n".encode())

    def close(self) -> None:
        """No more comes: an unfinished line is finished, and the end of a log that was too long is added."""
        try:
            self._finish()
        finally:
            os.close(self._file)
        self._told()

    def _finish(self) -> None:
        self._flush()
        if self._left_out:
            tail = _cleaned(self._tail)
            begin = tail.find(b"\n") + 1 if len(self._tail) >= _TAIL else 0
            missing = self._left_out - len(self._tail) + begin
            mark = (
                f"\x1b[33m[{missing} bytes of the log are left out here: it was too long]{_RESET}\n" if missing else ""
            )
            os.write(self._file, mark.encode() + tail[begin:])

    def _flush(self) -> None:
        if self._rest:
            rest, self._rest = self._rest, b""
            self._append(rest + b"\n")

    def _append(self, data: bytes) -> None:
        """Whole lines as they came. Cleaning costs by far the most, so of what is left out only the end is cleaned, and
        what is cleaned away counts as well: else a program that prints nothing else would be cleaned for ever."""
        if not self._left_out:
            clean = _cleaned(data)
            size = max(len(data), len(clean))
            if self._size + size <= self._most:
                os.write(self._file, clean)
                self._size += size
                self._told()
                return
        self._left_out += len(data)
        self._tail = (self._tail + data)[-_TAIL:]


def _cleaned(data: bytes) -> bytes:
    if _NOT_CLEAN.search(data) is None:  # the usual case, and by far the quickest
        return data
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"{clean_line(line)}\n" for line in text[:-1].split("\n")).encode("utf-8", "replace")


def is_written(path: Path) -> bool:
    """Whether some process, here or next door, may still add to a log; with that process goes its lock."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def read_log(path: Path, offset: int) -> Iterator[bytes]:
    """What stands in a log from `offset` on, in pieces of whole lines; nothing if there is no log yet."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        while piece := os.pread(file, _PIECE, offset):
            piece = piece[: piece.rfind(b"\n") + 1] or piece
            offset += len(piece)
            yield piece
    finally:
        os.close(file)


def start_of_end(path: Path, size: int) -> int:
    """The offset of the first whole line among the last `size` bytes; 0 if there is no more than that."""
    try:
        beginning = path.stat().st_size - size
    except FileNotFoundError:
        return 0
    if beginning <= 0:
        return 0
    with path.open("rb") as file:
        file.seek(beginning)
        return beginning + len(file.readline())
