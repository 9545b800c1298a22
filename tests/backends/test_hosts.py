"""Several hosts behind one compute: signs of life, placement, drained hosts, and hosts that go away and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.compute.contract import Found
from backends.compute.memory import MISSING_IMAGE, MemoryCompute, MemoryEngine
from backends.compute.places import Capacity, GpuFact
from backends.environments import Environments
from backends.hosts import Hosts
from backends.planning import Request
from backends.reconcilers import environments as module
from backends.reconcilers import loop as loop_module
from backends.reconcilers.environments import EnvironmentReconciler
from backends.reconcilers.hosts import MISSED, HostWatch
from backends.settings import BackendSettings, EnvironmentSettings, PlacementSettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import BadInput, Conflict, NotAllowed, NotFound, Unavailable
from storage.quota_limits import Resource
from storage.records import (
    Asset,
    AssetUse,
    AssetVersion,
    AuditEvent,
    Environment,
    EnvironmentState,
    Gpu,
    Host,
    HostState,
)
from storage.uses import Mount, Uses
from tests.backends.test_reconciler_environments import Guests

GIB = 1024**3
SMALL = {"cpus": 1.0, "memory": 2 * GIB}


class House:
    """Two pretended engines behind `docker`, one of them on this machine, and one reconciler."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, folder: Path) -> None:
        self.database, self.audit, self.changes = database, audit, changes
        self.engines = {name: MemoryEngine(folder / name) for name in ("near", "far")}
        self.engines["near"].capacity = Capacity(4.0, 8 * GIB, is_here=True)
        self.engines["far"].capacity = Capacity(8.0, 16 * GIB, is_here=False)
        self.computes = {f"docker/{name}": MemoryCompute(engine) for name, engine in self.engines.items()}
        self.settings = BackendSettings(
            environments=EnvironmentSettings(reconcile_seconds=0.2, ready_seconds=5, stop_grace_seconds=1),
            placement=PlacementSettings(cpu_overcommit=1.0, memory_overcommit=1.0, heartbeat_seconds=0.1),
        )
        self.environments = Environments(database, audit, changes, self.computes, self.settings)
        self.hosts = Hosts(database, audit, changes, self.settings)
        self.watch = HostWatch(database, audit, changes, self.computes, self.settings.placement)

    def again(self) -> Environments:
        """The use cases as after a restart with other settings of `computes`."""
        return Environments(self.database, self.audit, self.changes, self.computes, self.settings)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        reconciler = EnvironmentReconciler(
            self.database, self.audit, self.changes, self.computes, Guests(), self.settings
        )
        tasks = [asyncio.create_task(reconciler.run()), asyncio.create_task(self.watch.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def make(self, caller: Caller, name: str, **values: object) -> Environment:
        return await self.environments.create(caller, Request(name, **(SMALL | values)))  # type: ignore[arg-type]

    async def until(self, name: str, test: Callable[[Environment], bool]) -> Environment:
        row = None
        try:
            async with asyncio.timeout(30):
                while True:
                    async with self.database.reading() as tx:
                        row = await tx.scalar(select(Environment).where(Environment.name == name))
                    if row is not None and test(row):
                        return row
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{name}: {row and (row.state, row.wish, row.reason, row.reserves)}") from None

    async def until_state(self, name: str, state: EnvironmentState) -> Environment:
        return await self.until(name, lambda row: row.state is state)

    async def until_host(self, name: str, state: HostState) -> Host:
        async with asyncio.timeout(30):
            while True:
                async with self.database.reading() as tx:
                    row = await tx.get(Host, name)
                if row is not None and row.state is state:
                    return row
                await asyncio.sleep(0.02)

    async def used(self, caller: Caller) -> dict[str, tuple[float, int]]:
        return {view.name: (view.room.used_cpus, view.room.used_memory) for view in await self.hosts.list(caller)}


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.05)
    house = House(database, audit, changes, tmp_path)
    await house.watch.look()
    yield house
    for compute in house.computes.values():
        await compute.close()


# ---- forgetting --------------------------------------------------------------------------------------------------
async def test_a_host_is_forgotten_when_nothing_needs_it(
    house: House, alice: Caller, admin: Caller, database: Database
) -> None:
    """Only one that is offline or in no settings, without environments; it goes with its cards, and audited."""
    async with database.writing() as tx:
        tx.add(Host(name="old", compute="docker", is_up=True, is_drained=True))
        tx.add(Host(name="here", compute="docker", is_up=True))
        tx.add(Gpu(uuid="GPU-1", host="old", model="NVIDIA A100", memory=GIB, is_present=False))
    with pytest.raises(NotAllowed):
        await house.hosts.forget(alice, "old")
    with pytest.raises(NotFound):
        await house.hosts.forget(admin, "moon")
    with pytest.raises(Conflict, match="'here' is online and in the settings"):
        await house.hosts.forget(admin, "here")
    await house.make(alice, "train", host="far")
    with pytest.raises(Conflict, match=r"'far' has environments \(1\): delete them first, or give them up with it"):
        await house.hosts.forget(admin, "far")
    async with database.writing() as tx:
        (await tx.get_one(Host, "here")).is_up = False
    await house.hosts.forget(admin, "old")
    await house.hosts.forget_by_operator("here")
    assert {view.name for view in await house.hosts.list(admin)} == {"near", "far"}
    async with database.reading() as tx:
        assert (await tx.scalars(select(Gpu))).all() == []
        events = await tx.scalars(select(AuditEvent).where(AuditEvent.action == "host.forget"))
        assert {(event.thing, event.actor) for event in events} >= {("old", admin.name), ("here", "operator")}


async def test_a_host_that_is_gone_for_ever_is_given_up_with_its_environments(
    house: House, alice: Caller, bob: Caller, admin: Caller, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """All that they held is free at once: room, cards, quota, data. Should the machine come back, what is left there
    is known as ours, reported, and not touched. Trap: what is left there may still compute on cards that nobody holds
    here, so the host takes nothing new until somebody has looked, even if it is forgotten once more."""
    async with database.writing() as tx:
        tx.add(Gpu(uuid="GPU-1", host="far", model="NVIDIA A100", memory=GIB, is_present=True))
    async with house.running():
        await house.make(alice, "train", host="far", gpus=1)
        row = await house.until_state("train", EnvironmentState.RUNNING)
        await house.make(bob, "other", host="near")
        await house.until_state("other", EnvironmentState.RUNNING)
        with pytest.raises(NotAllowed):
            await house.hosts.forget_with_environments(alice, "far")
        with pytest.raises(Conflict, match="'far' is online: only what is on a host that is offline can be given up"):
            await house.hosts.forget_with_environments(admin, "far")
        house.engines["far"].away = True
        await house.until_host("far", HostState.OFFLINE)
        assert [one.name for one in await house.hosts.losses(admin, "far")] == ["train"]
        async with database.writing() as tx:
            dataset = Asset(
                workspace_id=alice.workspace_id, owner_id=alice.user_id, owner_name="alice", name="mnist", created=now()
            )
            tx.add(dataset)
            await tx.flush()
            version = AssetVersion(asset_id=dataset.id, name="v1", created=now())
            tx.add(version)
            await tx.flush()
            await Uses(database).begin(tx, alice, version.id, Mount(row.id, "train", "/gemini/data-1"))
        assert [one.name for one in await house.hosts.forget_with_environments(admin, "far")] == ["train"]
        assert [one.name for one in await house.environments.list(alice)] == []
        (lost,) = await house.environments.lost(alice)
        assert (lost.id, lost.name, lost.host) == (row.id, "train", "far")
        assert await house.environments.lost(bob) == []
        async with database.reading() as tx:
            assert (await tx.scalars(select(Gpu))).all() == []
            assert (await tx.scalars(select(AssetUse.unmounted).where(AssetUse.unmounted.is_(None)))).all() == []
            event = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == "environment.lost"))).one()
        assert (event.thing, event.actor) == ("train", admin.name)
        assert event.detail == {
            "environment": row.id, "owner": "alice", "host": "far", "state": "running", "gpus": ["GPU-1"],
        }  # fmt: skip
        assert {line.resource: line.used for line in await house.environments.quotas(alice)}[Resource.GPUS] == 0
        await house.until_host("far", HostState.MAINTENANCE)
        await house.hosts.forget(admin, "far")
        house.engines["far"].gpus = [GpuFact("GPU-1", "NVIDIA A100", GIB)]
        house.engines["far"].away = False
        async with asyncio.timeout(30):
            while not (await house.until_host("far", HostState.MAINTENANCE)).is_up:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        reason = "given up: remove its old containers there, then 'host resume'"
        assert (await house.hosts.show(admin, "far")).room.reason == reason
        for host in ("far", ""):
            with pytest.raises(Unavailable, match="no available host"):
                await house.make(alice, "train", host=host, gpus=1)
        async with asyncio.timeout(30):
            said = ""
            while "it was 'train' of alice, given up with the host far" not in said:
                await asyncio.sleep(0.05)
                said = caplog.text
        assert house.engines["far"].workloads[row.handle]
        assert (await house.hosts.resume(admin, "far")).state is HostState.ONLINE
        again = await house.make(alice, "train", host="far")
        await house.until_state("train", EnvironmentState.RUNNING)
        assert again.id != row.id
        assert (await house.until_state("other", EnvironmentState.RUNNING)).host == "near"


