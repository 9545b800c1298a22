"""Cores from two looks, and engines that cannot tell."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from backends.compute.contract import Usage
from backends.compute.docker.config import usage_of as docker_usage
from backends.compute.sandbox_usage import usage_of
from backends.usage import Load, Loads, Rates
from storage.access import Caller
from storage.errors import NotFound, Unavailable
from storage.records import Environment, EnvironmentState


def load(moment: float, cpu: float) -> Load:
    return Load(moment, cpu, 0, 1)


def test_cores_need_two_looks_at_one_start() -> None:
    rates = Rates()
    assert rates.of({"a": load(1.0, 10.0)}) == {}
    assert rates.of({"a": load(3.0, 13.0), "b": load(3.0, 1.0)}) == {"a": 1.5}
    assert rates.of({"a": load(5.0, 1.0), "b": load(5.0, 1.0)}) == {"b": 0.0}


class Engine:
    def __init__(self, answer: Usage | Exception | None) -> None:
        self.answer = answer

    async def usage(self, handle: str) -> Usage | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def environment(name: str, caller: Caller, **values: object) -> Environment:
    facts: dict[str, object] = {
        "id": name, "name": name, "compute": name, "handle": "h", "state": EnvironmentState.RUNNING,
        "owner_id": caller.user_id, "owner_name": caller.name, "workspace_id": caller.workspace_id,
    }  # fmt: skip
    return Environment(**(facts | values))


async def test_engines_that_cannot_tell_are_left_out(alice: Caller, bob: Caller) -> None:
    computes: Mapping[str, Any] = {
        "good": Engine(Usage(1.5, 100, 3)), "away": Engine(Unavailable("away")), "none": Engine(None), "mute": object()
    }  # fmt: skip
    loads = Loads(cast("Any", computes), clock=lambda: 7.0)
    mine = [environment(name, alice) for name in (*computes, "unknown")]
    mine.append(environment("good", alice, id="stopped", state=EnvironmentState.STOPPED))
    assert await loads.of(alice, mine) == {"good": Load(7.0, 1.5, 100, 3)}
    with pytest.raises(NotFound):
        await loads.of(bob, mine)


# ---- where a sandbox's numbers come from -------------------------------------------------------------------------
def test_a_cgroup_of_version_2(tmp_path: Path) -> None:
    folder = tmp_path / "ashore" / "one"
    folder.mkdir(parents=True)
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (folder / "memory.current").write_text("5000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 2000\n")
    found = usage_of("one", os.getpid(), root=tmp_path)
    assert (found.cpu, found.memory) == (2.5, 3000)
    assert found.processes > 0


def test_the_memory_of_a_cgroup_of_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "ashore" / "one"
    folder.mkdir(parents=True)
    (folder / "memory.usage_in_bytes").write_text("5000\n")
    (folder / "memory.stat").write_text("total_inactive_file 6000\n")
    assert usage_of("one", os.getpid(), root=tmp_path).memory == 0


async def test_without_a_cgroup_the_processes_are_counted(tmp_path: Path) -> None:
    flags = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1000 & echo up; wait"
    with subprocess.Popen(
        ["unshare", *flags, "--pid", "--fork", "--kill-child", "sh", "-c", script], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"up\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = usage_of("one", int(children[0]), root=tmp_path)
        process.kill()
    assert found.processes == 2
    assert found.cpu > 0
    assert found.memory > 0


def test_a_sandbox_that_is_gone(tmp_path: Path) -> None:
    assert usage_of("one", 2**22 + 1, root=tmp_path) == Usage(0.0, 0, 0)


# ---- what Docker tells -------------------------------------------------------------------------------------------
def test_memory_is_counted_as_docker_stats_does() -> None:
    told = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}}, "pids_stats": {"current": 4},
        "memory_stats": {"usage": 1000, "stats": {"inactive_file": 300}},
    }  # fmt: skip
    assert docker_usage(told) == Usage(1.5, 700, 4)
    assert docker_usage({"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}, "pids_stats": {}}) is None
    assert docker_usage(None) is None
