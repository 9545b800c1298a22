"""Bounds of a sandbox: a cgroup where this machine lets us make one (v2, or the hierarchies of v1), else rlimits.

Everything here reads and writes small files of the kernel, and blocks for as long.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 100_000
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Bounds:
    """What to hand to the helper: cgroups to join, and what has to be done with rlimits instead (0: nothing)."""

    cgroups: tuple[Path, ...] = ()
    processes: int = 0
    data: int = 0
    """Bytes of memory for each process."""
    cores: int = 0


def bound(name: str, *, cpus: float, memory: int, processes: int, root: Path = _ROOT) -> Bounds:
    """Make the cgroups of the sandbox `name`, or bring them up to date. 0: no limit; memory in bytes."""
    if (root / "cgroup.controllers").is_file():
        made = _version_2(root / "ashore" / name, cpus, memory, processes)
    else:
        made = _version_1(root, name, cpus, memory, processes)
    joined = tuple(sorted(set(made.values())))
    return Bounds(
        cgroups=joined,
        processes=0 if "pids" in made else processes,
        data=0 if "memory" in made else memory,
        cores=0 if "cpu" in made else math.ceil(cpus),
    )


def release(name: str, *, root: Path = _ROOT) -> None:
    """Remove the cgroups of a sandbox that has ended; what is still in use stays."""
    for folder in [root / "ashore" / name, *(root / kind / "ashore" / name for kind in ("memory", "pids", "cpu"))]:
        # The kernel needs a moment to let go of the last process.
        for _ in range(10):
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)
            else:
                break


def _version_2(folder: Path, cpus: float, memory: int, processes: int) -> dict[str, Path]:
    """Controller → cgroup for those that took their limit."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (folder.parent.parent, folder.parent):
            for kind in ("cpu", "memory", "pids"):
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{kind}")
    quota = f"{int(cpus * _PERIOD)} {_PERIOD}" if cpus else f"max {_PERIOD}"
    values = {
        "pids": {"pids.max": str(processes)},
        "memory": {"memory.max": str(memory or "max")},
        "cpu": {"cpu.max": quota},
    }
    return {kind: folder for kind, files in values.items() if _write(folder, files)}


def _version_1(root: Path, name: str, cpus: float, memory: int, processes: int) -> dict[str, Path]:
    quota = str(int(cpus * _PERIOD) if cpus else -1)
    values = {
        "pids": {"pids.max": str(processes)},
        "memory": {"memory.limit_in_bytes": str(memory or -1)},
        "cpu": {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": quota},
    }
    made = {}
    for kind, files in values.items():
        folder = root / kind / "ashore" / name
        if not (root / kind / "cgroup.procs").is_file():
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if _write(folder, files):
            made[kind] = folder
    return made


def _write(folder: Path, files: dict[str, str]) -> bool:
    try:
        for file, value in files.items():
            if not (folder / file).exists():
                return False  # never create a file: this is not a cgroup
            (folder / file).write_text(value)
    except OSError:
        return False
    return True
