"""Watches SFTP that passes into an environment, and writes one audit event per file handle and per change by name.

It sees the packets of both directions as they go by, keeps only their heads, and never delays or changes anything:
what it cannot understand it lets pass and stops describing. SFTP version 3: draft-ietf-secsh-filexfer-02.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from gateway.channel import Size
from gateway.sftp_packets import Kind, OpenFlag
from storage.access import Caller
from storage.audit import AuditTrail, Event
from storage.errors import AshoreError
from storage.names import printable

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_HEAD = 4096
_BULK_HEAD = 300
_MOST_WAITING = 4096
_CHANGES = {
    Kind.REMOVE: "remove",
    Kind.RENAME: "rename",
    Kind.MKDIR: "mkdir",
    Kind.RMDIR: "rmdir",
    Kind.SYMLINK: "symlink",
}
_POSIX_RENAME = b"posix-rename@openssh.com"


class Skimmer:
    """Cuts a stream of length-prefixed packets, keeping the kind and the beginning of each body."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        """Bytes of the present packet that are still to come."""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The packets that end in `data`, each as kind and beginning of its body."""
        position = 0
        while position < len(data):
            if self._left == 0 and len(self._head) < 4:
                take = min(4 - len(self._head), len(data) - position)
                self._head += data[position : position + take]
                position += take
                if len(self._head) == 4:
                    self._left = int.from_bytes(self._head, "big")
                    self._head.clear()
                    if self._left == 0:
                        raise ValueError("an empty packet")
                continue
            take = min(self._left, len(data) - position)
            wanted = max(min(take, self._wanted(data[position]) - len(self._head)), 0)
            self._head += data[position : position + wanted]
            self._left -= take
            position += take
            if self._left == 0:
                head, self._head = bytes(self._head), bytearray()
                yield head[0], head[1:]

    def _wanted(self, first: int) -> int:
        kind = self._head[0] if self._head else first
        return _BULK_HEAD if kind in (Kind.WRITE, Kind.DATA) else _HEAD


@dataclass
class _File:
    path: str
    mode: str
    read: int = 0
    written: int = 0
    writes: int = 0
    end: int = 0
    """Where the furthest byte that was written lies."""


class FileAudit:
    """A tap on one SFTP session (`gateway.relay.Tap`)."""

    def __init__(self, caller: Caller, environment: str, audit: AuditTrail) -> None:
        self._caller = caller
        self._environment = environment
        self._audit = audit
        self._client, self._server = Skimmer(), Skimmer()
        self._opening: dict[int, _File] = {}
        self._reading: dict[int, _File] = {}
        self._changing: dict[int, tuple[str, str]] = {}
        self._open: dict[bytes, _File] = {}
        self._blind = False
        self._events: set[asyncio.Task[None]] = set()

    def input(self, data: bytes) -> None:
        self._watch(self._client, data, from_client=True)

    def output(self, data: bytes) -> None:
        self._watch(self._server, data, from_client=False)

    def resized(self, size: Size) -> None: ...

    async def close(self) -> None:
        """The session is over: handles that were never closed are told as such."""
        for file in self._open.values():
            self._record_file(file, outcome="failed")
        self._open.clear()
        await asyncio.gather(*self._events, return_exceptions=True)

    def _watch(self, skimmer: Skimmer, data: bytes, *, from_client: bool) -> None:
        if self._blind:
            return
        try:
            for kind, body in skimmer.feed(data):
                if from_client:
                    self._asked(kind, body)
                else:
                    self._answered(kind, body)
        except (ValueError, struct.error, IndexError):
            self._blind = True
            log.warning("an SFTP session into %s cannot be followed", self._environment)
            self._tell("sftp.unreadable", self._environment, "failed")

    def _asked(self, kind: int, body: bytes) -> None:
        number = int.from_bytes(body[:4], "big")
        if kind == Kind.WRITE:
            handle, rest = _string(body, 4)
            file = self._open.get(handle)
            if file is not None:
                offset, size = struct.unpack_from(">QI", body, rest)
                file.written += size
                file.writes += 1
                file.end = max(file.end, offset + size)
        elif kind == Kind.READ:
            file = self._open.get(_string(body, 4)[0])
            if file is not None:
                _remember(self._reading, number, file)
        elif kind == Kind.OPEN:
            path, rest = _string(body, 4)
            flags = OpenFlag(int.from_bytes(body[rest : rest + 4], "big") & 63)
            _remember(self._opening, number, _File(_text(path), "write" if flags & OpenFlag.WRITE else "read"))
        elif kind == Kind.CLOSE:
            file = self._open.pop(_string(body, 4)[0], None)
            if file is not None:
                self._record_file(file, outcome="ok")
        elif kind in _CHANGES:
            _remember(
                self._changing, number, (_CHANGES[Kind(kind)], _names(body, 4, two=kind in (Kind.RENAME, Kind.SYMLINK)))
            )
        elif kind == Kind.EXTENDED:
            extension, rest = _string(body, 4)
            if extension == _POSIX_RENAME:
                _remember(self._changing, number, ("rename", _names(body, rest, two=True)))

    def _answered(self, kind: int, body: bytes) -> None:
        number = int.from_bytes(body[:4], "big")
        if kind == Kind.DATA:
            file = self._reading.pop(number, None)
            if file is not None:
                file.read += int.from_bytes(body[4:8], "big")
        elif kind == Kind.HANDLE:
            file = self._opening.pop(number, None)
            if file is not None:
                self._open[_string(body, 4)[0]] = file
        elif kind == Kind.STATUS:
            ok = int.from_bytes(body[4:8], "big") == 0
            self._reading.pop(number, None)
            refused = self._opening.pop(number, None)
            if refused is not None and not ok:
                self._tell(f"file.{refused.mode}", refused.path, "failed")
            change = self._changing.pop(number, None)
            if change is not None:
                self._tell(f"file.{change[0]}", change[1], "ok" if ok else "failed")

    def _record_file(self, file: _File, *, outcome: str) -> None:
        facts = {"bytes_read": file.read, "bytes_written": file.written, "writes": file.writes, "end": file.end}
        self._tell(f"file.{file.mode}", file.path, outcome, **facts)

    def _tell(self, action: str, path: str, outcome: str, **facts: int) -> None:
        event = Event.by(
            self._caller, action, thing=self._environment, outcome=outcome, path=printable(path, limit=400), **facts
        )
        task = asyncio.create_task(self._record(event), name="file audit")
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _record(self, event: Event) -> None:
        try:
            await self._audit.record(event)
        except AshoreError as error:
            log.error("a file event was not written: %s", error.message)


def _remember(table: dict[int, _T], number: int, value: _T) -> None:
    # A client may pipeline as it likes, but a peer that never answers must not fill our memory.
    if len(table) < _MOST_WAITING:
        table[number] = value


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    """The string at `at`, as far as it was kept, and where the next field begins."""
    (length,) = struct.unpack_from(">I", body, at)
    return body[at + 4 : at + 4 + length], at + 4 + length


def _names(body: bytes, at: int, *, two: bool) -> str:
    first, rest = _string(body, at)
    return f"{_text(first)} → {_text(_string(body, rest)[0])}" if two else _text(first)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
