"""Who sends what, how far, and ending it: the rows of `storage.uploads`, as people see them.

The rows are what all processes share, so a command, a menu in its own process and the gateway tell the same. How fast
something goes is what two looks at it tell; `Rates` remembers the first one. Bytes do not pass here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, select, update

from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import Conflict, NotFound
from storage.names import printable
from storage.records import FileFact, Upload, UploadState, User
from storage.upload_rows import Held
from storage.uploads import Uploads

_STALLED_AFTER = timedelta(seconds=90)


class Progress(StrEnum):
    """What an upload is doing."""

    SENDING = "uploading"
    STALLED = "stalled"
    """Nothing has come for a while, though its connection is there."""
    FINISHING = "finishing"
    PARKED = "interrupted"
    """Its connection is gone; what is stored waits for the client to go on."""
    SEALED = "complete, waits for its name"
    """Sent as a whole under a temporary name; the client's rename makes it appear."""
    DONE = "done"
    SUSPECT = "suspect"
    """Done, but its end could not be told from an interrupt."""
    ENDED = "ended"
    LOST = "lost"
    """The store has thrown its parts away."""


@dataclass(frozen=True)
class TransferView:
    """One upload. `size`: bytes safely stored; `expected`: of the whole file, 0 if the client has not told."""

    id: str
    owner: str
    path: str
    progress: Progress
    size: int
    expected: int
    started: datetime
    """Of the present connection; of the first one where nothing else is known."""
    touched: datetime

    @property
    def is_live(self) -> bool:
        return self.progress in (Progress.SENDING, Progress.STALLED, Progress.FINISHING)

    @property
    def percent(self) -> int | None:
        """None where the whole size is not known; 100 only when it is over."""
        if not self.expected:
            return None
        return min(100 * self.size // self.expected, 100 if not self.is_live else 99)


class Rates:
    """Bytes per second, from look to look. Keep one for as long as somebody watches."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[datetime, int, float | None]] = {}

    def of(self, views: Iterable[TransferView]) -> dict[str, float]:
        """Id → bytes per second, of those uploads for which it can be told; call it once for each look."""
        seen: dict[str, tuple[datetime, int, float | None]] = {}
        for view in views:
            if view.is_live:
                seen[view.id] = self._next(view)
        self._seen = seen
        return {key: rate for key, (_, _, rate) in seen.items() if rate is not None}

    def _next(self, view: TransferView) -> tuple[datetime, int, float | None]:
        if view.progress is Progress.STALLED:
            return view.touched, view.size, 0.0
        before = self._seen.get(view.id)
        if before is None:
            seconds = (view.touched - view.started).total_seconds()
            return view.touched, view.size, view.size / seconds if seconds > 0 and view.size else None
        moment, size, rate = before
        seconds = (view.touched - moment).total_seconds()
        if seconds <= 0 or view.size < size:
            return before if seconds <= 0 else (view.touched, view.size, None)
        fresh = (view.size - size) / seconds
        # Parts arrive in lumps: a little of the past calms the number.
        return view.touched, view.size, fresh if rate is None else 0.6 * fresh + 0.4 * rate


class Transfers:
    """The uploads of all processes."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, uploads: Uploads, clock: Clock = now
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._uploads = uploads
        self._clock = clock

    async def list(self, caller: Caller, *, everybody: bool = False) -> Sequence[TransferView]:
        """What is not over, and what ended in doubt: the caller's, or everybody's for administrators; oldest first."""
        require(caller, Action.UPLOAD_LIST)
        if everybody:
            require(caller, Action.USER_MANAGE)
        query = select(Upload, User.name).join(User, User.id == Upload.owner_id).where(_is_shown())
        if not everybody:
            query = query.where(Upload.owner_id == caller.user_id)
        async with self._database.reading() as tx:
            rows = (await tx.execute(query.order_by(Upload.created))).all()
        return [self._view(row, owner) for row, owner in rows]

    async def show(self, caller: Caller, upload_id: str) -> TransferView:
        """One upload, also after it is over (for a week); NotFound if there is none to see."""
        row, owner = await self._row(upload_id)
        require(caller, Action.UPLOAD_SHOW, Owned("upload", upload_id, row.owner_id))
        return self._view(row, owner)

    async def abort(self, caller: Caller, upload_id: str) -> None:
        """End an upload for good: its client is told with its next bytes, and its parts go when the store answers."""
        row, _ = await self._row(upload_id)
        require(caller, Action.UPLOAD_ABORT, Owned("upload", upload_id, row.owner_id))
        if row.state not in _ENDABLE:
            raise Conflict(f"this upload is {self._view(row, '').progress.value}: there is nothing to end")
        async with self._database.writing() as tx:
            moved = await tx.execute(
                update(Upload)
                .where(Upload.id == upload_id, Upload.state.in_(_ENDABLE))
                .values(superseded=True, instance="", lease_until=None, epoch=Upload.epoch + 1, touched=self._clock())
                .returning(Upload.epoch)
            )
            if (epoch := moved.scalar_one_or_none()) is None:
                raise Conflict("this upload has come to its end meanwhile")
            event = Event.by(caller, Action.UPLOAD_ABORT, thing=row.path, upload=upload_id, bytes=row.size)
            await self._audit.add(tx, event)
        self._changes.tell("upload", upload_id)
        await self._uploads.parked.throw_away(Held(upload_id, epoch), row.key, row.s3_upload_id)

    async def _row(self, upload_id: str) -> tuple[Upload, str]:
        query = select(Upload, User.name).join(User, User.id == Upload.owner_id).where(Upload.id == upload_id)
        async with self._database.reading() as tx:
            found = (await tx.execute(query)).one_or_none()
        if found is None:
            raise NotFound(f"there is no upload '{printable(upload_id, limit=20)}'")
        return found[0], found[1]

    def _view(self, row: Upload, owner: str) -> TransferView:
        return TransferView(
            row.id, owner, row.path, self._progress(row), row.size, row.expected_size or 0,
            row.resumed or row.created, row.touched,
        )  # fmt: skip

    def _progress(self, row: Upload) -> Progress:
        if row.state is UploadState.OPEN and row.touched < self._clock() - _STALLED_AFTER:
            return Progress.STALLED
        if row.state is UploadState.DONE and row.suspect:
            return Progress.SUSPECT
        return _PROGRESS[row.state.value]


_PROGRESS = {
    "open": Progress.SENDING,
    "sealing": Progress.FINISHING,
    "completing": Progress.FINISHING,
    "done": Progress.DONE,
    "parked": Progress.PARKED,
    "sealed": Progress.SEALED,
    "aborting": Progress.ENDED,
    "aborted": Progress.ENDED,
    "lost": Progress.LOST,
}
_ENDABLE = tuple(state for state in UploadState if state.value in ("open", "parked", "sealed"))
_OVER = tuple(state for state in UploadState if state.value in ("done", "aborting", "aborted", "lost"))


def _is_shown() -> ColumnElement[bool]:
    """SQL: not over, or in doubt for as long as the very file is there."""
    same = (FileFact.key == Upload.key) & (FileFact.etag == Upload.etag) & FileFact.suspect
    doubted = (Upload.state == UploadState.DONE) & Upload.suspect & select(FileFact.key).where(same).exists()
    ended = Upload.superseded & (Upload.instance == "")  # only its parts are still there
    return (Upload.state.not_in(_OVER) & ~ended) | doubted