# ---- placement ---------------------------------------------------------------------------------------------------
async def test_environments_go_where_there_is_room(house: House, alice: Caller) -> None:
    hosts = [(await house.make(alice, f"e{n}", memory=6 * GIB)).host for n in range(3)]
    assert sorted(hosts) == ["far", "far", "near"]
    plan = await house.environments.plan(alice, Request("more", cpus=1, memory=6 * GIB))
    said = (
        "no available host (far: memory: 4GiB of 16GiB left, 6GiB needed; near: memory: 2GiB of 8GiB left, 6GiB needed)"
    )
    assert (plan.host, list(plan.refusals)) == ("", [said])
    with pytest.raises(Unavailable, match="no available host"):
        await house.make(alice, "more", memory=6 * GIB)


async def test_defaults_are_shares_of_the_host_that_was_chosen(house: House, alice: Caller) -> None:
    near = await house.environments.plan(alice, Request("a", host="near"))
    far = await house.environments.plan(alice, Request("a", host="far"))
    assert (near.host, near.request.cpus, near.request.memory) == ("near", 2, 2 * GIB)
    assert (far.host, far.request.cpus, far.request.memory) == ("far", 4, 4 * GIB)


async def test_a_host_can_be_asked_for(house: House, alice: Caller) -> None:
    assert (await house.make(alice, "a", host="near")).host == "near"
    with pytest.raises(BadInput, match=r"there is no host 'moon' \(offered: far, near\)"):
        await house.make(alice, "b", host="moon")
    with pytest.raises(BadInput, match=r"cpus must be between 0 \(the default\) and 4"):
        await house.make(alice, "b", host="near", cpus=5)
    assert (await house.make(alice, "b", cpus=5)).host == "far"


