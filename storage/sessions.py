"""SSH sessions: begin, count, end, list, ask to end. A row never outlives its gateway process by more than a start."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import NotFound
from storage.names import printable
from storage.records import SshSession, new_id


class Sessions:
    """The sessions of all gateway processes; this one's are marked with `instance`."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        *,
        instance: str = "",
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._clock = clock
        self.instance = instance or new_id()

    async def begin(self, caller: Caller, kind: str, *, environment: str = "", detail: str = "") -> SshSession:
        """A session that starts now; its start is audited in the same transaction."""
        session = SshSession(
            id=new_id(), user_id=caller.user_id, user_name=caller.name, kind=kind, environment=environment,
            detail=printable(detail), address=caller.address, connection=caller.connection,
            instance=self.instance, started=self._clock(),
        )  # fmt: skip
        async with self._database.writing() as tx:
            tx.add(session)
            await self._audit.add(
                tx,
                Event.by(caller, "session.begin", thing=environment, kind=kind, session=session.id, detail=detail),
            )
        self._changes.tell("session", session.id)
        return session

    async def end(
        self, caller: Caller, session: SshSession, *, exit_status: int | None, bytes_in: int, bytes_out: int
    ) -> None:
        """The session is over; what it carried is audited."""
        async with self._database.writing() as tx:
            await tx.execute(
                update(SshSession)
                .where(SshSession.id == session.id)
                .values(ended=self._clock(), exit_status=exit_status, bytes_in=bytes_in, bytes_out=bytes_out)
            )
            await self._audit.add(
                tx,
                Event.by(
                    caller, "session.end", thing=session.environment, kind=session.kind, session=session.id,
                    exit_status=exit_status, bytes_in=bytes_in, bytes_out=bytes_out,
                ),
            )  # fmt: skip
        self._changes.tell("session", session.id)

    async def list(self, caller: Caller, *, everybody: bool = False) -> Sequence[SshSession]:
        """Open sessions, oldest first: the caller's, or everybody's for administrators."""
        require(caller, Action.SESSION_LIST)
        query = select(SshSession).where(SshSession.ended.is_(None)).order_by(SshSession.started)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(SshSession.user_id == caller.user_id)
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def kill(self, caller: Caller, session_id: str) -> None:
        """Ask the process that holds the session to end it; NotFound if there is no such open session."""
        async with self._database.reading() as tx:
            session = await tx.get(SshSession, session_id)
        if session is None or session.ended is not None:
            raise NotFound(f"there is no open session '{printable(session_id, limit=20)}'")
        require(caller, Action.SESSION_KILL, Owned("open session", session.id, session.user_id))
        async with self._database.writing() as tx:
            await tx.execute(
                update(SshSession).where(SshSession.id == session_id).values(end_wanted=f"ended by {caller.name}")
            )
            await self._audit.add(tx, Event.by(caller, "session.kill", thing=session.environment, session=session_id))
        self._changes.tell("session-end", session_id)

    async def wanted_ends(self) -> dict[str, str]:
        """Session id → why it should end, for the open sessions of this process."""
        async with self._database.reading() as tx:
            rows = await tx.execute(
                select(SshSession.id, SshSession.end_wanted).where(
                    SshSession.instance == self.instance,
                    SshSession.ended.is_(None),
                    SshSession.end_wanted != "",
                )
            )
            return dict(rows.all())

    async def close_orphans(self) -> int:
        """Close the rows of processes that are gone (called once, before this process takes connections)."""
        async with self._database.writing() as tx:
            rows = (
                await tx.scalars(
                    select(SshSession).where(SshSession.ended.is_(None), SshSession.instance != self.instance)
                )
            ).all()
            for row in rows:
                row.ended = self._clock()
                await self._audit.add(
                    tx,
                    Event("session.end", "failed", row.user_name, row.environment, row.address, row.connection,
                          {"kind": row.kind, "session": row.id, "reason": "the gateway stopped"}),
                )  # fmt: skip
        return len(rows)
