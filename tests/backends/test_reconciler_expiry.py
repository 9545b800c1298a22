"""Environments that stop, start and go by themselves: on a clock of the tests' own, from warning to wish."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.lifecycle import LifecycleChoice
from backends.planning import Request
from backends.reconcilers.expiry import ExpiryReconciler
from backends.settings import BackendSettings, LifecycleSettings
from storage.access import Action, Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, Conflict, NotFound
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import AuditEvent, Environment, EnvironmentState, Holder, Lifecycle, User, Wish

GIB = 1024**3
SETTINGS = BackendSettings(
    lifecycle=LifecycleSettings(
        idle_minutes=120, ephemeral_minutes=30, unused_minutes=600, warn_minutes=15, write_seconds=15
    )
)


class House:
    """The use cases, the loop, and the clock that both look at."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, folder: Path
    ) -> None:
        self.moment = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
        self.database = database
        computes = {"memory": MemoryCompute(MemoryEngine(folder))}
        self.quotas = Quotas(database, audit, changes)
        self.environments = Environments(database, audit, changes, computes, SETTINGS, self.now, quotas=self.quotas)
        self.activity = self.environments.activity
        self.loop = ExpiryReconciler(
            database, audit, changes, accounts, self.environments, SETTINGS.lifecycle, self.now
        )

    def now(self) -> datetime:
        return self.moment

    async def add(self, caller: Caller, lifecycle: LifecycleChoice, **facts: Any) -> str:
        """A running environment `train`; its id."""
        made = await self.environments.create(caller, Request("train", lifecycle=lifecycle))
        await self.becomes(made.id, **({"state": EnvironmentState.RUNNING, "started": self.moment} | facts))
        return made.id

    async def becomes(self, environment_id: str, **facts: Any) -> None:
        """What the environments reconciler would write."""
        async with self.database.writing() as tx:
            version = Environment.version + 1
            await tx.execute(
                update(Environment).where(Environment.id == environment_id).values(**facts, version=version)
            )

    async def row(self, environment_id: str) -> Environment:
        async with self.database.reading() as tx:
            return await tx.get_one(Environment, environment_id)

    async def after(self, minutes: float) -> None:
        """Let time pass, and look."""
        self.moment += timedelta(minutes=minutes)
        for environment_id in await self.loop.look():
            await self.loop.act(environment_id)

    async def events(self) -> list[tuple[str, str, str, str]]:
        async with self.database.reading() as tx:
            rows = (await tx.scalars(select(AuditEvent).order_by(AuditEvent.seq))).all()
        return [
            (row.action, row.outcome, row.actor, row.detail.get("reason", ""))
            for row in rows
            if row.action.startswith("environment.") and row.actor == "system"
        ]


@pytest.fixture
def house(database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, tmp_path: Path) -> House:
    return House(database, audit, changes, accounts, tmp_path / "memory")


ON_DEMAND = LifecycleChoice(Lifecycle.ON_DEMAND)
EPHEMERAL = LifecycleChoice(Lifecycle.EPHEMERAL)
OFFICE = LifecycleChoice(Lifecycle.SCHEDULED, "0 8 * * *", "0 20 * * *")


