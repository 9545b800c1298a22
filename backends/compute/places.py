"""Where a workload is: a compute, and for computes that have several machines, the host.

Computes of a process are kept by place. What a host can give is an optional power of a compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


def place_of(compute: str, host: str) -> str:
    """The key of the one engine: `local`, `docker/gpu2`."""
    return f"{compute}/{host}" if host else compute


def kind_of(place: str) -> str:
    """The compute's name, as people type it."""
    return place.partition("/")[0]


def host_of(place: str) -> str:
    """The host's name; empty for a compute without hosts."""
    return place.partition("/")[2]


@dataclass(frozen=True)
class Capacity:
    """What one host has to share out."""

    cpus: float
    memory: int
    """Bytes."""
    is_here: bool
    """It is the gateway's own machine: it sees the files here."""


@runtime_checkable
class HasCapacity(Protocol):
    """An optional power of a compute: it is one host among several."""

    async def capacity(self) -> Capacity:
        """What its machine has. Unavailable: it does not answer."""
        ...


@dataclass(frozen=True)
class GpuFact:
    """A card of a host, or a device of a card in MIG mode."""

    uuid: str
    model: str
    memory: int
    """Bytes."""
    parent: str = ""
    """Of a MIG device: the UUID of its card."""
    profile: str = ""
    """Of a MIG device: such as `1g.10gb`."""


@runtime_checkable
class HasGpus(Protocol):
    """An optional power of a compute: its machine may have GPUs."""

    async def gpus(self) -> Sequence[GpuFact]:
        """Those that may be shared out. Unavailable: they cannot be asked now, and nothing follows from it."""
        ...


@dataclass(frozen=True)
class ProcessLoad:
    """What one process takes of a card."""

    pid: int
    """As the host counts."""
    utilization: int | None
    """Percent of the time that a kernel of it ran; None: not known."""
    memory: int
    """Bytes of the card's memory; 0 also where the driver does not tell."""


@dataclass(frozen=True)
class GpuShare:
    """What one workload takes of a card."""

    utilization: int | None
    """Percent of the time that a kernel of it ran; None: not known."""
    memory: int
    """Bytes."""
    processes: Sequence[ProcessLoad] = ()


@dataclass(frozen=True)
class GpuLoad:
    """How busy a card is, or a MIG device."""

    uuid: str
    utilization: int | None
    """Percent of the time that any kernel ran; None: not known, as always for MIG."""
    used: int
    """Bytes."""
    memory: int
    """Bytes."""
    shares: Mapping[str, GpuShare] | None = None
    """By the handles of those who run on it. None: it is not known who does."""


@runtime_checkable
class HasGpuLoads(Protocol):
    """An optional power of a compute: it tells how busy its GPUs are."""

    async def gpu_loads(self) -> Sequence[GpuLoad]:
        """As of a moment ago. Unavailable: they cannot be asked now."""
        ...


CudaVersion = tuple[int, int]
"""Major and minor."""


@dataclass(frozen=True)
class GpuDriver:
    """NVIDIA's driver of a host."""

    version: str
    cuda: CudaVersion | None
    """The newest CUDA that it knows; None: it does not tell."""


@runtime_checkable
class HasCuda(Protocol):
    """An optional power of a compute: it tells what its GPU driver and its images want of each other."""

    async def driver(self) -> GpuDriver | None:
        """None: its machine has none. Unavailable: it cannot be asked now."""
        ...

    async def image_variables(self, image: str) -> Sequence[str]:
        """`NAME=VALUE` of an image that is there; none of one that is not. Nothing is pulled."""
        ...
