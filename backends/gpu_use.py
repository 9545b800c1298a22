"""What environments do with their GPUs: as figures for people, and as a sign of life.

Hosts are asked by the optional power `HasGpuLoads` of their computes. One that does not answer, or cannot tell, is left
out: what is not known is no sign of life, and no error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from backends.activity import Activity
from backends.compute.contract import Compute
from backends.compute.places import GpuLoad, GpuShare, HasGpuLoads, ProcessLoad, place_of
from backends.settings import LifecycleSettings
from storage.database.engine import Database
from storage.errors import AshoreError
from storage.records import Environment, EnvironmentState, GpuMode, Lifecycle

log = logging.getLogger(__name__)
_PATIENCE = 20.0
_LOOK_SECONDS = 60.0


@dataclass(frozen=True)
class GpuUse:
    """One card of an environment."""

    uuid: str
    model: str
    utilization: int | None
    """Percent, of everybody on this card; None: not known."""
    used: int
    """Bytes, of everybody."""
    memory: int
    """Bytes that the card has."""
    own_utilization: int | None = None
    """Percent, of the environment's own processes; None: not known."""
    own_memory: int | None = None
    """Bytes."""
    processes: Sequence[ProcessLoad] | None = None
    """The environment's own ones; None: not known."""


async def gpu_uses(
    computes: Mapping[str, Compute], environments: Sequence[Environment]
) -> Mapping[str, Sequence[GpuUse]]:
    """Environment id → its cards, of those that run and whose host can tell."""
    holders = [one for one in environments if one.state is EnvironmentState.RUNNING and one.reserves and one.cards]
    places = sorted({place_of(one.compute, one.host) for one in holders})
    answers = dict(zip(places, await asyncio.gather(*(_loads(computes, place) for place in places)), strict=True))
    found = {one.id: _uses(one, answers[place_of(one.compute, one.host)]) for one in holders}
    return {environment_id: uses for environment_id, uses in found.items() if uses}


def is_busy(environment: Environment, uses: Sequence[GpuUse], percent: float) -> bool:
    """Whether one of its cards computes for it; where others have the card too, only its own processes count."""
    for use in uses:
        known = use.utilization if environment.gpu_mode is GpuMode.EXCLUSIVE else use.own_utilization
        if known is not None and known > percent:
            return True
    return False


class GpuSigns:
    """A loop that takes what GPUs do for a sign of life. One process of a house runs it."""

    def __init__(
        self,
        database: Database,
        computes: Mapping[str, Compute],
        activity: Activity,
        settings: LifecycleSettings,
        *,
        pause: float = _LOOK_SECONDS,
    ) -> None:
        self._database = database
        self._computes = computes
        self._activity = activity
        self._settings = settings
        self._pause = pause

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self.look()
            except Exception:
                # The wall of this loop: a defect, or a database that is away, must not end all looking.
                log.exception("looking at what GPUs do failed")

    async def look(self) -> None:
        """Note a sign of life of each environment whose cards compute; nobody is asked where nothing depends on it."""
        mortal = Environment.lifecycle.in_((Lifecycle.ON_DEMAND, Lifecycle.EPHEMERAL))
        query = select(Environment).where(
            mortal, Environment.state == EnvironmentState.RUNNING, Environment.gpu_mode != GpuMode.NONE
        )
        async with self._database.reading() as tx:
            rows = (await tx.scalars(query)).all()
        uses = await gpu_uses(self._computes, rows)
        for row in rows:
            if is_busy(row, uses.get(row.id, ()), self._settings.gpu_percent):
                self._activity.sign(row.id)


async def _loads(computes: Mapping[str, Compute], place: str) -> Mapping[str, GpuLoad]:
    compute = computes.get(place)
    if not isinstance(compute, HasGpuLoads):
        return {}
    try:
        async with asyncio.timeout(_PATIENCE):
            return {load.uuid: load for load in await compute.gpu_loads()}
    except (AshoreError, TimeoutError):
        return {}


def _uses(environment: Environment, loads: Mapping[str, GpuLoad]) -> Sequence[GpuUse]:
    return [
        _use(uuid, str(model), loads[uuid], environment.handle)
        for uuid, model in environment.cards.items()
        if uuid in loads
    ]


def _use(uuid: str, model: str, load: GpuLoad, handle: str) -> GpuUse:
    if load.shares is None:
        return GpuUse(uuid, model, load.utilization, load.used, load.memory)
    share = load.shares.get(handle)
    share = share or GpuShare(0, 0)
    own = (share.utilization, share.memory, tuple(sorted(share.processes, key=lambda one: one.pid)))
    return GpuUse(uuid, model, load.utilization, load.used, load.memory, *own)
