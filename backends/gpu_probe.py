"""Which GPUs a machine has: this one by NVML, another one by what its `nvidia-smi` says.

A machine without NVIDIA's library, driver or cards is the usual case and simply has none. Cards in MIG mode are not
shown themselves, only their devices: nobody can use such a card as a whole. Nothing is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pynvml

from backends.compute.places import GpuFact
from storage.errors import Unavailable
from storage.names import printable

_MIB = 1024**2
_LONGEST = 96
_DEVICE = re.compile(r"\s+MIG\s+(?P<profile>\S+)\s+Device\s+\d+:\s+\(UUID:\s+(?P<uuid>MIG-[^)\s]+)\)")
_CARD = re.compile(r"GPU\s+\d+:.*\(UUID:\s+(?P<uuid>GPU-[^)\s]+)\)")
SMI_SCRIPT = (
    "nvidia-smi --query-gpu=uuid,name,memory.total,mig.mode.current --format=csv,noheader,nounits"
    " && echo -- && nvidia-smi -L"
)
"""A program for `sh -c`; `parse_smi` reads what it prints."""


def probe(nvml: Any = pynvml) -> list[GpuFact]:
    """The cards of this machine. It may block for seconds: call it in a thread. Unavailable: the driver is broken.

    `nvml` is the module pynvml, or something with its functions.
    """
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return []
    except nvml.NVMLError as error:
        raise Unavailable(f"the GPU driver cannot be asked ({printable(str(error), limit=100)})") from error
    try:
        return [fact for index in range(nvml.nvmlDeviceGetCount()) for fact in _card(nvml, index)]
    except nvml.NVMLError as error:
        raise Unavailable(f"the GPU driver cannot be asked ({printable(str(error), limit=100)})") from error
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, index: int) -> list[GpuFact]:
    """The card, or its MIG devices; nothing if it fell off its bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, model = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
        if _is_split(nvml, handle):
            return list(_devices(nvml, handle, uuid, model))
        return [GpuFact(uuid, model, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))]
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotFound, nvml.NVMLError_NoPermission):
        return []


def _is_split(nvml: Any, handle: Any) -> bool:
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cards cannot be divided
        return False
    return bool(mode)


def _devices(nvml: Any, handle: Any, parent: str, model: str) -> Iterator[GpuFact]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError_NotFound:  # there is room for more than were made
            continue
        profile = _text(nvml.nvmlDeviceGetName(device)).rpartition(" MIG ")[2]
        memory = int(nvml.nvmlDeviceGetMemoryInfo(device).total)
        yield GpuFact(_text(nvml.nvmlDeviceGetUUID(device)), model, memory, parent, profile)


def parse_smi(text: str) -> list[GpuFact]:
    """What `SMI_SCRIPT` printed; lines that are none of it are passed over. The memory of MIG devices is by profile."""
    table, _, listing = text.partition("\n--\n")
    cards: dict[str, GpuFact] = {}
    split: set[str] = set()
    for line in table.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not fields[0].startswith("GPU-") or not fields[2].isdigit():
            continue
        uuid, model = _text(fields[0]), _text(fields[1])
        cards[uuid] = GpuFact(uuid, model, int(fields[2]) * _MIB)
        if fields[3] == "Enabled":
            split.add(uuid)
    devices = _listed(listing, cards)
    return [card for uuid, card in cards.items() if uuid not in split] + devices


def _listed(listing: str, cards: dict[str, GpuFact]) -> list[GpuFact]:
    found: list[GpuFact] = []
    parent: GpuFact | None = None
    for line in listing.splitlines():
        if card := _CARD.match(line):
            parent = cards.get(_text(card["uuid"]))
        elif parent is not None and (device := _DEVICE.match(line)):
            profile = _text(device["profile"])
            found.append(GpuFact(_text(device["uuid"]), parent.model, _memory_of(profile), parent.uuid, profile))
    return found


def _memory_of(profile: str) -> int:
    """`1g.10gb` → 10 GiB, as NVIDIA names them; 0 for what is named otherwise."""
    match = re.search(r"\.(\d+)gb", profile)
    return int(match[1]) * 1024 * _MIB if match else 0


def _text(value: str | bytes) -> str:
    return printable(value.decode("utf-8", "replace") if isinstance(value, bytes) else value, limit=_LONGEST)
