"""SFTP version 3 on the wire: frames, requests, replies, attributes (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL).

Pure: bytes in, bytes out. Nothing here knows channels, trees or people.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import NamedTuple

VERSION = 3
LONGEST_PACKET = 256 * 1024 + 1024
LONGEST_DATA = 261_120
"""Bytes of data in one READ or WRITE: OpenSSH's own limit, 255 KiB."""

_UINT32 = struct.Struct(">I")
_UINT64 = struct.Struct(">Q")
_HEAD = struct.Struct(">BI")
_REPLY = struct.Struct(">IBI")
_STATUS = struct.Struct(">IBIII")
_DATA = struct.Struct(">IBII")
_WRITE_TAIL = struct.Struct(">QI")


class Malformed(Exception):
    """What the client sent is no SFTP; the channel cannot go on."""


class Kind(IntEnum):
    """Packet types."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Code(IntEnum):
    """Status codes of version 3."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class OpenFlag(IntFlag):
    READ = 1
    WRITE = 2
    APPEND = 4
    CREATE = 8
    TRUNCATE = 16
    EXCLUSIVE = 32


class Request(NamedTuple):
    """One packet of the client. `body` is what follows the id (for WRITE: the handle alone)."""

    kind: int
    id: int
    """Request id; the client's version for INIT."""
    body: bytes
    offset: int = 0
    data: bytes = b""
    """WRITE only."""


class Frames:
    """Cuts the byte stream of a client into requests; the data of a WRITE is copied exactly once."""

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._held = 0
        self._length: int | None = None

    @property
    def held(self) -> int:
        """Bytes of packets that are not complete yet."""
        return self._held

    def feed(self, data: bytes) -> None:
        self._chunks.append(memoryview(data))
        self._held += len(data)

    def next(self) -> Request | None:
        """The next complete request; None when more bytes are needed. Malformed: give up on this client."""
        if self._length is None:
            if self._held < 4:
                return None
            (self._length,) = _UINT32.unpack(self._take(4))
            if not 5 <= self._length <= LONGEST_PACKET:
                raise Malformed(f"a packet of {self._length} bytes")
        if self._held < self._length:
            return None
        length, self._length = self._length, None
        kind, number = _HEAD.unpack(self._take(5))
        if kind == Kind.WRITE:
            return self._take_write(number, length - 5)
        return Request(kind, number, self._take(length - 5))

    def _take_write(self, number: int, rest: int) -> Request:
        if rest < 16:
            raise Malformed("a WRITE that is too short")
        (handle_length,) = _UINT32.unpack(self._take(4))
        rest -= 16 + handle_length
        if rest < 0:
            raise Malformed("a WRITE with a handle that is too long")
        handle = self._take(handle_length)
        offset, size = _WRITE_TAIL.unpack(self._take(12))
        if size > rest:
            raise Malformed("a WRITE with less data than it says")
        data = self._take(size)
        # pkg/sftp before February 2023 (rclone 1.60) pads its WRITE packets: what is over is dropped.
        self._take(rest - size)
        return Request(Kind.WRITE, number, handle, offset, data)

    def _take(self, size: int) -> bytes:
        self._held -= size
        pieces: list[memoryview] = []
        while size > 0:
            first = self._chunks[0]
            if len(first) > size:
                pieces.append(first[:size])
                self._chunks[0] = first[size:]
                break
            pieces.append(first)
            size -= len(first)
            self._chunks.popleft()
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


