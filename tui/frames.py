"""The wire format between the gateway and its TUI workers: kind (1 byte), length (4 bytes, big endian),
payload.

One Unix socket connection carries one menu. Pure: no sockets and no event loop here.

    gateway → worker: HELLO first, then DATA RESIZE PAUSE UNPAUSE BACK EOF KILL; or PING on a connection of
    its own worker → gateway: DATA SHELL EXIT PONG
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum

from tui.terminal import Capabilities, ColorDepth, ScreenSize

LIMIT = 1024 * 1024
"""Longest payload, bytes."""
_PIECE = 256 * 1024
_HEAD = struct.Struct("!BI")
_SIZE = struct.Struct("!IIII")


class FrameError(ValueError):
    """What came is no frame; the connection is beyond repair."""


class Kind(IntEnum):
    """What a frame means. The values are letters, so that a trace can be read."""

    HELLO = ord("H")
    """Who comes with which terminal (`Hello`)."""
    DATA = ord("D")
    """Bytes of the terminal."""
    RESIZE = ord("R")
    """The new `ScreenSize`."""
    PAUSE = ord("P")
    """The client does not keep up."""
    UNPAUSE = ord("U")
    BACK = ord("B")
    """The shell is over (`Back`)."""
    EOF = ord("E")
    KILL = ord("K")
    """The channel is gone: end without a word."""
    SHELL = ord("S")
    """Open a shell in the environment that the payload names."""
    EXIT = ord("X")
    """The menu is over; the payload is its exit status in one byte."""
    PING = ord("I")
    PONG = ord("O")


@dataclass(frozen=True)
class Frame:
    kind: Kind
    payload: bytes = b""


@dataclass(frozen=True)
class Hello:
    """Who comes, proven by the gateway, and with which terminal."""

    user: str
    address: str
    connection: str
    language: str
    capabilities: Capabilities
    size: ScreenSize

    def to_payload(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> Hello:
        """FrameError if anything is missing or unknown."""
        try:
            fields = json.loads(payload)
            terminal = dict(fields.pop("capabilities"))
            terminal["color"] = ColorDepth(terminal["color"])
            size = ScreenSize(**fields.pop("size")).clamped()
            return cls(capabilities=Capabilities(**terminal), size=size, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FrameError("this is no hello") from error


@dataclass(frozen=True)
class Back:
    """How a shell ended: its exit status, or one sentence why it never began."""

    status: int = 0
    error: str = ""

    def to_payload(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> Back:
        try:
            return cls(**json.loads(payload))
        except (ValueError, TypeError) as error:
            raise FrameError("this is no answer about a shell") from error


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame; DATA of any length becomes as many as it needs."""
    if len(payload) <= _PIECE:
        return _HEAD.pack(kind, len(payload)) + payload
    if kind is not Kind.DATA:
        raise FrameError("this message is too long")
    return b"".join(encode(kind, payload[at : at + _PIECE]) for at in range(0, len(payload), _PIECE))


def encode_size(size: ScreenSize) -> bytes:
    size = size.clamped()
    return encode(Kind.RESIZE, _SIZE.pack(size.columns, size.rows, size.width, size.height))


def decode_size(payload: bytes) -> ScreenSize:
    try:
        return ScreenSize(*_SIZE.unpack(payload)).clamped()
    except struct.error as error:
        raise FrameError("this is no size") from error


class Decoder:
    """Cuts a byte stream into frames, however the pieces arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. FrameError for an unknown kind or a payload over `LIMIT`."""
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            letter, length = _HEAD.unpack_from(self._buffer)
            if length > LIMIT:
                raise FrameError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            try:
                kind = Kind(letter)
            except ValueError as error:
                raise FrameError(f"unknown frame {letter}") from error
            yield Frame(kind, payload)
