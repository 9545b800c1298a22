"""Environments through their lives: wishes, crashes, engines that are away, and what the audit trail says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backends.compute.contract import RegistryAway, State, WorkloadSpec
from backends.compute.memory import MISSING_IMAGE, MemoryCompute, MemoryEngine, Workload
from backends.environments import Environments
from backends.planning import Request
from backends.reconcilers import environments as module
from backends.reconcilers import loop as loop_module
from backends.reconcilers import pulls
from backends.reconcilers.environments import AWAY, EnvironmentReconciler
from backends.settings import BackendSettings, EnvironmentSettings
from storage.access import Action, Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import Failed, NotFound
from storage.records import AuditEvent, Environment, EnvironmentState, Wish


class Guests:
    """Stands in for `backends.guest.Guests`, and counts."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.dropped: list[str] = []

    async def prepare(self, environment: Environment) -> Mapping[str, bytes]:
        self.prepared.append(environment.id)
        return {"key": b"secret"}

    async def drop(self, environment_id: str) -> None:
        self.dropped.append(environment_id)


class House:
    """A reconciler over one pretended engine, with the use cases that people have."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, folder: Path) -> None:
        self.database, self.audit, self.changes = database, audit, changes
        self.engine = MemoryEngine(folder)
        self.compute = MemoryCompute(self.engine)
        self.guests = Guests()
        self.settings = BackendSettings(
            environments=EnvironmentSettings(reconcile_seconds=0.2, ready_seconds=5, stop_grace_seconds=1)
        )
        self.environments = Environments(database, audit, changes, {"memory": self.compute}, self.settings)

    def reconciler(self, **computes: MemoryCompute) -> EnvironmentReconciler:
        return EnvironmentReconciler(
            self.database, self.audit, self.changes, computes or {"memory": self.compute}, self.guests, self.settings
        )

    @asynccontextmanager
    async def running(self, **computes: MemoryCompute) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler(**computes).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def row(self, environment: Environment) -> Environment | None:
        async with self.database.reading() as tx:
            return await tx.get(Environment, environment.id)

    async def until(self, environment: Environment, test: Callable[[Environment], bool]) -> Environment:
        row = None
        try:
            async with asyncio.timeout(60):
                while True:
                    row = await self.row(environment)
                    if row is not None and test(row):
                        return row
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it is {row and (row.state, row.wish, row.reason)}") from None

    async def until_state(self, environment: Environment, state: EnvironmentState) -> Environment:
        return await self.until(environment, lambda row: row.state is state)

    async def until_gone(self, environment: Environment) -> None:
        async with asyncio.timeout(60):
            while await self.row(environment) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def steps(self) -> list[tuple[str, str]]:
        async with self.database.reading() as tx:
            query = select(AuditEvent).where(AuditEvent.action == "environment.state").order_by(AuditEvent.seq)
            events = (await tx.scalars(query)).all()
        assert all(event.actor == "system" for event in events)
        return [(event.detail["from"], event.detail["to"]) for event in events]

    async def put(self, environment: Environment, **values: Any) -> None:
        async with self.database.writing() as tx:
            await tx.execute(update(Environment).where(Environment.id == environment.id).values(**values))

    def workload(self, environment: Environment) -> Workload:
        return self.engine.workloads[f"memory-{environment.id}"]


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.05)
    house = House(database, audit, changes, tmp_path / "memory")
    yield house
    await house.compute.close()


async def test_from_request_to_deletion(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        row = await house.until_state(environment, EnvironmentState.RUNNING)
        assert (row.reason, row.progress, bool(row.handle), bool(row.started)) == ("", "", True, True)
        assert house.workload(environment).spec.workspace == alice.workspace
        assert house.workload(environment).spec.guest_files == {"key": b"secret"}
        await house.environments.stop(alice, "train")
        await house.until_state(environment, EnvironmentState.STOPPED)
        assert environment.id in house.guests.dropped
        await house.environments.start(alice, "train")
        await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.delete(alice, "train")
        await house.until_gone(environment)
    assert not house.engine.workloads
    assert await house.steps() == [
        ("requested", "creating"), ("creating", "running"), ("running", "stopping"), ("stopping", "stopped"),
        ("stopped", "creating"), ("creating", "running"), ("running", "deleting"), ("deleting", "gone"),
    ]  # fmt: skip
    assert (await house.audit.verify()).broken_at is None


async def test_open_wakes_what_sleeps(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    lines: list[str] = []
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.stop(alice, "train")
        await house.until_state(environment, EnvironmentState.STOPPED)
        opened = await house.environments.open(alice, Action.SHELL, "train", lines.append)
    assert opened.state is EnvironmentState.RUNNING
    assert lines[0] == "train: starting"


async def test_restart(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        first = await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.restart(alice, "train")
        again = await house.environments.wait(alice, "train")
    assert (again.restarts, again.restarted) == (1, 1)
    assert again.started is not None
    assert first.started is not None
    assert again.started > first.started
    assert len(house.guests.prepared) == 2
    assert ("running", "stopping") in await house.steps()


async def test_many_at_once(house: House, alice: Caller) -> None:
    made = [await house.environments.create(alice, Request(f"train{number}")) for number in range(12)]
    async with house.running():
        for environment in made:
            await house.until_state(environment, EnvironmentState.RUNNING)


async def test_an_image_that_is_missing_fails_with_the_reason(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train", image=MISSING_IMAGE))
    async with house.running():
        with pytest.raises(Failed, match="there is no image 'missing'"):
            await house.environments.wait(alice, "train")
        await asyncio.sleep(0.6)  # it stays failed until its owner asks again
        row = await house.row(environment)
        assert row is not None
        assert (row.state, row.reason) == (EnvironmentState.FAILED, "there is no image 'missing'")
        assert len(house.guests.prepared) == 1
        await house.put(environment, image="")
        await house.environments.start(alice, "train")
        await house.until_state(environment, EnvironmentState.RUNNING)


async def test_a_start_that_fails_gives_everything_back(house: House, alice: Caller) -> None:
    house.engine.fail_start = "no room on this machine"
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert (row.reason, row.handle) == ("no room on this machine", "")
    assert not house.engine.workloads
    assert environment.id in house.guests.dropped


async def test_a_later_start_that_fails_keeps_the_home(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        (house.workload(environment).home / "thesis").write_text("months of work")
        await house.environments.stop(alice, "train")
        await house.until_state(environment, EnvironmentState.STOPPED)
        house.engine.fail_start = "no room on this machine"
        await house.environments.start(alice, "train")
        await house.until_state(environment, EnvironmentState.FAILED)
    assert (house.workload(environment).home / "thesis").read_text() == "months of work"


async def test_what_is_not_ready_in_time_fails(house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    house.settings = BackendSettings(environments=EnvironmentSettings(ready_seconds=1, reconcile_seconds=0.2))

    async def start(handle: str, spec: object, progress: Callable[[str], None]) -> None:
        progress("pulling\x1b[31m layers")
        await asyncio.sleep(60)

    monkeypatch.setattr(house.compute, "start", start)
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        shown = await house.until(environment, lambda row: row.progress.startswith("pulling"))
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert "\x1b" not in shown.progress
    assert "not ready within 1 s" in row.reason
    assert "pulling" in row.reason
    assert not house.engine.workloads


class Pulling(MemoryCompute):
    """Its engine gets images from a registry: `pull` does it."""

    def __init__(self, engine: MemoryEngine, pull: Callable[[Callable[[str], None]], Awaitable[None]]) -> None:
        super().__init__(engine)
        self.pull, self.tries, self.has_image = pull, 0, False

    async def lacks_image(self, spec: WorkloadSpec) -> bool:
        await self.check()
        return not self.has_image

    async def bring_image(self, spec: WorkloadSpec, progress: Callable[[str], None]) -> None:
        self.tries += 1
        await self.pull(progress)
        self.has_image = True


async def test_a_pull_may_take_longer_than_an_environment_may(house: House, alice: Caller) -> None:
    """An image of 20 GB takes longer than any start, and used to count as one."""
    house.settings = BackendSettings(
        environments=EnvironmentSettings(ready_seconds=3, reconcile_seconds=0.2, pull_stall_minutes=1)
    )

    async def pull(progress: Callable[[str], None]) -> None:
        for _ in range(24):
            progress("pulling big:1 \x1b[31m78 %")
            await asyncio.sleep(0.25)

    environment = await house.environments.create(alice, Request("train"))
    async with house.running(memory=Pulling(house.engine, pull)):
        shown = await house.until(environment, lambda row: row.progress.startswith("pulling big:1"))
        assert "\x1b" not in shown.progress
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.RUNNING
        assert len(house.guests.prepared) == 1


async def test_a_pull_that_stands_still_fails(house: House, alice: Caller) -> None:
    house.settings = BackendSettings(
        environments=EnvironmentSettings(reconcile_seconds=0.2, pull_stall_minutes=0.005, pull_retry_minutes=0)
    )

    async def pull(progress: Callable[[str], None]) -> None:
        progress("pulling big:1 78 %")
        await asyncio.sleep(600)

    environment = await house.environments.create(alice, Request("train"))
    async with house.running(memory=Pulling(house.engine, pull)):
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert row.reason == "the pull of its image stood still for 0.005 min (pulling big:1 78 %)"
    assert not house.guests.prepared


async def test_a_registry_that_is_away_is_asked_again(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be taken for one that has no such image, and the environment waited for hands."""
    monkeypatch.setattr(pulls, "_FIRST_PAUSE", 0.1)

    async def pull(progress: Callable[[str], None]) -> None:
        progress("pulling big:1")
        if compute.tries < 4:
            raise RegistryAway("no registry gives the image 'big:1' now (connection refused)")

    compute = Pulling(house.engine, pull)
    environment = await house.environments.create(alice, Request("train"))
    async with house.running(memory=compute):
        await house.until(environment, lambda row: row.progress.startswith("tried again in 0."))
        await house.until_state(environment, EnvironmentState.RUNNING)
    assert compute.tries == 4
    assert ("creating", "failed") not in await house.steps()


