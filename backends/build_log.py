"""Logs of builds: one file each, written by one process as lines come, read by any number of others from any offset.

Clean text is appended, in whole lines as far as lines come quickly, and nothing is ever changed, so an offset means the
same to everybody, always: a snapshot up to one and what follows from it are the log without a gap and without a line
twice.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_LONGEST_LINE = 16 * 1024
_TAIL = 64 * 1024
"""Of a log that is too long, so much of its end is kept: what went wrong stands there."""
STARTED_SECONDS = 2.0
"""After so long the beginning of a line that does not end is shown: a program may have asked something, or be at it."""
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
_SGR_BYTES = re.compile(_SGR.pattern.encode())
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
        self._since = 0.0
        """When the line began that is `_rest`, of the monotonic clock."""
        self._tail = b""
        self._left_out = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = os.fstat(self._file).st_size
        self._is_open = self._size > 0 and path.read_bytes()[-1:] != b"\n"
        """Its last line has no end yet: the rest of that comes later."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """A piece of output; lines appear when they are whole, or very long, or by `show_started`."""
        if not self._rest:
            self._since = time.monotonic()
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        while len(rest) > _LONGEST_LINE:
            whole, newline, rest = whole + newline + rest[:_LONGEST_LINE], b"\n", rest[_LONGEST_LINE:]
        self._rest = rest
        if newline:
            self._since = time.monotonic()
            self._append(whole + newline)

    def show_started(self) -> None:
        """Called now and then: add what there is of a line that began long ago. What is half an escape sequence or half
        a character waits for its other half."""
        if not self._rest or self._left_out or time.monotonic() - self._since < STARTED_SECONDS:
            return
        begun = self._rest[: _whole(self._rest)]
        if begun:
            self._rest, self._since = self._rest[len(begun) :], time.monotonic()
            self._append(begun)

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
            if self._is_open:
                os.write(self._file, b"\n")
            tail = _cleaned(self._tail)
            begin = tail.find(b"\n") + 1 if len(self._tail) >= _TAIL else 0
            missing = self._left_out - len(self._tail) + begin
            mark = (
                f"\x1b[33m[{missing} bytes of the log are left out here: it was too long]{_RESET}\n" if missing else ""
            )
            os.write(self._file, mark.encode() + tail[begin:])

    def _flush(self) -> None:
        if self._rest or (self._is_open and not self._left_out):
            rest, self._rest = self._rest, b""
            self._append(rest + b"\n")

    def _append(self, data: bytes) -> None:
        """Lines as they came, the last one perhaps only begun.

        Cleaning costs by far the most, so of what is left out only the end is cleaned, and what is cleaned away counts
        as well: else a program that prints nothing else would be cleaned for ever.
        """
        if not self._left_out:
            clean = _cleaned(data)
            size = max(len(data), len(clean))
            if self._size + size <= self._most:
                os.write(self._file, clean)
                self._size += size
                self._is_open = not clean.endswith(b"\n") if clean else self._is_open
                self._told()
                return
        self._left_out += len(data)
        self._tail = (self._tail + data)[-_TAIL:]


def _cleaned(data: bytes) -> bytes:
    if _NOT_CLEAN.search(data) is None:  # the usual case, and by far the quickest
        return data
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(map(clean_line, text.split("\n"))).encode("utf-8", "replace")


def _whole(data: bytes) -> int:
    """How much of the beginning of a line can be cleaned without the rest of it."""
    end = len(data)
    for back in range(1, min(4, end + 1)):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character
            wanted = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            end -= back if wanted > back else 0
            break
    end -= data[:end].endswith(b"\r")
    at = data.find(b"\x1b", 0, end)
    while at >= 0:
        colour = _SGR_BYTES.match(data, at, end)
        if colour is None:
            return at
        at = data.find(b"\x1b", colour.end(), end)
    return end


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
            piece = piece[: piece.rfind(b"\n") + 1] or piece  # a line that is begun comes by itself
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
