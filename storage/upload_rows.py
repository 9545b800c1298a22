"""The rows of uploads: who holds one, and how it changes hands.

A row belongs to one writer at a time, known by its `epoch`: every change names it, and a writer that has been
overtaken changes nothing any more. The lease tells other processes that the holder is alive. SQL only, no store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import case, delete, func, or_, select, update

from storage.audit import AuditTrail, Event
from storage.batch import Batch
from storage.changes import Changes
from storage.clock import Clock
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.fact_batch import FactBatch
from storage.objects.contract import Usage
from storage.records import ARCHIVE_OVER, FileFact, ImageArchive, Upload, UploadState

LEASE = timedelta(seconds=30)
_KEEP_ROWS = timedelta(days=7)
_LIVE = (UploadState.OPEN, UploadState.SEALING, UploadState.COMPLETING)
WAITING = (UploadState.PARKED, UploadState.SEALED)
NOT_OVER = _LIVE + WAITING
ARCHIVES = "images/"
"""Archives of images are below this key."""
_POLL = 0.2


@dataclass(frozen=True)
class Held:
    """A row, and the right to change it."""

    id: str
    epoch: int


class UploadRows:
    """The table `uploads`, as one process sees it."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, clock: Clock, instance: str) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._clock = clock
        self.instance = instance
        self._facts = FactBatch(database)
        self._brief = Batch(self._add_all, "rows of small files")

    # ---- looking ---------------------------------------------------------------------------------------------
    async def get(self, row_id: str) -> Upload | None:
        async with self._database.reading() as tx:
            return await tx.get(Upload, row_id)

    async def current(self, owner_id: str, sent_as: str) -> Upload | None:
        """The newest upload of this owner to this name that is not over."""
        query = select(Upload).where(
            Upload.sent_as == sent_as, Upload.owner_id == owner_id, Upload.state.in_(NOT_OVER),
            Upload.superseded.is_(False),
        )  # fmt: skip
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(Upload.created.desc()).limit(1))).first()

    async def named(self, owner_id: str, sent_as: str) -> Sequence[Upload]:
        """All uploads of this owner to this name that are not over."""
        query = select(Upload).where(Upload.sent_as == sent_as, Upload.owner_id == owner_id, Upload.state.in_(NOT_OVER))
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def below(self, owner_id: str, prefix: str) -> Sequence[Upload]:
        """The owner's uploads to names below the key `prefix`, which ends with a slash, that are not over."""
        query = select(Upload).where(
            Upload.owner_id == owner_id, Upload.sent_as >= prefix, Upload.sent_as < prefix[:-1] + "0",
            Upload.state.in_(NOT_OVER), Upload.superseded.is_(False),
        )  # fmt: skip
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(Upload.sent_as, Upload.created))).all()

    async def all_below(self, prefix: str) -> Sequence[Upload]:
        """Everybody's uploads whose objects would appear below `prefix`, that are not over."""
        query = select(Upload).where(Upload.key >= prefix, Upload.key < prefix[:-1] + "0", Upload.state.in_(NOT_OVER))
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def held_by(self, owner_id: str) -> Usage:
        async with self._database.reading() as tx:
            return await held_by(tx, owner_id)

    async def oldest_of(self, owner_id: str) -> Upload | None:
        """The one of the owner's unfinished uploads for which nothing has come for longest."""
        query = select(Upload).where(Upload.owner_id == owner_id, Upload.state.in_(NOT_OVER))
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(Upload.touched).limit(1))).first()

    async def left(self, *, even_leased: bool) -> Sequence[Upload]:
        """Rows whose writer is gone, and those to be thrown away; with `even_leased` every live row of others."""
        gone = [Upload.lease_until.is_(None), Upload.lease_until < self._clock(), Upload.instance == ""]
        if even_leased:
            gone.append(Upload.instance != self.instance)
        dropped = Upload.superseded & Upload.state.in_(WAITING)
        query = select(Upload).where(or_(Upload.state.in_(_LIVE) & or_(*gone), dropped))
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def expired(self, keep: timedelta) -> Sequence[Upload]:
        """What has waited for longer than `keep`."""
        query = select(Upload).where(Upload.state.in_(WAITING), Upload.touched < self._clock() - keep)
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def not_over(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are uploads which are not over."""
        query = select(Upload.id).where(Upload.id.in_(list(ids)), Upload.state.in_(NOT_OVER))
        async with self._database.reading() as tx:
            return set(await tx.scalars(query))

    # ---- changing hands --------------------------------------------------------------------------------------
    async def add(self, row: Upload) -> Held:
        row.instance, row.epoch = self.instance, 1
        row.lease_until = row.touched + LEASE
        async with self._database.writing() as tx:
            tx.add(row)
        self._changes.tell("upload", row.id)
        return Held(row.id, 1)

    async def add_brief(self, row: Upload) -> Held:
        """Of a small file that is being stored again: for those who must know before it is there, and nobody else."""
        row.instance, row.epoch = self.instance, 1
        row.lease_until = row.touched + LEASE
        await self._brief.add(row)
        return Held(row.id, 1)

    async def _add_all(self, rows: Sequence[Upload]) -> None:
        async with self._database.writing() as tx:
            tx.add_all(rows)

    async def take(self, row: Upload, *, wait: float = 0.0) -> Held | None:
        """Become the writer of `row`; None if somebody else was faster, or it is over.

        The old holder is overtaken at once. With `wait` it gets up to so many seconds to let go by itself, so that
        the parts which it has on their way are not lost.
        """
        held = Held(row.id, row.epoch + 1)
        async with self._database.writing() as tx:
            done = await tx.execute(
                update(Upload)
                .where(Upload.id == row.id, Upload.epoch == row.epoch, Upload.state.in_(NOT_OVER))
                .values(epoch=held.epoch)
                .returning(Upload.id)
            )
            if done.scalar_one_or_none() is None:
                return None
        self._changes.tell("upload", row.id)
        deadline = asyncio.get_running_loop().time() + wait
        while wait and asyncio.get_running_loop().time() < deadline:
            now = await self.get(row.id)
            if now is None or not now.instance:
                break
            await asyncio.sleep(_POLL)
        return held

    async def change(self, held: Held, **values: Any) -> bool:
        """Change columns of a row that is ours; False, and nothing done, if it is not (any more)."""
        async with self._database.writing() as tx:
            changed = await self._change(tx, held, values)
        if changed:
            self._changes.tell("upload", held.id)
        return changed

    async def tick(self, progress: Sequence[tuple[Held, dict[str, Any]]]) -> set[str]:
        """Say how far the live uploads of this process are; the ids of those that are ours no more."""
        lost: set[str] = set()
        async with self._database.writing() as tx:
            for held, values in progress:
                lease = {"lease_until": self._clock() + LEASE}
                if values and await self._change(tx, held, {**lease, **values}, states=(UploadState.OPEN,)):
                    continue  # the size of one that has been closed since is in its row already
                if not await self._change(tx, held, lease, states=_LIVE):
                    lost.add(held.id)
        for held, values in progress:
            if "size" in values and held.id not in lost:
                self._changes.tell("upload", held.id)
        return lost

    async def let_go(self, row_id: str) -> None:
        """This process writes the row no more, whoever holds it now."""
        async with self._database.writing() as tx:
            await tx.execute(
                update(Upload).where(Upload.id == row_id, Upload.instance == self.instance).values(instance="")
            )

    async def end(self, held: Held, state: UploadState, event: Event | None = None, **values: Any) -> bool:
        """Bring a row of ours into `state`, in which nobody writes it, with its event; False if it is not ours."""
        values = {"state": state, "instance": "", "lease_until": None, "touched": self._clock(), **values}
        async with self._database.writing() as tx:
            changed = await self._change(tx, held, values)
            if changed and event is not None:
                await self._audit.add(tx, event)
        if changed:
            self._changes.tell("upload", held.id)
        return changed

    async def _change(
        self, tx: Transaction, held: Held, values: dict[str, Any], *, states: Sequence[UploadState] = NOT_OVER
    ) -> bool:
        done = await tx.execute(
            update(Upload)
            .where(Upload.id == held.id, Upload.epoch == held.epoch, Upload.state.in_(states))
            .values(**values)
            .returning(Upload.id)
        )
        return done.scalar_one_or_none() is not None

    # ---- the end ---------------------------------------------------------------------------------------------
    async def supersede(self, ids: Sequence[str]) -> None:
        """These may still finish, but not be gone on with."""
        async with self._database.writing() as tx:
            await tx.execute(update(Upload).where(Upload.id.in_(ids)).values(superseded=True))

    async def record(self, fact: FileFact, held: Held | None, *, forget: bool = False) -> bool:
        """The object is in the store: remember its facts, and that its upload is done; or with `forget`, forget that.

        False, and nothing is remembered, if the upload was ended meanwhile, as by a deletion of all around it.
        """
        is_archive = fact.key.startswith(ARCHIVES)
        if is_archive or not (held is None or forget):
            async with self._database.writing() as tx:
                if held is not None and not await self._done(tx, fact, held):
                    return False
                await tx.merge(fact)
                # Others may be in doubt about the same name: what was confirmed later stands.
                doubtful = (Upload.key == fact.key) & (Upload.state == UploadState.COMPLETING)
                await tx.execute(update(Upload).where(doubtful).values(superseded=True))
                if is_archive:  # another file, even if its bytes are those of one before
                    former = (ImageArchive.key == fact.key) & ImageArchive.state.in_(ARCHIVE_OVER)
                    await tx.execute(update(ImageArchive).where(former).values(etag=""))
        else:
            await self._facts.add(fact, held.id if held else "")
        if held is not None and not forget:
            self._changes.tell("upload", held.id)
        if is_archive:
            self._changes.tell("archive", "")
        elif not fact.sha256:
            self._changes.tell("file", "")
        return True

    async def _done(self, tx: Transaction, fact: FileFact, held: Held) -> bool:
        values = {"state": UploadState.DONE, "instance": "", "size": fact.size, "touched": self._clock()}
        values |= {"suspect": fact.suspect, "etag": fact.etag}
        ours = (Upload.id == held.id) & (Upload.state != UploadState.ABORTED)
        done = await tx.execute(update(Upload).where(ours).values(**values).returning(Upload.id))
        return done.scalar_one_or_none() is not None

    async def audit(self, event: Event) -> None:
        await self._audit.record(event)

    async def forget_old(self) -> None:
        """Rows of uploads that were over a week ago."""
        over = (UploadState.DONE, UploadState.ABORTED, UploadState.LOST)
        async with self._database.writing() as tx:
            await tx.execute(delete(Upload).where(Upload.state.in_(over), Upload.touched < self._clock() - _KEEP_ROWS))


async def held_by(tx: Transaction, owner_id: str) -> Usage:
    """What of the owner is in the store and not finished: how many uploads, and the bytes of those that wait."""
    waiting = case((Upload.state.in_(WAITING), Upload.size), else_=0)
    query = select(func.count(), func.coalesce(func.sum(waiting), 0)).where(
        Upload.owner_id == owner_id, Upload.state.in_(NOT_OVER), Upload.s3_upload_id != ""
    )
    count, total = (await tx.execute(query)).one()
    return Usage(int(count), int(total))


def is_going_on(row: Upload) -> bool:
    """It is not over."""
    return row.state in NOT_OVER


def fact_of(row: Upload) -> FileFact:
    """The facts of the object that a row describes whose parts are complete."""
    return FileFact(
        key=row.key, size=row.size, etag=row.etag, suspect=row.suspect, md5=row.md5, sha256=row.sha256,
        mtime=int(row.touched.timestamp()) if row.mtime is None else row.mtime,
    )  # fmt: skip
