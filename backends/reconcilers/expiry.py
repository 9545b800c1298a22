"""Stops, starts and deletes environments by their life cycles: records the wish, and another loop brings it about.

People are warned before; a sign of life takes the warning back. Nothing is done at the very moment that was told, but
a little later, when every process has written down what it saw until then. One process of a house runs this.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from backends.activity import TOPIC
from backends.environments import Environments
from backends.lifecycle import Due, Step, due, effective, is_warned
from backends.reconcilers.expiry_rows import ExpiryRows
from backends.reconcilers.loop import ReconcilerLoop
from backends.settings import LifecycleSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import NotAllowed, NotFound, OverQuota, Unavailable
from storage.records import Environment


class ExpiryReconciler:
    """The loop over environments that do not simply go on."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        accounts: Accounts,
        environments: Environments,
        settings: LifecycleSettings,
        clock: Clock = now,
    ) -> None:
        self._rows = ExpiryRows(database, audit, changes, environments, clock)
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._loop = ReconcilerLoop(
            "life cycle", TOPIC, changes=changes, look=self.look, act=self.act, pause=settings.look_seconds
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self._loop.run()

    async def look(self) -> Sequence[str]:
        """Ids of the environments that something is due for, or that were warned."""
        moment = self._clock()
        return [row.id for row in await self._rows.all() if row.warned is not None or self._is_near(row, moment)]

    async def act(self, environment_id: str) -> None:
        """Warn, take the warning back, or do what is due."""
        row = await self._rows.load(environment_id)
        if row is None:
            return
        moment = self._clock()
        coming = due(row, self._settings, moment)
        if coming is None or moment < coming.at - coming.notice:
            if row.warned is not None:
                await self._rows.warn(row, None)
        elif coming.step is Step.START:
            await self._start(row, coming)
        elif coming.notice and not is_warned(row):
            await self._rows.warn(row, moment)
        elif moment >= effective(row, coming) + timedelta(seconds=2 * self._settings.write_seconds):
            await self._rows.carry_out(row, coming, None)

    def _is_near(self, row: Environment, moment: datetime) -> bool:
        coming = due(row, self._settings, moment)
        return coming is not None and moment >= coming.at - coming.notice

    async def _start(self, row: Environment, coming: Due) -> None:
        try:
            await self._rows.carry_out(row, coming, await self._owner(row))
        except (NotAllowed, NotFound, OverQuota, Unavailable) as error:
            await self._rows.pass_over(row, coming, error.message)

    async def _owner(self, row: Environment) -> Caller:
        """The person whose environment it is; NotFound if that person may not come in any more."""
        return await self._accounts.caller_for(row.owner_name, connection=f"cycle-{row.id}"[:16])
