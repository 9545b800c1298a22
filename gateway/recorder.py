"""Writes what a terminal showed as asciicast v2, off the hot path.

https://docs.asciinema.org/manual/asciicast/v2/: a header line, then `[seconds, "o" | "r", text]` lines. Input is not
recorded: a stream does not tell which keys were a password. Half a UTF-8 character waits for its other half.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from gateway.channel import Size

log = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.3


class Recorder:
    """One recording. `output` and `resized` never block; a task writes to the disk in a thread."""

    def __init__(self, path: Path, size: Size, *, title: str, kind: str, limit: int) -> None:
        self._path = path
        self._started = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines: list[str] = []
        self._waiting = 0
        self._written = 0
        self._limit = limit
        self._full = False
        self._wake = asyncio.Event()
        self._wake.set()
        self._closing = asyncio.Event()
        self._hash = hashlib.sha256()
        self._task: asyncio.Task[None] | None = None
        header = {
            "version": 2,
            "width": size.columns,
            "height": size.rows,
            "timestamp": int(time.time()),
            "title": title,
            "env": {"TERM": kind},
        }
        self._lines.append(json.dumps(header, ensure_ascii=False) + "\n")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def start(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._task = asyncio.create_task(self._write(descriptor), name=f"recording {self._path.stem}")

    def output(self, data: bytes) -> None:
        """The terminal shows `data`."""
        text = self._decoder.decode(data)
        if text and not self._full:
            self._add("o", text)

    def input(self, data: bytes) -> None:
        """Keys are not recorded."""

    def resized(self, size: Size) -> None:
        if not self._full:
            self._add("r", f"{size.columns}x{size.rows}")

    async def close(self) -> tuple[float, int, str]:
        """Write the rest; seconds, bytes and SHA-256 of the file."""
        seconds = self.seconds
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            await self._task
        return seconds, self._written, self._hash.hexdigest()

    def _add(self, code: str, text: str) -> None:
        line = json.dumps([round(self.seconds, 6), code, text], ensure_ascii=False) + "\n"
        self._lines.append(line)
        self._waiting += len(line)
        if self._written + self._waiting > self._limit:
            self._full = True
            notice = "\r\n[the recording ends here: it reached its size limit]\r\n"
            self._lines.append(json.dumps([round(self.seconds, 6), "o", notice]) + "\n")
        self._wake.set()

    async def _write(self, descriptor: int) -> None:
        try:
            is_last = False
            while not is_last:
                await self._wake.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH_SECONDS):
                        await self._closing.wait()
                self._wake.clear()
                is_last = self._closing.is_set()
                await asyncio.to_thread(self._flush, descriptor, self._take())
        finally:
            os.close(descriptor)

    def _take(self) -> bytes:
        lines, self._lines, self._waiting = self._lines, [], 0
        return "".join(lines).encode("utf-8", "replace")

    def _flush(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except OSError as error:
                self._full = True
                log.error("recording %s stopped: %s", self._path.stem, error.strerror)
                return
        self._hash.update(data)
        self._written += len(data)
