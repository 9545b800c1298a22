"""How much of the machine environments take right now: cores, memory, processes, GPUs.

`Loads` asks the engines; `Rates` makes cores of two looks. What they may take at most is in their records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backends.compute.contract import Compute, HasUsage
from backends.compute.places import place_of
from backends.environments import owned
from backends.gpu_use import GpuUse, gpu_uses
from storage.access import Action, Caller, require
from storage.errors import AshoreError
from storage.records import Environment, EnvironmentState

_PATIENCE = 10.0
_AT_ONCE = 16


@dataclass(frozen=True)
class Load:
    """What one environment takes."""

    moment: float
    """Of the monotonic clock, seconds."""
    cpu: float
    """Core-seconds since it started."""
    memory: int
    """Bytes."""
    processes: int


class Loads:
    """The use case; engines that cannot tell, or do not answer in time, are left out."""

    def __init__(self, computes: Mapping[str, Compute], clock: Callable[[], float] = time.monotonic) -> None:
        self._computes = computes
        self._clock = clock

    async def of(self, caller: Caller, environments: Sequence[Environment]) -> Mapping[str, Load]:
        """Environment id → what it takes now, for those that run."""
        for one in environments:
            require(caller, Action.ENVIRONMENT_SHOW, owned(one))
        running = [one for one in environments if one.state is EnvironmentState.RUNNING and one.handle]
        gate = asyncio.Semaphore(_AT_ONCE)
        found = await asyncio.gather(*(self._one(one, gate) for one in running))
        return {one.id: load for one, load in zip(running, found, strict=True) if load is not None}

    async def gpus(self, caller: Caller, environments: Sequence[Environment]) -> Mapping[str, Sequence[GpuUse]]:
        """Environment id → how busy its cards are, for those that run and have some."""
        for one in environments:
            require(caller, Action.ENVIRONMENT_SHOW, owned(one))
        return await gpu_uses(self._computes, environments)

    async def _one(self, environment: Environment, gate: asyncio.Semaphore) -> Load | None:
        compute = self._computes.get(place_of(environment.compute, environment.host))
        if not isinstance(compute, HasUsage):
            return None
        try:
            async with gate, asyncio.timeout(_PATIENCE):
                usage = await compute.usage(environment.handle)
        except (AshoreError, TimeoutError):
            return None
        if usage is None:
            return None
        return Load(self._clock(), usage.cpu, usage.memory, usage.processes)


class Rates:
    """Cores in use, from each look and the one before."""

    def __init__(self) -> None:
        self._last: Mapping[str, Load] = {}

    def of(self, loads: Mapping[str, Load]) -> Mapping[str, float]:
        """Environment id → cores; without those that were not there the last time, or have been started anew since."""
        rates = {}
        for name, load in loads.items():
            before = self._last.get(name)
            if before is not None and load.moment > before.moment and load.cpu >= before.cpu:
                rates[name] = (load.cpu - before.cpu) / (load.moment - before.moment)
        self._last = loads
        return rates
