"""The byte stream of one `docker exec`, joined to a socket pair.

aiodocker's own stream cannot half-close and copies every chunk, so this speaks the few lines of HTTP itself on a
connection of the Engine's line and then moves bytes: raw towards the program, unframed from it (each frame is an
8-byte header, `stream 0 0 0 length`, and its payload). Knows nothing of containers; `driver` makes the exec and reads
its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Sequence

from backends.compute.docker.lines import Line
from backends.compute.hang_up import hang_up, has_hung_up
from storage.errors import AshoreError, Conflict, NotFound, Unavailable

_HEADER = struct.Struct(">BxxxL")
_BUFFER = 256 * 1024
_TAIL = 4096
_STDERR = 2
_HEAD_LIMIT = 16 * 1024


class ExecStream:
    """Pumps between the Engine and `inner`, the end of the pair that its caller gets. Owns the Engine's socket.

    `finished` is done when the program's output has ended or nobody reads it any more. The caller of `open_stream`
    owns this and must `close` it.
    """

    def __init__(self, engine: socket.socket, head: bytes, name: str) -> None:
        self.inner, self._outer = socket.socketpair()
        self.inner.setblocking(False)
        self._outer.setblocking(False)
        self._engine = engine
        self._tail = bytearray()
        self._early = head
        self._abandoned = asyncio.Event()
        self.finished = asyncio.create_task(self._run(), name=f"exec stream {name}")

    @property
    def complaint(self) -> str:
        """The end of what the program wrote to stderr, as text."""
        return self._tail.decode("utf-8", "replace").strip()

    async def close(self) -> None:
        """End both directions and wait until nothing of this stream is left."""
        self.finished.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.finished
        self._outer.close()  # again here: a task that is cancelled before its first step never cleans up
        self._engine.close()

    async def _run(self) -> None:
        inbound = asyncio.create_task(self._pump_in(), name="exec stream in")
        outbound = asyncio.create_task(self._pump_out(), name="exec stream out")
        abandoned = asyncio.create_task(self._abandoned.wait(), name="exec stream abandoned")
        tasks = (inbound, outbound, abandoned)
        try:
            await asyncio.wait((outbound, abandoned), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._outer.close()
            self._engine.close()

    async def _pump_in(self) -> None:
        """From the caller to the program's stdin, until the caller ends its half."""
        loop = asyncio.get_running_loop()
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        try:
            while count := await loop.sock_recv_into(self._outer, buffer):
                await loop.sock_sendall(self._engine, view[:count])
        except OSError:
            if has_hung_up(self._outer):
                self._abandoned.set()
            return  # else the program takes no more; what it still says goes on
        with contextlib.suppress(OSError):
            self._engine.shutdown(socket.SHUT_WR)
        await hang_up(self._outer)
        self._abandoned.set()

    async def _pump_out(self) -> None:
        """From the program to the caller, until the program's output ends."""
        loop = asyncio.get_running_loop()
        buffer = bytearray(max(_BUFFER, len(self._early)))
        view = memoryview(buffer)
        filled = len(self._early)
        view[:filled] = self._early
        missing, kind = 0, 0  # of the payload that is being read
        try:
            while True:
                pieces, used, missing, kind = self._split(view[:filled], missing, kind)
                if pieces:
                    await _send(loop, self._outer, pieces)
                rest = filled - used  # at most a part of one header
                view[:rest] = bytes(view[used:filled])
                count = await loop.sock_recv_into(self._engine, view[rest:])
                if not count:
                    return
                filled = rest + count
        except OSError:
            return

    def _split(self, data: memoryview, missing: int, kind: int) -> tuple[list[memoryview], int, int, int]:
        """Take whole headers and whatever there is of payloads; stderr goes into the tail."""
        pieces: list[memoryview] = []
        at, end = 0, len(data)
        while True:
            if missing:
                piece = data[at : at + missing]
                if kind == _STDERR:
                    self._remember(piece)
                elif piece:
                    pieces.append(piece)
                at += len(piece)
                missing -= len(piece)
            if missing or end - at < _HEADER.size:
                return pieces, at, missing, kind
            kind, missing = _HEADER.unpack_from(data, at)
            at += _HEADER.size

    def _remember(self, piece: memoryview) -> None:
        self._tail += piece[-_TAIL:]
        if len(self._tail) > _TAIL:
            del self._tail[:-_TAIL]


async def open_stream(line: Line, version: str, exec_id: str) -> ExecStream:
    """Start the exec `exec_id` and join its streams. `line` leads to the Engine, `version` is like `v1.41`.

    NotFound or Conflict if its container is gone or does not run; Unavailable if the Engine does not answer.
    """
    loop = asyncio.get_running_loop()
    body = b'{"Detach":false,"Tty":false}'
    request = (
        f"POST /{version}/exec/{exec_id}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
        f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    try:
        engine = await line.connect()
    except OSError as error:
        raise Unavailable("the Docker engine does not answer") from error
    try:
        await loop.sock_sendall(engine, request)
        status, early = await _read_head(engine)
    except OSError as error:
        engine.close()
        raise Unavailable("the Docker engine does not answer") from error
    except BaseException:
        engine.close()
        raise
    if status in (101, 200):
        return ExecStream(engine, early, exec_id[:12])
    engine.close()
    raise _refusal(status, early)


async def _read_head(engine: socket.socket) -> tuple[int, bytes]:
    """The status of the answer and what came after its head."""
    loop = asyncio.get_running_loop()
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await loop.sock_recv(engine, 4096)
        if not piece or len(data) > _HEAD_LIMIT:
            raise ConnectionResetError("the answer to exec start has no head")
        data += piece
    head, _, early = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionResetError("the answer to exec start is not HTTP")
    return int(words[1]), early


def _refusal(status: int, body: bytes) -> AshoreError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    if status == 404:
        return NotFound("its container was removed")
    if status == 409:
        return Conflict("its container does not run")
    return Unavailable(f"the Docker engine refused to run a program: {message}")


async def _send(loop: asyncio.AbstractEventLoop, target: socket.socket, pieces: Sequence[memoryview]) -> None:
    """All of `pieces`, with one system call where the receiver keeps up."""
    try:
        sent = target.sendmsg(pieces)
    except BlockingIOError:
        sent = 0
    for piece in pieces:
        if sent >= len(piece):
            sent -= len(piece)
            continue
        await loop.sock_sendall(target, piece[sent:])
        sent = 0