# ---- on demand ---------------------------------------------------------------------------------------------------
async def test_it_is_warned_and_then_sleeps(house: House, alice: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    await house.after(100)
    assert await house.environments.warnings([train]) == {}
    await house.after(5)
    words = (await house.environments.warnings([train]))[train]
    assert words.startswith("train sleeps in 15 min, at 08:00 UTC.")
    await house.after(15)
    assert (await house.row(train)).wish is Wish.RUNNING, "what others saw until now may not be written yet"
    await house.after(0.5)
    row = await house.row(train)
    assert (row.wish, row.wish_reason, row.warned) == (Wish.STOPPED, "no sign of life for 2 h", None)
    assert await house.events() == [("environment.sleep", "ok", "system", "no sign of life for 2 h")]


async def test_a_sign_of_life_takes_the_warning_back(house: House, alice: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    await house.after(110)
    assert (await house.row(train)).warned is not None
    house.activity.sign(train)
    await house.activity.flush()
    await house.after(0)
    assert (await house.row(train)).warned is None
    await house.after(20)
    assert (await house.row(train)).wish is Wish.RUNNING


async def test_a_sign_between_the_look_and_the_wish_wins(house: House, alice: Caller) -> None:
    """Another process writes it after the row was read and before the wish is."""
    train = await house.add(alice, ON_DEMAND)
    await house.after(110)
    house.moment += timedelta(minutes=20)
    rows = house.loop._rows
    carry_out = rows.carry_out

    async def late(*arguments: Any) -> bool:
        house.activity.sign(train)
        await house.activity.flush()
        return await carry_out(*arguments)

    rows.carry_out = late  # type: ignore[method-assign]
    await house.loop.act(train)
    assert (await house.row(train)).wish is Wish.RUNNING


async def test_after_a_long_time_away_it_is_warned_first(house: House, alice: Caller) -> None:
    """The gateway was down for a day. Who comes back with it must not be thrown out at once."""
    train = await house.add(alice, ON_DEMAND)
    await house.after(24 * 60)
    row = await house.row(train)
    assert (row.wish, row.warned) == (Wish.RUNNING, house.moment)
    await house.after(14)
    assert (await house.row(train)).wish is Wish.RUNNING
    await house.after(2)
    assert (await house.row(train)).wish is Wish.STOPPED


@pytest.mark.parametrize("choice", ["on-demand", "ephemeral", "scheduled"])
async def test_a_warning_that_nobody_could_take_back_is_given_anew(house: House, alice: Caller, choice: str) -> None:
    """It was warned, somebody came, and the gateway died before it took the warning back; it is down for days."""
    cycles = {
        "on-demand": ON_DEMAND,
        "ephemeral": EPHEMERAL,
        "scheduled": LifecycleChoice(Lifecycle.SCHEDULED, "", "0 20 * * *"),
    }
    train = await house.add(alice, cycles[choice])
    await house.after({"on-demand": 110, "ephemeral": 590, "scheduled": 14 * 60 - 10}[choice])
    assert (await house.row(train)).warned is not None
    house.moment += timedelta(minutes=1)
    with house.activity.presence(train):
        house.activity.typed(train)
    await house.activity.flush()
    await house.after(5 * 24 * 60 + 30)
    row = await house.row(train)
    assert (row.wish, row.warned) == (Wish.RUNNING, house.moment)
    await house.after(16)
    assert (await house.row(train)).wish is not Wish.RUNNING


async def test_who_stops_or_starts_it_begins_anew(house: House, alice: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    await house.after(121)
    await house.environments.restart(alice, "train")
    row = await house.row(train)
    assert (row.warned, row.lifecycle_from) == (None, house.moment)
    await house.after(60)
    assert (await house.row(train)).wish is Wish.RUNNING


async def test_a_wish_of_its_owner_forgets_the_reason(house: House, alice: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    await house.after(110)
    await house.after(30)
    assert (await house.row(train)).wish is Wish.STOPPED
    await house.environments.start(alice, "train")
    assert (await house.row(train)).wish_reason == ""


# ---- ephemeral ---------------------------------------------------------------------------------------------------
async def test_it_goes_after_the_last_session_and_not_before(house: House, alice: Caller) -> None:
    train = await house.add(alice, EPHEMERAL)
    with house.activity.presence(train):
        for _ in range(20):
            await house.activity.flush()
            await house.after(60)
            # The signs of the last hour are written late: the loop may warn by what it knows, but must not delete.
            await house.activity.flush()
            await house.after(0)
        assert (await house.row(train)).wish is Wish.RUNNING
    await house.activity.flush()
    await house.after(15)
    await house.after(15)
    assert (await house.row(train)).wish is Wish.RUNNING
    await house.after(0.5)
    assert (await house.row(train)).wish is Wish.DELETED
    assert (await house.events())[-1] == (
        "environment.delete", "ok", "system", "its last session ended 30 min ago",
    )  # fmt: skip


async def test_nobody_ever_came(house: House, alice: Caller) -> None:
    train = await house.add(alice, EPHEMERAL)
    await house.after(590)
    assert (await house.row(train)).wish is Wish.RUNNING
    await house.after(20)
    assert (await house.row(train)).wish_reason == "nobody came within 10 h"


async def test_who_enters_at_the_last_moment_keeps_it(house: House, alice: Caller) -> None:
    """`open` writes that somebody is there before anything else: a deletion that has not happened does not happen."""
    train = await house.add(alice, EPHEMERAL)
    await house.after(590)
    house.moment += timedelta(minutes=20)
    coming = house.environments.due(await house.row(train))
    seen = await house.row(train)
    await house.environments.open(alice, Action.SHELL, "train")
    assert coming is not None
    assert not await house.loop._rows.carry_out(seen, coming, None)
    assert (await house.row(train)).wish is Wish.RUNNING


async def test_who_enters_too_late_is_told(house: House, alice: Caller) -> None:
    train = await house.add(alice, EPHEMERAL)
    seen = await house.row(train)
    await house.after(590)
    await house.after(20)
    assert (await house.row(train)).wish is Wish.DELETED
    with pytest.raises(Conflict, match="'train' is being deleted"):
        await house.environments.keep(seen)
    with pytest.raises(Conflict, match="'train' is being deleted"):
        await house.environments.open(alice, Action.SHELL, "train")


# ---- scheduled ---------------------------------------------------------------------------------------------------
async def test_a_day_by_the_clock(house: House, alice: Caller) -> None:
    train = await house.add(alice, OFFICE)
    await house.after(13 * 60 + 45)
    assert (await house.row(train)).warned is not None
    assert "at 20:00 UTC. Type something to put it off." in (await house.environments.warnings([train]))[train]
    await house.after(15)
    assert (await house.row(train)).wish is Wish.RUNNING
    await house.after(0.5)
    row = await house.row(train)
    assert (row.wish, row.wish_reason) == (Wish.STOPPED, "its schedule: 0 20 * * *")
    await house.becomes(train, state=EnvironmentState.STOPPED)
    await house.after(11 * 60)
    assert (await house.row(train)).wish is Wish.STOPPED
    await house.after(60)
    row = await house.row(train)
    assert (row.wish, row.wish_reason) == (Wish.RUNNING, "its schedule: 0 8 * * *")
    assert [event[0] for event in await house.events()] == ["environment.stop", "environment.start"]


async def test_typing_puts_a_stop_off(house: House, alice: Caller) -> None:
    train = await house.add(alice, OFFICE)
    await house.after(13 * 60 + 45)
    assert (await house.row(train)).warned is not None
    await house.after(5)
    house.activity.typed(train)
    await house.activity.flush()
    await house.after(0)
    assert (await house.row(train)).warned is None
    await house.after(15)
    row = await house.row(train)
    assert (row.wish, row.warned) == (Wish.RUNNING, house.moment)
    await house.after(15.5)
    assert (await house.row(train)).wish is Wish.STOPPED


async def test_missed_times_are_made_up_for_once(house: House, alice: Caller) -> None:
    """Three starts and three stops were missed, the last was a start: one start, and nothing else."""
    train = await house.add(alice, OFFICE, state=EnvironmentState.STOPPED, wish=Wish.STOPPED)
    await house.after(3 * 24 * 60 + 5 * 60)
    await house.after(1)
    assert (await house.row(train)).wish is Wish.RUNNING
    assert [event[0] for event in await house.events()] == ["environment.start"]


async def test_a_start_that_a_quota_forbids_is_said_and_not_tried_again(house: House, alice: Caller) -> None:
    train = await house.add(alice, OFFICE, state=EnvironmentState.STOPPED, wish=Wish.STOPPED)
    await house.quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: 1})
    await house.after(3 * 60)
    await house.after(1)
    row = await house.row(train)
    assert row.wish is Wish.STOPPED
    assert row.wish_reason.startswith("its schedule could not start it: your quota of memory")
    assert [event[:2] for event in await house.events()] == [("environment.start", "refused")]
    await house.quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: 1 << 50})
    await house.after(24 * 60)
    assert (await house.row(train)).wish is Wish.RUNNING


