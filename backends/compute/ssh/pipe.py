"""The byte stream of one program on a machine, joined to a socket pair.

Moves bytes and ends of file both ways, and picks the driver's own first line (`scripts.MARK`) out of what the program
writes to stderr. Knows nothing of environments; `driver` starts the program and sees to it that it does not stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import asyncssh

from backends.compute.hang_up import hang_up, has_hung_up
from backends.compute.ssh.links import Process, status_of
from backends.compute.ssh.scripts import MARK
from storage.errors import Unavailable
from storage.names import printable

_BUFFER = 256 * 1024
_TAIL = 4096
_LOST = (asyncssh.Error, OSError)


class ProgramStream:
    """Pumps between a program and `inner`, the end of the pair that its caller gets.

    `finished` is done when the program's output has ended (False) or nobody reads it any more (True, or cancelled).
    Whoever makes this owns it and must `close` it.
    """

    def __init__(self, process: Process, name: str) -> None:
        self.inner, self._outer = socket.socketpair()
        self.inner.setblocking(False)
        self._outer.setblocking(False)
        self._process = process
        self._tail = bytearray()
        self._mark: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(), name=f"stderr of {name}")
        self.finished = asyncio.create_task(self._run(), name=f"program stream {name}")

    @property
    def complaint(self) -> str:
        """The end of what the program wrote to stderr, as text."""
        return self._tail.decode("utf-8", "replace").strip()

    async def mark(self) -> list[str]:
        """The words after the mark. Unavailable: the program has ended without it, and what it said."""
        return await asyncio.shield(self._mark)

    @property
    def is_abandoned(self) -> bool:
        """Whether it is finished because nobody reads it any more."""
        return self.finished.done() and (self.finished.cancelled() or self.finished.result())

    def hang_up(self) -> None:
        """Let the program's own ends be closed; its exit status will not be told."""
        self._process.close()

    async def ended(self, seconds: float) -> bool:
        """Whether the program has told how it ended, after so many seconds at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait_closed()
        except (TimeoutError, *_LOST):
            return False
        return self.status is not None

    @property
    def status(self) -> int | None:
        """The exit status; None while nobody has told."""
        return status_of(self._process)

    async def close(self) -> None:
        """End both directions and wait until nothing of this stream is left here."""
        self.finished.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.finished
        self._process.close()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._mark.cancel()
        self._outer.close()  # again here: a task that is cancelled before its first step never cleans up

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _run(self) -> bool:
        inbound = asyncio.create_task(self._pump_in(), name="program stream in")
        outbound = asyncio.create_task(self._pump_out(), name="program stream out")
        tasks = (inbound, outbound)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return outbound not in done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._outer.close()

    async def _pump_in(self) -> None:
        """From the caller to the program's stdin; returns when the caller is gone, not when its half has ended."""
        loop = asyncio.get_running_loop()
        try:
            while piece := await loop.sock_recv(self._outer, _BUFFER):
                self._process.stdin.write(piece)
                await self._process.stdin.drain()
            self._process.stdin.write_eof()
        except _LOST:
            if has_hung_up(self._outer):
                return  # else the program takes no more; what it still says goes on
        await hang_up(self._outer)

    async def _pump_out(self) -> None:
        """From the program to the caller, until the program's output ends."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(*_LOST):
            while piece := await self._process.stdout.read(_BUFFER):
                await loop.sock_sendall(self._outer, piece)

    async def _listen(self) -> None:
        early = b""
        with contextlib.suppress(*_LOST):
            while piece := await self._process.stderr.read(65536):
                if self._mark.done():
                    self._remember(piece)
                    continue
                early += piece
                early = self._look_for_mark(early)
        if not self._mark.done():
            said = printable(early.decode("utf-8", "replace").strip(), limit=200)
            self._mark.set_exception(Unavailable(f"the program was not started: {said}" if said else "nothing started"))
            self._mark.exception()  # whoever waits is told; nobody has to

    def _look_for_mark(self, early: bytes) -> bytes:
        """What the account's start-up files say comes before it, and is nobody's business."""
        *lines, rest = early.split(b"\n")
        for number, line in enumerate(lines):
            words = line.decode("utf-8", "replace").split()
            if words[:1] == [MARK] and not self._mark.done():
                self._mark.set_result(words[1:])
                self._remember(b"\n".join([*lines[number + 1 :], rest]))
                return b""
        return early[-_TAIL:]

    def _remember(self, piece: bytes) -> None:
        self._tail += piece[-_TAIL:]
        del self._tail[:-_TAIL]
