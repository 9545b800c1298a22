"""`host`, and what `env` says of hosts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.compute.places import Capacity, GpuDriver, GpuFact
from backends.reconcilers.hosts import HostWatch
from backends.services import Services
from backends.settings import PlacementSettings
from storage.access import Caller
from storage.records import Host
from tests.gateway.commands.conftest import Desk

GIB = 1024**3


@pytest.fixture
async def hosted(services: Services, desk: Desk) -> AsyncIterator[Desk]:
    """Two hosts behind `docker`."""
    assert isinstance(services.computes, dict)
    made = {}
    for name, size in (("gpu1", 4), ("gpu2", 8)):
        engine = MemoryEngine(services.recordings._directory / name)
        engine.capacity = Capacity(float(size), size * GIB, is_here=False)
        made[f"docker/{name}"] = MemoryCompute(engine)
    services.computes.update(made)
    engine.driver = GpuDriver("550.54", (12, 4))
    await HostWatch(services.database, services.audit, services.changes, services.computes, PlacementSettings()).look()
    yield Desk(replace(services))
    for compute in made.values():
        await compute.close()


async def test_list_drain_resume(hosted: Desk, admin: Caller, alice: Caller) -> None:
    made = await hosted.run(alice, "env create train --image debian --cpu 2 --memory 1GiB --host gpu1 --json")
    assert made.status == 0, made.err
    assert json.loads(made.out)["host"] == "gpu1"
    rows = {row["name"]: row for row in json.loads((await hosted.run(admin, "host list --json")).out)}
    assert set(rows) == {"gpu1", "gpu2"}
    gpu1 = rows["gpu1"]
    assert (gpu1["state"], gpu1["cpus"], gpu1["cpus_reserved"], gpu1["memory_reserved"], gpu1["placed"]) == (
        "online", 4, 2, GIB, ["train.alice"],
    )  # fmt: skip
    drained = await hosted.run(admin, "host drain gpu1 --reason 'new cards'")
    assert drained.status == 0, drained.err
    assert "maintenance" in drained.out
    assert "new cards" in drained.out
    plan = json.loads((await hosted.run(alice, "env create b --image debian --dry-run --json")).out)
    assert (plan["host"], plan["possible"]) == ("gpu2", True)
    refused = await hosted.run(alice, "env create b --image debian --host gpu1")
    assert (refused.status, refused.err) == (69, "no available host (gpu1: in maintenance, new cards)\n")
    assert "online" in (await hosted.run(admin, "host resume gpu1")).out
    lines = [line.split() for line in (await hosted.run(admin, "host list")).out.splitlines()]
    assert lines[0][:2] == ["NAME", "STATE"]
    assert lines[1][:5] == ["gpu1", "online", "2", "of", "16"]
    shown = await hosted.run(admin, "host show gpu1")
    assert "train.alice" in shown.out
    events = await hosted.run(admin, "audit search --json")
    assert {"host.drain", "host.resume"} <= {row["action"] for row in json.loads(events.out)}


async def test_only_administrators(hosted: Desk, alice: Caller) -> None:
    for command in ("host list", "host show gpu1", "host drain gpu1", "host resume gpu1", "host forget gpu1"):
        answer = await hosted.run(alice, command)
        assert (answer.status, answer.out) == (77, "")


async def test_what_is_not_there(hosted: Desk, admin: Caller) -> None:
    answer = await hosted.run(admin, "host show moon")
    assert (answer.status, answer.err) == (1, "there is no host 'moon'\n")
    assert (await hosted.run(admin, "host drain ../x")).status == 2


async def test_forget(hosted: Desk, services: Services, admin: Caller) -> None:
    """gpu1 is in no settings here: it may go although it answers, and is listed no more."""
    answer = await hosted.run(admin, "host forget gpu1 --json")
    assert (answer.status, json.loads(answer.out)) == (0, {"forgotten": "gpu1"})
    assert [row["name"] for row in json.loads((await hosted.run(admin, "host list --json")).out)] == ["gpu2"]
    again = await hosted.run(admin, "host forget gpu1")
    assert (again.status, again.err) == (1, "there is no host 'gpu1'\n")


async def test_forget_without_environments_says_what_it_did(hosted: Desk, services: Services, admin: Caller) -> None:
    alone = await hosted.run(admin, "host forget gpu1 --dry-run")
    assert (alone.status, alone.out) == (2, "")
    assert alone.err == "--dry-run goes with --with-environments: without it nothing is lost\n"
    async with services.database.writing() as tx:
        (await tx.get_one(Host, "gpu1")).is_up = False
    done = await hosted.run(admin, "host forget gpu1 --with-environments")
    assert (done.status, done.out) == (0, "")
    assert done.err == "no environment has its home there\nthe host gpu1 is forgotten\n"


async def test_forget_with_environments(hosted: Desk, services: Services, alice: Caller, admin: Caller) -> None:
    """What will be lost is said, and the owner is told why it is gone."""
    await hosted.run(alice, "env create train --image debian --cpu 1 --memory 1GiB --host gpu1")
    refused = await hosted.run(admin, "host forget gpu1 --with-environments")
    assert (refused.status, refused.out) == (1, "")
    assert "is online" in refused.err
    async with services.database.writing() as tx:
        (await tx.get_one(Host, "gpu1")).is_up = False
    assert "--with-environments" in (await hosted.run(admin, "host forget gpu1")).err
    tried = await hosted.run(admin, "host forget gpu1 --with-environments --dry-run")
    assert tried.out.splitlines()[1].split()[:2] == ["train", "alice"]
    assert "would be lost: their homes" in tried.err
    assert "train" in (await hosted.run(alice, "env list")).out
    assert (await hosted.run(alice, "host forget gpu1 --with-environments --dry-run")).status == 77
    done = await hosted.run(admin, "host forget gpu1 --with-environments --json")
    assert [(row["name"], row["owner"]) for row in json.loads(done.out)] == [("train", "alice")]
    listed = await hosted.run(alice, "env list")
    assert "'train' is lost: it was given up with its host gpu1 on 20" in listed.err
    assert json.loads((await hosted.run(alice, "env list --json")).out) == []


async def test_a_house_without_hosts(desk: Desk, admin: Caller) -> None:
    answer = await desk.run(admin, "host list")
    assert (answer.status, answer.out) == (0, "")


async def test_gpus(hosted: Desk, services: Services, admin: Caller, alice: Caller) -> None:
    (engine,) = [one._engine for place, one in services.computes.items() if place == "docker/gpu2"]  # type: ignore[attr-defined]
    engine.gpus = [
        GpuFact("GPU-a", "NVIDIA A100", 80 * GIB),
        GpuFact("MIG-b", "NVIDIA H100", 10 * GIB, "GPU-c", "1g.10gb"),
    ]
    await HostWatch(services.database, services.audit, services.changes, services.computes, PlacementSettings()).look()
    small = "--image debian --cpu 1 --memory 1GiB"
    plan = json.loads((await hosted.run(alice, f"env create a {small} --gpu 1 --dry-run --json")).out)
    assert (plan["host"], plan["gpus"], plan["gpu_mode"]) == (
        "gpu2", [{"uuid": "GPU-a", "model": "NVIDIA A100"}], "exclusive",
    )  # fmt: skip
    made = json.loads((await hosted.run(alice, f"env create a {small} --gpu-model A100 --json")).out)
    assert made["gpus"] == [{"uuid": "GPU-a", "model": "NVIDIA A100"}]
    refused = await hosted.run(alice, f"env create b {small} --gpu 1 --host gpu2")
    said = "no available host (gpu2: GPUs: 0 of 1 left, 1 needed, held by alice's 'a' until that stops)\n"
    assert (refused.status, refused.err) == (69, said)
    mig = json.loads((await hosted.run(alice, f"env create c {small} --gpu-mode mig --gpu-model 1g.10gb --json")).out)
    assert mig["gpus"] == [{"uuid": "MIG-b", "model": "NVIDIA H100 1g.10gb"}]
    assert (await hosted.run(alice, f"env create d {small} --gpu-mode vgpu")).status == 2
    local = await hosted.run(alice, "env create d --compute memory --gpu 1")
    assert (local.status, local.err) == (2, "the compute 'memory' has no GPUs\n")
    shown = await hosted.run(alice, "env show a")
    assert "GPU-a (NVIDIA A100)" in shown.out
    assert "exclusive" in shown.out
    assert "GPUS" in (await hosted.run(alice, "env list")).out
    (row,) = [one for one in json.loads((await hosted.run(admin, "host list --json")).out) if one["name"] == "gpu2"]
    assert [(card["uuid"], card["held_by"], card["mode"]) for card in row["gpus"]] == [
        ("GPU-a", ["a.alice"], "exclusive"), ("MIG-b", ["c.alice"], "mig"),
    ]  # fmt: skip
    assert (row["gpu_driver"], row["cuda"], row["gpu_trouble"]) == ("550.54", "12.4", "")
    assert "550.54 (12.4)" in (await hosted.run(admin, "host list")).out
    assert "GPU-a: NVIDIA A100 80GiB, exclusive, a.alice" in (await hosted.run(admin, "host show gpu2")).out
    assert "2 of 2" in (await hosted.run(admin, "host list")).out
    assert "1 x NVIDIA A100, 1 x NVIDIA H100 1g.10gb" in (await hosted.run(alice, "doctor")).out
    quota = json.loads((await hosted.run(alice, "quota show --json")).out)
    assert [line["used"] for line in quota if line["resource"] == "gpus"] == [2, 2]
    assert (await hosted.run(admin, "quota set --user alice --gpus 2")).status == 0
    over = await hosted.run(alice, f"env create e {small} --gpu-mode shared --dry-run")
    assert "your quota of GPUs is 2, with 2 in use, and this needs 1" in over.out


async def test_what_copies_of_data_take_is_told(hosted: Desk, admin: Caller, data_dir: Path) -> None:
    for number, size in enumerate((GIB, GIB // 2)):
        entry = data_dir / "cache-hosts" / "gpu1" / f"version{number}"
        entry.mkdir(parents=True)
        (entry / "state.json").write_text(json.dumps({"title": "data a:v1", "files": 3, "bytes": size}))
    rows = {row["name"]: row for row in json.loads((await hosted.run(admin, "host list --json")).out)}
    assert rows["gpu1"]["cache"] == {"copies": 2, "bytes": GIB * 3 // 2, "limit": None}
    assert rows["gpu2"]["cache"] == {"copies": 0, "bytes": 0, "limit": None}
    assert rows["gpu1"]["shared_root"] == ""
    assert "1.5GiB" in (await hosted.run(admin, "host list")).out
    assert "1.5GiB" in (await hosted.run(admin, "host show gpu1")).out
