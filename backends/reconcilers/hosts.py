"""Asks every host for a sign of life, and keeps in its record whether it answers and what it has.

A host that is silent frees nothing: what runs there may well go on, and its environments keep what they reserved. It
is only not chosen any more. One process of a house runs this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from sqlalchemy import delete, select

from backends.compute.contract import Compute
from backends.compute.places import Capacity, GpuDriver, GpuFact, HasCapacity, HasCuda, HasGpus, host_of, kind_of
from backends.cuda import words_of
from backends.hosts import TOPIC
from backends.settings import PlacementSettings
from storage.access import Action
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError
from storage.names import printable
from storage.records import Environment, Gpu, Host, LostEnvironment

log = logging.getLogger(__name__)
_GPU_SECONDS = 5.0
"""How long one look waits for what hosts say of their GPUs; those that are slower are heard at a later one."""
MISSED = 3
"""Signs of life that may be missing before a host is offline."""
_SILENT = "it does not answer"
_GIVEN_UP = "given up: remove its old containers there, then 'host resume'"
_UNKNOWN = "it is not in the settings, or has not answered since the gateway was started"

_GpuAnswer = tuple[Sequence[GpuFact], GpuDriver | None]
"""The driver is None where there is none, or it does not tell."""


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
        self._asked: dict[str, asyncio.Task[_GpuAnswer]] = {}
        """What hosts are being asked of their GPUs: a driver may hang, and must not be asked twice then."""
        self._troubles: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._settings.heartbeat_seconds)
                try:
                    await self.look()
                except Exception:
                    # The wall of this loop: a defect, or a database that is away, must not end all looking.
                    log.exception("looking at the hosts failed")
        finally:
            for task in self._asked.values():
                task.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def look(self) -> None:
        """Ask everybody once; those who answer are noted at once, whoever keeps silent."""
        hosts = {
            place: compute
            for place, compute in tuple(self._computes.items())
            if host_of(place) and isinstance(compute, HasCapacity)
        }
        await asyncio.gather(*(self._ask(place, compute) for place, compute in hosts.items()))
        await self._ask_gpus({place: one for place, one in hosts.items() if place not in self._missed})
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
                row = await self._list(tx, place)
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
                row = await self._list(tx, place)
            went = row.is_up and is_over
            changed = went or (not row.is_up and row.reason != reason)
            if changed:
                row.is_up, row.reason = False, reason
            if went:
                await self._audit.add(tx, Event("host.offline", "failed", thing=row.name, detail={"reason": reason}))
        if changed:
            log.warning("the host %s is offline: %s", host_of(place), reason)
            self._tell(place)

    async def _list(self, tx: Transaction, place: str) -> Host:
        """Make the record of a host that had none, or was forgotten.

        Where environments were given up with it, their containers may still run there, on GPUs that nobody holds here:
        nothing new starts before an administrator has said that they are gone.
        """
        row = Host(name=host_of(place), compute=kind_of(place), is_up=False)
        if await tx.scalar(select(LostEnvironment.id).where(LostEnvironment.host == row.name).limit(1)):
            row.is_drained, row.drain_reason = True, _GIVEN_UP
            await self._audit.add(tx, Event(Action.HOST_DRAIN, thing=row.name, detail={"reason": _GIVEN_UP}))
        tx.add(row)
        return row

    # ---- GPUs ------------------------------------------------------------------------------------------------
    async def _ask_gpus(self, hosts: Mapping[str, HasCapacity]) -> None:
        for place, compute in hosts.items():
            if isinstance(compute, HasGpus) and place not in self._asked:
                self._asked[place] = asyncio.create_task(_gpu_answer(compute), name=f"GPUs of {place}")
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=_GPU_SECONDS)
        # One after the other: two hosts may be the same machine, and a card belongs to one of them.
        for place, task in tuple(self._asked.items()):
            if task.done() and self._asked.get(place) is task:
                del self._asked[place]
                await self._hear_gpus(place, task)

    async def _hear_gpus(self, place: str, task: asyncio.Task[_GpuAnswer]) -> None:
        try:
            facts, driver = task.result()
        except (AshoreError, TimeoutError) as error:
            # Nothing follows from it: what was known of its cards holds.
            trouble = error.message if isinstance(error, AshoreError) else _SILENT
            if self._troubles.get(place) != trouble:
                log.warning("the GPUs of the host %s are not known: %s", host_of(place), printable(trouble, limit=300))
            self._troubles[place] = trouble
            await self._note_gpus(host_of(place), gpu_trouble=printable(trouble, limit=300))
        else:
            self._troubles.pop(place, None)
            await self._see_gpus(host_of(place), facts)
            known: dict[str, str] = {"gpu_trouble": ""}
            if driver is not None or not facts:
                known |= {"gpu_driver": driver.version if driver else ""}
                known |= {"cuda": words_of(driver.cuda) if driver and driver.cuda else ""}
            await self._note_gpus(host_of(place), **known)

    async def _note_gpus(self, host: str, **known: str) -> None:
        async with self._database.writing() as tx:
            row = await tx.get(Host, host)
            changed = row is not None and any(getattr(row, name) != value for name, value in known.items())
            if row is not None and changed:
                for name, value in known.items():
                    setattr(row, name, value)
        if changed:
            self._changes.tell(TOPIC, host)

    async def _see_gpus(self, host: str, facts: Sequence[GpuFact]) -> None:
        """Write down which cards are there. One that has vanished is kept as long as somebody holds it."""
        seen = {fact.uuid: fact for fact in facts}
        changed: list[tuple[str, Gpu]] = []
        async with self._database.writing() as tx:
            await tx.get(Host, host, with_for_update=True)
            known = {row.uuid: row for row in await tx.scalars(select(Gpu))}
            for uuid, fact in seen.items():
                row = known.get(uuid)
                if row is not None and row.host != host and row.is_present:
                    continue  # the same machine under another name
                if row is None or row.host != host or not row.is_present:
                    row = row or Gpu(uuid=uuid)
                    tx.add(row)
                    changed.append(("host.gpu.found", row))
                row.host, row.model, row.memory, row.is_present = host, fact.model, fact.memory, True
                row.parent, row.profile = fact.parent, fact.profile
            held = await tx.scalars(select(Environment.cards).where(Environment.reserves.is_(True)))
            in_use = {uuid for cards in held for uuid in cards}
            for row in known.values():
                if row.host == host and row.uuid not in seen:
                    if row.is_present:
                        changed.append(("host.gpu.lost", row))
                    row.is_present = False
                    if row.uuid not in in_use:
                        await tx.delete(row)
            for action, row in changed:
                outcome = "failed" if action == "host.gpu.lost" else "ok"
                detail = {"gpu": row.uuid, "model": row.model, "held": row.uuid in in_use}
                await self._audit.add(tx, Event(action, outcome, thing=host, detail=detail))
        for action, row in changed:
            log.info("%s: %s of %s", action, row.uuid, host)
        if changed:
            self._changes.tell(TOPIC, host)
            self._changes.tell("environment")

    async def _forget(self, known: set[str]) -> None:
        """Hosts that are in no settings any more go with their last environment."""
        async with self._database.writing() as tx:
            for row in (await tx.scalars(select(Host).where(Host.name.not_in(known)))).all():
                if await tx.scalar(select(Environment.id).where(Environment.host == row.name).limit(1)):
                    row.is_up, row.reason = False, _UNKNOWN
                else:
                    await tx.execute(delete(Gpu).where(Gpu.host == row.name))
                    await tx.delete(row)

    def _tell(self, place: str) -> None:
        self._changes.tell(TOPIC, host_of(place))
        self._changes.tell("environment")


async def _gpu_answer(compute: HasGpus) -> _GpuAnswer:
    facts = await compute.gpus()
    if not facts or not isinstance(compute, HasCuda):
        return facts, None
    try:
        return facts, await compute.driver()
    except (AshoreError, TimeoutError):
        return facts, None