async def test_a_registry_that_stays_away_fails_in_the_end(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "_FIRST_PAUSE", 0.05)
    house.settings = BackendSettings(environments=EnvironmentSettings(reconcile_seconds=0.2, pull_retry_minutes=0.01))

    async def pull(progress: Callable[[str], None]) -> None:
        progress("pulling big:1")
        raise RegistryAway("no registry gives the image 'big:1' now (connection refused)")

    compute = Pulling(house.engine, pull)
    environment = await house.environments.create(alice, Request("train"))
    async with house.running(memory=compute):
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert row.reason == "no registry gives the image 'big:1' now (connection refused)"
    assert compute.tries > 1


async def test_pulls_take_no_place_from_others_and_end_with_the_wish(house: House, alice: Caller) -> None:
    ended: list[str] = []

    async def pull(progress: Callable[[str], None]) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("pull")

    compute = Pulling(house.engine, pull)
    slow = [await house.environments.create(alice, Request(f"slow{number}")) for number in range(9)]
    async with house.running(memory=compute):
        async with asyncio.timeout(60):
            while compute.tries < 9:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await house.environments.delete(alice, "slow0")
        await house.until_gone(slow[0])
        assert ended == ["pull"]
        compute.has_image = True
        other = await house.environments.create(alice, Request("other"))
        await house.until_state(other, EnvironmentState.RUNNING)