class Fields:
    """Reads the fields of a request's body one after the other; Malformed when they are not there."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def uint32(self) -> int:
        return int.from_bytes(self._bytes(4), "big")

    def uint64(self) -> int:
        return int.from_bytes(self._bytes(8), "big")

    def string(self) -> bytes:
        return self._bytes(self.uint32())

    def attributes(self) -> Attributes:
        return Attributes.parse(self)

    def rest(self) -> bytes:
        """What has not been read."""
        return self._bytes(len(self._body) - self._at)

    def _bytes(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._body):
            raise Malformed("a packet ends too early")
        piece = self._body[self._at : end]
        self._at = end
        return piece


_SIZE, _OWNERS, _PERMISSIONS, _TIMES, _EXTENDED = 1, 2, 4, 8, 0x80000000
_FULL_ATTRIBUTES = struct.Struct(">IQIII")


@dataclass(frozen=True)
class Attributes:
    """What a client says about a file; None: not said. `mtime` in seconds since 1970."""

    size: int | None = None
    permissions: int | None = None
    mtime: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> Attributes:
        flags = fields.uint32()
        size = fields.uint64() if flags & _SIZE else None
        if flags & _OWNERS:
            fields.uint64()
        permissions = fields.uint32() if flags & _PERMISSIONS else None
        mtime = None
        if flags & _TIMES:
            fields.uint32()
            mtime = fields.uint32()
        return cls(size, permissions, mtime)


def attributes(size: int, permissions: int, mtime: int) -> bytes:
    """An ATTRS structure; `permissions` include the file type. Times are clamped to 32 bits."""
    seconds = min(max(mtime, 0), 0xFFFFFFFF)
    return _FULL_ATTRIBUTES.pack(_SIZE | _PERMISSIONS | _TIMES, size, permissions, seconds, seconds)


def string(value: bytes) -> bytes:
    return _UINT32.pack(len(value)) + value


def status(number: int, code: int, sentence: str = "") -> bytes:
    """A STATUS reply; `sentence` is what the client shows."""
    words = sentence.encode("utf-8", "replace")
    size = len(words)
    return b"".join((_STATUS.pack(19 + size, Kind.STATUS, number, code, size), words, b"\0\0\0\2en"))


def status_ok(number: int) -> bytes:
    """The reply that is sent most: to a WRITE."""
    return _STATUS.pack(17, Kind.STATUS, number, 0, 0) + b"\0\0\0\0"


def reply(number: int, kind: Kind, body: bytes) -> bytes:
    return _REPLY.pack(5 + len(body), kind, number) + body


def data(number: int, payload: bytes) -> bytes:
    size = len(payload)
    return _DATA.pack(9 + size, Kind.DATA, number, size) + payload


def names(number: int, entries: Sequence[tuple[bytes, bytes, bytes]]) -> bytes:
    """A NAME reply of (file name, long name, ATTRS structure)."""
    pack, parts = _UINT32.pack, [_UINT32.pack(len(entries))]
    for name, longname, attrs in entries:
        parts += (pack(len(name)), name, pack(len(longname)), longname, attrs)
    return reply(number, Kind.NAME, b"".join(parts))


def version(extensions: Sequence[tuple[bytes, bytes]]) -> bytes:
    body = b"".join((_UINT32.pack(VERSION), *(string(part) for pair in extensions for part in pair)))
    return _UINT32.pack(1 + len(body)) + bytes((Kind.VERSION,)) + body


def check_file(number: int, algorithm: str, hashes: bytes, *, repeated: bytes = b"") -> bytes:
    """The reply to `check-file-name` and `check-file-handle`; `repeated` goes before it, for an older draft."""
    head = string(repeated) if repeated else b""
    return reply(number, Kind.EXTENDED_REPLY, head + string(algorithm.encode()) + hashes)


def limits(number: int, handles: int) -> bytes:
    """The reply to `limits@openssh.com`."""
    return reply(number, Kind.EXTENDED_REPLY, struct.pack(">QQQQ", 256 * 1024, LONGEST_DATA, LONGEST_DATA, handles))


def statvfs(number: int, total: int, used: int, read_only: bool = False) -> bytes:
    """The reply to `statvfs@openssh.com`; bytes in, blocks of 4 KiB out."""
    block = 4096
    blocks, free = total // block, max(total - used, 0) // block
    fields = (block, block, blocks, free, free, 0, 0, 0, 0, 1 if read_only else 0, 255)
    return reply(number, Kind.EXTENDED_REPLY, struct.pack(">11Q", *fields))


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HALF_YEAR = 180 * 86400
_BITS = tuple(
    "".join(letter if bits >> shift & 1 else "-" for letter, shift in zip("rwxrwxrwx", range(8, -1, -1), strict=True))
    for bits in range(512)
)


def longname(name: str, letter: str, mode: int, owner: str, size: int, mtime: int, now: float) -> str:
    """One line as `ls -l` writes it; `letter` is d, l or -. Times are UTC."""
    date = _date(mtime, now - _HALF_YEAR < mtime <= now + 86400)
    return f"{_head(letter, mode, owner)} {size:>12} {date} {name}"


@lru_cache(256)
def _head(letter: str, mode: int, owner: str) -> str:
    return f"{letter}{_BITS[mode & 0o777]} 1 {owner:<8} {owner:<8}"


@lru_cache(4096)
def _date(mtime: int, recent: bool) -> str:
    try:
        then = time.gmtime(mtime)
    except (OverflowError, ValueError):
        then = time.gmtime(0)
    tail = f"{then.tm_hour:02}:{then.tm_min:02}" if recent else f"{then.tm_year:5}"
    return f"{_MONTHS[then.tm_mon - 1]} {then.tm_mday:2} {tail}"
