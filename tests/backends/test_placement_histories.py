"""Random histories of people, a real reconciler and two hosts that fail, vanish and are drained.

Steps of one group run at the same time. Whatever happens: no host is ever promised more than it has, no engine runs
what was not reserved, and in the end nothing is left over.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from backends.compute.contract import State
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.compute.places import Capacity
from backends.environments import Environments
from backends.hosts import Hosts
from backends.planning import Request
from backends.reconcilers.environments import EnvironmentReconciler
from backends.reconcilers.hosts import MISSED, HostWatch
from backends.settings import BackendSettings, EnvironmentSettings, PlacementSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, AshoreError, Conflict, NotFound, Unavailable
from storage.records import Environment
from tests.backends.test_reconciler_environments import Guests
from tests.conftest import person
from tests.databases import Databases

GIB = 1024**3
PEOPLE = ("alice", "bob")
NAMES = ("a", "b")
CAPACITIES = {"near": Capacity(2.0, 3 * GIB, is_here=True), "far": Capacity(3.0, 4 * GIB, is_here=False)}
_REFUSALS = (AlreadyExists, Conflict, NotFound, Unavailable)
"""What may come of a step; everything else is an accident."""


@dataclass(frozen=True)
class Step:
    verb: str
    who: str = ""
    name: str = ""
    cpus: int = 1
    memory: int = GIB
    host: str = ""


_whom = {"who": st.sampled_from(PEOPLE), "name": st.sampled_from(NAMES)}
_hosts = st.sampled_from(list(CAPACITIES))
_create = st.builds(
    Step, st.just("create"), **_whom, cpus=st.integers(1, 2), memory=st.sampled_from([GIB, 2 * GIB]),
    host=st.sampled_from(["", "", "near", "far"]),
)  # fmt: skip
_wish = st.builds(Step, st.sampled_from(["start", "start", "restart", "restart", "stop", "stop", "delete"]), **_whom)
_world = st.builds(
    Step, st.sampled_from(["leave", "return", "return", "break", "mend", "drain", "resume"]), host=_hosts
)  # fmt: skip
_groups = st.lists(
    st.tuples(
        st.lists(st.one_of(_create, _create, _wish, _wish, _wish), min_size=1, max_size=4),
        st.none() | _world,
        st.sampled_from([0, 1, 1, 2]),
    ),
    min_size=15, max_size=30,
)  # fmt: skip


class History:
    def __init__(self, database: Database, people: dict[str, Caller], audit: AuditTrail, folder: Path) -> None:
        changes = Changes()
        self.database, self.people = database, people
        self.engines = {name: MemoryEngine(folder / name) for name in CAPACITIES}
        for name, engine in self.engines.items():
            engine.capacity = CAPACITIES[name]
        computes = {f"docker/{name}": MemoryCompute(engine) for name, engine in self.engines.items()}
        backends = BackendSettings(
            environments=EnvironmentSettings(stop_grace_seconds=0, most_memory_mib=8192),
            placement=PlacementSettings(cpu_overcommit=1.0, memory_overcommit=1.0),
        )
        self.environments = Environments(database, audit, changes, computes, backends)
        self.hosts = Hosts(database, audit, changes, backends)
        self.watch = HostWatch(database, audit, changes, computes, backends.placement)
        self.reconciler = EnvironmentReconciler(database, audit, changes, computes, Guests(), backends)
        self.busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def rows(self) -> list[Environment]:
        async with self.database.reading() as tx:
            return list((await tx.scalars(select(Environment))).all())

    async def run(self, steps: list[Step], event: Step | None, rounds: int) -> None:
        if event is not None:
            await self.happen(event)
        work = [*(self.step(step) for step in steps), *(self.reconcile() for _ in range(rounds))]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, _REFUSALS):
                raise result
        await self.check()

    async def check(self) -> None:
        rows = await self.rows()
        for name, capacity in CAPACITIES.items():
            held = [row for row in rows if row.host == name and row.reserves]
            assert sum(row.cpus for row in held) <= capacity.cpus, held
            assert sum(row.memory for row in held) <= capacity.memory, held
            reserved = {row.id for row in held}
            for workload in self.engines[name].workloads.values():
                assert workload.state is not State.RUNNING or workload.spec.id in reserved, workload

    async def step(self, step: Step) -> None:
        caller = self.people[step.who]
        if step.verb == "create":
            request = Request(step.name, "docker", cpus=step.cpus, memory=step.memory, host=step.host)
            await self.environments.create(caller, request)
        else:
            await getattr(self.environments, step.verb)(caller, step.name)

    async def happen(self, event: Step) -> None:
        engine = self.engines[event.host]
        if event.verb in ("leave", "return"):
            engine.away = event.verb == "leave"
            for _ in range(MISSED):
                await self.watch.look()
        elif event.verb in ("break", "mend"):
            engine.fail_start = "no" if event.verb == "break" else ""
        elif event.verb == "drain":
            await self.hosts.drain_by_operator(event.host)
        else:
            await self.hosts.resume_by_operator(event.host)

    async def reconcile(self) -> None:
        """What the loop does: whatever needs care gets one action, and no environment gets two at once."""

        async def act(environment_id: str) -> None:
            async with self.busy[environment_id]:
                with contextlib.suppress(AshoreError):
                    await self.reconciler.act(environment_id)

        await asyncio.gather(*(act(key) for key in await self.reconciler.look()))

    async def end(self) -> None:
        """Everybody goes home: nothing is left, on the hosts or in the records."""
        for engine in self.engines.values():
            engine.away, engine.fail_start = False, ""
        await self.watch.look()
        for row in await self.rows():
            await self.environments.delete(self.people[row.owner_name], row.name)
        for _ in range(4):
            await self.reconcile()
        assert not await self.rows()
        for view in await self.hosts.all():
            assert (view.room.used_cpus, view.room.used_memory, view.room.environments) == (0, 0, 0)
            assert not self.engines[view.name].workloads


async def _play(database: Database, directory: Path, groups: list[tuple[list[Step], Step | None, int]]) -> None:
    try:
        audit = AuditTrail(database)
        accounts = Accounts(database, audit, Changes())
        people = {name: await person(accounts, name) for name in PEOPLE}
        history = History(database, people, audit, directory / "engines")
        await history.watch.look()
        for steps, event, rounds in groups:
            await history.run(steps, event, rounds)
        await history.end()
    finally:
        await database.close()


def _on(kind: str, databases: Databases, groups: list[tuple[list[Step], Step | None, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory, databases.new(kind, Path(directory)) as database:
        asyncio.run(_play(database, Path(directory), groups))


@pytest.mark.timeout(400)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_promises_too_much_or_leaks(
    databases: Databases, groups: list[tuple[list[Step], Step | None, int]]
) -> None:
    _on("sqlite", databases, groups)


@pytest.mark.timeout(400)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_promises_too_much_or_leaks_on_postgresql(
    databases: Databases, groups: list[tuple[list[Step], Step | None, int]]
) -> None:
    _on("postgresql", databases, groups)