async def test_an_engine_that_stays_away_fails_a_start_that_waits_for_its_image(house: House, alice: Caller) -> None:
    house.settings = BackendSettings(environments=EnvironmentSettings(ready_seconds=1, reconcile_seconds=0.2))
    house.engine.away = True

    async def pull(progress: Callable[[str], None]) -> None:
        raise AssertionError("nobody is there to pull")

    environment = await house.environments.create(alice, Request("train"))
    async with house.running(memory=Pulling(house.engine, pull)):
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert AWAY in row.reason


@pytest.mark.parametrize("wish", [Wish.DELETED, Wish.STOPPED])
async def test_a_change_of_mind_ends_the_making(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch, wish: Wish
) -> None:
    cancelled = asyncio.Event()

    async def start(handle: str, spec: object, progress: Callable[[str], None]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    monkeypatch.setattr(house.compute, "start", start)
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.CREATING)
        if wish is Wish.DELETED:
            await house.environments.delete(alice, "train")
            await house.until_gone(environment)
            assert not house.engine.workloads
        else:
            await house.environments.stop(alice, "train")
            await house.until_state(environment, EnvironmentState.STOPPED)
    assert cancelled.is_set()


async def test_a_crash_while_creating_is_gone_on_with(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    reconciler = house.reconciler()
    await reconciler.act(environment.id)
    # As if the gateway had ended between the engine's answer and the note of it.
    await house.put(environment, state=EnvironmentState.CREATING, handle="", started=None)
    async with house.running():
        row = await house.until_state(environment, EnvironmentState.RUNNING)
    assert row.handle == f"memory-{environment.id}"
    assert len(house.engine.workloads) == 1


async def test_a_crash_while_creating_then_deleted_leaves_nothing(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    await house.reconciler().act(environment.id)
    await house.put(environment, state=EnvironmentState.CREATING, handle="", wish=Wish.DELETED)
    async with house.running():
        await house.until_gone(environment)
    assert not house.engine.workloads


async def test_a_workload_removed_behind_our_back(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        house.engine.remove(f"memory-{environment.id}")
        row = await house.until_state(environment, EnvironmentState.FAILED)
        assert "removed" in row.reason
        assert environment.id in house.guests.dropped
        await house.environments.start(alice, "train")
        await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.stop(alice, "train")
        await house.until_state(environment, EnvironmentState.STOPPED)
        house.engine.remove(f"memory-{environment.id}")
        row = await house.until(environment, lambda row: bool(row.reason))
        assert (row.state, "removed" in row.reason) == (EnvironmentState.STOPPED, True)
        await house.environments.delete(alice, "train")
        await house.until_gone(environment)


async def test_a_program_that_ended_by_itself(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        house.workload(environment).state = State.STOPPED
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert row.reason == "its main program ended"


async def test_what_somebody_else_started_is_stopped(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.stop(alice, "train")
        await house.until_state(environment, EnvironmentState.STOPPED)
        house.workload(environment).state = State.RUNNING
        async with asyncio.timeout(60):
            while house.workload(environment).state is State.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_an_engine_that_is_away_changes_no_state(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        house.engine.away = True
        row = await house.until(environment, lambda row: bool(row.reason))
        assert (row.state, row.reason) == (EnvironmentState.RUNNING, AWAY)
        version = row.version
        house.engine.away = False
        row = await house.until(environment, lambda row: not row.reason)
    assert (row.state, row.version) == (EnvironmentState.RUNNING, version)


async def test_an_engine_that_comes_back_in_time(house: House, alice: Caller) -> None:
    house.engine.away = True
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        row = await house.until(environment, lambda row: row.reason == AWAY)
        assert row.state is EnvironmentState.CREATING
        await asyncio.sleep(0.3)
        assert len(house.guests.prepared) < 10  # it waits longer and longer between its tries
        house.engine.away = False
        await house.until_state(environment, EnvironmentState.RUNNING)


async def test_an_engine_that_stays_away_fails_a_start_in_the_end(house: House, alice: Caller) -> None:
    house.settings = BackendSettings(environments=EnvironmentSettings(ready_seconds=1, reconcile_seconds=0.2))
    house.engine.away = True
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        row = await house.until_state(environment, EnvironmentState.FAILED)
    assert AWAY in row.reason


async def test_what_could_not_be_given_back_is_given_back_later(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    await house.reconciler().act(environment.id)
    await house.put(environment, state=EnvironmentState.FAILED, started=None)
    async with house.running():
        async with asyncio.timeout(60):
            while house.engine.workloads:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        row = await house.row(environment)
    assert row is not None
    assert row.state is EnvironmentState.FAILED


async def test_delete_waits_for_an_engine_that_is_away(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        house.engine.away = True
        await house.environments.delete(alice, "train")
        await house.until(environment, lambda row: row.reason == AWAY and row.state is EnvironmentState.DELETING)
        house.engine.away = False
        await house.until_gone(environment)
    assert not house.engine.workloads


async def test_a_compute_that_is_not_there_is_named(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    reconciler = house.reconciler(other=house.compute)
    assert environment.id in await reconciler.look()
    await reconciler.act(environment.id)
    row = await house.row(environment)
    assert row is not None
    assert row.reason == "the compute 'memory' is not there now"


async def test_a_workload_without_a_record_is_left_alone(
    house: House, alice: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        async with house.database.writing() as tx:
            await tx.delete(await tx.get_one(Environment, environment.id))
        await asyncio.sleep(0.6)
    assert house.workload(environment).state is State.RUNNING
    warnings = [line for line in caplog.messages if "no record" in line]
    assert len(warnings) == 1
    assert environment.id in warnings[0]


async def test_a_change_by_somebody_else_wins(house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner stops it in the very moment in which it comes up: the record must not say `running` for good."""
    original = house.compute.start

    async def start(handle: str, spec: Any, progress: Callable[[str], None]) -> None:
        await original(handle, spec, progress)
        await house.environments.stop(alice, "train")

    monkeypatch.setattr(house.compute, "start", start)
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.STOPPED)
    assert house.workload(environment).state is State.STOPPED
    assert ("creating", "running") not in await house.steps()


async def test_wait_tells_that_it_was_deleted(house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("train"))
    async with house.running():
        await house.until_state(environment, EnvironmentState.RUNNING)
        await house.environments.delete(alice, "train")
        with pytest.raises(NotFound):
            await house.environments.wait(alice, "train")
