"""GPUs as the house keeps them: reserved with everything else, given back with it, lost, found, and never twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.compute.memory import MISSING_IMAGE, MemoryCompute
from backends.compute.places import GpuFact
from backends.environments import Environments
from backends.lifecycle import LifecycleChoice
from backends.planning import Request
from backends.reconcilers import environments as module
from backends.reconcilers import hosts as hosts_module
from backends.reconcilers import loop as loop_module
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, OverQuota, Unavailable
from storage.quotas import Quotas
from storage.records import AuditEvent, EnvironmentState, Gpu, Lifecycle
from storage.settings import QuotaSettings
from tests.backends.test_hosts import House

GIB = 1024**3
A, B = GpuFact("GPU-a", "NVIDIA A100", 80 * GIB), GpuFact("GPU-b", "NVIDIA A100", 80 * GIB)


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    """Two cards on one of two hosts."""
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.05)
    house = House(database, audit, changes, tmp_path)
    house.engines["near"].gpus = [A, B]
    await house.watch.look()
    yield house
    for compute in house.computes.values():
        await compute.close()


async def holders(house: House, caller: Caller) -> dict[str, list[str]]:
    """Card → names of the environments that have it."""
    (view,) = [view for view in await house.hosts.list(caller) if view.name == "near"]
    return {card.uuid: [one.name for one in card.holders] for card in view.room.cards}


async def until_free(house: House, admin: Caller) -> None:
    async with asyncio.timeout(30):
        while any((await holders(house, admin)).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_it_goes_where_cards_are_and_sees_only_its_own(house: House, alice: Caller, admin: Caller) -> None:
    plan = await house.environments.plan(alice, Request("a", gpus=1))
    assert (plan.host, dict(plan.cards), list(plan.refusals)) == ("near", {"GPU-a": "NVIDIA A100"}, [])
    row = await house.make(alice, "a", gpus=1)
    assert (row.host, list(row.cards)) == ("near", ["GPU-a"])
    assert await holders(house, admin) == {"GPU-a": ["a"], "GPU-b": []}
    async with house.running():
        await house.until_state("a", EnvironmentState.RUNNING)
        assert house.engines["near"].workloads[f"memory-{row.id}"].spec.gpus == ("GPU-a",)
        await house.environments.delete(alice, "a")
        await until_free(house, admin)
    async with house.database.reading() as tx:
        created = await tx.scalar(select(AuditEvent).where(AuditEvent.action == "environment.create"))
    assert created is not None
    assert (created.detail["gpus"], created.detail["gpu_mode"]) == (["GPU-a"], "exclusive")


async def test_two_at_once_ask_for_the_last_card(house: House, alice: Caller, bob: Caller) -> None:
    """One gets it; the other reads who has it, and when it is free."""
    house.engines["near"].gpus = [A]
    await house.watch.look()
    made = await asyncio.gather(house.make(alice, "x", gpus=1), house.make(bob, "y", gpus=1), return_exceptions=True)
    (error,) = [one for one in made if isinstance(one, BaseException)]
    assert isinstance(error, Unavailable)
    (got,) = [one for one in made if not isinstance(one, BaseException)]
    assert f"held by {got.owner_name}'s '{got.name}' until that stops" in error.message


async def test_who_waits_for_a_card_reads_until_when_a_schedule_holds_it(
    house: House, alice: Caller, bob: Caller
) -> None:
    house.engines["near"].gpus = [A]
    await house.watch.look()
    daily = LifecycleChoice(Lifecycle.SCHEDULED, stop_at="0 20 * * *")
    await house.make(alice, "day", gpus=1, lifecycle=daily)
    with pytest.raises(Unavailable, match=r"held by alice's 'day' until 20:00 UTC \(its schedule\)"):
        await house.make(bob, "b", gpus=1)


async def test_what_can_never_be_is_wrong_use(house: House, alice: Caller) -> None:
    with pytest.raises(BadInput, match="it has 2 GPUs, 3 needed"):
        await house.make(alice, "a", gpus=3)
    with pytest.raises(BadInput, match="it has no GPU 'h100'"):
        await house.make(alice, "a", gpu_model="h100")
    with pytest.raises(BadInput, match="it has no MIG device"):
        await house.make(alice, "a", gpu_mode="mig")
    with pytest.raises(BadInput, match="there is no GPU mode 'half'"):
        await house.make(alice, "a", gpu_mode="half")
    house.computes["local"] = MemoryCompute(house.engines["near"])
    with pytest.raises(BadInput, match="the compute 'local' has no GPUs"):
        await house.make(alice, "a", compute="local", gpus=1)


async def test_a_stop_frees_it_and_a_start_takes_the_same_or_another_one(
    house: House, alice: Caller, bob: Caller, admin: Caller
) -> None:
    """A container cannot change its devices: it is made anew, with what its owner stored."""
    async with house.running():
        row = await house.make(alice, "a", gpus=1)
        await house.until_state("a", EnvironmentState.RUNNING)
        workload = f"memory-{row.id}"
        (house.engines["near"].workloads[workload].home / "mine").write_text("kept")
        await house.environments.stop(alice, "a")
        await until_free(house, admin)
        assert list((await house.environments.start(alice, "a")).cards) == ["GPU-a"]
        await house.until_state("a", EnvironmentState.RUNNING)
        await house.environments.stop(alice, "a")
        await until_free(house, admin)
        await house.make(bob, "b", gpus=1)
        await house.until_state("b", EnvironmentState.RUNNING)
        assert list((await house.environments.start(alice, "a")).cards) == ["GPU-b"]
        await house.until_state("a", EnvironmentState.RUNNING)
        made = house.engines["near"].workloads[workload]
        assert (made.spec.gpus, (made.home / "mine").read_text()) == (("GPU-b",), "kept")
        await house.environments.stop(alice, "a")
        await house.until_state("a", EnvironmentState.STOPPED)
        await house.make(bob, "c", gpus=1)
        said = "'a' cannot start on its host near now .GPUs: 0 of 2 left, 1 needed, held by bob's 'b' and bob's 'c'"
        with pytest.raises(Unavailable, match=said):
            await house.environments.start(alice, "a")
        assert not (await house.environments.show(alice, "a")).reserves


async def test_a_failure_gives_it_back(house: House, alice: Caller, admin: Caller) -> None:
    async with house.running():
        await house.make(alice, "a", gpus=2, image=MISSING_IMAGE)
        await house.until_state("a", EnvironmentState.FAILED)
        await until_free(house, admin)


async def test_a_restart_keeps_it(house: House, alice: Caller, admin: Caller) -> None:
    async with house.running():
        await house.make(alice, "a", gpus=2)
        await house.until_state("a", EnvironmentState.RUNNING)
        await house.environments.restart(alice, "a")
        row = await house.until("a", lambda row: row.restarted == 1)
        assert sorted(row.cards) == ["GPU-a", "GPU-b"]
        assert await holders(house, admin) == {"GPU-a": ["a"], "GPU-b": ["a"]}


async def test_shared_cards(house: House, alice: Caller, bob: Caller) -> None:
    shared = {"gpus": 1, "gpu_mode": "shared"}
    rows = [await house.make(alice, f"e{n}", cpus=0.25, memory=GIB, **shared) for n in range(4)]
    assert [list(row.cards) for row in rows] == [["GPU-a"]] * 4
    assert list((await house.make(bob, "whole", cpus=0.25, memory=GIB, gpus=1)).cards) == ["GPU-b"]
    with pytest.raises(Unavailable, match="GPUs: 0 of 2 left"):
        await house.make(bob, "more", cpus=0.25, memory=GIB, **shared)


async def test_a_lost_card(house: House, alice: Caller, admin: Caller) -> None:
    """Its holder keeps it and says so, nobody else gets it, and a restart takes another one once nothing runs."""
    async with house.running():
        await house.make(alice, "a", gpus=1)
        await house.until_state("a", EnvironmentState.RUNNING)
        house.engines["near"].gpus = [B]
        row = await house.until("a", lambda row: row.reason == "GPU lost: GPU-a")
        assert row.state is EnvironmentState.RUNNING
        assert await holders(house, admin) == {"GPU-a": ["a"], "GPU-b": []}
        plan = await house.environments.plan(alice, Request("b", gpus=2))
        assert "GPUs: 1 of 2 left, 2 needed" in plan.refusals[0]
        house.engines["near"].gpus = [A, B]
        await house.until("a", lambda row: not row.reason)
        house.engines["near"].gpus = [B]
        await house.until("a", lambda row: bool(row.reason))
        await house.environments.restart(alice, "a")
        row = await house.until("a", lambda row: row.restarted == 1)
        assert (row.state, list(row.cards), row.reason) == (EnvironmentState.RUNNING, ["GPU-b"], "")
        house.engines["near"].gpus = []
        await house.until("a", lambda row: row.reason == "GPU lost: GPU-b")
        await house.environments.restart(alice, "a")
        row = await house.until_state("a", EnvironmentState.FAILED)
        assert (row.reserves, row.reason[:33]) == (False, "GPU lost, and no other can be had")
        await house.watch.look()
        async with house.database.reading() as tx:
            assert not (await tx.scalars(select(Gpu))).all()
            events = set(await tx.scalars(select(AuditEvent.action).where(AuditEvent.action.like("host.gpu%"))))
        assert events == {"host.gpu.found", "host.gpu.lost"}


async def test_a_silent_host_loses_no_card(house: House, alice: Caller, admin: Caller) -> None:
    """Neither does one whose driver is broken: nothing follows from what nobody says."""
    await house.make(alice, "a", gpus=1)
    house.engines["near"].away = True
    for _ in range(4):
        await house.watch.look()
    assert await holders(house, admin) == {"GPU-a": ["a"], "GPU-b": []}


async def test_a_driver_that_hangs_holds_no_heartbeat_up(
    house: House, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, not again with each look, and heard when it answers."""
    hang, asked = asyncio.Event(), 0

    async def gpus(compute: MemoryCompute) -> list[GpuFact]:
        nonlocal asked
        asked += compute is house.computes["docker/near"]
        await hang.wait()
        return [A] if compute is house.computes["docker/near"] else []

    monkeypatch.setattr(MemoryCompute, "gpus", gpus)
    monkeypatch.setattr(hosts_module, "_GPU_SECONDS", 0.05)
    for _ in range(3):
        await house.watch.look()
    assert (asked, await holders(house, admin)) == (1, {"GPU-a": [], "GPU-b": []})
    hang.set()
    await asyncio.sleep(0)
    await house.watch.look()
    assert await holders(house, admin) == {"GPU-a": []}