async def test_what_no_host_has_is_wrong_whenever_it_is_asked_for(house: House, alice: Caller) -> None:
    with pytest.raises(BadInput, match="no available host"):
        await house.make(alice, "a", cpus=9)


async def test_it_runs_on_its_host_and_is_looked_for_nowhere_else(house: House, alice: Caller) -> None:
    """Two sockets may lead to one engine, which then shows everything twice."""
    row = await house.make(alice, "a", host="far")
    async with house.running():
        await house.until_state("a", EnvironmentState.RUNNING)
        assert list(house.engines["far"].workloads) == [f"memory-{row.id}"]
        assert not house.engines["near"].workloads
        house.engines["near"].workloads.update(house.engines["far"].workloads)
        house.engines["far"].workloads.clear()
        assert (await house.until_state("a", EnvironmentState.FAILED)).host == "far"


# ---- what is reserved --------------------------------------------------------------------------------------------
async def test_a_stopped_environment_holds_nothing_and_its_start_asks_again(
    house: House, alice: Caller, bob: Caller, admin: Caller
) -> None:
    async with house.running():
        await house.make(alice, "a", host="near", memory=5 * GIB)
        await house.until_state("a", EnvironmentState.RUNNING)
        assert (await house.used(admin))["near"] == (1.0, 5 * GIB)
        await house.environments.stop(alice, "a")
        await house.until_state("a", EnvironmentState.STOPPED)
        assert (await house.used(admin))["near"] == (0.0, 0)
        await house.make(bob, "b", host="near", memory=5 * GIB)
        said = r"'a' cannot start on its host near now \(memory: 3GiB of 8GiB left, 5GiB needed\)"
        with pytest.raises(Unavailable, match=said):
            await house.environments.start(alice, "a")
        await house.until_state("b", EnvironmentState.RUNNING)
        await house.environments.delete(bob, "b")
        async with asyncio.timeout(30):
            while (await house.used(admin))["near"] != (0.0, 0):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await house.environments.start(alice, "a")
        await house.until_state("a", EnvironmentState.RUNNING)


