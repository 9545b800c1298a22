"""What the expiry reconciler reads and writes: short transactions, each guarded by what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update

from backends.activity import TOPIC
from backends.environments import Environments
from backends.lifecycle import Due, Step
from storage.access import Caller
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock
from storage.database.engine import Database
from storage.names import printable
from storage.records import Environment, EnvironmentState, Lifecycle, Wish


class ExpiryRows:
    """The environments' records, as their life cycles change them."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, environments: Environments, clock: Clock
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._environments = environments
        self._clock = clock

    async def all(self) -> Sequence[Environment]:
        """Those that anything may be due for, or that were warned."""
        mortal = (Environment.lifecycle != Lifecycle.PERSISTENT) | Environment.warned.is_not(None)
        async with self._database.reading() as tx:
            return (await tx.scalars(select(Environment).where(mortal, Environment.wish != Wish.DELETED))).all()

    async def load(self, environment_id: str) -> Environment | None:
        async with self._database.reading() as tx:
            return await tx.get(Environment, environment_id)

    async def warn(self, seen: Environment, moment: datetime | None) -> None:
        """Its people are told from `moment` on; None: no longer."""
        async with self._database.writing() as tx:
            mine = (Environment.id == seen.id, Environment.version == seen.version)
            await tx.execute(update(Environment).where(*mine).values(warned=moment))
        self._changes.tell(TOPIC, seen.id)

    async def carry_out(self, seen: Environment, coming: Due, owner: Caller | None) -> bool:
        """Wish what is due, unless anything has changed since it was seen, a sign of life included.

        `owner`: whose quota a start takes from. OverQuota if it does not fit.
        """
        async with self._database.writing() as tx:
            row = await tx.get(Environment, seen.id, with_for_update=True)
            if row is None or _facts(row) != _facts(seen):
                return False
            if owner is not None:
                await self._environments.take(tx, owner, row)
            row.wish, row.wish_reason = coming.step.wish, coming.reason
            if coming.step is Step.START and row.state is EnvironmentState.FAILED:
                row.state, row.reason = EnvironmentState.REQUESTED, ""
            row.lifecycle_from, row.warned = self._clock(), None
            row.version += 1
            await self._audit.add(tx, _event(row, coming, "ok", coming.reason))
        self._tell(seen)
        return True

    async def pass_over(self, seen: Environment, coming: Due, why: str) -> None:
        """A start that is not possible: said, and not tried again before its next time."""
        async with self._database.writing() as tx:
            row = await tx.get(Environment, seen.id, with_for_update=True)
            if row is None or row.version != seen.version:
                return
            row.lifecycle_from = self._clock()
            row.wish_reason = printable(f"its schedule could not start it: {why}", limit=500)
            await self._audit.add(tx, _event(row, coming, "refused", why))
        self._tell(seen)

    def _tell(self, seen: Environment) -> None:
        self._changes.tell("environment", seen.id)
        self._changes.tell(TOPIC, seen.id)


def _facts(row: Environment) -> tuple[object, ...]:
    return (row.version, row.last_active, row.last_typed, row.last_used)


def _event(row: Environment, coming: Due, outcome: str, reason: str) -> Event:
    detail = {"owner": row.owner_name, "lifecycle": row.lifecycle.value, "reason": printable(reason, limit=500)}
    return Event(f"environment.{coming.step.value}", outcome, thing=row.name, detail=detail)