async def test_two_looks_at_once_hear_each_answer_once(house: House, admin: Caller) -> None:
    house.engines["near"].gpus = [B]
    await asyncio.gather(*(house.watch.look() for _ in range(4)))
    assert await holders(house, admin) == {"GPU-b": []}


async def test_a_machine_under_two_names_has_its_cards_once(house: House, alice: Caller) -> None:
    house.engines["far"].gpus = [A, B]
    await house.watch.look()
    await house.make(alice, "a", gpus=2)
    with pytest.raises(Unavailable):
        await house.make(alice, "b", gpus=1)


async def test_quotas_count_cards(house: House, alice: Caller, bob: Caller) -> None:
    """Also in plans; a shared one counts as one."""
    quotas = Quotas(house.database, house.audit, house.changes, QuotaSettings(user_gpus=1, workspace_gpus=2))
    house.environments = Environments(
        house.database, house.audit, house.changes, house.computes, house.settings, quotas=quotas
    )
    with pytest.raises(OverQuota, match="your quota of GPUs is 1, with 0 in use, and this needs 2"):
        await house.make(alice, "a", gpus=2)
    await house.make(alice, "a", gpu_mode="shared")
    plan = await house.environments.plan(alice, Request("b", gpu_mode="shared"))
    assert any("quota of GPUs" in one for one in plan.over_quota)
    assert not (await house.environments.plan(bob, Request("b", gpu_mode="shared"))).over_quota
