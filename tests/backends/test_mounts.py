"""Data sets and models for environments: what may be chosen, what is written down, and what a start makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.data_sites import Sites
from backends.environments import Environments
from backends.mounts import MOST, Choice, EnvironmentData
from backends.planning import Request
from backends.reconcilers.cache import CacheKeeper
from backends.reconcilers.environments import EnvironmentReconciler
from backends.settings import BackendSettings, CacheSettings, EnvironmentSettings
from storage.access import Caller, Visibility
from storage.accounts import Accounts
from storage.asset_views import Reference
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, Failed, InUse, Unavailable
from storage.models import Models
from storage.records import (
    AssetKind,
    AssetVersion,
    AuditEvent,
    Environment,
    EnvironmentState,
    User,
    VersionState,
    Workspace,
)
from storage.uses import Uses
from tests.backends.test_reconciler_environments import Guests
from tests.storage.memory_store import MemoryStore


class House:
    """Everything from the data set to the pretended engine; `Guests` stand in for the SSH servers."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, data: Path) -> None:
        self.database, self.audit, self.changes, self.data = database, audit, changes, data
        self.store = MemoryStore()
        self.datasets = Datasets(database, audit, changes, self.store)
        self.models = Models(database, audit, changes, self.store)
        self.engine = MemoryEngine(data / "memory")
        self.compute = MemoryCompute(self.engine)
        self.settings = BackendSettings(
            environments=EnvironmentSettings(reconcile_seconds=0.2, ready_seconds=5, stop_grace_seconds=1)
        )
        self.environments = Environments(database, audit, changes, {"memory": self.compute}, self.settings)
        self.copies = data / "cache"
        computes = {"memory": self.compute}
        backends = self.settings.model_copy(update={"cache": CacheSettings(spare_gib=0)})
        self.sites = Sites(data, self.store, audit, backends, computes, Uses(database))
        self.source = EnvironmentData(database, accounts, self.sites)

    async def dataset(self, owner: Caller, name: str, version: str = "v1", *, published: bool = True) -> str:
        """A version with one file that says which it is; its id."""
        view = {view.name: view for view in await self.datasets.list(owner)}.get(name)
        if view is None:
            await self.datasets.create(owner, name)
        await self.datasets.create_version(owner, name, version)
        await self.store.put(f"datasets/{owner.workspace}/{name}/{version}/file", f"{name} {version}".encode())
        if published:
            await self.datasets.publish(owner, name, version)
        return (await self.datasets.show(owner, name)).version(version).id

    async def model(self, owner: Caller, name: str) -> str:
        await self.models.create(owner, name)
        await self.models.create_version(owner, name, "v1")
        await self.store.put(f"models/{owner.workspace}/{name}/v1/weights", name.encode())
        return (await self.models.publish(owner, name, "v1")).id

    async def refusals(self, caller: Caller, *choices: Choice) -> list[str]:
        return list((await self.environments.plan(caller, Request("probe", data=choices))).refusals)

    async def paths(self, caller: Caller, *choices: Choice) -> dict[str, str]:
        plan = await self.environments.plan(caller, Request("probe", data=choices))
        assert not plan.refusals
        return {one.path: one.reference for one in plan.mounts}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        reconciler = EnvironmentReconciler(
            self.database, self.audit, self.changes, {"memory": self.compute}, Guests(), self.settings,
            data=self.source,
        )  # fmt: skip
        task = asyncio.create_task(reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def inside(self, environment: Environment, path: str) -> bytes:
        return (self.engine.workloads[f"memory-{environment.id}"].root / path.lstrip("/")).read_bytes()

    async def until(self, test: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(60):
            while not await test():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_gone(self, caller: Caller) -> None:
        async def gone() -> bool:
            return not await self.environments.list(caller)

        await self.until(gone)

    async def until_progress(self, caller: Caller, start: str) -> None:
        async def shown() -> bool:
            return (await self.environments.show(caller, "train")).progress.startswith(start)

        await self.until(shown)

    async def events(self, action: str) -> list[tuple[str, str]]:
        async with self.database.reading() as tx:
            rows = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == action))).all()
        return [(row.actor, row.thing) for row in rows]


@pytest.fixture
def house(database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, data_dir: Path) -> House:
    return House(database, audit, changes, accounts, data_dir)


