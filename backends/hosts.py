"""Hosts: list, show, drain, resume, forget; for administrators, and for the operator who owns the data directory.

Whether a host answers is found out by `reconcilers.hosts`; where an environment goes is decided by `placement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, func, select

from backends.data_cache import CacheUse, measure
from backends.data_sites import cache_directory
from backends.placement import Room
from backends.removal import remove_record
from backends.reservations import Reservations
from backends.settings import HERE, BackendSettings
from storage.access import Action, Caller, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import Conflict, NotFound
from storage.names import check_resource, printable
from storage.records import Environment, Gpu, Host, HostState, LostEnvironment
from storage.uses import Uses

TOPIC = "host"
_LONGEST_REASON = 200


@dataclass(frozen=True)
class HostView:
    """One host as administrators see it."""

    compute: str
    room: Room
    last_heartbeat: datetime | None
    placed: Sequence[Environment] = ()
    """Every environment that has its home there."""
    cache: CacheUse = CacheUse()
    """What copies of data sets and models take there."""
    gpu_driver: str = ""
    """Version of NVIDIA's driver there, as it was told last; empty: none, or not known, as `cuda`."""
    cuda: str = ""
    """The newest CUDA that this driver knows."""
    gpu_trouble: str = ""
    """Why its GPUs could not be asked the last time."""
    shared_root: str = ""
    """Where the bucket is mounted there already; nothing is copied then."""

    @property
    def name(self) -> str:
        return self.room.host

    @property
    def state(self) -> HostState:
        return self.room.state


