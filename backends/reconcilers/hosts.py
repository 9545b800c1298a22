"""Asks every host for a sign of life, and keeps in its record whether it answers and what it has.

A host that is silent frees nothing: what runs there may well go on, and its environments keep what they reserved. It
is only not chosen any more. One process of a house runs this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from sqlalchemy import select

from backends.compute.contract import Compute
from backends.compute.places import Capacity, HasCapacity, host_of, kind_of
from backends.hosts import TOPIC
from backends.settings import PlacementSettings
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError
from storage.names import printable
from storage.records import Environment, Host

log = logging.getLogger(__name__)
MISSED = 3
"""Signs of life that may be missing before a host is offline."""
_SILENT = "it does not answer"
_UNKNOWN = "it is not in the settings, or has not answered since the gateway was started"


class HostWatch:
    """The loop over hosts."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        computes: Mapping[str, Compute],
        settings: PlacementSettings,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._computes = computes
        self._settings = settings
        self._clock = clock
        self._missed: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            try:
                await self.look()
            except Exception:
                # The wall of this loop: a defect, or a database that is away, must not end all looking.
                log.exception("looking at the hosts failed")

    async def look(self) -> None:
        """Ask everybody once; those who answer are noted at once, whoever keeps silent."""
        hosts = {
            place: compute
            for place, compute in tuple(self._computes.items())
            if host_of(place) and isinstance(compute, HasCapacity)
        }
        await asyncio.gather(*(self._ask(place, compute) for place, compute in hosts.items()))
        await self._forget({host_of(place) for place in hosts})

    async def _ask(self, place: str, compute: HasCapacity) -> None:
        try:
            capacity = await compute.capacity()
        except (AshoreError, TimeoutError) as error:
            reason = error.message if isinstance(error, AshoreError) else _SILENT
            self._missed[place] = self._missed.get(place, 0) + 1
            await self._is_silent(place, printable(reason, limit=300), is_over=self._missed[place] >= MISSED)
        else:
            self._missed.pop(place, None)
            await self._is_up(place, capacity)

    async def _is_up(self, place: str, capacity: Capacity) -> None:
        async with self._database.writing() as tx:
            row = await tx.get(Host, host_of(place), with_for_update=True)
            if row is None:
                row = Host(name=host_of(place), compute=kind_of(place), is_up=False)
                tx.add(row)
            came = not row.is_up
            row.is_up, row.reason, row.last_heartbeat = True, "", self._clock()
            row.cpus, row.memory, row.is_here = capacity.cpus, capacity.memory, capacity.is_here
            if came:
                await self._audit.add(tx, Event("host.online", thing=row.name))
        if came:
            log.info("the host %s is online", host_of(place))
            self._tell(place)

    async def _is_silent(self, place: str, reason: str, *, is_over: bool) -> None:
        async with self._database.writing() as tx:
            row = await tx.get(Host, host_of(place), with_for_update=True)
            if row is None:  # it has never answered: there is nothing to be patient about
                row = Host(name=host_of(place), compute=kind_of(place), is_up=False)
                tx.add(row)
            went = row.is_up and is_over
            changed = went or (not row.is_up and row.reason != reason)
            if changed:
                row.is_up, row.reason = False, reason
            if went:
                await self._audit.add(tx, Event("host.offline", "failed", thing=row.name, detail={"reason": reason}))
        if changed:
            log.warning("the host %s is offline: %s", host_of(place), reason)
            self._tell(place)

    async def _forget(self, known: set[str]) -> None:
        """Hosts that are in no settings any more go with their last environment."""
        async with self._database.writing() as tx:
            for row in (await tx.scalars(select(Host).where(Host.name.not_in(known)))).all():
                if await tx.scalar(select(Environment.id).where(Environment.host == row.name).limit(1)):
                    row.is_up, row.reason = False, _UNKNOWN
                else:
                    await tx.delete(row)

    def _tell(self, place: str) -> None:
        self._changes.tell(TOPIC, host_of(place))
        self._changes.tell("environment")