@pytest.fixture
async def eve(database: Database, bob: Caller) -> Caller:
    """Somebody of the workspace `lab`."""
    async with database.writing() as tx:
        lab = Workspace(name="lab", created=now())
        tx.add(lab)
        await tx.flush()
        await tx.execute(update(User).where(User.id == bob.user_id).values(workspace_id=lab.id))
    return replace(bob, workspace_id=lab.id, workspace="lab")


def data(reference: str) -> Choice:
    return Choice(AssetKind.DATASET, reference)


def model(reference: str) -> Choice:
    return Choice(AssetKind.MODEL, reference)


# ---- choosing ----------------------------------------------------------------------------------------------------
async def test_the_order_of_each_kind_numbers_its_paths(house: House, alice: Caller) -> None:
    for name in ("a", "b"):
        await house.dataset(alice, name)
        await house.model(alice, f"m-{name}")
    assert await house.paths(alice, model("m-b"), data("b"), data("a:v1"), model("m-a")) == {
        "/gemini/pretrain1": "m-b:v1", "/gemini/data-1": "b:v1", "/gemini/data-2": "a:v1",
        "/gemini/pretrain2": "m-a:v1",
    }  # fmt: skip


async def test_without_a_version_it_is_the_default_one_and_stays_that(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a", "v1")
    await house.environments.create(alice, Request("train", data=(data("a"),)))
    await house.dataset(alice, "a", "v2")
    assert await house.paths(alice, data("a")) == {"/gemini/data-1": "a:v2"}
    (environment,) = await house.environments.list(alice)
    found = await house.environments.mounts(alice, [environment])
    assert [one.reference(alice.workspace) for one in found[environment.id]] == ["a:v1"]
    await house.datasets.change(alice, "a", default_version="v1")
    assert await house.paths(alice, data("a")) == {"/gemini/data-1": "a:v1"}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (data("nothing"), "there is no data set 'nothing'"),
        (model("a"), "there is no model 'a'"),
        (data("a:v9"), "the data set 'a' has no version 'v9'"),
        (data("void"), "the data set 'void' has no version at all"),
        (data("../x"), "no possible"),
        (data("a:../../x"), "no possible version name"),
        (data(""), "no possible data set name"),
        (data("lab/theirs:v1"), "there is no data set"),
        (data("broken:v1"), "'broken:v1' is broken and cannot be mounted"),
    ],
)
async def test_what_cannot_be_mounted(
    house: House, database: Database, alice: Caller, eve: Caller, choice: Choice, words: str
) -> None:
    await house.dataset(alice, "a")
    await house.datasets.create(alice, "void")
    await house.dataset(eve, "theirs")
    broken = await house.dataset(alice, "broken")
    async with database.writing() as tx:
        await tx.execute(update(AssetVersion).where(AssetVersion.id == broken).values(state=VersionState.ERROR))
    (refusal,) = await house.refusals(alice, choice)
    assert words in refusal
    with pytest.raises(BadInput):
        await house.environments.create(alice, Request("train", data=(choice,)))
    assert await house.environments.list(alice) == []
    assert await house.events("dataset.mount") == []


