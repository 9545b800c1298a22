"""The upload engine: bytes that arrive in small pieces become one durable object, or none.

    writer = await uploads.open(caller, target)             # anew; what was parked under this name is thrown away
    writer = await uploads.resume(caller, target)           # go on with what is there; None if there is nothing
    await writer.write(offset, data)                        # waits while memory is short
    node = await writer.finish()                            # durable under its name, recorded with its time
    await writer.abandon()                                  # or: parked; nothing ever appears under the name

Files up to one part are stored by a single PUT, larger ones by S3 multipart with at most three parts on their way.
The row of an upload holds what a crash must not forget: the S3 upload id and, before the object is completed, its list
of parts and the ETag that it will have. `recover` and the sweep (`storage.parked`) settle what dead processes left.

Several writers on one path do not disturb each other unless one of them goes on with the other's upload: each fills an
upload of its own and the last to finish is what readers see. A half-dead connection never blocks its successor.

Paths, rights and published versions are `storage.namespace`'s business; it passes a `guard` that is asked once more
just before the object appears.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError, Conflict, OverQuota, Unavailable
from storage.hashing import Digests
from storage.hot_queries import is_known
from storage.names import printable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import NoSuchUpload, ObjectStore, Part
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import FileFact, Holder, Upload, UploadState, new_id
from storage.settings import ObjectSettings
from storage.settling import Settlement, ended, parts_of
from storage.upload_progress import UploadProgress
from storage.upload_rows import LEASE, Held, UploadRows, fact_of, is_going_on
from storage.upload_target import Found, Guard, Target
from storage.upload_writer import UploadWriter, etag_of

log = logging.getLogger(__name__)
_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_TAKE_OVER = 5.0
"""Seconds that a live writer gets to park when another connection goes on with its upload."""


class Uploads:
    """Everything that is on its way into the store through this process."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        audit: AuditTrail,
        changes: Changes,
        settings: ObjectSettings,
        clock: Clock = now,
        *,
        instance: str = "",
        quotas: Quotas | None = None,
    ) -> None:
        self.live: set[UploadWriter] = set()
        """Those that have not ended."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self.quotas = quotas or Quotas(database, audit, changes, objects=settings)
        self._database = database
        self.store = store
        self.changes = changes
        self.clock = clock
        self.monotonic = time.monotonic
        self.instance = instance or new_id()
        self.rows = UploadRows(database, audit, changes, clock, self.instance)
        self.part_size = max(5, min(64, settings.part_mib)) * _MIB
        self.budget = MemoryBudget(settings.memory_mib * _MIB)
        self.parked = Settlement(self.rows, store, self.budget, clock)
        self._progress = UploadProgress(self)

    async def open(
        self, caller: Caller, target: Target, *, mtime: int | None = None, is_alone: bool = False
    ) -> UploadWriter:
        """A writer that begins anew at `target`; the object that is there stays until it is finished.

        `is_alone`: the caller has just seen that nothing is under way to this name.
        """
        writer = UploadWriter(self, caller, target, mtime)
        if is_alone:
            self._overtake(writer)
        else:
            await self.supersede(writer)
        return self._admit(writer)

    async def resume(self, caller: Caller, target: Target, *, mtime: int | None = None) -> UploadWriter | None:
        """A writer that goes on with the caller's upload to this name; None if there is none, or it is finished.

        A connection that still writes it is overtaken. Conflict if the store has lost what was stored.
        """
        row = await self.rows.current(caller.user_id, target.name_key)
        if row is None:
            return None
        if (live := self._writer_of(row)) is not None:
            live.fail(ended())
            await asyncio.wait([self.run(live.abandon(), f"park {row.key}")], timeout=_TAKE_OVER)
        row, found = await self._settled(row.id), None
        if row is not None and row.state is UploadState.DONE:
            return None
        if row is not None and is_going_on(row):
            found = await self._take_over(caller, row)
        if found is None:
            # Nothing was stored. The client knows an empty file, whatever the object of this name may be.
            return await self.open(caller, target, mtime=mtime)
        writer = UploadWriter(self, caller, target, found.mtime if mtime is None else mtime)
        writer.resume(found)
        return self._admit(writer)

    async def _settled(self, row_id: str) -> Upload | None:
        """The row as it is now, when it is known whether its object is there."""
        row = await self.rows.get(row_id)
        if row is not None and row.state is UploadState.COMPLETING:
            await self.parked.settle(row)
            row = await self.rows.get(row_id)
        return row

    async def _take_over(self, caller: Caller, row: Upload) -> Found | None:
        foreign = bool(row.instance) and row.instance != self.instance
        leased = row.lease_until is not None and row.lease_until > self.clock()
        held = await self.rows.take(row, wait=_TAKE_OVER if foreign and leased else 0.0)
        if held is None:
            raise Conflict(f"another connection goes on with '{printable(row.path)}' at this moment; try again")
        return await self.parked.find(caller, row, held)

    def new(self, caller: Caller, target: Target, *, mtime: int | None = None) -> UploadWriter:
        """A writer that takes nobody's place before it has bytes."""
        writer = self._admit(UploadWriter(self, caller, target, mtime))
        writer.is_modest = True
        return writer

    async def close(self) -> None:
        """Park what is unfinished, after what is being finished right now."""
        await asyncio.gather(*(writer.abandon() for writer in tuple(self.live)))
        if self._ticker is not None:
            self._ticker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ---- what is unfinished ----------------------------------------------------------------------------------
    async def unfinished(self, caller: Caller, prefix: str) -> Sequence[Upload]:
        """The caller's own uploads to names below the key `prefix` (ends with a slash), newest last."""
        return await self.rows.below(caller.user_id, prefix)

    async def remove(self, caller: Caller, name_key: str, *, unseen: bool = False) -> bool:
        """End the caller's unfinished upload to this name for good; whether there was one.

        With `unseen` also those that nobody can see yet.
        """
        if await self.rows.current(caller.user_id, name_key) is None and not unseen:
            return False
        mine = self._others(caller, name_key)
        for writer in mine:
            writer.discard()
            writer.fail(ended())
            await writer.abandon()
        if (row := await self.rows.current(caller.user_id, name_key)) is not None:
            await self.parked.throw_away_row(row)
        return bool(mine) or not unseen

    async def set_mtime(self, row: Upload, seconds: int) -> None:
        """Of an unfinished upload."""
        if (writer := self._writer_of(row)) is not None:
            writer.set_mtime(seconds)
        await self.rows.change(Held(row.id, row.epoch), mtime=seconds)

    async def commit(self, caller: Caller, row: Upload, guard: Guard, *, only_new: bool) -> FileFact:
        """The temporary name of a sealed upload is renamed to the name that it was made for: the object appears."""
        if row.state is UploadState.COMPLETING:  # an earlier rename that the store did not answer
            row = await self._settled(row.id) or row
        if row.state is UploadState.DONE:
            return fact_of(row)
        if row.state is not UploadState.SEALED:
            raise Conflict(f"'{printable(row.path)}' is not complete yet; go on with reput, then rename it")
        held = await self.rows.take(row)
        if held is None:
            raise ended()
        await guard()
        lease = self.clock() + LEASE
        moved = {"state": UploadState.COMPLETING, "instance": self.instance, "lease_until": lease}
        if not await self.rows.change(held, **moved):
            raise ended()
        parts = parts_of(row)
        try:
            await self.parked.make(row.key, row.s3_upload_id, parts, row.size, row.etag, only_new=only_new)
        except NoSuchUpload as error:
            raise await self.parked.lose(caller, held, row.path) from error
        except Conflict:
            await self.rows.end(held, UploadState.SEALED)
            raise
        except Unavailable:
            await self.rows.let_go(row.id)
            raise
        fact = fact_of(row)
        if not await self.rows.record(fact, held):
            raise ended()
        await self.parked.drop_tail(row.id)
        return fact

    # ---- what a dead process left ----------------------------------------------------------------------------
    async def recover(self, *, even_leased: bool = True) -> int:
        """Settle the uploads of processes that are gone; how many rows were settled.

        What was being completed is completed if the store agrees, everything else is parked with what the store
        really has. A row that cannot be settled now (the store is away) stays for the next time. With `even_leased`
        every other process counts as gone: before any of them takes connections.
        """
        await self.rows.forget_old()
        settled = 0
        for row in await self.rows.left(even_leased=even_leased):
            if self._writer_of(row) is not None:
                continue
            try:
                settled += await self.parked.settle(row)
            except AshoreError:
                log.exception("the upload of %s cannot be settled now", row.key)
        return settled

    # ---- for writers -----------------------------------------------------------------------------------------
    def run(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task that outlives whoever started it and is awaited by `close`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def supersede(self, writer: UploadWriter, *, finished: bool = False) -> None:
        """What is under way to the same name can still finish, but not be gone on with; what waits is thrown away.

        A writer that has been superseded itself does so only when it has finished.
        """
        if writer.superseded and not finished:
            return
        self._overtake(writer)
        mine = writer.held.id if writer.held else ""
        rows = [row for row in await self.rows.named(writer.caller.user_id, writer.target.name_key) if row.id != mine]
        live = [row.id for row in rows if row.instance]
        for row in rows:
            if not row.instance:
                await self.parked.throw_away_row(row)
        if live:
            await self.rows.supersede(live)

    def _overtake(self, writer: UploadWriter) -> None:
        for other in self._others(writer.caller, writer.target.name_key):
            other.superseded = other.superseded or other is not writer

    def forget(self, writer: UploadWriter) -> None:
        self.live.discard(writer)

    async def begin(self, writer: UploadWriter) -> None:
        """Begin the multipart upload of a writer, and its row if it has none yet."""
        await self._check_waiting(writer.caller)
        upload_id = await self.store.create_upload(writer.target.key, metadata=writer.metadata)
        try:
            async with writer.lock:
                if writer.held is None:
                    writer.held = await self.rows.add(self.row_of(writer, upload_id))
                elif not await self.rows.change(writer.held, s3_upload_id=upload_id, copied=writer.schedule.copied):
                    raise ended()
        except AshoreError:
            await self.store.abort_upload(writer.target.key, upload_id)
            raise
        writer.upload_id = upload_id
        await writer.target.guard()  # once the row is there: see `UploadWriter._finish`

    async def sealing(self, writer: UploadWriter) -> None:
        """The client has closed the file. A small one has a row from now on if it replaces another."""
        target = writer.target
        async with writer.lock:
            if writer.held is None:
                if target.is_watched or await is_known(self._database, target.name_key):
                    writer.held = await self.rows.add_brief(self.row_of(writer, "", state=UploadState.SEALING))
                    writer.is_brief = True
            elif not await self.rows.change(writer.held, state=UploadState.SEALING):
                raise ended()

    async def seal(self, writer: UploadWriter, parts: Sequence[Part], digests: Digests, tail: bytes) -> None:
        """All of it is stored; it waits for its rename."""
        assert writer.held is not None
        if tail:
            await self.parked.put_tail(writer.held.id, tail)
        values = self._completed(writer, parts, digests)
        if not await self.rows.end(writer.held, UploadState.SEALED, **values):
            raise ended()
        await self.supersede(writer, finished=True)

    async def seal_again(self, writer: UploadWriter) -> None:
        """It was sealed, and nothing has come since."""
        assert writer.held is not None
        await self.rows.end(writer.held, UploadState.SEALED, size=writer.size)

    async def complete(self, writer: UploadWriter, parts: Sequence[Part], digests: Digests) -> str:
        """Turn parts into the object, knowing beforehand what it must be; its ETag."""
        assert writer.held is not None
        values = self._completed(writer, parts, digests)
        lease = self.clock() + LEASE
        if not await self.rows.change(writer.held, state=UploadState.COMPLETING, lease_until=lease, **values):
            raise ended()
        target = writer.target
        try:
            return await self.parked.make(
                target.key, writer.upload_id, parts, values["size"], values["etag"], only_new=target.only_new
            )
        except NoSuchUpload as error:
            raise await self.lost(writer) from error
        except Unavailable:
            await self.rows.let_go(writer.held.id)
            raise

    async def record(self, writer: UploadWriter, fact: FileFact) -> None:
        """The file is in the store."""
        async with writer.lock:
            if not await self.rows.record(fact, writer.held, forget=writer.is_brief):
                raise ended()
        if not writer.target.is_temporary:
            self._overtake(writer)

    async def park(self, writer: UploadWriter, size: int) -> None:
        """Keep the first `size` bytes for the next writer of this name."""
        assert writer.held is not None
        row = await self.rows.get(writer.held.id)
        if not size or row is None or row.superseded:
            await self.throw_away(writer)
            return
        values: dict[str, Any] = {"size": size, "mtime": writer.mtime, "expected_size": writer.expected_size or None}
        if not await self.rows.end(writer.held, UploadState.PARKED, **values):
            await self.rows.let_go(writer.held.id)

    async def throw_away(self, writer: UploadWriter) -> None:
        """Give up what a writer has in the store, unless somebody else goes on with it."""
        if writer.held is not None:
            await self.parked.throw_away(writer.held, writer.target.key, writer.upload_id)

    async def lost(self, writer: UploadWriter) -> AshoreError:
        """The store does not know the upload of a writer; what its client is told."""
        if writer.held is None:
            return ended()
        return await self.parked.lose(writer.caller, writer.held, writer.target.path)

    def _completed(self, writer: UploadWriter, parts: Sequence[Part], digests: Digests) -> dict[str, Any]:
        return {
            "size": sum(part.size for part in parts), "etag": etag_of(parts), "mtime": writer.mtime,
            "parts": [[part.number, part.etag, part.size] for part in parts], "suspect": writer.suspect,
            "md5": digests.md5, "sha256": digests.sha256, "expected_size": writer.expected_size or None,
        }  # fmt: skip

    def row_of(self, writer: UploadWriter, upload_id: str, *, state: UploadState = UploadState.OPEN) -> Upload:
        moment, target = self.clock(), writer.target
        return Upload(
            id=new_id(), owner_id=writer.caller.user_id, path=target.path, key=target.key, sent_as=target.name_key,
            state=state, s3_upload_id=upload_id, part_size=writer.schedule.part_size, copied=writer.schedule.copied,
            expected_size=writer.expected_size or None, mtime=writer.mtime, superseded=writer.superseded,
            created=writer.opened, resumed=writer.opened, touched=moment,
        )  # fmt: skip

    async def _check_waiting(self, caller: Caller) -> None:
        """OverQuota if the caller has left too much in the store that is not finished."""
        held = await self.rows.held_by(caller.user_id)
        most = await self.quotas.allowed(Holder.USER, caller.user_id, Resource.UPLOADS)
        room = await self.quotas.allowed(Holder.USER, caller.user_id, Resource.PARKED)
        if (most is None or held.files < most) and (room is None or held.bytes < room):
            return
        if not held.files:
            raise OverQuota("you may leave nothing unfinished, so only small files can be sent: ask an administrator")
        oldest = await self.rows.oldest_of(caller.user_id)
        advice = "finish some, or end the oldest"
        if oldest:
            shown = printable(oldest.path, limit=200)
            advice = f"finish some, or end the oldest with: upload abort {oldest.id} ('{shown}')"
        raise OverQuota(
            f"there are {held.files} unfinished uploads of yours, and {held.bytes / _GIB:.1f} GiB of broken ones wait: "
            f"{advice}"
        )

    # ---- telling the others ----------------------------------------------------------------------------------
    def _admit(self, writer: UploadWriter) -> UploadWriter:
        self.live.add(writer)
        if self._ticker is None or self._ticker.done():
            self._ticker = self.run(self._progress.run(), "progress of uploads")
        return writer

    def _others(self, caller: Caller, name_key: str) -> list[UploadWriter]:
        return [w for w in self.live if w.target.name_key == name_key and w.caller.user_id == caller.user_id]

    def _writer_of(self, row: Upload) -> UploadWriter | None:
        return next((w for w in self.live if w.held is not None and w.held.id == row.id), None)


async def put_fact(tx: Transaction, key: str, size: int, etag: str, mtime: int) -> None:
    """Remember the facts of an object. What was known about its content stays if it is the same content."""
    known = await tx.get(FileFact, key)
    if known is not None and (known.size, known.etag) == (size, etag):
        known.mtime = mtime
        return
    await tx.merge(FileFact(key=key, size=size, etag=etag, mtime=mtime, sha256="", md5="", suspect=False))
