"""What one open file did: bytes, ranges, SHA-256 of a sequential write; one audit event per handle.

SFTP and scp share it. Events are written beside the transfer, so that a small file does not wait for the trail; the
owner awaits `AuditLine.drain` at the end. No content of a file gets in here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging

from storage.access import Caller
from storage.audit import AuditTrail, Event
from storage.errors import AshoreError, NotAllowed, OverQuota, Unavailable
from storage.tree import Node, Reader, Writer

log = logging.getLogger(__name__)
_PENDING_EVENTS = 64
_HASH_BATCH = 4 * 1024 * 1024
_RANGES = 16
_FULL = 32 * 1024
"""Bytes of the smallest piece that OpenSSH's client sends, but for the last one of a file."""


class AuditLine:
    """The events of one channel on their way into the trail; at most 64 at a time."""

    def __init__(self, audit: AuditTrail, caller: Caller) -> None:
        self._audit = audit
        self._caller = caller
        self._pending: set[asyncio.Task[None]] = set()

    async def add(self, action: str, path: str, outcome: str = "ok", **detail: str | int) -> None:
        """Return when the event is on its way; waits only while many are."""
        while len(self._pending) >= _PENDING_EVENTS:
            self._audit.hurry()
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        event = Event.by(self._caller, action, thing=path, outcome=outcome, **detail)
        task = asyncio.create_task(self._record(event), name=f"audit {action}")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def failure(self, action: str, path: str, error: AshoreError) -> None:
        """An operation that was refused or failed."""
        await self.add(action, path, _outcome(error), reason=error.message, code=error.code)

    async def drain(self) -> None:
        """Return when everything is in the trail."""
        while self._pending:
            await asyncio.sleep(0)  # those that were added just now have yet to begin
            self._audit.hurry()
            await asyncio.wait(self._pending)

    async def _record(self, event: Event) -> None:
        try:
            await self._audit.record(event, lazily=True)
        except Unavailable:
            log.exception("the audit trail did not take %s of %s", event.action, event.actor)


class Ranges:
    """Byte ranges, summed up: neighbours are joined, and after 16 the rest is only counted."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []
        self._more = 0
        self.bytes = 0

    def add(self, offset: int, size: int) -> None:
        self.bytes += size
        if self._ranges and self._ranges[-1][1] == offset:
            self._ranges[-1][1] = offset + size
        elif len(self._ranges) < _RANGES:
            self._ranges.append([offset, offset + size])
        else:
            self._more += 1

    def __str__(self) -> str:
        text = ",".join(f"{start}-{end}" for start, end in self._ranges)
        return f"{text} and {self._more} more" if self._more else text


class Digest:
    """SHA-256 of what is written from 0 on without a gap, made in a thread, one batch of 4 MiB behind the other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._end = 0
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._sequential = True
        self._running: asyncio.Task[None] | None = None

    async def add(self, offset: int, data: bytes) -> None:
        """Waits only when hashing is slower than the transfer."""
        if not self._sequential:
            return
        if offset != self._end:
            self._sequential = False
            self._batch.clear()
            return
        self._end += len(data)
        self._batch.append(data)
        self._batch_bytes += len(data)
        if self._batch_bytes >= _HASH_BATCH:
            await self._start()

    async def finish(self) -> str:
        """Hexadecimal; empty if the write was not sequential from 0 on."""
        if self._running is not None:
            await self._running
        if not self._sequential:
            return ""
        if self._batch_bytes > 65536:
            await self._start()
            if self._running is not None:
                await self._running
        else:
            _update(self._hash, self._batch)
        return self._hash.hexdigest()

    async def close(self) -> None:
        """Let go of everything; nothing is wanted any more."""
        self._batch.clear()
        if self._running is not None:
            await self._running

    async def _start(self) -> None:
        if self._running is not None:
            await self._running
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._running = asyncio.create_task(asyncio.to_thread(_update, self._hash, batch), name="hash an upload")