async def test_a_restart_lets_nobody_in_between(house: House, alice: Caller, admin: Caller) -> None:
    async with house.running():
        await house.make(alice, "a", host="near", memory=5 * GIB)
        await house.until_state("a", EnvironmentState.RUNNING)
        await house.environments.restart(alice, "a")
        await house.until("a", lambda row: row.restarted == 1)
        assert (await house.used(admin))["near"] == (1.0, 5 * GIB)


async def test_a_failed_creation_gives_everything_back_and_may_go_elsewhere(
    house: House, alice: Caller, admin: Caller
) -> None:
    async with house.running():
        await house.make(alice, "a", host="near", image=MISSING_IMAGE)
        await house.until_state("a", EnvironmentState.FAILED)
        assert (await house.used(admin))["near"] == (0.0, 0)
        await house.hosts.drain(admin, "near")
        assert (await house.environments.start(alice, "a")).host == "far"
        await house.until_state("a", EnvironmentState.FAILED)
        assert (await house.used(admin)) == {"near": (0.0, 0), "far": (0.0, 0)}


# ---- signs of life -----------------------------------------------------------------------------------------------
async def test_a_host_that_is_silent_goes_offline_frees_nothing_and_comes_back(
    house: House, alice: Caller, admin: Caller
) -> None:
    await house.make(alice, "a", host="far")
    await house.make(alice, "b", host="near")
    async with house.running():
        for name in ("a", "b"):
            await house.until_state(name, EnvironmentState.RUNNING)
        house.engines["far"].away = True
        row = await house.until("a", lambda row: bool(row.reason))
        assert (row.state, row.reason) == (EnvironmentState.RUNNING, "its host far does not answer")
        offline = await house.until_host("far", HostState.OFFLINE)
        assert offline.reason
        assert (await house.used(admin))["far"] == (1.0, 2 * GIB)
        await house.environments.stop(alice, "b")  # the others are served meanwhile
        await house.until_state("b", EnvironmentState.STOPPED)
        assert (await house.make(alice, "c")).host == "near"
        await house.environments.delete(alice, "a")
        await house.until("a", lambda row: row.state is EnvironmentState.DELETING)
        assert (await house.used(admin))["far"] == (1.0, 2 * GIB)
        house.engines["far"].away = False
        await house.until_host("far", HostState.ONLINE)
        async with asyncio.timeout(30):
            while (await house.used(admin))["far"] != (0.0, 0):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with house.database.reading() as tx:
        events = (await tx.scalars(select(AuditEvent).where(AuditEvent.action.like("host.%")))).all()
    assert [(event.action, event.thing) for event in sorted(events, key=lambda event: event.seq)][-2:] == [
        ("host.offline", "far"), ("host.online", "far"),
    ]  # fmt: skip