async def test_twice_the_same_and_too_many(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a")
    assert await house.refusals(alice, data("a"), data("a:v1")) == ["'a:v1' was chosen twice"]
    assert "at most" in (await house.refusals(alice, *[data("a")] * (MOST + 1)))[0]


async def test_what_another_workspace_gives(house: House, alice: Caller, eve: Caller) -> None:
    await house.dataset(eve, "shared", "v1", published=False)
    await house.datasets.change(eve, "shared", visibility=Visibility.PRIVATE)
    assert "there is no data set" in (await house.refusals(alice, data("lab/shared")))[0]
    await house.datasets.change(eve, "shared", visibility=Visibility.PUBLIC)
    assert await house.refusals(alice, data("lab/shared")) == [
        "'lab/shared:v1' is not published yet: only its own workspace may mount it"
    ]
    assert await house.paths(eve, data("shared")) == {"/gemini/data-1": "shared:v1"}
    await house.datasets.publish(eve, "shared", "v1")
    assert await house.paths(alice, data("lab/shared")) == {"/gemini/data-1": "lab/shared:v1"}


async def test_a_link_is_mounted_as_what_it_leads_to(house: House, alice: Caller, eve: Caller) -> None:
    target = await house.model(eve, "bert")
    await house.models.change(eve, "bert", visibility=Visibility.PUBLIC)
    await house.models.create(alice, "mine")
    await house.models.link(alice, "mine", "base", Reference("bert", "v1", "lab"))
    async with house.running():
        made = await house.environments.create(alice, Request("train", data=(model("mine:base"),)))
        await house.environments.wait(alice, "train")
        assert house.inside(made, "/gemini/pretrain1/weights") == b"bert"
    assert (house.copies / target / "files").is_dir()
    with pytest.raises(InUse, match="is mounted in train"):
        await house.models.delete_version(alice, "mine", "base")
    with pytest.raises(InUse, match="is linked by"):
        await house.models.delete(eve, "bert")
    # Private again: what the link leads to is nobody else's any more, also at the next start.
    await house.models.change(eve, "bert", visibility=Visibility.PRIVATE)
    async with house.running():
        await house.environments.restart(alice, "train")
        with pytest.raises(Failed, match="'mine:base' cannot be read by 'alice' any more"):
            await house.environments.wait(alice, "train")


# ---- what is written down ----------------------------------------------------------------------------------------
async def test_create_writes_uses_events_and_a_variable(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a")
    await house.model(alice, "m")
    made = await house.environments.create(alice, Request("train", variables={"A": "b"}, data=(model("m"), data("a"))))
    assert made.variables == {"A": "b", "ASHORE_DATA": "/gemini/pretrain1=m:v1 /gemini/data-1=a:v1"}
    assert await house.events("dataset.mount") == [("alice", "a:v1")]
    assert await house.events("model.mount") == [("alice", "m:v1")]
    (use,) = await Uses(house.database).history(alice, AssetKind.DATASET, "a")
    assert (use.environment, use.path, use.unmounted) == ("train", "/gemini/data-1", None)


async def test_what_is_mounted_is_not_deleted_until_the_environment_is_gone(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a")
    await house.dataset(alice, "a", "v2")
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a:v1"),)))
        await house.environments.wait(alice, "train")
        for delete in (house.datasets.delete(alice, "a"), house.datasets.delete_version(alice, "a", "v1")):
            with pytest.raises(InUse, match=r"is mounted in train \(alice\): delete that environment first"):
                await delete
        await house.datasets.delete_version(alice, "a", "v2")
        await house.environments.stop(alice, "train")
        await house.environments.wait(alice, "train")
        with pytest.raises(InUse):
            await house.datasets.delete(alice, "a")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
        await house.datasets.delete(alice, "a")


async def test_deleting_and_mounting_at_once(house: House, alice: Caller) -> None:
    """One of the two wins; never is there an environment whose data set is gone."""
    for number in range(5):
        name = f"a{number}"
        await house.dataset(alice, name)
        made, gone = await asyncio.gather(
            house.environments.create(alice, Request(f"e{number}", data=(data(name),))),
            house.datasets.delete(alice, name),
            return_exceptions=True,
        )
        assert isinstance(made, AshoreError) != isinstance(gone, AshoreError), (made, gone)


# ---- starting ----------------------------------------------------------------------------------------------------
async def test_it_starts_with_its_data_and_tells_how_far_it_is(house: House, alice: Caller) -> None:
    version = await house.dataset(alice, "a")
    for number in range(30):
        await house.store.put(f"datasets/{alice.workspace}/a/v1/{number}", bytes(1000))
    go = asyncio.Event()
    get = house.store.get

    async def slow(key: str, **more: object) -> bytes:
        if key.endswith("/29"):
            await go.wait()
        return await get(key, **more)  # type: ignore[arg-type]

    house.store.get = slow  # type: ignore[method-assign, assignment]
    async with house.running():
        made = await house.environments.create(alice, Request("train", data=(data("a"),)))
        said: list[str] = []
        waiting = asyncio.create_task(house.environments.wait(alice, "train", on_progress=said.append))
        await house.until_progress(alice, "data a:v1 9")
        # Meanwhile others come up: data on their way take no place in the queue.
        await house.environments.create(alice, Request("other"))
        await house.environments.wait(alice, "other")
        go.set()
        assert (await waiting).state is EnvironmentState.RUNNING
        assert any("data a:v1 9" in line for line in said)
    assert house.inside(made, "/gemini/data-1/file") == b"a v1"
    assert house.inside(made, "/gemini/data-1/29") == bytes(1000)
    assert (house.copies / version / "files").is_dir()


async def test_data_may_take_longer_than_an_environment_may(house: House, alice: Caller) -> None:
    house.settings = BackendSettings(
        environments=EnvironmentSettings(reconcile_seconds=0.2, ready_seconds=1, stop_grace_seconds=1)
    )
    await house.dataset(alice, "a")
    get = house.store.get

    async def slow(key: str, **more: object) -> bytes:
        await asyncio.sleep(2)
        return await get(key, **more)  # type: ignore[arg-type]

    house.store.get = slow  # type: ignore[method-assign, assignment]
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a"),)))
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.RUNNING


async def test_what_goes_wrong_is_said_and_start_tries_again(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.data_sync._PAUSES", (0.0,))
    await house.dataset(alice, "a")
    house.store.fault = lambda method, key: Unavailable("the object store does not answer") if method == "get" else None
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a"),)))
        with pytest.raises(Failed, match="'train' failed: the object store does not answer"):
            await house.environments.wait(alice, "train")
        house.store.fault = lambda method, key: None
        await house.environments.start(alice, "train")
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.RUNNING


async def test_a_host_that_goes_away_meanwhile_is_waited_for(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of transfer to another machine are not given up for a cable: they go on when it is back."""
    monkeypatch.setattr("backends.data_sync._PAUSES", (0.0,))
    await house.dataset(alice, "a")
    house.store.fault = lambda method, key: Unavailable("it does not answer") if method == "get" else None
    house.engine.away = True
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a"),)))
        async with asyncio.timeout(30):
            while (row := await house.environments.show(alice, "train")).reason != "the engine does not answer":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert row.state is EnvironmentState.CREATING
        house.store.fault = lambda method, key: None
        house.engine.away = False
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.RUNNING


async def test_a_change_of_mind_ends_the_transfer(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a")
    never = asyncio.Event()

    async def stuck(key: str, **more: object) -> bytes:
        await never.wait()
        return b""

    get, house.store.get = house.store.get, stuck  # type: ignore[method-assign, assignment]
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a"),)))
        await house.until_progress(alice, "data a:v1 0 %")
        await house.environments.stop(alice, "train")
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.STOPPED
        house.store.get = get  # type: ignore[method-assign]
        await house.environments.start(alice, "train")
        assert (await house.environments.wait(alice, "train")).state is EnvironmentState.RUNNING


async def test_a_reconciler_that_dies_is_followed_by_one_that_goes_on(house: House, alice: Caller) -> None:
    await house.dataset(alice, "a")
    never = asyncio.Event()

    async def stuck(key: str, **more: object) -> bytes:
        await never.wait()
        return b""

    get, house.store.get = house.store.get, stuck  # type: ignore[method-assign, assignment]
    async with house.running():
        made = await house.environments.create(alice, Request("train", data=(data("a"),)))
        await house.until_progress(alice, "data a:v1")
    house.store.get = get  # type: ignore[method-assign]
    async with house.running():
        await house.environments.wait(alice, "train")
    assert house.inside(made, "/gemini/data-1/file") == b"a v1"


async def test_somebody_who_may_not_come_in_any_more(house: House, database: Database, alice: Caller) -> None:
    await house.dataset(alice, "a")
    await house.environments.create(alice, Request("train", data=(data("a"),)))
    async with database.writing() as tx:
        await tx.execute(update(User).where(User.id == alice.user_id).values(disabled=True))
    async with house.running():
        with pytest.raises(Failed, match="there is no user 'alice'"):
            await house.environments.wait(alice, "train")


# ---- copies and their owners -------------------------------------------------------------------------------------
async def test_in_use_are_those_of_environments_that_are_not_at_rest(house: House, alice: Caller) -> None:
    version = await house.dataset(alice, "a")
    uses = Uses(house.database)
    assert await uses.sources_in_use() == set()
    await house.environments.create(alice, Request("train", data=(data("a"),)))
    assert await uses.sources_in_use() == {version}
    async with house.running():
        await house.environments.wait(alice, "train")
        assert await uses.sources_in_use() == {version}
        await house.environments.stop(alice, "train")
        await house.environments.wait(alice, "train")
        assert await uses.sources_in_use() == set()


async def test_deleted_data_leave_this_machine(house: House, alice: Caller) -> None:
    version = await house.dataset(alice, "a")
    other = await house.dataset(alice, "b")
    async with house.running():
        await house.environments.create(alice, Request("train", data=(data("a"), data("b"))))
        await house.environments.wait(alice, "train")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    keeper = CacheKeeper(house.sites, house.database, house.changes)
    await keeper.sweep()
    assert (house.copies / version / "files").is_dir()
    await house.datasets.delete(alice, "a")
    await keeper.sweep()
    assert not (house.copies / version / "files").exists()
    assert (house.copies / other / "files").is_dir()
    assert await house.events("cache.evict") == [("system", "data a:v1")]