class Hosts:
    """The use cases about hosts."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        settings: BackendSettings,
        data: Path | None = None,
        clock: Clock = now,
    ) -> None:
        """`data` is the data directory, where it is noted what copies hosts have."""
        self._database = database
        self._audit = audit
        self._changes = changes
        self._reservations = Reservations(settings)
        self._settings = settings
        self._data = data
        self._clock = clock
        self._uses = Uses(database, clock)
        self._named = frozenset(settings.docker.hosts or (HERE,))

    async def list(self, caller: Caller) -> Sequence[HostView]:
        """All hosts by name."""
        require(caller, Action.HOST_LIST)
        return await self.all()

    async def show(self, caller: Caller, name: str) -> HostView:
        """One host."""
        require(caller, Action.HOST_LIST)
        check_resource(name, kind="host")
        async with self._database.reading() as tx:
            view = await self._view(tx, await _row(tx, name))
        return await self._with_cache(view)

    async def drain(self, caller: Caller, name: str, reason: str = "") -> HostView:
        """Let nothing new start there; what runs goes on. `reason` is shown to everybody who is turned away."""
        require(caller, Action.HOST_DRAIN)
        return await self._drain(Event.by(caller, Action.HOST_DRAIN), name, reason)

    async def resume(self, caller: Caller, name: str) -> HostView:
        """Let environments start there again."""
        require(caller, Action.HOST_RESUME)
        return await self._resume(Event.by(caller, Action.HOST_RESUME), name)

    async def forget(self, caller: Caller, name: str) -> None:
        """Drop what is known of a host that is offline, or in the settings no more: its cards and whether it is
        drained. Conflict: environments have their home there, or it serves. One that the settings name is listed again
        with the next look."""
        require(caller, Action.HOST_FORGET)
        await self._forget(Event.by(caller, Action.HOST_FORGET), name)

    async def losses(self, caller: Caller, name: str) -> Sequence[Environment]:
        """What `forget_with_environments` would give up. Conflict: it would refuse."""
        require(caller, Action.HOST_FORGET)
        return await self._losses(name)

    async def forget_with_environments(self, caller: Caller, name: str) -> Sequence[Environment]:
        """Drop a host that is gone for ever, and every environment that has its home there; which those were.

        What they hold is given back: room, GPUs, quotas, data. Their homes are lost, and what of their output was not
        kept. Nobody asks the machine, so Conflict while it is online. Should it come back, what is left there is
        reported and not touched, and the host is drained until `resume`: its GPUs may be in use.
        """
        require(caller, Action.HOST_FORGET)
        return await self._give_up(Event.by(caller, Action.HOST_FORGET), name)

    # ---- for the operator ------------------------------------------------------------------------------------
    async def all(self) -> Sequence[HostView]:
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(Host).order_by(Host.compute, Host.name))).all()
            views = [await self._view(tx, row) for row in rows]
        return [await self._with_cache(view) for view in views]

    async def drain_by_operator(self, name: str, reason: str = "") -> HostView:
        return await self._drain(Event(Action.HOST_DRAIN, actor="operator"), name, reason)

    async def resume_by_operator(self, name: str) -> HostView:
        return await self._resume(Event(Action.HOST_RESUME, actor="operator"), name)

    async def forget_by_operator(self, name: str) -> None:
        await self._forget(Event(Action.HOST_FORGET, actor="operator"), name)

    async def losses_by_operator(self, name: str) -> Sequence[Environment]:
        return await self._losses(name)

    async def forget_with_environments_by_operator(self, name: str) -> Sequence[Environment]:
        return await self._give_up(Event(Action.HOST_FORGET, actor="operator"), name)

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _drain(self, event: Event, name: str, reason: str) -> HostView:
        return await self._change(event, name, is_drained=True, reason=printable(reason, limit=_LONGEST_REASON))

    async def _resume(self, event: Event, name: str) -> HostView:
        return await self._change(event, name, is_drained=False, reason="")

    async def _change(self, event: Event, name: str, *, is_drained: bool, reason: str) -> HostView:
        check_resource(name, kind="host")
        async with self._database.writing() as tx:
            row = await _row(tx, name, lock=True)
            row.is_drained, row.drain_reason = is_drained, reason
            detail = {"reason": reason} if reason else {}
            await self._audit.add(
                tx, Event(event.action, event.outcome, event.actor, name, event.address, event.connection, detail)
            )
            await tx.flush()
            view = await self._view(tx, row)
        self._changes.tell(TOPIC, name)
        return await self._with_cache(view)

    async def _forget(self, event: Event, name: str) -> None:
        check_resource(name, kind="host")
        async with self._database.writing() as tx:
            row = await _row(tx, name, lock=True)
            if row.is_up and name in self._named:
                raise Conflict(f"the host '{name}' is online and in the settings: take it out of them first")
            count = await tx.scalar(select(func.count()).select_from(Environment).where(Environment.host == name))
            if count:
                raise Conflict(
                    f"the host '{name}' has environments ({count}): delete them first, or give them up with it "
                    "(--with-environments)"
                )
            await self._drop(tx, replace(event, thing=name), row)
        self._changes.tell(TOPIC, name)

    async def _losses(self, name: str) -> Sequence[Environment]:
        check_resource(name, kind="host")
        async with self._database.reading() as tx:
            return await _placed(tx, _not_up(await _row(tx, name)))

    async def _give_up(self, event: Event, name: str) -> Sequence[Environment]:
        check_resource(name, kind="host")
        async with self._database.writing() as tx:
            row = _not_up(await _row(tx, name, lock=True))
            placed = await _placed(tx, row, lock=True)
            for one in placed:
                facts = {"environment": one.id, "owner": one.owner_name, "host": name, "state": one.state.value}
                held = {"gpus": list(one.cards)} if one.reserves and one.cards else {}
                lost = replace(event, action="environment.lost", thing=one.name, detail=facts | held)
                await self._audit.add(tx, lost)
                tx.add(
                    LostEnvironment(
                        id=one.id, owner_id=one.owner_id, owner_name=one.owner_name, name=one.name, host=name,
                        lost=self._clock(),
                    )
                )  # fmt: skip
                await remove_record(tx, self._uses, one)
            await self._drop(tx, replace(event, thing=name, detail={"environments": len(placed)}), row)
        self._changes.tell(TOPIC, name)
        for one in placed:
            self._changes.tell("environment", one.id)
        return placed

    async def _drop(self, tx: Transaction, event: Event, row: Host) -> None:
        await self._audit.add(tx, event)
        await tx.execute(delete(Gpu).where(Gpu.host == row.name))
        await tx.delete(row)

    async def _view(self, tx: Transaction, row: Host) -> HostView:
        (room,) = await self._reservations.rooms(tx, row.compute, [row.name])
        return HostView(
            row.compute, room, row.last_heartbeat, await _placed(tx, row),
            gpu_driver=row.gpu_driver, cuda=row.cuda, gpu_trouble=row.gpu_trouble,
        )  # fmt: skip

    async def _with_cache(self, view: HostView) -> HostView:
        host = self._settings.docker.hosts.get(view.name)
        if view.room.is_here:
            limit, name = self._settings.cache.gib, ""
            root = (host.shared_root if host is not None else "") or self._settings.cache.shared_root
        else:
            limit, name = (host.cache_gib if host is not None else 0), view.name
            root = host.shared_root if host is not None else ""
        if self._data is None:
            return replace(view, shared_root=root)
        cache = await asyncio.to_thread(measure, cache_directory(self._data, name), limit)
        return replace(view, cache=cache, shared_root=root)


async def _row(tx: Transaction, name: str, *, lock: bool = False) -> Host:
    row = await tx.get(Host, name, with_for_update=lock)
    if row is None:
        raise NotFound(f"there is no host '{name}'")
    return row


async def _placed(tx: Transaction, row: Host, *, lock: bool = False) -> Sequence[Environment]:
    query = select(Environment).where(Environment.compute == row.compute, Environment.host == row.name)
    query = query.order_by(Environment.owner_name, Environment.name)
    return (await tx.scalars(query.with_for_update() if lock else query)).all()


def _not_up(row: Host) -> Host:
    """Whatever the settings say: while it answers, what runs there would go on with nobody to stop it."""
    if row.is_up:
        raise Conflict(f"the host '{row.name}' is online: only what is on a host that is offline can be given up")
    return row