class Transfer:
    """One open file, for reading or for writing. Exactly one of `finish` and `abandon` ends it, with its event."""

    def __init__(
        self, audit: AuditLine, path: str, *, reader: Reader | None = None, writer: Writer | None = None
    ) -> None:
        self.path = path
        self.reader = reader
        self.writer = writer
        self._audit = audit
        self._ranges = Ranges()
        self._digest = Digest() if writer is not None and not writer.hashes else None
        self._sha256 = ""
        self._error: AshoreError | None = None
        """The first one: what follows from it is no news."""
        self._promised = False
        self._largest = 0
        self._last = 0

    def promise(self, size: int) -> None:
        """The client said how large the whole file will be."""
        if self.writer is not None:
            self.writer.expect_size(size)
            self._promised = True

    def copied(self) -> None:
        """What was written came from another file here: its end is no client's to cut."""
        self._promised = True

    @property
    def looks_interrupted(self) -> bool:
        """Whether the CLOSE that comes now may be that of an upload which somebody has stopped.

        Files seldom end with a piece of full size, and small ones are sent in one that is not; an OpenSSH client that
        is interrupted always does, and closes the file as if it were complete.
        """
        return self.writer is not None and not self._promised and _FULL <= self._last == self._largest

    async def read(self, offset: int, size: int) -> bytes:
        """NotAllowed if it is open for writing."""
        if self.reader is None:
            raise NotAllowed("this file is open for writing only")
        try:
            data = await self.reader.read(offset, size)
        except AshoreError as error:
            self._error = self._error or error
            raise
        if data:
            self._ranges.add(offset, len(data))
        return data

    async def write(self, offset: int, data: bytes) -> None:
        """NotAllowed if it is open for reading."""
        if self.writer is None:
            raise NotAllowed("this file is open for reading only")
        try:
            await self.writer.write(offset, data)
        except AshoreError as error:
            self._error = self._error or error
            raise
        self._ranges.add(offset, len(data))
        self._last = len(data)
        self._largest = max(self._largest, self._last)
        if self._digest is not None:
            await self._digest.add(offset, data)

    async def finish(self, *, doubtful: bool = False) -> Node:
        """The file is complete; its final state. `doubtful`: it may have been interrupted, and is marked so."""
        node, done = None, False
        try:
            if self.writer is not None:
                if doubtful:
                    self.writer.doubt()
                node = await self.writer.finish()
                self._sha256 = await self._digest.finish() if self._digest is not None else node.sha256
            elif self.reader is not None:
                await self.reader.close()
                node = self.reader.node
            done = True
        except AshoreError as error:
            self._error = self._error or error
            raise
        finally:
            if done:
                await self._record()
            else:
                await self._forget()
                await self._record("an internal error")
        assert node is not None
        return node

    async def abandon(self, reason: str) -> None:
        """It ends without having been completed; what is safely stored may be gone on with."""
        try:
            if self.writer is not None:
                await self.writer.abandon()
            if self.reader is not None:
                await self.reader.close()
        finally:
            await self._forget()
            await self._record(reason)

    async def _forget(self) -> None:
        if self._digest is not None:
            await self._digest.close()

    async def _record(self, trouble: str = "") -> None:
        """The event. `trouble`: why it did not end well, if no error has told."""
        facts: dict[str, str | int] = {"bytes": self._ranges.bytes, "ranges": str(self._ranges)}
        outcome = "failed" if trouble else "ok"
        if self._error is not None:
            outcome = _outcome(self._error)
            facts |= {"reason": self._error.message, "code": self._error.code}
        elif trouble:
            facts["reason"] = trouble
        elif self._sha256:
            facts["sha256"] = self._sha256
        await self._audit.add("data.write" if self.writer else "data.read", self.path, outcome, **facts)


def _outcome(error: AshoreError) -> str:
    """Refused: by a rule or a limit. Failed: anything else."""
    return "refused" if isinstance(error, NotAllowed | OverQuota) else "failed"


def _update(digest: hashlib._Hash, batch: list[bytes]) -> None:
    for piece in batch:
        digest.update(piece)
