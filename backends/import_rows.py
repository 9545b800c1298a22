"""The rows of imports, as the loop that runs them reads and writes them. Every change says which state it expects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update

from backends.sources.contract import Listing
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import Conflict
from storage.records import Import, ImportFile, ImportState

TOPIC = "import"
"""Somebody wants something of an import: what wakes the loop."""
PROGRESS = "import-progress"
"""An import has got further: what redraws screens. It must not wake the loop, or no pause between attempts lasts."""
_BATCH = 500
_ACTIVE = (ImportState.QUEUED, ImportState.RUNNING)


@dataclass(frozen=True)
class Mark:
    """How far a file has come. `sha256`: of those bytes; empty where the source gives a digest of the whole."""

    size: int
    sha256: str = ""


class ImportEnded(Conflict):
    """Somebody cancelled the import while it ran."""

    code = "import-ended"


class ImportRows:
    """Reads and writes imports and their files."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, clock: Clock = now) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._clock = clock

    async def waiting(self) -> Sequence[str]:
        """The ids of all that is to be run, oldest first."""
        async with self._database.reading() as tx:
            query = select(Import.id).where(Import.state.in_(_ACTIVE)).order_by(Import.created)
            return (await tx.scalars(query)).all()

    async def begin(self, import_id: str) -> Import | None:
        """The import, running from now on; None if there is nothing to run."""
        moment = self._clock()
        async with self._database.writing() as tx:
            row: Import | None = await tx.scalar(
                update(Import)
                .where(Import.id == import_id, Import.state.in_(_ACTIVE))
                .values(state=ImportState.RUNNING, started=func.coalesce(Import.started, moment), touched=moment)
                .returning(Import)
            )
        if row is None:
            return None
        self._changes.tell(PROGRESS, import_id)
        return row

    async def set_listing(self, import_id: str, listing: Listing) -> None:
        """Keep the files of the source, all of them or none."""
        facts = [
            {
                "import_id": import_id, "position": position, "path": file.path, "location": file.location,
                "size": file.size, "etag": file.etag, "digest": file.digest, "prefix": 0,
                "prefix_sha256": "", "done": False,
            }
            for position, file in enumerate(listing.files)
        ]  # fmt: skip
        async with self._database.writing() as tx:
            for start in range(0, len(facts), _BATCH):
                await tx.execute(insert(ImportFile), facts[start : start + _BATCH])
            await tx.execute(
                update(Import)
                .where(Import.id == import_id)
                .values(
                    is_listed=True, revision=listing.revision[:64], files=len(facts),
                    bytes=sum(file.size or 0 for file in listing.files),
                )
            )  # fmt: skip
        self._changes.tell(PROGRESS, import_id)

    async def open_files(self, import_id: str, after: int, limit: int) -> Sequence[ImportFile]:
        """The next files that are not done, by position."""
        async with self._database.reading() as tx:
            query = (
                select(ImportFile)
                .where(ImportFile.import_id == import_id, ImportFile.position > after, ImportFile.done.is_(False))
                .order_by(ImportFile.position)
                .limit(limit)
            )
            return (await tx.scalars(query)).all()

    async def done_so_far(self, import_id: str) -> tuple[int, int]:
        """Files that are done, and their bytes."""
        async with self._database.reading() as tx:
            query = select(func.count(), func.coalesce(func.sum(ImportFile.size), 0)).where(
                ImportFile.import_id == import_id, ImportFile.done.is_(True)
            )
            files, size = (await tx.execute(query)).one()
        return int(files or 0), int(size or 0)

    async def set_file(self, import_id: str, position: int, **values: Any) -> None:
        """Change what is known of one file."""
        async with self._database.writing() as tx:
            await tx.execute(
                update(ImportFile)
                .where(ImportFile.import_id == import_id, ImportFile.position == position)
                .values(**values)
            )

    async def note(
        self, import_id: str, done: Collection[int], marks: Mapping[int, Mark] | None = None, **values: Any
    ) -> None:
        """Progress: files that are done since the last note, how far others are, and columns of the import.

        ImportEnded if somebody ended it.
        """
        numbers = sorted(done)
        async with self._database.writing() as tx:
            for start in range(0, len(numbers), _BATCH):
                await tx.execute(
                    update(ImportFile)
                    .where(ImportFile.import_id == import_id)
                    .where(ImportFile.position.in_(numbers[start : start + _BATCH]))
                    .values(done=True)
                )
            for position, mark in (marks or {}).items():
                await tx.execute(
                    update(ImportFile)
                    .where(ImportFile.import_id == import_id, ImportFile.position == position)
                    .values(prefix=mark.size, prefix_sha256=mark.sha256)
                )
            changed = await tx.execute(
                update(Import)
                .where(Import.id == import_id, Import.state == ImportState.RUNNING)
                .values(touched=self._clock(), **values)
                .returning(Import.id)
            )
            ended = changed.scalar_one_or_none() is None
        if ended:
            raise ImportEnded("this import was ended")
        self._changes.tell(PROGRESS, import_id)

    async def end(self, row: Import, state: ImportState, reason: str = "") -> None:
        """The import is over, if nobody has ended it before."""
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Import)
                .where(Import.id == row.id, Import.state.in_(_ACTIVE))
                .values(state=state, reason=reason, rate=0, finished=self._clock(), touched=self._clock())
                .returning(Import.files_done, Import.bytes_done)
            )
            facts = changed.one_or_none()
            if facts is None:
                return
            outcome = "ok" if state is ImportState.DONE else "failed"
            detail = {
                "import": row.id, "source": row.source, "revision": row.revision, "files": facts[0],
                "bytes": facts[1], **({"reason": reason} if reason else {}),
            }  # fmt: skip
            event = Event(
                f"import.{state.value}", outcome, row.owner_name, f"{row.kind}:{row.name}:{row.version}", detail=detail
            )
            await self._audit.add(tx, event)
        self._changes.tell(PROGRESS, row.id)
