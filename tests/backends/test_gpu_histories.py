"""Random histories of people, a real reconciler, two hosts with cards that vanish, and a quota.

Whatever happens: no card is held twice, or by more than may share it; no engine runs with cards that are not held; no
quota is exceeded; and in the end nothing is left over.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.compute.contract import State
from backends.compute.places import GpuFact
from backends.environments import Environments
from backends.planning import Request
from backends.settings import BackendSettings, EnvironmentSettings, GpuSettings, PlacementSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, NotFound, OverQuota, Unavailable
from storage.quotas import Quotas
from storage.records import Environment, GpuMode
from storage.settings import QuotaSettings
from tests.backends import test_placement_histories as placement
from tests.backends.test_placement_histories import GIB, NAMES, PEOPLE, Step
from tests.conftest import person
from tests.databases import Databases

SHARES, QUOTA = 2, 3
CARDS = {
    "near": [GpuFact("GPU-1", "T4", GIB), GpuFact("GPU-2", "A100", GIB)],
    "far": [GpuFact("GPU-3", "A100", GIB), GpuFact("MIG-1", "A100", GIB, "GPU-4", "1g")],
}
_REFUSALS = (AlreadyExists, BadInput, Conflict, NotFound, OverQuota, Unavailable)


def _ask(who: str, name: str, count: int, mode: str) -> Step:
    """A creation; `cpus` is the number of cards."""
    return Step(f"create {mode}", who, name, count)


_whom = {"who": st.sampled_from(PEOPLE), "name": st.sampled_from(NAMES)}
_create = st.builds(
    _ask, **_whom, count=st.integers(1, 2), mode=st.sampled_from(["exclusive", "exclusive", "shared", "shared", "mig"])
)
_wish = st.builds(Step, st.sampled_from(["start", "start", "restart", "stop", "stop", "delete"]), **_whom)
_world = st.builds(
    Step, st.sampled_from(["leave", "return", "break", "mend", "lose", "find", "find"]),
    host=st.sampled_from(list(CARDS)),
)  # fmt: skip
_groups = st.lists(
    st.tuples(
        st.lists(st.one_of(_create, _create, _wish, _wish), min_size=1, max_size=4),
        st.none() | _world,
        st.sampled_from([0, 1, 1, 2]),
    ),
    min_size=10, max_size=25,
)  # fmt: skip


class History(placement.History):
    def __init__(self, database: Database, people: dict[str, Caller], audit: AuditTrail, folder: Path) -> None:
        super().__init__(database, people, audit, folder)
        for name, engine in self.engines.items():
            engine.gpus = list(CARDS[name])
        backends = BackendSettings(
            environments=EnvironmentSettings(stop_grace_seconds=0, default_cpus=0.1, default_memory_mib=64),
            placement=PlacementSettings(cpu_overcommit=8.0, memory_overcommit=1.0), gpus=GpuSettings(shares=SHARES),
        )  # fmt: skip
        changes = Changes()
        quotas = Quotas(database, audit, changes, QuotaSettings(user_gpus=QUOTA))
        computes = self.watch._computes
        self.environments = Environments(database, audit, changes, computes, backends, quotas=quotas)

    async def run(self, steps: list[Step], event: Step | None, rounds: int) -> None:
        if event is not None:
            await self.happen(event)
        work = [*(self.step(step) for step in steps), *(self.reconcile() for _ in range(rounds))]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, _REFUSALS):
                raise result
        await self.check()

    async def step(self, step: Step) -> None:
        verb, _, mode = step.verb.partition(" ")
        if verb != "create":
            await super().step(step)
            return
        request = Request(step.name, "docker", gpus=step.cpus, gpu_mode=mode)
        await self.environments.create(self.people[step.who], request)

    async def happen(self, event: Step) -> None:
        engine = self.engines[event.host]
        if event.verb in ("lose", "find"):
            engine.gpus = CARDS[event.host][1:] if event.verb == "lose" else list(CARDS[event.host])
            await self.watch.look()
        else:
            await super().happen(event)

    async def check(self) -> None:
        await super().check()
        rows = await self.rows()
        held: dict[str, list[Environment]] = {}
        for row in rows:
            if row.reserves:
                assert len(row.cards) == row.gpus, row.cards
                for uuid in row.cards:
                    held.setdefault(uuid, []).append(row)
        for uuid, owners in held.items():
            modes = {row.gpu_mode for row in owners}
            assert len(modes) == 1, (uuid, modes)
            assert len(owners) <= (SHARES if modes == {GpuMode.SHARED} else 1), (uuid, owners)
            assert {row.host for row in owners} == {
                host for host, facts in CARDS.items() if uuid in {fact.uuid for fact in facts}
            }
        by_id = {row.id: row for row in rows}
        for engine in self.engines.values():
            for workload in engine.workloads.values():
                if workload.state is State.RUNNING:
                    assert set(workload.spec.gpus) == set(by_id[workload.spec.id].cards)
        await self.check_quotas()

    async def check_quotas(self) -> None:
        for caller in self.people.values():
            lines = await self.environments.quotas(caller)
            (line,) = [line for line in lines if line.resource.value == "gpus" and line.allowed is not None]
            assert line.used <= QUOTA, line

    async def end(self) -> None:
        for name, engine in self.engines.items():
            engine.gpus = list(CARDS[name])
        await super().end()
        for view in await self.hosts.all():
            assert not any(card.holders for card in view.room.cards)
            assert {card.uuid for card in view.room.cards} == {fact.uuid for fact in CARDS[view.name]}


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
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_gives_a_card_twice_or_leaks_one(
    databases: Databases, groups: list[tuple[list[Step], Step | None, int]]
) -> None:
    _on("sqlite", databases, groups)


@pytest.mark.timeout(400)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_gives_a_card_twice_or_leaks_one_on_postgresql(
    databases: Databases, groups: list[tuple[list[Step], Step | None, int]]
) -> None:
    _on("postgresql", databases, groups)
