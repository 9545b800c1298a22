"""Deletions: recorded with the wish, carried out in steps that may be repeated, finished by whoever comes next.

An asset that is to go is marked in the transaction that writes its `Deletion`; from then on nobody sees it. The
objects go page by page; the rows go with the last of them, and only then is the name free. One worker at a time: a
second one could otherwise remove what a successor of the same name has stored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update

from storage.access import Caller
from storage.asset_rows import below, moves_below, uploads_below
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError
from storage.objects.contract import ObjectStore, prefixes_of
from storage.records import Asset, AssetKind, AssetVersion, Deletion, FileFact, Move, Upload, UploadState, new_id

log = logging.getLogger(__name__)
TOPIC = "deletion"
_SILENT = timedelta(minutes=3)
"""Longer than one page takes, the store's retries included."""
_KEEP_ROWS = timedelta(days=30)


@dataclass(frozen=True)
class Target:
    """What is to go: an asset, or one version of it."""

    kind: AssetKind
    asset_id: str
    workspace_id: str
    title: str
    prefix: str
    version_id: str = ""


@dataclass(frozen=True)
class DeletionView:
    """How far a deletion is. `removed` counts objects; `reason` says why it does not go on right now."""

    id: str
    kind: AssetKind
    title: str
    removed: int
    reason: str
    created: datetime
    finished: datetime | None


