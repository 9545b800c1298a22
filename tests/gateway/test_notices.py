"""Lines in open terminals: each process tells its own, whoever decided it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.lifecycle import LifecycleChoice
from backends.planning import Request
from backends.reconcilers.expiry import ExpiryReconciler
from backends.settings import BackendSettings
from gateway.notices import Notices
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.records import Environment, EnvironmentState, Lifecycle, Wish


class Process:
    """One gateway process: its use cases on the shared database, and its terminals."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, folder: Path) -> None:
        computes = {"memory": MemoryCompute(MemoryEngine(folder))}
        self.environments = Environments(database, audit, changes, computes, BackendSettings())
        self.services: Any = SimpleNamespace(environments=self.environments, changes=changes)
        self.notices = Notices()
        self.said: list[str] = []

    def terminal(self, environment_id: str) -> Any:
        return self.notices.terminal(environment_id, "train", self.said.append)

    async def look(self) -> None:
        await self.notices.look(self.services)


@pytest.fixture
async def processes(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> list[Process]:
    return [Process(database, audit, changes, tmp_path / "memory") for _ in range(2)]


async def write(database: Database, environment_id: str, **values: Any) -> None:
    async with database.writing() as tx:
        await tx.execute(update(Environment).where(Environment.id == environment_id).values(**values))


@pytest.fixture
async def train(processes: list[Process], database: Database, alice: Caller) -> str:
    """An on-demand environment that sleeps in five minutes."""
    choice = LifecycleChoice(Lifecycle.ON_DEMAND)
    made = await processes[0].environments.create(alice, Request("train", lifecycle=choice))
    long_ago = now() - timedelta(minutes=115)
    await write(database, made.id, state=EnvironmentState.RUNNING, started=long_ago, lifecycle_from=long_ago)
    return made.id


async def test_every_terminal_of_every_process_is_told_once(
    processes: list[Process], database: Database, train: str
) -> None:
    one, two = processes
    with one.terminal(train), one.terminal(train), two.terminal(train), two.terminal("another"):
        await one.look()
        assert one.said == []
        await write(database, train, warned=now() - timedelta(minutes=10))
        for process in (one, two, one, two):
            await process.look()
        (first, second), (third,) = one.said, two.said
        assert first == second == third
        assert first.startswith("ashore: train sleeps in 5 min, at ")
        await write(database, train, warned=None, last_active=now())
        for process in (one, two, one, two):
            await process.look()
        assert one.said[2:] == ["ashore: train goes on running: the warning is withdrawn."] * 2
        assert two.said[1:] == one.said[2:3]


async def test_what_falls_asleep_is_not_said_to_go_on(
    processes: list[Process], database: Database, audit: AuditTrail, changes: Changes, train: str
) -> None:
    """The wish to stop and the end of the warning are written at once: that must not be taken for a withdrawal."""
    (one, _) = processes
    long_ago = now() - timedelta(hours=3)
    await write(database, train, started=long_ago, lifecycle_from=long_ago, warned=now() - timedelta(hours=1))
    with one.terminal(train):
        await one.look()
        accounts: Any = None  # nobody is started
        settings = BackendSettings().lifecycle
        await ExpiryReconciler(database, audit, changes, accounts, one.environments, settings).act(train)
        await one.look()
        await one.look()
    assert one.said[1:] == ["ashore: train is stopped now (no sign of life for 2 h): log in again, and it wakes."]


async def test_what_is_deleted_is_not_said_to_go_on(processes: list[Process], database: Database, train: str) -> None:
    (one, _) = processes
    await write(database, train, warned=now() - timedelta(minutes=10))
    with one.terminal(train):
        await one.look()
        await write(database, train, warned=None, wish=Wish.DELETED)
        await one.look()
    assert one.said[1:] == ["ashore: train is deleted now."]


async def test_who_comes_after_a_warning_is_told_nothing_that_is_over(
    processes: list[Process], database: Database, train: str, alice: Caller
) -> None:
    """To come in is a sign of life; the loop that withdraws the warning has not looked yet."""
    (one, _) = processes
    await write(database, train, warned=now() - timedelta(minutes=10))
    await one.environments.activity.arrive(await one.environments.show(alice, "train"))
    with one.terminal(train):
        await one.look()
    assert one.said == []


async def test_a_terminal_that_is_opened_later_is_told_at_once(
    processes: list[Process], database: Database, train: str
) -> None:
    (one, _) = processes
    loop = asyncio.create_task(one.notices.run(one.services))
    try:
        await write(database, train, warned=now() - timedelta(minutes=10))
        with one.terminal(train):
            async with asyncio.timeout(20):
                while not one.said:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
