"""What the environments reconciler reads and writes: short transactions, no engine, no decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from backends.removal import remove_record
from backends.reservations import Reservations
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.records import Environment, EnvironmentState, LostEnvironment, Wish, Workspace
from storage.uses import Uses

TOPIC = "environment"


class EnvironmentRows:
    """The environments' records, as the reconciler changes them."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        reservations: Reservations,
        clock: Clock = now,
    ) -> None:
        self._clock = clock
        self._database = database
        self._audit = audit
        self._changes = changes
        self._uses = Uses(database)
        self._reservations = reservations

    async def all(self) -> Sequence[Environment]:
        async with self._database.reading() as tx:
            return (await tx.scalars(select(Environment))).all()

    async def lost(self) -> Mapping[str, LostEnvironment]:
        """Those that were given up with their hosts, by id."""
        async with self._database.reading() as tx:
            return {row.id: row for row in await tx.scalars(select(LostEnvironment))}

    async def load(self, environment_id: str) -> Environment | None:
        async with self._database.reading() as tx:
            return await tx.get(Environment, environment_id)

    async def present_gpus(self) -> frozenset[str]:
        """UUIDs of all GPUs that their hosts showed when they were asked last."""
        async with self._database.reading() as tx:
            return await self._reservations.present(tx)

    async def workspace_name(self, workspace_id: str) -> str:
        async with self._database.reading() as tx:
            return await tx.scalar(select(Workspace.name).where(Workspace.id == workspace_id)) or ""

    async def move(
        self,
        seen: Environment,
        state: EnvironmentState,
        *,
        reason: str = "",
        restarted: int | None = None,
        started: datetime | None = None,
        is_at_rest: bool = False,
    ) -> Environment | None:
        """Put it into `state`, if nobody changed it since it was seen; None if somebody did.

        `is_at_rest`: its engine has said that nothing of it runs, so its host has its room back, unless it is wished
        to run on. One that is restarted and has lost a GPU gets another one then, or fails.
        """
        async with self._database.writing() as tx:
            row = await tx.get(Environment, seen.id, with_for_update=True)
            if row is None or row.version != seen.version:
                return None
            is_restart = is_at_rest and row.wish is Wish.RUNNING and state is not EnvironmentState.FAILED
            if is_restart and row.reserves and (against := await self._reservations.replace_lost(tx, row)):
                state, reason = EnvironmentState.FAILED, f"GPU lost, and no other can be had ({against})"
            moved = row.state is not state
            if moved:
                await self._audit.add(tx, _event(row, state.value, reason))
            row.state, row.reason, row.progress = state, reason, ""
            row.restarted = row.restarted if restarted is None else restarted
            row.started = started or row.started
            row.reserves = row.reserves and not (is_at_rest and _lets_go(row))
            row.version += 1
        if moved or reason != seen.reason:
            self._changes.tell(TOPIC, seen.id)
        return row

    async def give_room_back(self, seen: Environment) -> None:
        """What failed holds nothing of its host any more, if nobody changed it since it was seen."""
        async with self._database.writing() as tx:
            change = update(Environment).where(Environment.id == seen.id, Environment.version == seen.version)
            await tx.execute(change.values(reserves=False))

    async def remove(self, seen: Environment) -> bool:
        """Delete the record, if nobody changed it since it was seen; what it had mounted is free again."""
        async with self._database.writing() as tx:
            row = await tx.get(Environment, seen.id, with_for_update=True)
            if row is None or row.version != seen.version:
                return row is None
            await self._audit.add(tx, _event(row, "gone", ""))
            await remove_record(tx, self._uses, row)
        self._changes.tell(TOPIC, seen.id)
        return True

    async def call_off(self, seen: Environment, reason: str) -> None:
        """It is not deleted after all, for `reason`, if nobody changed it since it was seen; nothing of it runs."""
        async with self._database.writing() as tx:
            row = await tx.get(Environment, seen.id, with_for_update=True)
            if row is None or row.version != seen.version:
                return
            detail = {"owner": row.owner_name, "reason": reason}
            await self._audit.add(tx, Event("environment.delete", "refused", thing=row.name, detail=detail))
            await self._audit.add(tx, _event(row, EnvironmentState.STOPPED.value, ""))
            row.wish, row.wish_reason, row.state = Wish.STOPPED, reason, EnvironmentState.STOPPED
            row.reason = row.progress = ""
            row.restarted, row.lifecycle_from = row.restarts, self._clock()
            row.version += 1
        for topic in (TOPIC, "lifecycle"):
            self._changes.tell(topic, seen.id)

    async def keep_handle(self, environment_id: str, handle: str) -> None:
        """A fact, not a wish: it holds whoever changed the record meanwhile."""
        await self._set(environment_id, handle=handle)

    async def note(self, environment_id: str, *, reason: str | None = None, progress: str | None = None) -> None:
        """Say why, or what is being done; the state stays, and so does the version."""
        values = {"reason": reason, "progress": progress}
        await self._set(environment_id, **{name: text for name, text in values.items() if text is not None})
        self._changes.tell(TOPIC, environment_id)

    async def _set(self, environment_id: str, **values: Any) -> None:
        async with self._database.writing() as tx:
            await tx.execute(update(Environment).where(Environment.id == environment_id).values(**values))


def _lets_go(row: Environment) -> bool:
    # One that is only restarted keeps its room: somebody else must not get in between.
    return row.wish is not Wish.RUNNING or row.state is EnvironmentState.FAILED


def _event(row: Environment, to: str, reason: str) -> Event:
    detail = {"from": row.state.value, "to": to, "owner": row.owner_name}
    if reason:
        detail["reason"] = reason
    outcome = "failed" if to == EnvironmentState.FAILED.value else "ok"
    return Event("environment.state", outcome, thing=row.name, detail=detail)