async def test_nothing_starts_for_somebody_who_was_locked_out(house: House, alice: Caller) -> None:
    train = await house.add(alice, OFFICE, state=EnvironmentState.STOPPED, wish=Wish.STOPPED)
    async with house.database.writing() as tx:
        await tx.execute(update(User).where(User.name == "alice").values(disabled=True))
    await house.after(3 * 60)
    assert (await house.row(train)).wish is Wish.STOPPED
    assert [event[:2] for event in await house.events()] == [("environment.start", "refused")]


# ---- choosing another --------------------------------------------------------------------------------------------
async def test_another_life_cycle_counts_from_now(house: House, alice: Caller, bob: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    await house.after(119)
    assert (await house.row(train)).warned is not None
    await house.environments.set_lifecycle(alice, "train", OFFICE)
    row = await house.row(train)
    assert (row.lifecycle, row.start_at, row.warned) == (Lifecycle.SCHEDULED, "0 8 * * *", None)
    await house.environments.set_lifecycle(alice, "train", LifecycleChoice())
    row = await house.row(train)
    assert (row.lifecycle, row.start_at, row.stop_at) == (Lifecycle.PERSISTENT, "", "")
    await house.after(100_000)
    assert (await house.row(train)).wish is Wish.RUNNING
    with pytest.raises(BadInput, match="no cron expression"):
        await house.environments.set_lifecycle(alice, "train", LifecycleChoice(Lifecycle.SCHEDULED, "soon"))
    with pytest.raises(NotFound):
        await house.environments.set_lifecycle(bob, "train.alice", LifecycleChoice())


async def test_the_loop_runs(house: House, alice: Caller) -> None:
    train = await house.add(alice, ON_DEMAND)
    house.moment += timedelta(minutes=110)
    task = asyncio.create_task(house.loop.run())
    try:
        async with asyncio.timeout(20):
            while (await house.row(train)).warned is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
