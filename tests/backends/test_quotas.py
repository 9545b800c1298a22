"""Quotas on environments: refused in words before, refused in the transaction, and never exceeded, in any order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.planning import Request
from backends.settings import BackendSettings, EnvironmentSettings
from storage.access import Action, Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, OverQuota
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import AuditEvent, Environment, EnvironmentState, Holder, Wish
from tests.databases import KINDS

DATABASES = KINDS

GIB = 1024**3
SETTINGS = BackendSettings(
    environments=EnvironmentSettings(
        default_cpus=1, default_memory_mib=1024, most_cpus=16, most_memory_mib=64 * 1024, ready_seconds=0
    )
)


@pytest.fixture
def quotas(database: Database, audit: AuditTrail, changes: Changes) -> Quotas:
    return Quotas(database, audit, changes)


@pytest.fixture
def environments(
    database: Database, audit: AuditTrail, changes: Changes, quotas: Quotas, tmp_path: Path
) -> Environments:
    computes = {"local": MemoryCompute(MemoryEngine(tmp_path / "memory"), name="local")}
    return Environments(database, audit, changes, computes, SETTINGS, quotas=quotas)


async def become(database: Database, name: str, state: EnvironmentState) -> None:
    async with database.writing() as tx:
        await tx.execute(update(Environment).where(Environment.name == name).values(state=state))


async def refused(database: Database) -> list[AuditEvent]:
    async with database.reading() as tx:
        query = select(AuditEvent).where(AuditEvent.outcome == "refused").order_by(AuditEvent.seq)
        return list((await tx.scalars(query)).all())


async def test_a_plan_tells_what_it_would_get_and_what_is_in_use(environments: Environments, alice: Caller) -> None:
    plan = await environments.plan(alice, Request("a"))
    assert (plan.request.cpus, plan.request.memory, plan.processes) == (1, GIB, 4096)
    made = await environments.create(alice, Request("a"))
    assert (made.cpus, made.memory) == (1, GIB)
    used = {
        (line.subject.name, line.resource): line.used for line in (await environments.plan(alice, Request("b"))).quotas
    }
    assert used["alice", Resource.MEMORY] == used["team", Resource.MEMORY] == GIB
    assert used["alice", Resource.ENVIRONMENTS] == 1


async def test_everything_that_speaks_against_it(environments: Environments, quotas: Quotas, alice: Caller) -> None:
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.CPUS: 3, Resource.MEMORY: 2 * GIB})
    await quotas.set_by_operator(Holder.WORKSPACE, "team", {Resource.ENVIRONMENTS: 1})
    await environments.create(alice, Request("a", cpus=2))
    plan = await environments.plan(alice, Request("b", cpus=2, memory=2 * GIB))
    assert plan.refusals == [
        "your quota of CPUs is 3, with 2 in use, and this needs 2: an administrator can raise it",
        "your quota of memory is 2GiB, with 1GiB in use, and this needs 2GiB: an administrator can raise it",
        "the workspace team's quota of environments is 1, with 1 in use, and this needs 1: "
        "an administrator can raise it",
    ]
    with pytest.raises(OverQuota):
        await environments.create(alice, Request("b", cpus=2, memory=2 * GIB))
    with pytest.raises(BadInput):
        await environments.create(alice, Request("b", cpus=99))


async def test_what_is_stopped_takes_no_memory_but_counts(
    environments: Environments, quotas: Quotas, database: Database, alice: Caller, admin: Caller
) -> None:
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: 2 * GIB})
    await environments.create(alice, Request("a", memory=2 * GIB))
    await become(database, "a", EnvironmentState.RUNNING)
    await environments.stop(alice, "a")
    assert (await environments.plan(alice, Request("b"))).refusals  # it has not stopped yet
    await become(database, "a", EnvironmentState.STOPPED)
    await environments.create(alice, Request("b", memory=2 * GIB))
    words = "quota of memory is 2GiB, with 2GiB in use, and this needs 2GiB: an administrator can raise it"
    for start in (
        environments.start(alice, "a"),
        environments.restart(alice, "a"),
        environments.open(alice, Action.SHELL, "a"),
    ):
        with pytest.raises(OverQuota, match=f"^your {words}$"):
            await start
    with pytest.raises(OverQuota, match=f"^alice's {words}$"):
        await environments.start(admin, "a.alice")
    assert (await environments.show(alice, "a")).wish is Wish.STOPPED
    events = await refused(database)
    assert [(event.action, event.actor, event.thing) for event in events] == [
        ("environment.start", "alice", "a"), ("environment.start", "alice", "a"), ("environment.start", "alice", "a"),
        ("environment.start", "root-admin", "a"),
    ]  # fmt: skip
    assert "quota of memory" in events[0].detail["reason"]
    await environments.restart(alice, "b")  # it has what it needs already


async def test_what_failed_needs_room_to_start_again(
    environments: Environments, quotas: Quotas, database: Database, alice: Caller
) -> None:
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.CPUS: 1})
    await environments.create(alice, Request("a"))
    await become(database, "a", EnvironmentState.FAILED)
    await environments.create(alice, Request("b"))
    with pytest.raises(OverQuota, match="quota of CPUs"):
        await environments.start(alice, "a")


async def test_what_is_on_its_way_down_must_fit_to_come_up_again(
    environments: Environments, quotas: Quotas, database: Database, alice: Caller
) -> None:
    """It counts while it stops, also where it holds nothing any more: that is no place kept for it."""
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.CPUS: 1})
    await environments.create(alice, Request("a"))
    await become(database, "a", EnvironmentState.FAILED)
    await environments.create(alice, Request("b"))
    await environments.stop(alice, "a")
    await become(database, "a", EnvironmentState.STOPPING)
    with pytest.raises(OverQuota, match="is 1, with 1 in use, and this needs 1"):
        await environments.start(alice, "a")
    await environments.stop(alice, "b")
    await become(database, "b", EnvironmentState.STOPPED)
    assert (await environments.start(alice, "a")).wish is Wish.RUNNING


async def test_of_many_at_once_only_those_that_fit_are_made(
    environments: Environments, quotas: Quotas, database: Database, alice: Caller, bob: Caller
) -> None:
    await quotas.set_by_operator(Holder.WORKSPACE, "team", {Resource.MEMORY: 5 * GIB})
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.ENVIRONMENTS: 3})
    tries = [environments.create(who, Request(f"e{number}")) for number in range(8) for who in (alice, bob)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(result, (Environment, OverQuota)) for result in results)
    async with database.reading() as tx:
        rows = (await tx.scalars(select(Environment))).all()
    assert len(rows) == 5
    assert len([row for row in rows if row.owner_name == "alice"]) <= 3
    for row in rows:
        await become(database, row.name, EnvironmentState.STOPPED)
    async with database.writing() as tx:
        await tx.execute(update(Environment).values(wish=Wish.STOPPED))
    await quotas.set_by_operator(Holder.WORKSPACE, "team", {Resource.MEMORY: 2 * GIB})
    people = {alice.name: alice, bob.name: bob}
    starts = [environments.start(people[row.owner_name], row.name) for row in rows]
    started = [one for one in await asyncio.gather(*starts, return_exceptions=True) if isinstance(one, Environment)]
    assert len(started) == 2
