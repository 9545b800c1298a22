"""What is counted, what is allowed, and the sentence for what does not fit. Pure: no database here.

Environments count from their creation to their end, also while they are stopped. Their CPUs, memory and GPUs count
while they run, are wished to run, or may still hold what they had. Each GPU counts one, also one that is shared and a
MIG device: a quota says on how many somebody may be. Builds of images count while they wait or run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from storage.errors import BadInput
from storage.records import UNLIMITED, Environment, EnvironmentState, Holder, Quota, Wish
from storage.settings import ObjectSettings, QuotaSettings

_MIB = 1024**2
_GIB = 1024**3
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MOST = float(1 << 60)
_MOST_COUNT = float((1 << 31) - 1)
"""What an integer column takes everywhere."""
HOLDING = (
    EnvironmentState.CREATING, EnvironmentState.RUNNING, EnvironmentState.STOPPING, EnvironmentState.DELETING,
)  # fmt: skip
"""States in which an environment without a host may have its CPUs and memory, whatever its owner wishes."""


class Resource(StrEnum):
    """Everything that has a quota; the names of `Quota`'s columns."""

    ENVIRONMENTS = "environments"
    CPUS = "cpus"
    MEMORY = "memory"
    GPUS = "gpus"
    STORAGE = "storage"
    UPLOADS = "uploads"
    PARKED = "parked"
    BUILDS = "builds"

    @property
    def noun(self) -> str:
        """As people say it."""
        return _NOUNS[self]

    def words(self, amount: float) -> str:
        """`3`, `1.5`, `16GiB`."""
        return size_words(amount) if self in _IN_BYTES else f"{amount:.12g}"


_NOUNS = {
    Resource.ENVIRONMENTS: "environments",
    Resource.CPUS: "CPUs",
    Resource.MEMORY: "memory",
    Resource.GPUS: "GPUs",
    Resource.STORAGE: "storage",
    Resource.UPLOADS: "interrupted uploads",
    Resource.PARKED: "interrupted uploads' storage",
    Resource.BUILDS: "open builds",
}
_IN_BYTES = frozenset({Resource.MEMORY, Resource.STORAGE, Resource.PARKED})
RUNNING = (Resource.ENVIRONMENTS, Resource.CPUS, Resource.MEMORY, Resource.GPUS)
"""What environments use."""
OF = {
    Holder.USER: tuple(Resource),
    Holder.WORKSPACE: (*RUNNING, Resource.STORAGE, Resource.BUILDS),
}
Amounts = Mapping[Resource, float]
Allowed = Mapping[Resource, float | None]
"""None: no limit."""


@dataclass(frozen=True)
class Subject:
    """A person or a workspace."""

    holder: Holder
    id: str
    name: str


@dataclass(frozen=True)
class QuotaLine:
    """One resource of one subject. `allowed` is None where there is no limit; `by` made an exception, or is empty."""

    subject: Subject
    resource: Resource
    used: float
    allowed: float | None
    by: str = ""

    @property
    def left(self) -> float | None:
        return None if self.allowed is None else max(0.0, self.allowed - self.used)

    def refusal(self, more: float, *, whose: str) -> str:
        """Why `more` does not fit, as a sentence that begins with `whose` quota it is; empty if it fits."""
        if self.allowed is None or more <= 0 or self.used + more <= self.allowed + 1e-9:
            return ""
        words = self.resource.words
        return (
            f"{whose} quota of {self.resource.noun} is {words(self.allowed)}, with {words(self.used)} in use, "
            f"and this needs {words(more)}: an administrator can raise it"
        )


def defaults(
    quotas: QuotaSettings, objects: ObjectSettings, *, environments: int, builds: int
) -> Mapping[Holder, Allowed]:
    """What the settings allow everybody; `environments` and `builds` for each person."""

    def limit(amount: float, unit: int = 1) -> float | None:
        return amount * unit or None

    return {
        Holder.USER: {
            Resource.ENVIRONMENTS: environments,
            Resource.CPUS: limit(quotas.user_cpus),
            Resource.MEMORY: limit(quotas.user_memory_mib, _MIB),
            Resource.GPUS: limit(quotas.user_gpus),
            Resource.STORAGE: limit(quotas.user_storage_gib, _GIB),
            Resource.UPLOADS: objects.parked_most,
            Resource.PARKED: objects.parked_gib * _GIB,
            Resource.BUILDS: builds,
        },
        Holder.WORKSPACE: {
            Resource.ENVIRONMENTS: limit(quotas.workspace_environments),
            Resource.CPUS: limit(quotas.workspace_cpus),
            Resource.MEMORY: limit(quotas.workspace_memory_mib, _MIB),
            Resource.GPUS: limit(quotas.workspace_gpus),
            Resource.STORAGE: limit(objects.workspace_gib, _GIB),
            Resource.BUILDS: limit(quotas.workspace_builds),
        },
    }


def allowed_by(row: Quota | None, settings: Allowed, resource: Resource) -> tuple[float | None, bool]:
    """What holds for `resource`, and whether that is an exception."""
    value = getattr(row, resource.value) if row is not None else None
    if value is None:
        return settings.get(resource), False
    return (None if value == UNLIMITED else float(value)), True


def checked(resource: Resource, amount: float | None, holder: Holder) -> float | None:
    """An exception as its column takes it. None: back to the settings; `math.inf`: no limit. BadInput otherwise."""
    if resource not in OF[holder]:
        raise BadInput(f"a {holder.value} has no quota of {resource.noun}")
    if amount is None:
        return None
    if amount == math.inf:
        return UNLIMITED
    most = _MOST if resource in _IN_BYTES else _MOST_COUNT
    if not 0 <= amount <= most:
        raise BadInput(f"a quota of {resource.noun} is a number from 0 to {resource.words(most)}")
    if resource is not Resource.CPUS and amount != int(amount):
        raise BadInput(f"a quota of {resource.noun} is a whole number")
    return amount if resource is Resource.CPUS else int(amount)


def holds(environment: Environment) -> bool:
    """Whether its CPUs, memory and GPUs count. The rule of `quota_usage.HOLDS`, for one that is loaded."""
    if environment.host:
        return environment.reserves
    if environment.state in HOLDING:
        return True
    return environment.wish is Wish.RUNNING and environment.state is not EnvironmentState.FAILED


def size_words(amount: float) -> str:
    """Bytes for people: `512MiB`, `1.5GiB`."""
    value, unit = float(amount), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".rstrip("0").rstrip(".") + _UNITS[unit]
