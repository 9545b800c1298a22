"""Random histories of two people, a reconciler and an administrator: no quota is ever exceeded, none refuses what fits.

Steps of one group run at the same time. Lowering a quota stops nothing, so what is used may lie above it; it must
never grow while it does.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from backends.compute.contract import Compute
from backends.environments import Environments
from backends.planning import Request
from backends.reconcilers.rows import EnvironmentRows
from backends.reservations import Reservations
from backends.settings import BackendSettings, EnvironmentSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, Conflict, NotFound, OverQuota
from storage.quota_limits import RUNNING, Resource, holds
from storage.quotas import Quotas
from storage.records import Environment, EnvironmentState, Holder, Wish
from tests.conftest import person
from tests.databases import Databases

GIB = 1024**3
NAMES = ("a", "b")
PEOPLE = ("alice", "bob")
LIMITS = {
    Resource.ENVIRONMENTS: (0, 1, 2, 3), Resource.CPUS: (1, 2, 3, 5), Resource.MEMORY: (GIB, 2 * GIB, 4 * GIB),
}  # fmt: skip
_REFUSALS = (AlreadyExists, Conflict, NotFound, OverQuota)
"""What may come of a step; everything else is an accident."""
BACKENDS = BackendSettings(environments=EnvironmentSettings(most_cpus=8, most_memory_mib=8192))


@dataclass(frozen=True)
class Step:
    verb: str
    who: str
    name: str
    cpus: int = 1
    memory: int = GIB
    resource: Resource = Resource.CPUS
    limit: float = 0


_whom = {"who": st.sampled_from(PEOPLE), "name": st.sampled_from(NAMES)}
_create = st.builds(
    Step, st.just("create"), **_whom, cpus=st.integers(1, 3), memory=st.sampled_from([GIB, 2 * GIB])
)  # fmt: skip
_wish = st.builds(Step, st.sampled_from(["start", "start", "restart", "stop", "stop", "delete"]), **_whom)
_advance = st.builds(Step, st.sampled_from(["settle", "settle", "advance", "fail"]), **_whom)
_limit = st.sampled_from(list(LIMITS)).flatmap(
    lambda resource: st.builds(
        Step, st.just("limit"), who=st.sampled_from(["alice", "team"]), name=st.just(""), resource=st.just(resource),
        limit=st.sampled_from(LIMITS[resource]),
    )
)  # fmt: skip
_groups = st.lists(
    st.lists(st.one_of(_create, _create, _wish, _wish, _advance, _advance), min_size=1, max_size=4)
    | st.lists(_limit, min_size=1, max_size=1),
    min_size=20, max_size=40,
)  # fmt: skip

_TIGHT = (
    [Step("limit", "alice", "", resource=Resource.CPUS, limit=2)],
    [Step("limit", "team", "", resource=Resource.MEMORY, limit=3 * GIB)],
)
"""So that most histories begin where most of them end up: with too little."""


class History:
    def __init__(self, database: Database, people: dict[str, Caller], quotas: Quotas, audit: AuditTrail) -> None:
        changes = Changes()
        self.database, self.people, self.quotas = database, people, quotas
        computes = {"local": cast("Compute", None)}
        self.environments = Environments(database, audit, changes, computes, BACKENDS, quotas=quotas)
        self.rows = EnvironmentRows(database, audit, changes, Reservations(BackendSettings()))
        self.limits: dict[tuple[str, Resource], float] = {("alice", Resource.ENVIRONMENTS): 20}
        self.limits["bob", Resource.ENVIRONMENTS] = 20
        self.idle: set[str] = set()
        """Ids of those that are stopped or deleted although they held nothing: they count until that is done."""

    async def found(self) -> list[Environment]:
        async with self.database.reading() as tx:
            return list((await tx.scalars(select(Environment))).all())

    async def used(self) -> dict[tuple[str, Resource], float]:
        """What is really held, added up in another way than the use cases do."""
        used = {(who, resource): 0.0 for who in (*PEOPLE, "team") for resource in RUNNING}
        for row in await self.found():
            held = row.wish is Wish.RUNNING and row.state is not EnvironmentState.FAILED
            held = held or (holds(row) and row.id not in self.idle)
            for who in (row.owner_name, "team"):
                used[who, Resource.ENVIRONMENTS] += 1
                used[who, Resource.CPUS] += row.cpus * held
                used[who, Resource.MEMORY] += row.memory * held
        return used

    async def run(self, group: list[Step]) -> None:
        before = await self.used()
        counted = bool(self.idle)
        results = await asyncio.gather(*(self.step(step) for step in group), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, _REFUSALS):
                raise result
        after = await self.used()
        for key, amount in after.items():
            assert amount <= max(self.limits.get(key, float("inf")), before[key]), (key, amount, group)
        if len(group) == 1 and isinstance(results[0], OverQuota) and not counted:
            assert await self.does_not_fit(group[0], before), group

    async def does_not_fit(self, step: Step, used: dict[tuple[str, Resource], float]) -> bool:
        more: dict[Resource, float] = {Resource.CPUS: step.cpus, Resource.MEMORY: step.memory}
        if step.verb == "create":
            more[Resource.ENVIRONMENTS] = 1
        else:
            row = await self.environments.show(self.people[step.who], step.name)
            more = {Resource.CPUS: row.cpus, Resource.MEMORY: row.memory}
        return any(
            used[who, resource] + amount > self.limits.get((who, resource), float("inf"))
            for who in (step.who, "team")
            for resource, amount in more.items()
        )

    async def step(self, step: Step) -> None:
        caller = self.people.get(step.who)
        if step.verb == "limit":
            self.limits[step.who, step.resource] = step.limit
            holder = Holder.WORKSPACE if step.who == "team" else Holder.USER
            await self.quotas.set_by_operator(holder, step.who, {step.resource: step.limit})
            return
        assert caller is not None
        if step.verb == "create":
            await self.environments.create(caller, Request(step.name, "local", cpus=step.cpus, memory=step.memory))
        elif step.verb in ("advance", "fail", "settle"):
            for _ in range(3 if step.verb == "settle" else 1):
                row = await self.environments.show(caller, step.name)
                await self.advance(row, fails=step.verb == "fail")
        else:
            await getattr(self.environments, step.verb)(caller, step.name)

    async def advance(self, row: Environment, *, fails: bool) -> None:
        """One step of the reconciler towards the wish."""
        state = row.state
        if row.wish is Wish.DELETED and state is EnvironmentState.DELETING:
            await self.rows.remove(row)
        elif row.wish is Wish.DELETED:
            await self.leave(row, EnvironmentState.DELETING)
        elif row.wish is Wish.STOPPED and state is not EnvironmentState.STOPPED:
            stopping = state is EnvironmentState.STOPPING
            await self.leave(row, EnvironmentState.STOPPED if stopping else EnvironmentState.STOPPING)
        elif row.wish is Wish.RUNNING and fails:
            await self.rows.move(row, EnvironmentState.FAILED)
        elif row.wish is Wish.RUNNING and state is not EnvironmentState.FAILED:
            creating = state is EnvironmentState.CREATING
            if await self.rows.move(row, EnvironmentState.RUNNING if creating else EnvironmentState.CREATING):
                self.idle.discard(row.id)

    async def leave(self, row: Environment, state: EnvironmentState) -> None:
        holds_nothing = row.id in self.idle or not holds(row)
        if await self.rows.move(row, state) and holds_nothing:
            self.idle.add(row.id)


async def _play(database: Database, groups: list[list[Step]]) -> None:
    try:
        audit = AuditTrail(database)
        accounts = Accounts(database, audit, Changes())
        people = {name: await person(accounts, name) for name in PEOPLE}
        history = History(database, people, Quotas(database, audit, Changes()), audit)
        for group in (*_TIGHT, *groups):
            await history.run(group)
    finally:
        await database.close()


def _on(kind: str, databases: Databases, groups: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as directory, databases.new(kind, Path(directory)) as database:
        asyncio.run(_play(database, groups))


@pytest.mark.timeout(400)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_exceeds_a_quota(databases: Databases, groups: list[list[Step]]) -> None:
    _on("sqlite", databases, groups)


@pytest.mark.timeout(400)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_groups)
def test_no_history_exceeds_a_quota_on_postgresql(databases: Databases, groups: list[list[Step]]) -> None:
    _on("postgresql", databases, groups)
