"""Plays terminal recordings (asciicast v2) with their timing.

What a recording makes a terminal *do* besides showing text (answer questions, change the clipboard) is left out, so
that looking at somebody else's session is safe. No rights are decided here: whoever has the path may play it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice
from pathlib import Path

from storage.errors import BadInput, NotFound

AFTERWARDS = "\x1b[?1049l\x1b[?1000;1002;1003;1004;1006;2004l\x1b[<u\x1b[?25h\x1b[0m\x1b(B\r\n"
"""Puts a terminal back in order: alternate screen, mouse, paste and keyboard modes, cursor, colours, character set."""

_LINES_PER_READ = 256
_LONGEST_SEQUENCE = 8192
# Terminals carry out control characters in the middle of a sequence, so these may stand inside one here too.
_INSIDE = "\x00-\x17\x19\x1c-"
_TOKEN = re.compile(
    # OSC, DCS, SOS, PM, APC up to their end, or to whatever breaks them off.
    "(?P<opening>\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])(?P<body>[^\x07\x18\x1a\x1b\x9c]*)"
    "(?P<end>\x07|\x9c|\x1b\\\\|\x18|\x1a|(?=\x1b[^\\\\]))"
    f"|(?:\x1b\\[|\x9b)(?P<parameters>[{_INSIDE}?]*)(?P<final>[@-~])"
    f"|(?P<unfinished>\x1b[{_INSIDE}/]*|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c]*\x1b?"
    f"|(?:\x1b\\[|\x9b)[{_INSIDE}?]*)\\Z"
    f"|\x1b[{_INSIDE}/]*(?P<escape>[0-~])"
    # What is left of these begins nothing that is understood; kept, it might begin something with what follows.
    "|[\x05\x1b\x80-\x9f]"
)
_KEPT_STRINGS = re.compile("[0128];[^\x00-\x1f]*")
_SKIPPED_ESCAPES = "[]PX^_Z"
_QUESTIONS = re.compile(
    # Device attributes, status, window reports, printing, parameters; queries of modes, keyboard, version, checksums.
    "[^@-~]*[cntix]|[^@-~]*[$&][^@-~]*u|[^@-~]*\\?[^@-~]*[uS]|[^@-~]*\\$[^@-~]*[pw]|[^@-~]*>[^@-~]*q|[^@-~]*\\*[^@-~]*y"
)


def speed(text: str) -> float:
    """A factor above 0 and at most 1000, for argparse's `type=`."""
    return _number(text, least=0.01, most=1000)


def seconds(text: str) -> float:
    """Seconds from 0 to a day, for argparse's `type=`."""
    return _number(text, least=0, most=86400)


async def play(
    path: Path,
    write: Callable[[str], None],
    *,
    speed: float = 1.0,
    idle_limit: float | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Write the output of a recording as it came. Returns at its end, also where that was cut off.

    Pauses longer than `idle_limit` seconds are shortened to it, then everything is `speed` times faster.
    NotFound: no such file. BadInput: it is no asciicast v2.
    """
    clock = asyncio.get_running_loop().time
    due, before, harmless = clock(), 0.0, Harmless()
    async for moment, text in _output(path):
        pause = max(0.0, moment - before)
        before = max(before, moment)
        due += min(pause, pause if idle_limit is None else idle_limit) / speed
        if due > clock():
            await sleep(due - clock())
        write(harmless.feed(text))
        if drain is not None:
            await drain()


async def lines(path: Path) -> AsyncIterator[str]:
    """The recording itself, line by line. NotFound, BadInput as in `play`."""
    first = True
    try:
        file = await asyncio.to_thread(path.open, encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise NotFound("the file of this recording is not there") from error
    with file:
        while some := await asyncio.to_thread(lambda: list(islice(file, _LINES_PER_READ))):
            if first:
                _check_header(some[0])
                first = False
            for line in some:
                yield line
    if first:
        raise BadInput("this recording is empty")


async def _output(path: Path) -> AsyncIterator[tuple[float, str]]:
    number = 0
    async for line in lines(path):
        number += 1
        if number == 1 or not line.strip():
            continue
        try:
            moment, kind, text = json.loads(line)
            moment = float(moment)
        except (ValueError, TypeError) as error:
            if not line.endswith("\n"):
                return  # the last line of a recording that is still being written, or was cut off
            raise BadInput(f"line {number} of this recording is damaged") from error
        if kind == "o" and isinstance(text, str) and math.isfinite(moment):
            yield moment, text


def _check_header(line: str) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("version") != 2:
        raise BadInput("this is no recording in the format asciicast v2")


class Harmless:
    """Takes out of a stream of terminal output what a terminal would answer to, or keep."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> str:
        """What may be shown of `text` by now; a sequence that is not complete waits for the next piece."""
        text, self._rest = self._rest + text, ""
        return _TOKEN.sub(self._judge, text)

    def _judge(self, token: re.Match[str]) -> str:
        if token["opening"]:
            is_osc = token["opening"] in ("\x1b]", "\x9d")
            whole = token["end"] in ("\x07", "\x9c", "\x1b\\")
            return token[0] if is_osc and whole and _KEPT_STRINGS.fullmatch(token["body"]) else ""
        if token["final"]:
            return "" if _QUESTIONS.fullmatch(token["parameters"] + token["final"]) else token[0]
        if token["unfinished"]:
            # One that never ends is cut down to its beginning: what comes is still known to belong to it.
            rest = token["unfinished"]
            self._rest = rest if len(rest) <= _LONGEST_SEQUENCE else rest[: 2 if rest[0] == "\x1b" else 1]
            return ""
        return token[0] if token["escape"] and token["escape"] not in _SKIPPED_ESCAPES else ""


def _number(text: str, *, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"use a number from {least:g} to {most:g}")
    return value