class Deletions:
    """The recorded deletions of all workspaces."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, store: ObjectStore, clock: Clock = now
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._store = store
        self._clock = clock

    # ---- for use cases ---------------------------------------------------------------------------------------
    def begin(self, tx: Transaction, caller: Caller, target: Target) -> str:
        """Record a deletion in the transaction that hides `target`; its id."""
        moment = self._clock()
        row = Deletion(
            id=new_id(), asset_id=target.asset_id, version_id=target.version_id, workspace_id=target.workspace_id,
            kind=target.kind, title=target.title, prefix=target.prefix, by_id=caller.user_id, by_name=caller.name,
            created=moment, touched=moment,
        )  # fmt: skip
        tx.add(row)
        return row.id

    async def hasten(self, deletion_id: str) -> bool:
        """Carry out what is small at once, and leave the rest to the loop; whether it is finished.

        The store being away is no error here: the wish is recorded.
        """
        try:
            done = await self.carry_out(deletion_id, pages=1)
        except AshoreError as error:
            log.warning("the deletion %s waits: %s", deletion_id, error.message)
            done = False
        if not done:
            self._changes.tell(TOPIC, deletion_id)
        return done

    async def show(self, caller: Caller, kind: AssetKind, *, finished: bool = False) -> Sequence[DeletionView]:
        """The caller's own deletions (administrators: everybody's) that are under way in the workspace."""
        query = select(Deletion).where(Deletion.kind == kind, Deletion.workspace_id == caller.workspace_id)
        if not finished:
            query = query.where(Deletion.finished.is_(None))
        if not caller.is_admin:
            query = query.where(Deletion.by_id == caller.user_id)
        async with self._database.reading() as tx:
            rows = (await tx.scalars(query.order_by(Deletion.created))).all()
        return [_view(row) for row in rows]

    async def get(self, deletion_id: str) -> DeletionView | None:
        """For whoever was told its id."""
        async with self._database.reading() as tx:
            row = await tx.get(Deletion, deletion_id)
        return _view(row) if row is not None else None

    # ---- for the loop ----------------------------------------------------------------------------------------
    async def recover(self) -> int:
        """Let go of what a dead process held; how many wait. Call once, before any process takes connections."""
        async with self._database.writing() as tx:
            await tx.execute(delete(Deletion).where(Deletion.finished < self._clock() - _KEEP_ROWS))
            await tx.execute(update(Deletion).where(Deletion.finished.is_(None)).values(holder=""))
        return len(await self.pending())

    async def pending(self) -> Sequence[str]:
        """Ids of the deletions that are not finished, oldest first."""
        async with self._database.reading() as tx:
            query = select(Deletion.id).where(Deletion.finished.is_(None)).order_by(Deletion.created)
            return (await tx.scalars(query)).all()

    async def carry_out(self, deletion_id: str, *, pages: int = 0) -> bool:
        """Remove up to `pages` pages of objects, all of them if 0; whether the deletion is finished.

        Nothing happens if somebody else is at it. What the store refuses is noted and raised.
        """
        holder = new_id()
        row = await self._take(deletion_id, holder)
        if row is None:
            return False
        try:
            done = await self._remove(row, holder, pages)
        except AshoreError as error:
            await self._note(row, holder, holder="", reason=error.message)
            raise
        except BaseException:
            await self._note(row, holder, holder="")
            raise
        if not done:
            await self._note(row, holder, holder="")
        return done

    # ---- steps -----------------------------------------------------------------------------------------------
    async def _take(self, deletion_id: str, holder: str) -> Deletion | None:
        moment = self._clock()
        async with self._database.writing() as tx:
            row = await tx.scalar(
                select(Deletion)
                .where(
                    Deletion.id == deletion_id,
                    Deletion.finished.is_(None),
                    or_(Deletion.holder == "", Deletion.touched < moment - _SILENT),
                )
                .with_for_update()
            )
            if row is not None:
                row.holder, row.touched = holder, moment
        return row

    async def _remove(self, row: Deletion, holder: str, pages: int) -> bool:
        await end_uploads(self._database, self._store, self._changes, row.prefix)
        removed, seen = row.removed, 0
        # A listing that runs while its objects vanish may skip some, so it is begun again until it finds nothing.
        while keys := await self._first_keys(row.prefix):
            if pages and seen == pages:
                return False
            await self._store.delete_many(keys + prefixes_of(keys, row.prefix))
            removed, seen = removed + len(keys), seen + 1
            if not await self._note(row, holder, removed=removed, reason=""):
                return False
        return await self._finish(row, holder)

    async def _first_keys(self, prefix: str) -> list[str]:
        async for page in self._store.list(prefix):
            return [facts.key for facts in page]
        return []

    async def _note(self, row: Deletion, held: str, **values: object) -> bool:
        """Write progress, if it is still ours; whether it is."""
        async with self._database.writing() as tx:
            ours = await tx.scalar(select(Deletion).where(Deletion.id == row.id, Deletion.holder == held))
            if ours is not None:
                for name, value in {"touched": self._clock(), **values}.items():
                    setattr(ours, name, value)
        self._changes.tell(row.kind.value, row.asset_id)
        return ours is not None

    async def _finish(self, row: Deletion, holder: str) -> bool:
        async with self._database.writing() as tx:
            ours = await tx.scalar(select(Deletion).where(Deletion.id == row.id, Deletion.holder == holder))
            if ours is None:
                return False
            await tx.execute(delete(FileFact).where(below(row.prefix)))
            if row.version_id:
                await tx.execute(delete(AssetVersion).where(AssetVersion.id == row.version_id))
            else:
                await tx.execute(delete(AssetVersion).where(AssetVersion.asset_id == row.asset_id))
                await tx.execute(delete(Asset).where(Asset.id == row.asset_id))
            ours.finished, ours.holder, ours.reason = self._clock(), "", ""
            detail = {"objects": ours.removed, "by": row.by_name}
            await self._audit.add(tx, Event(f"{row.kind.value}.gone", thing=row.title, detail=detail))
        self._changes.tell(row.kind.value, row.asset_id)
        return True


async def end_uploads(database: Database, store: ObjectStore, changes: Changes, prefix: str) -> None:
    """Parts of what was on its way there are given back; whoever still sends is refused at the end.

    The rows are over only when their parts are gone, since nobody else knows of those.
    """
    taken = {"superseded": True, "instance": "", "lease_until": None, "epoch": Upload.epoch + 1}
    async with database.writing() as tx:
        rows = (await tx.scalars(select(Upload).where(uploads_below(prefix)))).all()
        await tx.execute(delete(Move).where(moves_below(prefix)))
        await tx.execute(update(Upload).where(uploads_below(prefix)).values(**taken))
    for upload in rows:
        if upload.s3_upload_id:
            await store.abort_upload(upload.key, upload.s3_upload_id)
    async with database.writing() as tx:
        ended = Upload.id.in_([upload.id for upload in rows]) & uploads_below(prefix)
        await tx.execute(update(Upload).where(ended).values(state=UploadState.ABORTED))
    for upload in rows:
        changes.tell("upload", upload.id)


def _view(row: Deletion) -> DeletionView:
    return DeletionView(row.id, row.kind, row.title, row.removed, row.reason, row.created, row.finished)
