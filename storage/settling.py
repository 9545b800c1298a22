"""What the store has of an upload, and what becomes of it: gone on with, completed, given up, or lost.

The rows (`storage.upload_rows`) tell what was meant; a listing of parts tells what is there, and only the parts from
the first one on without a gap count. No writer and no memory of live uploads here; `storage.uploads` has those.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from storage.access import Caller
from storage.audit import Event
from storage.clock import Clock
from storage.errors import AshoreError, Conflict, NotFound, Unavailable
from storage.names import printable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import NoSuchUpload, ObjectStore, Part
from storage.objects.parts import Schedule
from storage.records import Upload, UploadState
from storage.upload_rows import LEASE, Held, UploadRows, fact_of
from storage.upload_target import Found

log = logging.getLogger(__name__)
_TAILS = ".ashore/tails/"
"""Keys of the last bytes of sealed uploads, for those that are gone on with after all: parts cannot be read."""


class Settlement:
    """Acts on rows that the caller has taken, or takes them itself."""

    def __init__(self, rows: UploadRows, store: ObjectStore, budget: MemoryBudget, clock: Clock) -> None:
        self._rows = rows
        self._store = store
        self._budget = budget
        self._clock = clock

    async def settle(self, row: Upload) -> bool:
        """Bring a row that nobody writes into a state in which it may stay; False if somebody else was faster."""
        held = await self._rows.take(row)
        if held is None or (row := await self._rows.get(row.id) or row).epoch != held.epoch:
            return False
        event = Event("upload.settle", thing=row.path, detail={"upload": row.id, "bytes": row.size})
        if row.state is UploadState.COMPLETING and await self._settle_completing(row):
            if await self._rows.record(fact_of(row), held):
                await self._rows.audit(event)
            return True
        await self._park_row(row, held, event)
        return True

    async def expire(self, keep: timedelta, prefix: str = "") -> int:
        """Throw away what has waited below `prefix` for longer than `keep`; how many uploads that were."""
        rows = [row for row in await self._rows.expired(keep) if row.key.startswith(prefix)]
        for row in rows:
            detail = {"upload": row.id, "bytes": row.size}
            await self.throw_away_row(row, Event("upload.expire", thing=row.path, detail=detail))
        return len(rows)

    async def drop_tails(self) -> None:
        """Remove the tails of uploads that are over."""
        async for page in self._store.list(_TAILS):
            ids = {facts.key.removeprefix(_TAILS): facts.key for facts in page}
            needed = await self._rows.not_over(ids)
            if gone := [key for row_id, key in ids.items() if row_id not in needed]:
                await self._store.delete_many(gone)

    async def throw_away_row(self, row: Upload, event: Event | None = None) -> None:
        """End an upload for good, whoever writes it."""
        held = await self._rows.take(row)
        if held is not None:
            await self.throw_away(held, row.key, row.s3_upload_id, event)

    async def find(self, caller: Caller, row: Upload, held: Held) -> Found | None:
        """What the store has of an upload that is ours now; None if that is nothing."""
        try:
            listed = await self._store.list_parts(row.key, row.s3_upload_id) if row.s3_upload_id else []
        except NoSuchUpload as error:
            raise await self.lose(caller, held, row.path) from error
        schedule = Schedule(row.part_size, row.copied)
        parts = schedule.contiguous(listed)
        size = sum(part.size for part in parts)
        sealed = row.state is UploadState.SEALED
        tail = await self._tail(caller, row, size, schedule) if sealed and row.size > size else b""
        if row.state is UploadState.PARKED and size > row.size:
            parts = [part for part in parts if schedule.numbered(part.number).end <= row.size]
            size = row.size
        if not parts:
            if row.s3_upload_id:
                await self._store.abort_upload(row.key, row.s3_upload_id)
            await self._rows.end(held, UploadState.ABORTED)
            return None
        moment = self._clock()
        values = {"state": UploadState.OPEN, "instance": self._rows.instance, "lease_until": moment + LEASE}
        is_ours = False
        try:
            is_ours = await self._rows.change(held, **values, resumed=moment, touched=moment, size=size)
        finally:
            if not is_ours:
                self._free_tail(caller, tail, size, schedule)
        if not is_ours:
            raise ended()
        return Found(held, row.s3_upload_id, schedule, parts, tail, was_sealed=sealed, mtime=row.mtime)

    async def throw_away(self, held: Held, key: str, upload_id: str, event: Event | None = None) -> None:
        """End an upload of ours: first nobody finds it any more, then its parts go.

        If it is not ours any more, or the store is away, nothing more happens now: the sweep comes again.
        """
        if not await self._rows.change(held, superseded=True, instance="", lease_until=None):
            await self._rows.let_go(held.id)
            return
        try:
            if upload_id:
                await self._store.abort_upload(key, upload_id)
        except AshoreError as error:
            log.warning("the parts of %s cannot be thrown away now: %s", key, error.message)
            return
        await self._rows.end(held, UploadState.ABORTED, event)

    async def lose(self, caller: Caller, held: Held, path: str) -> AshoreError:
        """The store does not know an upload of ours; what its client is told."""
        event = Event.by(caller, "upload.lost", thing=path, outcome="failed", upload=held.id)
        if not await self._rows.end(held, UploadState.LOST, event):
            return ended()
        return Conflict(f"the object store has thrown away what it had of '{printable(path)}': send it from the start")

    async def make(
        self, key: str, upload_id: str, parts: Sequence[Part], size: int, etag: str, *, only_new: bool
    ) -> str:
        """Complete the object of `key`, as often as it takes to know; its ETag. NoSuchUpload, Conflict, Unavailable."""
        pairs = [(part.number, part.etag) for part in parts]
        for attempt in (1, 2, 3):
            try:
                return await self._store.complete_upload(key, upload_id, pairs, only_new=only_new)
            except (NoSuchUpload, Unavailable) as error:
                # The answer may have been lost, not the work.
                if await self._is_there(key, etag, size):
                    return etag
                if isinstance(error, NoSuchUpload) or attempt == 3:
                    raise
                await asyncio.sleep(0.5 * attempt)
        raise AssertionError("the last attempt returns or raises")

    async def put_tail(self, row_id: str, tail: bytes) -> None:
        """Keep the bytes of a sealed upload that do not fill a part."""
        await self._store.put(_TAILS + row_id, tail)

    async def drop_tail(self, row_id: str) -> None:
        await self._store.delete(_TAILS + row_id)

    async def _park_row(self, row: Upload, held: Held, event: Event) -> None:
        try:
            parts = await self._store.list_parts(row.key, row.s3_upload_id) if row.s3_upload_id else []
        except NoSuchUpload:
            if row.superseded:
                await self._rows.end(held, UploadState.ABORTED, event)
                return
            event = Event("upload.lost", "failed", thing=row.path, detail=event.detail)
            await self._rows.end(held, UploadState.LOST, event)
            return
        if _is_whole(row, parts):  # sealed, and somebody has only looked at it since
            await self._rows.end(held, UploadState.SEALED, event, size=sum(part.size for part in parts_of(row)))
            return
        kept = Schedule(row.part_size, row.copied).contiguous(parts)
        size = sum(part.size for part in kept)
        if kept and size == row.expected_size:
            size -= kept[-1].size  # a client that finds all of its file never closes it
        if size and not row.superseded:
            await self._rows.end(held, UploadState.PARKED, event, size=size)
            return
        if row.s3_upload_id:
            await self._store.abort_upload(row.key, row.s3_upload_id)
        event = Event("upload.settle", "failed", thing=row.path, detail=event.detail)
        await self._rows.end(held, UploadState.ABORTED, event)

    async def _settle_completing(self, row: Upload) -> bool:
        """Whether the object of a row in COMPLETING is in the store, completing it if its parts still are.

        One that was thrown away, or overtaken by a later file of this name, is not completed any more.
        """
        if row.superseded:
            return await self._is_there(row.key, row.etag, row.size)
        try:
            listed = await self._store.list_parts(row.key, row.s3_upload_id)
        except NoSuchUpload:
            return await self._is_there(row.key, row.etag, row.size)
        parts = parts_of(row) or list(listed)
        known = {(part.number, part.etag) for part in listed}
        if sum(part.size for part in parts) != row.size or any((p.number, p.etag) not in known for p in parts):
            return False
        await self.make(row.key, row.s3_upload_id, parts, row.size, row.etag, only_new=False)
        return True

    async def _is_there(self, key: str, etag: str, size: int) -> bool:
        try:
            facts = await self._store.head(key)
        except NotFound:
            return False
        return (facts.size, facts.etag) == (size, etag)

    async def _tail(self, caller: Caller, row: Upload, size: int, schedule: Schedule) -> bytes:
        try:
            tail = await self._store.get(_TAILS + row.id)
        except NotFound:
            return b""
        slot = schedule.at(size)
        if slot is None or size + len(tail) != row.size:
            return b""
        await self._budget.acquire(slot.size, caller.user_id)
        return tail

    def _free_tail(self, caller: Caller, tail: bytes, size: int, schedule: Schedule) -> None:
        slot = schedule.at(size)
        if tail and slot is not None:
            self._budget.release(slot.size, caller.user_id)


def _is_whole(row: Upload, listed: Sequence[Part]) -> bool:
    """Whether a temporary name was closed once, and the store still has every part of that."""
    known = {(part.number, part.etag) for part in listed}
    parts = parts_of(row)
    is_temporary = bool(parts) and row.sent_as != row.key and not row.superseded
    return is_temporary and all((part.number, part.etag) in known for part in parts)


def ended() -> Conflict:
    """What a client hears whose upload is not its own any more."""
    return Conflict("this upload was ended, or another connection goes on with it")


def parts_of(row: Upload) -> list[Part]:
    """The parts that the object of a row is made of, once they are known."""
    return [Part(int(number), str(etag), int(size)) for number, etag, size in row.parts]
