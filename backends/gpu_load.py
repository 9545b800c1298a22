"""How busy the GPUs of a machine are: this one by NVML, another one by what its `nvidia-smi` says.

Much of it is often not to be had, and that is no error: a MIG device has no utilisation of its own, older cards tell
none of single processes, and NVML names processes by the ids of the host, which another pid namespace does not know.
Which process belongs to which environment is its driver's business.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from backends.compute.places import GpuDriver, ProcessLoad
from storage.errors import Unavailable
from storage.names import printable

_MIB = 1024**2
_WINDOW_SECONDS = 30
"""Samples of processes that are older say nothing of now; the driver keeps some seconds of them."""
_LONGEST = 96
LOAD_SCRIPT = "nvidia-smi --query-gpu=uuid,utilization.gpu,memory.used,memory.total --format=csv,noheader,nounits"
"""A program for `sh -c`; `parse_load` reads what it prints."""


DRIVER_SCRIPT = "nvidia-smi"
"""A program for `sh -c`; `parse_driver` reads what it prints. CUDA's version is known only where libcuda is."""
_DRIVER = re.compile(r"Driver Version:\s*([0-9.]{3,20})")
_CUDA = re.compile(r"CUDA Version:\s*(\d{1,3})\.(\d{1,3})")


@dataclass(frozen=True)
class CardLoad:
    """One card, or one MIG device."""

    uuid: str
    utilization: int | None
    """Percent of the time that any kernel ran, in the last second at most; None: not known, as always for MIG."""
    used: int
    """Bytes."""
    memory: int
    """Bytes."""
    processes: Sequence[ProcessLoad] | None = None
    """None: they are not known."""


def card_loads(nvml: Any = pynvml) -> list[CardLoad]:
    """The cards of this machine. It may block for seconds: call it in a thread. Unavailable: the driver is broken."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return []
    except nvml.NVMLError as error:
        raise _broken(error) from error
    try:
        return [load for index in range(nvml.nvmlDeviceGetCount()) for load in _card(nvml, index)]
    except nvml.NVMLError as error:
        raise _broken(error) from error
    finally:
        nvml.nvmlShutdown()


def parse_load(text: str) -> list[CardLoad]:
    """What `LOAD_SCRIPT` printed; lines that are none of it are passed over, `[N/A]` is not known."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].startswith("GPU-") and fields[2].isdigit() and fields[3].isdigit():
            percent = int(fields[1]) if fields[1].isdigit() else None
            uuid = printable(fields[0], limit=_LONGEST)
            found.append(CardLoad(uuid, percent, int(fields[2]) * _MIB, int(fields[3]) * _MIB))
    return found


def driver_here(nvml: Any = pynvml) -> GpuDriver | None:
    """The driver of this machine; None without one. It may block: call it in a thread. Unavailable: it is broken."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return None
    except nvml.NVMLError as error:
        raise _broken(error) from error
    try:
        version = nvml.nvmlSystemGetDriverVersion()
        text = version.decode("ascii", "replace") if isinstance(version, bytes) else version
        try:
            number = int(nvml.nvmlSystemGetCudaDriverVersion())  # 12040 is 12.4
        except nvml.NVMLError:  # it asks libcuda, which a machine with the driver may lack
            number = 0
        return GpuDriver(printable(text, limit=40), (number // 1000, number % 1000 // 10) if number else None)
    except nvml.NVMLError as error:
        raise _broken(error) from error
    finally:
        nvml.nvmlShutdown()


def parse_driver(text: str) -> GpuDriver | None:
    """What `DRIVER_SCRIPT` printed; None if that names no driver."""
    version, cuda = _DRIVER.search(text), _CUDA.search(text)
    return GpuDriver(version[1], (int(cuda[1]), int(cuda[2])) if cuda else None) if version else None


def _card(nvml: Any, index: int) -> Iterator[CardLoad]:
    """The card, or its MIG devices; nothing if it fell off its bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if not _is_split(nvml, handle):
            yield _load(nvml, handle, _utilization(nvml, handle), _samples(nvml, handle))
            return
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except nvml.NVMLError_NotFound:  # there is room for more than were made
                continue
            yield _load(nvml, device, None, None)
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotFound, nvml.NVMLError_NoPermission):
        return


def _load(nvml: Any, handle: Any, utilization: int | None, samples: dict[int, int] | None) -> CardLoad:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    text = uuid.decode("utf-8", "replace") if isinstance(uuid, bytes) else uuid
    processes = _processes(nvml, handle, samples)
    return CardLoad(printable(text, limit=_LONGEST), utilization, int(memory.used), int(memory.total), processes)


def _utilization(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError_NotSupported:
        return None


def _samples(nvml: Any, handle: Any) -> dict[int, int] | None:
    """Process → percent, the highest of its newest samples; None: this card does not tell.

    Samples are asked for by their time, in microseconds since 1970. NOT_FOUND, or success without any, means that
    nothing ran since; pynvml raises for both.
    """
    since = int((time.time() - _WINDOW_SECONDS) * 1_000_000)
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since)
    except nvml.NVMLError_NotFound:
        return {}
    except nvml.NVMLError as error:
        return {} if error.value == nvml.NVML_SUCCESS else None
    found: dict[int, int] = {}
    for sample in samples:
        # The driver fills what it has no samples for with zeros, and says more than 100 when it mismeasures.
        if sample.pid and sample.timeStamp and sample.smUtil <= 100:
            found[int(sample.pid)] = max(found.get(int(sample.pid), 0), int(sample.smUtil))
    return found


def _processes(nvml: Any, handle: Any, samples: dict[int, int] | None) -> Sequence[ProcessLoad] | None:
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
        return None
    memory: dict[int, int] = {}
    for one in running:
        memory[int(one.pid)] = memory.get(int(one.pid), 0) + int(one.usedGpuMemory or 0)
    return [ProcessLoad(pid, None if samples is None else samples.get(pid, 0), size) for pid, size in memory.items()]


def _is_split(nvml: Any, handle: Any) -> bool:
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cards cannot be divided
        return False
    return bool(mode)


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the GPU driver cannot be asked ({printable(str(error), limit=100)})")
