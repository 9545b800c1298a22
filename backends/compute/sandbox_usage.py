"""What a sandbox takes: from its cgroup where it has one, else from its processes in /proc.

Reads small files of the kernel, and blocks for as long. See cgroup-v2.rst, cgroup-v1/memory.rst and proc(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.compute.contract import Usage

_ROOT = Path("/sys/fs/cgroup")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def usage_of(name: str, pid: int, *, root: Path = _ROOT) -> Usage:
    """Of the sandbox `name`, whose first process is `pid`."""
    found = _Processes.of(pid)
    one = root / "ashore" / name
    cpu = _field(one / "cpu.stat", "usage_usec")
    memory = _memory(one, "memory.current", "inactive_file")
    if memory is None:
        memory = _memory(root / "memory" / "ashore" / name, "memory.usage_in_bytes", "total_inactive_file")
    return Usage(
        cpu=found.cpu if cpu is None else cpu / 1_000_000,
        memory=found.memory if memory is None else memory,
        processes=found.count,
    )


@dataclass(frozen=True)
class _Processes:
    """Everything in the process namespace of one process."""

    count: int = 0
    """Threads."""
    cpu: float = 0.0
    """Seconds, those of children that have ended included."""
    memory: int = 0
    """Bytes; what two processes share counts twice."""

    @classmethod
    def of(cls, pid: int) -> _Processes:
        space = _space(str(pid))
        count, ticks, pages = 0, 0, 0
        for number in _numbers() if space else ():
            if _space(number) != space:
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
                resident, shared = Path(f"/proc/{number}/statm").read_text().split()[1:3]
                ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
                pages += int(resident) - int(shared)
                count += int(fields[17])
        return cls(count, ticks / _TICKS, pages * _PAGE)


def _numbers() -> Iterator[str]:
    return (entry for entry in os.listdir("/proc") if entry.isdecimal())


def _space(number: str) -> str:
    try:
        return os.readlink(f"/proc/{number}/ns/pid")
    except OSError:  # gone, or somebody else's
        return ""


def _memory(folder: Path, current: str, cache: str) -> int | None:
    """Bytes without the file cache that the kernel gives back when it is short of memory."""
    try:
        taken = int((folder / current).read_text())
    except (OSError, ValueError):
        return None
    return max(0, taken - (_field(folder / "memory.stat", cache) or 0))


def _field(file: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
