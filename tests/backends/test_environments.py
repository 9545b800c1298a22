"""The use cases about environments: what is written down, and what is refused with which words."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments, settled
from backends.planning import Request
from backends.settings import BackendSettings, EnvironmentSettings
from storage.access import Action, Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, Failed, NotAllowed, NotFound, OverQuota, TimedOut
from storage.records import AuditEvent, Environment, EnvironmentState, Wish


@pytest.fixture
async def environments(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> Environments:
    engine = MemoryEngine(tmp_path / "memory")
    computes = {name: MemoryCompute(engine, name=name) for name in ("local", "docker")}
    settings = BackendSettings(environments=EnvironmentSettings(limit_per_user=3, ready_seconds=0))
    return Environments(database, audit, changes, computes, settings)


async def set_state(database: Database, environment: Environment, state: EnvironmentState, reason: str = "") -> None:
    async with database.writing() as tx:
        row = await tx.get_one(Environment, environment.id)
        row.state, row.reason = state, reason


async def test_create_writes_a_wish_a_record_and_an_event(
    environments: Environments, database: Database, alice: Caller
) -> None:
    made = await environments.create(alice, Request("train", cpus=2, memory=1 << 30, variables={"A": "b"}))
    assert (made.state, made.wish) == (EnvironmentState.REQUESTED, Wish.RUNNING)
    assert (made.compute, made.image) == ("docker", "debian:bookworm")
    async with database.reading() as tx:
        event = await tx.scalar(select(AuditEvent).where(AuditEvent.action == "environment.create"))
    assert event is not None
    assert (event.actor, event.thing, event.detail["memory"]) == ("alice", "train", 1 << 30)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("Train"), "no possible environment name"),
        (Request("a/b"), "no possible environment name"),
        (Request("train", compute="moon"), "there is no compute 'moon' (offered: docker, local)"),
        (Request("train", compute="local", image="debian"), "takes no image"),
        (Request("train", cpus=-1), "cpus must be"),
        (Request("train", cpus=float("nan")), "cpus must be"),
        (Request("train", memory=1 << 64), "memory must be at most"),
        (Request("train", memory=1), "memory must be at least 64MiB"),
        (Request("train", variables={"LD_PRELOAD": "x"}), "'LD_PRELOAD' cannot be set"),
        (Request("train", variables={"ASHORE_X": "x"}), "'ASHORE_X' cannot be set"),
        (Request("train", variables={"a-b": "x"}), "'a-b' cannot be set"),
        (Request("train", variables={"A": "x\ny"}), "must be one line"),
    ],
)
async def test_what_is_refused(environments: Environments, alice: Caller, request_: Request, words: str) -> None:
    plan = await environments.plan(alice, request_)
    assert any(words in refusal for refusal in plan.refusals)
    with pytest.raises(BadInput) as caught:
        await environments.create(alice, request_)
    assert words in caught.value.message


async def test_a_name_twice_and_one_too_many(environments: Environments, alice: Caller, bob: Caller) -> None:
    await environments.create(alice, Request("a"))
    with pytest.raises(AlreadyExists):
        await environments.create(alice, Request("a"))
    await environments.create(bob, Request("a"))
    await environments.create(alice, Request("b"))
    await environments.create(alice, Request("c"))
    with pytest.raises(OverQuota):
        await environments.create(alice, Request("d"))


async def test_others_do_not_see_it(environments: Environments, alice: Caller, bob: Caller, admin: Caller) -> None:
    await environments.create(alice, Request("train"))
    for name in ("train", "train.alice"):
        with pytest.raises(NotFound):
            await environments.show(bob, name)
        with pytest.raises(NotFound):
            await environments.delete(bob, name)
    assert (await environments.show(admin, "train.alice")).name == "train"
    with pytest.raises(NotAllowed):
        await environments.open(admin, Action.SHELL, "train.alice")
    assert await environments.list(bob) == []
    assert [row.name for row in await environments.list(admin, everybody=True)] == ["train"]
    with pytest.raises(NotAllowed):
        await environments.list(bob, everybody=True)


async def test_a_dot_belongs_to_my_own_name_first(environments: Environments, alice: Caller) -> None:
    await environments.create(alice, Request("train.alice"))
    assert (await environments.show(alice, "train.alice")).name == "train.alice"
    with pytest.raises(NotFound):
        await environments.show(alice, "train")


async def test_wishes_grow_the_version(environments: Environments, alice: Caller) -> None:
    made = await environments.create(alice, Request("train"))
    stopped = await environments.stop(alice, "train")
    assert (stopped.wish, stopped.version) == (Wish.STOPPED, made.version + 1)
    restarted = await environments.restart(alice, "train")
    assert (restarted.wish, restarted.restarts, settled(restarted)) == (Wish.RUNNING, 1, False)
    await environments.delete(alice, "train")
    with pytest.raises(Conflict):
        await environments.start(alice, "train")
    with pytest.raises(Conflict):
        await environments.open(alice, Action.SHELL, "train")


async def test_start_is_the_way_out_of_failed(environments: Environments, database: Database, alice: Caller) -> None:
    made = await environments.create(alice, Request("train"))
    await set_state(database, made, EnvironmentState.FAILED, "no room")
    with pytest.raises(Failed, match="'train' failed: no room"):
        await environments.wait(alice, "train")
    started = await environments.start(alice, "train")
    assert (started.state, started.reason) == (EnvironmentState.REQUESTED, "")


async def test_wait_does_not_wait_for_ever(
    database: Database, audit: AuditTrail, changes: Changes, environments: Environments, alice: Caller
) -> None:
    await environments.create(alice, Request("train"))
    times = (now() + timedelta(seconds=200 * number) for number in count())
    hasty = Environments(database, audit, changes, {}, BackendSettings(), lambda: next(times))
    with pytest.raises(TimedOut):
        await hasty.wait(alice, "train")


async def test_logs_of_what_was_never_made_are_empty(environments: Environments, alice: Caller) -> None:
    await environments.create(alice, Request("train"))
    assert [piece async for piece in environments.logs(alice, "train")] == []


async def test_what_may_not_be_seen_is_not_confirmed(environments: Environments, alice: Caller, bob: Caller) -> None:
    """`train.alice` and `never.alice` answer with the same words, or bob learns what alice's are called."""
    await environments.create(alice, Request("train"))
    for use in (environments.show, environments.stop, environments.delete):
        with pytest.raises(NotFound, match=r"^there is no environment 'train\.alice'$"):
            await use(bob, "train.alice")
        with pytest.raises(NotFound, match=r"^there is no environment 'never\.alice'$"):
            await use(bob, "never.alice")