async def test_what_failed_on_a_silent_host_keeps_its_room_until_the_host_can_be_asked(
    house: House, alice: Caller, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been started, with only the answer lost: giving its room away would promise it twice."""
    engine = house.engines["far"]
    started = MemoryCompute.start

    async def lost(self: MemoryCompute, *args: object) -> None:
        await started(self, *args)  # type: ignore[arg-type]
        engine.away = True
        raise BadInput("no")

    monkeypatch.setattr(MemoryCompute, "start", lost)
    await house.make(alice, "a", host="far")
    async with house.running():
        row = await house.until_state("a", EnvironmentState.FAILED)
        assert row.reserves
        await house.until_host("far", HostState.OFFLINE)
        assert (await house.used(admin))["far"] == (1.0, 2 * GIB)
        engine.away = False
        await house.until("a", lambda row: not row.reserves)
        assert not engine.workloads


async def test_an_engine_that_hangs_holds_nobody_up(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and never answers: the look would wait for it, and so would every hint."""
    hang = asyncio.Event()

    async def found(compute: MemoryCompute) -> list[Found]:
        if compute is house.computes["docker/far"]:
            await hang.wait()
        return []

    monkeypatch.setattr(MemoryCompute, "found", found)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.05)
    await house.make(alice, "a", host="far")
    await house.make(alice, "b", host="near")
    async with house.running():
        await house.until_state("b", EnvironmentState.RUNNING)
        await house.environments.stop(alice, "b")
        await house.until_state("b", EnvironmentState.STOPPED)
        hang.set()


async def test_a_few_missing_signs_are_forgiven(house: House, admin: Caller) -> None:
    house.engines["far"].away = True
    for _ in range(MISSED - 1):
        await house.watch.look()
        assert (await house.hosts.show(admin, "far")).state is HostState.ONLINE
    await house.watch.look()
    assert (await house.hosts.show(admin, "far")).state is HostState.OFFLINE


async def test_a_host_of_no_settings_goes_with_its_last_environment(house: House, alice: Caller, admin: Caller) -> None:
    await house.make(alice, "a", host="far")
    compute = house.computes.pop("docker/far")
    await house.watch.look()
    assert (await house.hosts.show(admin, "far")).state is HostState.OFFLINE
    with pytest.raises(BadInput):
        await house.again().create(alice, Request("b", host="far"))
    house.computes["docker/far"] = compute
    async with house.running():
        await house.environments.delete(alice, "a")
        async with asyncio.timeout(30):
            while await house.environments.list(alice):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    del house.computes["docker/far"]
    await house.watch.look()
    assert [view.name for view in await house.hosts.list(admin)] == ["near"]
    house.computes["docker/far"] = compute


# ---- administrators ----------------------------------------------------------------------------------------------
async def test_a_drained_host_takes_nothing_new_and_what_runs_goes_on(
    house: House, alice: Caller, admin: Caller
) -> None:
    async with house.running():
        await house.make(alice, "a", host="near")
        await house.until_state("a", EnvironmentState.RUNNING)
        view = await house.hosts.drain(admin, "near", "new cards")
        assert (view.state, view.room.reason, [row.name for row in view.placed]) == (
            HostState.MAINTENANCE, "new cards", ["a"],
        )  # fmt: skip
        assert (await house.make(alice, "b")).host == "far"
        with pytest.raises(Unavailable, match="near: in maintenance, new cards"):
            await house.make(alice, "c", host="near")
        await house.watch.look()
        assert (await house.environments.show(alice, "a")).state is EnvironmentState.RUNNING
        await house.environments.stop(alice, "a")
        await house.until_state("a", EnvironmentState.STOPPED)
        with pytest.raises(Unavailable, match="in maintenance"):
            await house.environments.start(alice, "a")
        assert (await house.hosts.resume(admin, "near")).state is HostState.ONLINE
        await house.environments.start(alice, "a")
        await house.until_state("a", EnvironmentState.RUNNING)


async def test_hosts_are_the_administrators_business(house: House, alice: Caller, admin: Caller) -> None:
    for attempt in (
        house.hosts.list(alice), house.hosts.show(alice, "near"), house.hosts.drain(alice, "near"),
        house.hosts.resume(alice, "near"),
    ):  # fmt: skip
        with pytest.raises(NotAllowed):
            await attempt
    with pytest.raises(NotFound):
        await house.hosts.drain(admin, "moon")
    with pytest.raises(BadInput):
        await house.hosts.drain(admin, "../x")
