"""The SFTP door: a channel, the queue of its requests, and the one task that answers them in order.

So WinSCP's pipelined CLOSE and SETSTAT mean what they say. Back-pressure is real: while storage is slow the client's
window closes, and while the client does not read, no request is served. Only a CLOSE that was received finishes an
upload; every other end abandons it. What requests mean is in `sftp_requests`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from backends.files import Files
from gateway.channel import Channel, Size
from gateway.sftp_packets import Frames, Kind, Malformed, Request
from gateway.sftp_requests import SftpRequests
from gateway.transfers import AuditLine
from storage.access import Caller
from storage.audit import AuditTrail

log = logging.getLogger(__name__)

LONGEST_QUEUE = 4 * 1024 * 1024
_RESUME_QUEUE = 1024 * 1024
LONGEST_BACKLOG = 8 * 1024 * 1024
_COALESCED_REPLIES = 64


class SftpDoor:
    """One SFTP channel; a `gateway.channel.Consumer`."""

    def __init__(self, channel: Channel, files: Files, caller: Caller, audit: AuditTrail) -> None:
        self._channel = channel
        self._caller = caller
        self._audit = AuditLine(audit, caller)
        self._answers = SftpRequests(files, caller, self._audit, channel.write_stderr, is_lost=lambda: self._lost)
        self._frames = Frames()
        self._requests: deque[Request] = deque()
        self._queued = 0
        self._reading_paused = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._lost = False

    async def run(self) -> int:
        """Serve until the client has sent its last byte or is gone; returns the exit status."""
        self._channel.attach(self)
        try:
            return await self._serve()
        finally:
            self._channel.detach(self)
            await self._answers.abandon_all()
            await self._audit.drain()

    # ---- what the channel calls ------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while request := self._frames.next():
                self._requests.append(request)
                self._queued += len(request.data) + len(request.body) + 64
        except Malformed as error:
            log.warning("SFTP of %s: %s", self._caller.name, error)
            self._lost = True
        if self._queued > LONGEST_QUEUE and not self._reading_paused:
            self._reading_paused = True
            self._channel.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        self._ended = True
        self._news.set()

    def resized(self, size: Size) -> None:
        pass

    def signal_received(self, name: str) -> None:
        pass

    def output_unwanted(self) -> None: ...

    def break_received(self, milliseconds: int) -> None:
        pass

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def closed(self) -> None:
        self._lost = True
        self._news.set()
        self._writable.set()

    # ---- the loop --------------------------------------------------------------------------------------------
    async def _serve(self) -> int:
        replies: list[bytes] = []
        while not self._lost:
            if not self._requests:
                self._send(replies)
                if self._ended:
                    return 0
                self._news.clear()
                await self._news.wait()
                continue
            request = self._requests.popleft()
            # Replies to a run of small WRITEs leave together: one packet, one encryption, one system call.
            if request.kind != Kind.WRITE or len(replies) >= _COALESCED_REPLIES:
                self._send(replies)
                await self._until_writable()
            replies.append(await self._answers.answer(request))
            self._taken(request)
        return 1

    def _send(self, replies: list[bytes]) -> None:
        if replies:
            self._channel.write(b"".join(replies) if len(replies) > 1 else replies[0])
            replies.clear()

    async def _until_writable(self) -> None:
        if not self._writable.is_set():
            await self._writable.wait()
        # PuTTY and WinSCP open windows of 2 GiB: the channel never fills up, the process's memory would.
        while self._channel.backlog() > LONGEST_BACKLOG and not self._lost:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _taken(self, request: Request) -> None:
        self._queued -= len(request.data) + len(request.body) + 64
        if self._reading_paused and self._queued < _RESUME_QUEUE:
            self._reading_paused = False
            self._channel.resume_reading()
