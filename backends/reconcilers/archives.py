"""Makes images of archives that people send to /images: received → verifying → loading → pushing → ready, or failed.

What has arrived is known by its file's facts, which the upload engine writes with the last byte; so nothing that was
accepted is forgotten by a crash. An archive that a crash cut off is taken up again. One process of a house runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import delete, select, update

from backends.archives.transfer import Stored, Transfer, facts_of
from backends.image_names import name_of_file
from backends.images import Images
from backends.reconcilers.loop import ReconcilerLoop
from backends.registry import Registry
from backends.registry_gate import PushGate
from backends.settings import ImageSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.asset_rows import below
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError, BadInput, InUse, NotFound, TimedOut, Unavailable
from storage.names import printable
from storage.records import (
    ArchiveState,
    FileFact,
    Image,
    ImageArchive,
    ImageKind,
    ImageState,
    Upload,
    User,
)
from storage.upload_rows import NOT_OVER
from storage.uploads import Uploads

log = logging.getLogger(__name__)
T = TypeVar("T")
TOPIC = "archive"
ROOT = "images/"
_LOOK_SECONDS = 30.0
_NOTE_SECONDS = 0.5
_MOST_ATTEMPTS = 10
"""Times that an archive may be begun without an answer: one that ends the process each time must not go on for ever."""
_KEEP = timedelta(days=30)
_PATIENCE_SECONDS = 900.0
_SLOWEST = 4 * 1024 * 1024
"""Bytes per second: an archive that takes longer than its size at this speed, and a quarter of an hour, lets others go
on."""


async def _later() -> None:
    """To wait would take of the time that its size allows."""
    raise Unavailable("it waits until the image registry has given space back")


class ArchiveReconciler:
    """The loop over archives. `free` tells how many bytes the registry's disk takes, where that is known."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        accounts: Accounts,
        uploads: Uploads,
        images: Images,
        registry: Registry | None,
        settings: ImageSettings,
        clock: Clock = now,
        *,
        free: Callable[[], int | None] = lambda: None,
        note_garbage: Callable[[], None] = lambda: None,
        gate: PushGate | None = None,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._accounts = accounts
        self._uploads = uploads
        self._store = uploads.store
        self._images = images
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._free = free
        self._note_garbage = note_garbage
        self._gate = gate or PushGate()
        self._keep = timedelta(hours=settings.archive_hours)
        self._done: dict[str, int] = {}
        self._loop = ReconcilerLoop(
            "archives", TOPIC, changes=changes, look=self.look, act=self.act, pause=_LOOK_SECONDS,
            parallel=settings.archives_parallel,
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled; what is on its way then is taken up by the next process."""
        await self._loop.run()

    async def look(self) -> Sequence[str]:
        """Ids of the archives that need something: new ones, those under way, those whose object must go."""
        await self._uploads.parked.expire(self._keep, ROOT)
        async with self._database.reading() as tx:
            facts = {(fact.key, fact.etag): fact for fact in await tx.scalars(select(FileFact).where(below(ROOT)))}
            rows = (await tx.scalars(select(ImageArchive))).all()
        oldest = self._clock() - _KEEP
        known = {(row.key, row.etag): row for row in rows if row.etag}
        new = [fact for place, fact in facts.items() if place not in known]
        if new or any(row.finished is not None and row.finished < oldest for row in rows):
            async with self._database.writing() as tx:
                await tx.execute(delete(ImageArchive).where(ImageArchive.finished < oldest))
                made = [row for fact in new if (row := await self._received(tx, fact)) is not None]
                tx.add_all(made)
                await tx.flush()
            known |= {(row.key, row.etag): row for row in made}
        return [row.id for place, row in known.items() if row.finished is None or place in facts]

    async def act(self, archive_id: str) -> None:
        """Bring one to its end. Unavailable: something is away, try again later."""
        row = await self._begin(archive_id)
        if row is None:
            return
        try:
            if not row.state.is_over:
                async with asyncio.timeout(_PATIENCE_SECONDS + row.size / _SLOWEST):
                    await self._run(row)
        except (Unavailable, TimedOut, InUse) as error:
            if self._clock() - row.created < self._keep:
                shown = printable(error.message, limit=500)
                await self._change(row.id, state=ArchiveState.RECEIVED, done=0, reason=shown, attempts=0)
                raise Unavailable(error.message) from error
            await self._fail(row, error.message)
        except AshoreError as error:
            await self._fail(row, error.message)
        except TimeoutError:
            await self._fail(row, "it took far longer than its size allows")
        finally:
            self._done.pop(row.id, None)
        await self._clean(row)
        self._changes.tell("upload", row.id)

    # ---- the steps -------------------------------------------------------------------------------------------
    async def _received(self, tx: Transaction, fact: FileFact) -> ImageArchive | None:
        """A new row; None if nobody knows whose it is."""
        owner = await tx.get(User, fact.key.split("/")[2]) if fact.key.count("/") == 3 else None
        if owner is None:
            log.warning("an object %s belongs to nobody", printable(fact.key, limit=200))
            return None
        moment = self._clock()
        return ImageArchive(
            owner_id=owner.id, owner_name=owner.name, workspace_id=owner.workspace_id, key=fact.key, etag=fact.etag,
            path="/images/" + fact.key.rpartition("/")[2], size=fact.size, sha256=fact.sha256, created=moment,
            touched=moment,
        )  # fmt: skip

    async def _begin(self, archive_id: str) -> ImageArchive | None:
        async with self._database.writing() as tx:
            row = await tx.get(ImageArchive, archive_id)
            if row is not None and not row.state.is_over:
                row.attempts += 1
        return row

    async def _run(self, row: ImageArchive) -> None:
        if row.attempts > _MOST_ATTEMPTS:
            raise BadInput("it was begun too often without coming to an end")
        name, tag = name_of_file(row.path.rpartition("/")[2])
        caller = await self._caller(row)
        registry = self._registry
        if registry is None:
            self._images.require_registry()
            raise Unavailable("the registry is not there")
        transfer = Transfer(
            self._store, Stored(row.key, row.etag, row.size), self._settings, lambda done: self._note(row.id, done),
            self._free,
        )  # fmt: skip
        await self._enter(row, ArchiveState.VERIFYING)
        layout = await self._noting(row, transfer.look())
        if not row.sha256:
            row.sha256 = await self._noting(row, transfer.sha256())
            await self._keep_hash(row)
        if not row.image_id:  # else some of it is there
            transfer.check_room(layout.layers)
        image_id, repository = await self._announce(row, caller, name, tag)
        row.image_id = image_id
        async with self._gate.pushing(_later):
            await self._enter(row, ArchiveState.LOADING)
            self._note_garbage()
            blobs = await self._noting(row, transfer.send(layout, registry, repository))
            await self._enter(row, ArchiveState.PUSHING)
            digest = await transfer.publish(layout, blobs, registry, repository, tag)
        async with self._database.writing() as tx:
            await self._images.finish(tx, image_id, facts_of(layout, blobs, digest))
            await self._over(tx, row, ArchiveState.READY, "")
        self._images.tell(image_id)
        self._tell(row.id)

    async def _announce(self, row: ImageArchive, caller: Caller, name: str, tag: str) -> tuple[str, str]:
        """The image's id and repository; it is announced once, whatever crashes."""
        async with self._database.writing() as tx:
            image = await tx.get(Image, row.image_id) if row.image_id else None
            if image is None or image.state is not ImageState.BUILDING:
                image = await self._images.begin(tx, caller, name, tag, kind=ImageKind.IMPORTED)
                await tx.execute(
                    update(ImageArchive).where(ImageArchive.id == row.id).values(image_id=image.id)
                )  # fmt: skip
        self._images.tell(image.id)
        return image.id, image.repository

    async def _fail(self, row: ImageArchive, reason: str) -> None:
        async with self._database.writing() as tx:
            fresh = await tx.get(ImageArchive, row.id)
            if fresh is not None and fresh.image_id:
                await self._images.fail(tx, fresh.image_id, reason)
            await self._over(tx, row, ArchiveState.FAILED, reason)
        if row.image_id:
            self._images.tell(row.image_id)
        self._tell(row.id)

    async def _over(self, tx: Transaction, row: ImageArchive, state: ArchiveState, reason: str) -> None:
        moment, shown = self._clock(), printable(reason, limit=500)
        values = {"state": state, "reason": shown, "finished": moment, "touched": moment, "done": row.size}
        await tx.execute(update(ImageArchive).where(ImageArchive.id == row.id).values(**values))
        facts: dict[str, Any] = {"archive": row.id, "bytes": row.size, "sha256": row.sha256}
        facts |= {"reason": shown} if shown else {}
        outcome = "failed" if state is ArchiveState.FAILED else "ok"
        await self._audit.add(tx, Event(f"archive.{state.value}", outcome, row.owner_name, row.path, detail=facts))

    async def _clean(self, row: ImageArchive) -> None:
        """The object goes when it is an image, or can never be one; not if another one has its name by now.

        Stores know no condition for removals. So it is said first that this one goes, and looked then whether another
        is coming; whoever brings one has his row first, and looks then whether one is going (`ImageShelf`).
        Unavailable: not now. If a removal fails, nobody knows whether it was done: it stays said.
        """
        if not row.etag or await self._may_go_on(row) or not await self._going(row, is_going=True):
            return
        async with self._database.reading() as tx:
            coming = await tx.scalar(select(Upload.id).where(Upload.key == row.key, Upload.state.in_(NOT_OVER)))
            is_there = bool(await tx.scalar(select(ImageArchive.etag).where(ImageArchive.id == row.id)))
        if coming is not None or not is_there:
            await self._going(row, is_going=False)
        if coming is not None:
            raise Unavailable("another file of this name is on its way")
        if not is_there:
            return
        with contextlib.suppress(NotFound):
            if (await self._store.head(row.key)).etag == row.etag:
                await self._store.delete(row.key)
        async with self._database.writing() as tx:
            await tx.execute(delete(FileFact).where(FileFact.key == row.key, FileFact.etag == row.etag))
            gone = {"etag": "", "finished": self._clock()}
            await tx.execute(update(ImageArchive).where(ImageArchive.id == row.id).values(**gone))

    async def _going(self, row: ImageArchive, *, is_going: bool) -> bool:
        """Say whether its object is being removed; False if that is not there any more."""
        change = update(ImageArchive).where(ImageArchive.id == row.id).returning(ImageArchive.id)
        if is_going:
            change = change.where(ImageArchive.etag == row.etag)
        async with self._database.writing() as tx:
            done = await tx.execute(change.values(finished=None if is_going else self._clock()))
            return done.scalar_one_or_none() is not None

    async def _may_go_on(self, row: ImageArchive) -> bool:
        """Whether it ended as an interrupted upload does, and failed: its sender can send the rest with reput."""
        async with self._database.reading() as tx:
            fact = await tx.get(FileFact, row.key)
            now_failed = await tx.scalar(select(ImageArchive.state).where(ImageArchive.id == row.id))
        is_young = self._clock() - row.created < self._keep
        return is_young and now_failed is ArchiveState.FAILED and fact is not None and fact.suspect

    async def _caller(self, row: ImageArchive) -> Caller:
        try:
            caller = await self._accounts.caller_for(row.owner_name, connection=f"archive-{row.id}"[:16])
        except NotFound as error:
            raise BadInput(f"'{row.owner_name}' may not come in any more") from error
        if (caller.user_id, caller.workspace_id) != (row.owner_id, row.workspace_id):
            raise BadInput(f"'{row.owner_name}' is in another workspace now")
        return caller

    # ---- telling ---------------------------------------------------------------------------------------------
    def _note(self, archive_id: str, done: int) -> None:
        self._done[archive_id] = done

    async def _noting(self, row: ImageArchive, work: Coroutine[Any, Any, T]) -> T:
        """`work`, while its progress is written from time to time."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(_NOTE_SECONDS)
                await self._change(row.id, done=self._done.get(row.id, 0))

        ticking = asyncio.create_task(tick(), name=f"progress of archive {row.id}")
        try:
            return await work
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _enter(self, row: ImageArchive, state: ArchiveState) -> None:
        self._done[row.id] = 0
        await self._change(row.id, state=state, reason="", done=0)

    async def _change(self, archive_id: str, **values: Any) -> None:
        async with self._database.writing() as tx:
            await tx.execute(
                update(ImageArchive).where(ImageArchive.id == archive_id).values(touched=self._clock(), **values)
            )
        self._changes.tell("upload", archive_id)  # whoever watches uploads watches these too

    async def _keep_hash(self, row: ImageArchive) -> None:
        same = (FileFact.key == row.key, FileFact.etag == row.etag)
        async with self._database.writing() as tx:
            await tx.execute(update(ImageArchive).where(ImageArchive.id == row.id).values(sha256=row.sha256))
            await tx.execute(update(FileFact).where(*same).values(sha256=row.sha256))

    def _tell(self, archive_id: str) -> None:
        self._changes.tell("upload", archive_id)
