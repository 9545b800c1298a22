"""One file on its way into the store: out of order within limits, parts in flight, and its ends.

    write … finish     the object is there, or under a temporary name everything waits for the rename
    write … abandon    what is safely stored is parked, and the next writer of the same name goes on from there

Made by `storage.uploads.Uploads`, which keeps the rows, the memory and the tasks. No SQL here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from storage.access import Caller
from storage.errors import AshoreError, BadInput, Conflict, NotAllowed, NotFound, Unavailable
from storage.hashing import Digests, StreamHash
from storage.names import printable
from storage.objects.contract import NoSuchUpload, ObjectFacts, Part
from storage.objects.parts import Schedule, Slot
from storage.records import FileFact
from storage.tree import Node
from storage.upload_rows import Held
from storage.upload_target import Found, OpenPart, Target, always

if TYPE_CHECKING:
    from storage.uploads import Uploads

log = logging.getLogger(__name__)
_IN_FLIGHT = 3
_COPIES_AT_ONCE = 4
_OPEN_PARTS = 4
_PATIENCE = 15.0
"""Seconds that an abandoned upload waits for its parts that are on their way."""
_ROOM_SECONDS = 10.0
"""How often it is asked while bytes come whether they are still welcome. Asked anyway: when there are more of them than
there was room for the last time, and at the end."""


class UploadWriter:
    """One file on its way; a `storage.tree.Writer`."""

    hashes = True

    def __init__(self, uploads: Uploads, caller: Caller, target: Target, mtime: int | None) -> None:
        self.caller = caller
        self.target = target
        self.mtime = mtime
        self.expected_size = 0
        self.suspect = False
        self.superseded = False
        """Somebody has begun anew under the same name: there is nothing to go on with."""
        self.is_modest = False
        """It takes nobody's place before it has bytes."""
        self.held: Held | None = None
        self.is_brief = False
        """It has its row only while it is stored."""
        self.upload_id = ""
        self.schedule = Schedule(uploads.part_size)
        self.opened = uploads.clock()
        self.born = self.busy = uploads.monotonic()
        self.noted = 0
        """Bytes that the row tells."""
        self.lock = asyncio.Lock()
        """Around making the row, and ending it."""
        self._uploads = uploads
        self._open: dict[int, OpenPart] = {}
        self._stored: dict[int, Part] = {}
        self._started: set[int] = set()
        self._flights: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self._copies = asyncio.Semaphore(_COPIES_AT_ONCE)
        self._hash = StreamHash()
        self._end = 0
        self._sent_to = 0
        """Behind the last part that has been sent: what comes after it is still here."""
        self._resumed_at = 0
        self._owed = 0
        """Bytes that were found and are sent again: it cannot end before them."""
        self._was_sealed = False
        self._untouched = True
        self._settled = False
        """The row says all there is to say; there is nothing to park."""
        self._appended: ObjectFacts | None = None
        self._asked_room = 0.0
        self._may_have = 0
        """Bytes for which there was room when it was asked."""
        self._error: AshoreError | None = None
        self._refused: AshoreError | None = None
        self._discarded = False
        self._ended = False
        self._beginning: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[Node] | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        return self._end

    @property
    def has_bytes(self) -> bool:
        return self._end > 0

    @property
    def is_open(self) -> bool:
        """It takes bytes."""
        return not self._ended

    @property
    def holds_memory(self) -> bool:
        return bool(self._open)

    def set_mtime(self, seconds: int) -> None:
        self.mtime = seconds

    def expect_size(self, size: int) -> None:
        self.expected_size = size

    def doubt(self) -> None:
        self.suspect = True

    def discard(self) -> None:
        """If it is abandoned, nothing is kept."""
        self._discarded = True

    def resume(self, found: Found) -> None:
        """Go on with what was found in the store; only before anything was written."""
        self.held, self.upload_id, self.schedule = found.held, found.upload_id, found.schedule
        self._stored = {part.number: part for part in found.parts}
        self._started = set(self._stored)
        self._end = self._sent_to = sum(part.size for part in found.parts)
        self._was_sealed = found.was_sealed
        self._beginning = self._uploads.run(always(), f"resume {self.target.key}")
        self._hash.stop()
        if found.tail:
            slot = self.schedule.at(self._end)
            assert slot is not None
            part = self._open[slot.number] = OpenPart(slot)
            part.put(0, memoryview(found.tail))
            self._end += len(found.tail)
        self._resumed_at = self._end

    def append_to(self, old: ObjectFacts) -> None:
        """Begin with all bytes of an object, copied inside the store; only before anything was written."""
        self._appended = old
        self.schedule = Schedule(self._uploads.part_size, old.size)
        self._end = self._sent_to = old.size
        self._started = set(range(1, self.schedule.slices + 1))
        self._hash.stop()
        self._begin_once()

    async def write(self, offset: int, data: bytes) -> None:
        """Put `data` into the parts that are open; a part that is full is sent.

        After the first refusal there is no other answer: clients that sent ahead learn to stop.
        """
        if self._refused is not None:
            raise self._refused
        try:
            await self._write(offset, data)
        except AshoreError as error:
            self._refused = error
            raise

    async def flush(self) -> None:
        """Wait for the parts that are on their way; what does not fill a part stays in memory until the end."""
        self._check()
        if self._flights:
            await asyncio.wait(self._flights)
        self._check()

    async def truncate(self, size: int) -> None:
        if (error := self._error or self._refused) is not None:
            raise error
        self._owed = 0
        if size == self._end:
            return
        if size == 0 and (not self._started or self._end == self._resumed_at):
            await self._begin_anew()
            return
        if self._sent_to <= size < self._end:
            for part in list(self._open.values()):
                if part.slot.start < size:
                    part.cut(size - part.slot.start)
                else:
                    self._drop(part)
            self._end = size
            return
        raise BadInput("the size of a file in the object store follows from what is written; it cannot be set")

    async def finish(self) -> Node:
        """Durable when this returns; a caller that is cancelled meanwhile does not stop it."""
        if self._finishing is None:
            if self._ended:
                raise self._error or BadInput("this file is closed")
            self._ended = True
            self._finishing = self._uploads.run(self._finish(), f"finish {self.target.key}")
        return await asyncio.shield(self._finishing)

    async def abandon(self) -> None:
        """Park what is safely stored, unless `finish` has begun: then what it decides stands."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
            return
        await self._leave()

    # ---- for `Uploads` ---------------------------------------------------------------------------------------
    def fail(self, error: AshoreError) -> None:
        """It cannot be finished any more; the client hears `error` with its next bytes."""
        self._error = self._error or error
        if self._finishing is None:
            for part in list(self._open.values()):
                self._drop(part)

    @property
    def contiguous(self) -> list[Part]:
        return self.schedule.contiguous(self._stored.values())

    # ---- parts -----------------------------------------------------------------------------------------------
    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise BadInput("this file is closed")

    async def _write(self, offset: int, data: bytes) -> None:
        self._check()
        self.busy = self._uploads.monotonic()
        if data and self._end == self._resumed_at and offset < self._end:
            await self._go_back(offset)
        if self._untouched:
            self._untouched = False
            if self.is_modest:
                await self._uploads.supersede(self)
        view, end = memoryview(data), offset + len(data)
        for slot in self.schedule.between(offset, end):
            if slot is None:
                raise BadInput("this file is larger than the object store can take")
            part = self._open.get(slot.number) or await self._open_part(slot)
            start, stop = max(offset, slot.start), min(end, slot.end)
            part.put(start - slot.start, view[start - offset : stop - offset])
            self._end = max(self._end, stop)
            if part.coverage.prefix == slot.size:
                await self._send(part)

    async def _open_part(self, slot: Slot) -> OpenPart:
        if slot.number in self._started:
            raise BadInput("these bytes were stored already; a file cannot be changed in place, send it again")
        if len(self._open) >= _OPEN_PARTS:
            raise BadInput("the bytes of this file come too far out of order; send it from its beginning")
        if not self._open:
            await self._uploads.budget.acquire(slot.size, self.caller.user_id)
        elif not self._uploads.budget.try_acquire(slot.size, self.caller.user_id):
            # To wait while holding an unfilled part could make everybody wait for everybody.
            raise Unavailable("memory for uploads is short; send this file in order")
        if self._ended or self._error is not None:  # given up while it waited
            self._uploads.budget.release(slot.size, self.caller.user_id)
            self._check()
        part = self._open[slot.number] = OpenPart(slot)
        return part

    async def _send(self, part: OpenPart) -> None:
        await self._ask_room()
        await asyncio.shield(self._begin_once())
        await self._room.acquire()
        is_given_up = self._open.get(part.slot.number) is not part or (self._ended and self._finishing is None)
        if is_given_up or self._error is not None:
            # Whoever gave it up has freed the buffer; where a part before it has failed, the end does.
            self._room.release()
            self._check()
            return
        del self._open[part.slot.number]
        self._started.add(part.slot.number)
        self._sent_to = max(self._sent_to, part.slot.end)
        self._fly(self._carry(part), f"part {part.slot.number} of {self.target.key}")

    def _fly(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._flights.add(task)
        task.add_done_callback(self._flights.discard)

    async def _ask_room(self, *, at_once: bool = False) -> None:
        moment, size = self._uploads.monotonic(), max(self._end, self.expected_size)
        if at_once or size > self._may_have or moment - self._asked_room > _ROOM_SECONDS:
            self._asked_room = moment
            self._may_have = await self.target.room(size)

    def _begin_once(self) -> asyncio.Task[None]:
        if self._beginning is None:
            self._beginning = self._uploads.run(self._begin(), f"begin {self.target.key}")
        return self._beginning

    async def _begin(self) -> None:
        await self._uploads.begin(self)
        if (old := self._appended) is not None:
            for number in range(1, self.schedule.slices + 1):
                self._fly(self._copy(old, self.schedule.slice(number)), f"copy {number} of {self.target.key}")

    async def _copy(self, old: ObjectFacts, slot: Slot) -> None:
        async with self._copies:
            if self._error is not None:
                return
            async with self._noticing():
                etag = await self._uploads.store.copy_part(
                    self.target.key, self.upload_id, slot.number, old, offset=slot.start, size=slot.size
                )
                self._stored[slot.number] = Part(slot.number, etag, slot.size)

    async def _carry(self, part: OpenPart) -> None:
        slot, size = part.slot, part.coverage.end
        body = memoryview(part.buffer)[:size]
        hashing = self._hash.feed(slot.start, body)
        try:
            async with self._noticing():
                etag = await self._uploads.store.put_part(self.target.key, self.upload_id, slot.number, body)
                self._stored[slot.number] = Part(slot.number, etag, size)
        finally:
            if hashing is not None:
                await hashing
            self._uploads.budget.release(slot.size, self.caller.user_id)
            self._room.release()

    @contextlib.asynccontextmanager
    async def _noticing(self) -> AsyncIterator[None]:
        try:
            yield
        except NoSuchUpload:
            self._error = self._error or await self._uploads.lost(self)
        except AshoreError as error:
            self._error = self._error or self._advised(error)

    def _advised(self, error: AshoreError) -> AshoreError:
        """With what the client can do about it."""
        if not isinstance(error, Unavailable) or not self._stored:
            return error
        return Unavailable(f"{error.message}; what is stored of the file is kept: go on with reput later")

    def _drop(self, part: OpenPart) -> None:
        if self._open.pop(part.slot.number, None) is not None:
            self._uploads.budget.release(part.slot.size, self.caller.user_id)

    def _drop_buffers(self) -> None:
        for part in list(self._open.values()):
            self._drop(part)

    async def _go_back(self, offset: int) -> None:
        """The client begins before the end of what was found: with all of it, as scp does, or with what was stored by
        another connection since it asked for the size. What follows comes again."""
        if offset == 0:
            await self._begin_anew()
            return
        slot = self.schedule.at(offset)
        if slot is None or slot.start != offset or slot.number not in self._started or offset < self.schedule.copied:
            return  # no part of ours begins here: it is refused like any other change in place
        self._owed = self._end
        self._drop_buffers()
        self._stored = {number: part for number, part in self._stored.items() if number < slot.number}
        self._started = set(self._stored)
        self._end = self._sent_to = self._resumed_at = self.noted = offset

    async def _begin_anew(self) -> None:
        """Forget what was sent or found."""
        self._drop_buffers()
        if self._beginning is not None:
            await self._uploads.throw_away(self)
        self.held, self.upload_id, self.schedule = None, "", Schedule(self._uploads.part_size)
        self._stored, self._started, self._beginning, self._appended = {}, set(), None, None
        self._hash, self._end, self._sent_to, self._resumed_at = StreamHash(), 0, 0, 0
        self._was_sealed, self.noted, self._owed = False, 0, 0

    # ---- the ends --------------------------------------------------------------------------------------------
    async def _finish(self) -> Node:
        try:
            if (error := self._error or self._refused) is not None:
                raise error
            if self._resumed_at and self._untouched and not self.expected_size:
                await self._leave()  # somebody has only looked
                return self._node(unfinished=True)
            self._check_complete()
            if self._beginning is not None:
                await asyncio.shield(self._beginning)
            await self._uploads.sealing(self)
            # In this order: whoever publishes, moves or deletes looks at the rows after he has said so.
            await self.target.guard()
            await self._ask_room(at_once=True)
            return await (self._finish_parts() if self._beginning or self._waits else self._finish_small())
        except BaseException as error:
            self._discarded = self._discarded or isinstance(error, NotAllowed)
            await self._leave()
            raise
        finally:
            self._drop_buffers()
            self._uploads.forget(self)

    def _check_complete(self) -> None:
        """BadInput if bytes before the end never came, Conflict if there were to be more of them."""
        position = 0
        while position < self._end:
            slot = self.schedule.at(position)
            assert slot is not None
            part = self._open.get(slot.number)
            arrived = slot.size if slot.number in self._started else part.coverage.prefix if part else 0
            if arrived < min(slot.size, self._end - slot.start):
                raise BadInput(f"the bytes from {slot.start + arrived} on never came; send the file again")
            position = slot.end
        path = printable(self.target.path)
        if self._end < self.expected_size:
            raise Conflict(f"received {self._end} of {self.expected_size} bytes of '{path}'; go on with reput")
        if self._end < self._owed:
            raise Conflict(
                f"{self._owed} bytes of '{path}' were here before: send it to its end, or from its beginning"
            )
        if 0 < self.expected_size < self._resumed_at:
            raise Conflict(f"{self._resumed_at} bytes of another '{path}' were here before: send it from its beginning")

    async def _finish_small(self) -> Node:
        key, part = self.target.name_key, self._open.get(1)
        body = memoryview(part.buffer)[: self._end] if part else memoryview(b"")
        hashing = self._hash.feed(0, body)
        etag = await self._uploads.store.put(key, body, metadata=self.metadata, only_new=self.target.only_new)
        if hashing is not None:
            await hashing
        await self._check_place(key)
        return await self._record(key, etag, await self._hash.finish(self._end))

    async def _check_place(self, key: str) -> None:
        """Published, moved or deleted while it was on its way: what was stored must go.

        A row keeps all but deletions away, and with it what the file has replaced.
        """
        try:
            await self.target.guard()
        except NotFound:
            await self._uploads.store.delete(key)
            raise
        except (NotAllowed, Conflict):
            if self.held is None:
                await self._uploads.store.delete(key)
                raise

    async def _finish_parts(self) -> Node:
        rest = sorted(self._open.values(), key=lambda part: part.slot.number)
        tail = bytes(rest[-1].buffer[: rest[-1].coverage.end]) if rest and self.target.is_temporary else b""
        for part in rest:
            await self._send(part)
        await asyncio.shield(self._begin_once())
        while self._flights:
            await asyncio.wait(self._flights)
        if self._error is not None:
            raise self._error
        parts = [self._stored[number] for number in sorted(self._stored)]
        digests = await self._hash.finish(self._end)
        if self.target.is_temporary:
            await self._uploads.seal(self, parts, digests, tail)
            self._settled = True
            return self._node(unfinished=True)._replace(sha256=digests.sha256)
        try:
            etag = await self._uploads.complete(self, parts, digests)
        except Conflict:
            self._discarded = True
            raise
        except Unavailable:
            self._settled = True  # nobody knows whether the object is there by now; the row is kept to find out
            raise
        return await self._record(self.target.key, etag, digests)

    async def _record(self, key: str, etag: str, digests: Digests) -> Node:
        node = self._node()
        fact = FileFact(
            key=key, size=self._end, etag=etag, mtime=node.mtime, suspect=self.suspect,
            md5=digests.md5, sha256=digests.sha256,
        )  # fmt: skip
        self._settled = True
        await self._uploads.record(self, fact)
        return node._replace(sha256=digests.sha256)

    def _node(self, *, unfinished: bool = False) -> Node:
        mtime = int(self._uploads.clock().timestamp()) if self.mtime is None else self.mtime
        name = self.target.path.rpartition("/")[2]
        mode = 0o600 if unfinished else 0o644
        return Node(name, is_directory=False, size=self._end, mtime=mtime, mode=mode, unfinished=unfinished)

    @property
    def _waits(self) -> bool:
        """However small, nothing of it may be seen before its rename."""
        return self.target.is_watched and self.target.is_temporary and self._end > 0

    @property
    def metadata(self) -> dict[str, str]:
        return {} if self.mtime is None else {"mtime": str(self.mtime)}

    @property
    def kept(self) -> int:
        """Bytes that are told to be stored. Never all that has come: clients that find the size of their own file
        think that there is nothing to do, and never close it."""
        kept = self.contiguous
        size = sum(part.size for part in kept)
        return size - kept[-1].size if size == self._end and not self._untouched else size

    async def _leave(self) -> None:
        if self._leaving is None:
            self._ended = True
            self._leaving = self._uploads.run(self._let_go(), f"abandon {self.target.key}")
        await asyncio.shield(self._leaving)

    async def _let_go(self) -> None:
        self._uploads.forget(self)
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
            self._error = self._error or _failure(self._beginning)
        if self._flights:
            _, late = await asyncio.wait(self._flights, timeout=_PATIENCE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._drop_buffers()
        if self._settled or (self.held is None and not self.upload_id):
            return
        try:
            if self._discarded or self.superseded or not self.contiguous:
                await self._uploads.throw_away(self)
            elif self._was_sealed and self._untouched:
                await self._uploads.seal_again(self)
            else:
                await self._uploads.park(self, self.kept)
        except AshoreError:
            # The row keeps its state; when the lease is over, the sweep settles it.
            log.exception("the upload of %s could not be parked", self.target.key)


def _failure(task: asyncio.Task[None]) -> AshoreError | None:
    error = None if task.cancelled() else task.exception()
    return error if isinstance(error, AshoreError) else None


def etag_of(parts: Sequence[Part]) -> str:
    """The ETag that S3 gives to an object of these parts."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        with contextlib.suppress(ValueError):  # a store with other ETags: the result only fails to match
            digest.update(bytes.fromhex(part.etag))
    return f"{digest.hexdigest()}-{len(parts)}"
