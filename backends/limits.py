"""How many cores and how much memory one environment gets when it names none, and may have at most.

Nothing runs without a limit: one program must not take the machine away from everybody. What the settings leave open
is derived from the machine. Sums over environments are not here but in `storage.quotas`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from backends.settings import EnvironmentSettings
from storage.quota_limits import size_words

MIB = 1024**2
_LEAST_MEMORY = 64 * MIB
_SMALL_MEMORY = 512 * MIB
_STEP = 64 * MIB


@dataclass(frozen=True)
class Machine:
    """What there is to share: cores, and memory in bytes."""

    cpus: int
    memory: int

    @classmethod
    def here(cls) -> Machine:
        """The machine that this process runs on."""
        return cls(len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True)
class Limits:
    """Cores, and memory in bytes, of one environment. None of them is ever 0."""

    default_cpus: float
    default_memory: int
    most_cpus: float
    most_memory: int

    @classmethod
    def of(cls, settings: EnvironmentSettings, machine: Machine) -> Limits:
        """Those of the settings, and a share of the machine for each that is 0 there."""
        most_cpus = settings.most_cpus or float(machine.cpus)
        most_memory = settings.most_memory_mib * MIB or max(_LEAST_MEMORY, machine.memory * 9 // 10 // _STEP * _STEP)
        cpus = settings.default_cpus or float(max(min(2, machine.cpus), machine.cpus // 2))
        memory = settings.default_memory_mib * MIB or max(_SMALL_MEMORY, machine.memory // 4 // _STEP * _STEP)
        return cls(min(cpus, most_cpus), min(memory, most_memory), most_cpus, most_memory)

    def filled(self, cpus: float, memory: int) -> tuple[float, int]:
        """Both as asked for, or their defaults where they are 0."""
        return cpus or self.default_cpus, memory or self.default_memory

    def refusals(self, cpus: float, memory: int) -> list[str]:
        """Why no environment may have these; a sentence each."""
        found = []
        if not 0 < cpus <= self.most_cpus:  # written so that NaN is refused as well
            found.append(f"cpus must be between 0 (the default) and {self.most_cpus:g}")
        if memory < _LEAST_MEMORY:
            found.append("memory must be at least 64MiB, or 0 for the default")
        if memory > self.most_memory:
            found.append(f"memory must be at most {size_words(self.most_memory)}")
        return found
