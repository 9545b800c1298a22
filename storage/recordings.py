"""Recordings: where they are kept, who may play them, and proof that they are whole.

The file is written by the gateway's recorder; its path comes from the recording's id, never from a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select

from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import NotFound
from storage.names import printable
from storage.records import Recording, SshSession, new_id


class Recordings:
    """The recordings of terminals, as asciicast v2 files in one directory."""

    def __init__(self, database: Database, audit: AuditTrail, directory: Path, clock: Clock = now) -> None:
        self._database = database
        self._audit = audit
        self._directory = directory
        self._clock = clock

    async def begin(self, caller: Caller, session: SshSession) -> Recording:
        """A new recording of `session`; its file does not exist yet."""
        recording = Recording(
            id=new_id(), session_id=session.id, user_id=caller.user_id, user_name=caller.name,
            environment=session.environment, started=self._clock(),
        )  # fmt: skip
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with self._database.writing() as tx:
            tx.add(recording)
        return recording

    async def finish(self, recording_id: str, *, seconds: float, size: int, sha256: str) -> None:
        """The file is complete and closed; its hash goes into the audit trail."""
        async with self._database.writing() as tx:
            row = await tx.get_one(Recording, recording_id)
            row.seconds, row.size, row.sha256 = seconds, size, sha256
            await self._audit.add(
                tx,
                Event("record.finish", actor=row.user_name, thing=row.environment,
                      detail={"recording": row.id, "session": row.session_id, "size": size, "sha256": sha256}),
            )  # fmt: skip

    async def close_orphans(self) -> int:
        """Finish what a dead process left open: the bytes on disk are what there is."""
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(Recording).where(Recording.sha256 == ""))).all()
        for row in rows:
            path = self.path(row.id)
            data = path.read_bytes() if path.exists() else b""
            await self.finish(row.id, seconds=row.seconds, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return len(rows)

    async def list(self, caller: Caller, *, everybody: bool = False, limit: int = 200) -> Sequence[Recording]:
        """Newest first: the caller's, or everybody's for administrators."""
        require(caller, Action.RECORD_LIST)
        query = select(Recording).order_by(Recording.started.desc()).limit(limit)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(Recording.user_id == caller.user_id)
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def open(self, caller: Caller, recording_id: str) -> Path:
        """The file of a recording that the caller may play; playing is audited."""
        async with self._database.reading() as tx:
            row = await tx.get(Recording, recording_id)
        if row is None:
            raise NotFound(f"there is no recording '{printable(recording_id, limit=20)}'")
        require(caller, Action.RECORD_PLAY, Owned("recording", row.id, row.user_id))
        await self._audit.record(Event.by(caller, "record.play", thing=row.environment, recording=row.id))
        return self.path(row.id)

    def path(self, recording_id: str) -> Path:
        return self._directory / f"{recording_id}.cast"
