"""What environments leave: kept when they are deleted, whatever happens meanwhile, and never longer than was said."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import func, select

from backends.compute.contract import State
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.files import Files
from backends.lifecycle import LifecycleChoice, Step, due
from backends.outputs import Outputs, kept_name
from backends.planning import Request
from backends.reconcilers import environments as module
from backends.reconcilers import loop as loop_module
from backends.reconcilers.artifacts import ArtifactReconciler
from backends.reconcilers.environments import EnvironmentReconciler
from backends.settings import BackendSettings, EnvironmentSettings, KeptOutputSettings, LifecycleSettings
from storage.access import Caller, Visibility
from storage.artifact_tree import ArtifactTree
from storage.artifacts import Artifacts, ArtifactView
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound, Unavailable
from storage.namespace import DataTree
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import Artifact, AuditEvent, Environment, EnvironmentState, FileFact, Holder, Lifecycle, Wish
from storage.settings import ObjectSettings
from storage.uploads import Uploads
from tests.backends.test_reconciler_environments import Guests
from tests.storage.memory_store import MemoryStore

MIB = 1024**2


class House:
    """The loops over one pretended engine and one pretended store, and what people have of them."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, folder: Path) -> None:
        self.database, self.audit, self.changes = database, audit, changes
        self.later = timedelta()
        self.engine = MemoryEngine(folder)
        self.compute = MemoryCompute(self.engine)
        self.store = MemoryStore()
        self.quotas = Quotas(database, audit, changes)
        self.uploads = Uploads(
            database, self.store, audit, changes, ObjectSettings(part_mib=5), quotas=self.quotas
        )  # fmt: skip
        self.settings = BackendSettings(
            environments=EnvironmentSettings(reconcile_seconds=0.2, stop_grace_seconds=1),
            lifecycle=LifecycleSettings(
                keep_output_gib=32 / 1024, keep_output_days=KeptOutputSettings(persistent=3, ephemeral=7)
            ),
        )
        self.environments = Environments(
            database, audit, changes, {"memory": self.compute}, self.settings, quotas=self.quotas
        )
        self.artifacts = Artifacts(database, audit, changes, self.store, self.now)
        tree = ArtifactTree(database, self.artifacts, self.store, self.uploads.budget)
        self.files = Files(cast("DataTree", None), self.environments, cast("Any", None), artifacts=tree)

    def now(self) -> datetime:
        return now() + self.later

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        outputs = Outputs(self.database, self.artifacts, self.uploads, self.settings.lifecycle)
        reconciler = EnvironmentReconciler(
            self.database, self.audit, self.changes, {"memory": self.compute}, Guests(), self.settings,
            outputs=outputs,
        )  # fmt: skip
        loops = [
            asyncio.create_task(reconciler.run()),
            asyncio.create_task(ArtifactReconciler(self.artifacts, self.changes, pause=0.2).run()),
        ]
        try:
            yield
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def train(self, caller: Caller, **more: Any) -> Path:
        """A running environment `train`; the folder of its output."""
        made = await self.environments.create(caller, Request("train", **more))
        await self.until(caller, lambda row: row.state is EnvironmentState.RUNNING)
        output = self.engine.workloads[f"memory-{made.id}"].home / "output"
        output.mkdir()
        return output

    async def until(self, caller: Caller, test: Callable[[Environment], bool]) -> Environment:
        row = None
        try:
            async with asyncio.timeout(60):
                while True:
                    row = await self.environments.show(caller, "train")
                    if test(row):
                        return row
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it is {row and (row.state, row.wish, row.reason, row.wish_reason)}") from None

    async def until_gone(self, caller: Caller) -> None:
        with pytest.raises(NotFound):
            await self.until(caller, lambda row: False)

    async def left(self, caller: Caller) -> ArtifactView:
        (view,) = await self.artifacts.list(caller)
        return view

    def kept(self) -> dict[str, bytes]:
        """Everything in the store, by the path below the artifact."""
        return {key.split("/", 3)[3]: bytes(one.body) for key, one in self.store.objects.items()}

    async def is_clean(self) -> bool:
        """Whether neither the store nor the records know of any artifact."""
        async with self.database.reading() as tx:
            rows = await tx.scalar(select(func.count()).select_from(Artifact))
            facts = await tx.scalar(select(func.count()).select_from(FileFact))
        return not rows and not facts and not self.store.objects and not self.store.uploads

    async def until_clean(self) -> None:
        async with asyncio.timeout(60):
            while not await self.is_clean():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def trail(self, prefix: str) -> list[AuditEvent]:
        async with self.database.reading() as tx:
            query = select(AuditEvent).where(AuditEvent.action.startswith(prefix)).order_by(AuditEvent.seq)
            return list((await tx.scalars(query)).all())


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(loop_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.05)
    house = House(database, audit, changes, tmp_path / "memory")
    yield house
    await house.uploads.close()
    await house.compute.close()


# ---- what is kept ------------------------------------------------------------------------------------------------
async def test_the_output_outlives_its_environment(house: House, alice: Caller, bob: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "runs" / "1").mkdir(parents=True)
        (output / "runs" / "1" / "loss.csv").write_text("1,2\n")
        (output / "model.bin").write_bytes(os.urandom(12 * MIB))
        os.utime(output / "model.bin", (1_700_000_000, 1_700_000_000))
        model = (output / "model.bin").read_bytes()
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    assert not house.engine.workloads
    view = await house.left(alice)
    assert (view.files, view.bytes, view.owner, view.environment) == (2, len(model) + 4, "alice", "train")
    assert view.expires is not None
    assert timedelta(days=2.9) < view.expires - now() < timedelta(days=3.1)
    assert view.name == f"train-{view.created:%Y%m%d}-{view.id[:6]}"
    assert view.prefix == f"artifacts/team/{view.name}/"
    assert house.kept() == {"runs/1/loss.csv": b"1,2\n", "model.bin": model}
    # Its owner's alone, until it is shared; then over sftp it looks like this to a colleague.
    assert [node.mode async for node in house.files.list(alice, "/artifacts")] == [0o500]
    assert [node async for node in house.files.list(bob, "/artifacts")] == []
    await house.artifacts.share(alice, view.name, Visibility.WORKSPACE)
    top = [node.name async for node in house.files.list(bob, "/artifacts")]
    assert top == [view.name]
    nodes = [node async for node in house.files.list(bob, view.path)]
    assert [(node.name, node.is_directory, node.size, node.mode) for node in nodes] == [
        ("model.bin", False, len(model), 0o444), ("runs", True, 0, 0o555),
    ]  # fmt: skip
    assert (await house.files.stat(bob, f"{view.path}/model.bin")).mtime == 1_700_000_000
    assert (await house.files.stat(bob, f"{view.path}/runs/1")).is_directory
    assert len(await house.files.digest(bob, f"{view.path}/model.bin", "sha256")) == 64
    reader = await house.files.open_reader(bob, f"{view.path}/runs/1/loss.csv")
    assert await reader.read(0, 100) == b"1,2\n"
    await reader.close()
    (event,) = [event for event in await house.trail("artifact.") if event.action == "artifact.keep"]
    assert (event.actor, event.thing, event.detail["days"]) == ("system", view.name, 3)


async def test_nothing_writes_there(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    path = (await house.left(alice)).path
    for attempt in (
        house.files.mkdir(alice, f"{path}/x"), house.files.rmdir(alice, path), house.files.remove(alice, f"{path}/a"),
        house.files.rename(alice, f"{path}/a", f"{path}/b", replace=True), house.files.set_mtime(alice, path, 1),
        house.files.open_writer(alice, f"{path}/a", truncate=True), house.files.mkdir(alice, "/artifacts/new"),
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="read-only"):
            await attempt
    for missing in (f"{path}/b", f"{path}/a/b", "/artifacts/train", "/artifacts/..", f"{path}/x\\y"):
        with pytest.raises(NotFound):
            await house.files.stat(alice, missing)


async def test_links_sockets_and_odd_names_are_told_of(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "model").write_text("weights")
        (output / "latest").symlink_to("model")
        (output / "passwd").symlink_to("/etc/passwd")
        os.mkfifo(output / "fifo")
        with socket.socket(socket.AF_UNIX) as end:
            folder = os.open(output, os.O_RDONLY)
            end.bind(f"/proc/self/fd/{folder}/s")  # the whole path may be too long for a socket
            os.close(folder)
        os.link(output / "model", output / "same")
        Path(os.fsdecode(os.fsencode(output) + b"/b\\c\xff\n")).write_text("odd")
        (output / "b%5Cc").write_text("escaped")
        (output / ("ü" * 100)).write_text("long")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    kept = house.kept()
    assert kept["model"] == kept["same"] == b"weights"
    assert kept["b%5Cc%FF%0A"] == b"odd"
    assert kept["b%255Cc"] == b"escaped"
    assert kept["ü" * 100] == b"long"
    assert "latest" not in kept
    assert "passwd" not in kept
    view = await house.left(alice)
    remarks = "\n".join(view.remarks)
    assert "latest -> model: left out, it is a symbolic link" in remarks
    assert "passwd -> /etc/passwd: left out" in remarks
    assert "fifo: left out, it is neither a file nor a folder" in remarks
    assert ": kept as b%5Cc%FF%0A" in remarks
    assert (view.files, view.unlisted) == (5, 0)


def test_names_never_meet() -> None:
    """What looks like an escape is escaped itself, or two files would get one key, and one of them be lost."""
    names = ["a\\b", "a%5Cb", "a%255Cb", "a\x01", "a%01", "%", "%%0A", "%\n", "%4\n", "%0\n", "a\udcffb", "a%FFb"]
    kept = [kept_name(name) for name in names]
    assert len(set(kept)) == len(names)
    assert kept_name("runs/100% done/50%") == "runs/100% done/50%"
    long = ["d/" * 600 + name for name in ("a", "b")] + ["\udcff" * 200, "\udcfe" * 200]
    shortened = [kept_name(name) for name in long]
    assert len(set(shortened)) == 4
    assert all(name.startswith("ashore-long-names/") and len(name) < 100 for name in shortened)


async def test_an_empty_output_leaves_nothing(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "empty").mkdir()
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
        await house.train(alice)
        (house.engine.directory / "x").mkdir()
        for workload in house.engine.workloads.values():
            (workload.home / "output").rmdir()  # not even the folder
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    assert await house.is_clean()


async def test_an_output_that_is_a_link_is_not_followed_and_not_lost(
    house: House, alice: Caller, tmp_path: Path
) -> None:
    """Whoever lives inside may put a link in its place: the gateway must not read what it leads to, nor delete it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("do not tell")
    async with house.running():
        output = await house.train(alice)
        output.rmdir()
        output.symlink_to(tmp_path / "secret")
        await house.environments.delete(alice, "train")
        row = await house.until(alice, lambda row: row.state is EnvironmentState.STOPPED and row.wish is Wish.STOPPED)
        assert "it was not deleted: its output is a link" in row.wish_reason
        await house.environments.delete(alice, "train", keep_output_days=0)
        await house.until_gone(alice)
    assert await house.is_clean()


# ---- who decides -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lifecycle", "at_create", "at_delete", "days"),
    [
        (Lifecycle.PERSISTENT, None, None, 3), (Lifecycle.EPHEMERAL, None, None, 7),
        (Lifecycle.ON_DEMAND, None, None, 0),
        (Lifecycle.PERSISTENT, 0, None, 0), (Lifecycle.ON_DEMAND, 30, None, 30), (Lifecycle.ON_DEMAND, 30, 0, 0),
        (Lifecycle.PERSISTENT, 0, 1, 1),
    ],
)  # fmt: skip
async def test_for_how_long(
    house: House, alice: Caller, lifecycle: Lifecycle, at_create: int | None, at_delete: int | None, days: int
) -> None:
    async with house.running():
        output = await house.train(alice, lifecycle=LifecycleChoice(lifecycle), keep_output_days=at_create)
        (output / "a").write_text("1")
        await house.environments.delete(alice, "train", keep_output_days=at_delete)
        await house.until_gone(alice)
    if not days:
        assert await house.is_clean()
        return
    expires = (await house.left(alice)).expires
    assert expires is not None
    assert abs(expires - now() - timedelta(days=days)) < timedelta(hours=1)


async def test_it_can_be_chosen_later(house: House, alice: Caller, bob: Caller) -> None:
    async with house.running():
        await house.train(alice)
        with pytest.raises(NotFound):
            await house.environments.set_keep_output(bob, "train.alice", 9)
        for wrong in (-1, 3651):
            with pytest.raises(BadInput, match="1 to 3650 days"):
                await house.environments.set_keep_output(alice, "train", wrong)
        assert house.environments.keep_days(await house.environments.set_keep_output(alice, "train", 9)) == 9
        assert house.environments.keep_days(await house.environments.set_keep_output(alice, "train", None)) == 3


# ---- trouble -----------------------------------------------------------------------------------------------------
async def test_it_waits_for_a_store_that_is_away(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("precious")
        house.store.fault = lambda method, key: Unavailable("the object store does not answer")
        await house.environments.delete(alice, "train")
        row = await house.until(alice, lambda row: bool(row.reason))
        assert (row.state, row.reason) == (
            EnvironmentState.DELETING, "its output waits: the object store does not answer",
        )  # fmt: skip
        assert not row.reserves
        assert (output / "a").read_text() == "precious"
        house.store.fault = lambda method, key: None
        await house.until_gone(alice)
    assert house.kept() == {"a": b"precious"}


async def test_it_waits_for_an_engine_that_breaks_off(house: House, alice: Caller) -> None:
    """What an engine has given until it went away is no whole output."""
    async with house.running():
        output = await house.train(alice)
        for number in range(40):
            (output / f"{number:02}").write_bytes(os.urandom(50_000))

        def fault(method: str, key: str) -> AshoreError | None:
            house.engine.away = house.engine.away or key.endswith("/20")
            return None

        house.store.fault = fault
        await house.environments.delete(alice, "train")
        await house.until(alice, lambda row: "does not answer" in row.reason)
        house.store.fault = lambda method, key: None
        house.engine.away = False
        await house.until_gone(alice)
    assert len(house.kept()) == 40
    assert (await house.left(alice)).files == 40


async def test_a_crash_begins_anew_and_sends_nothing_twice(house: House, alice: Caller) -> None:
    sent: list[str] = []

    def fault(method: str, key: str) -> AshoreError | None:
        if method == "put":
            if len(sent) == 3:
                return Unavailable("the gateway is about to end")
            sent.append(key)
        return None

    async with house.running():
        output = await house.train(alice)
        for name in "abcdef":
            (output / name).write_text(name)
        house.store.fault = fault
        await house.environments.delete(alice, "train")
        await house.until(alice, lambda row: bool(row.reason))
    first = [artifact.name for artifact in await house.artifacts.list(alice)]
    with pytest.raises(NotFound):  # nobody reads the half of it
        await house.files.stat(alice, f"/artifacts/{first[0]}")
    house.store.fault = lambda method, key: sent.append(key) if method == "put" else None  # type: ignore[func-returns-value]
    async with house.running():
        await house.until_gone(alice)
    assert sorted(key.rpartition("/")[2] for key in sent) == list("abcdef")
    assert house.kept() == {name: name.encode() for name in "abcdef"}
    assert [artifact.name for artifact in await house.artifacts.list(alice)] == first


async def test_a_crash_after_the_copy_goes_on_with_the_deletion(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
    row = await house.environments.delete(alice, "train")
    await house.compute.stop(row.handle, grace=0)
    outputs = Outputs(house.database, house.artifacts, house.uploads, house.settings.lifecycle)
    await outputs.keep(row, alice.workspace, house.compute, row.handle, print)
    (output / "b").write_text("nobody can have written this")
    async with house.running():
        await house.until_gone(alice)
    assert house.kept() == {"a": b"1"}
    assert not house.engine.workloads


async def test_what_does_not_fit_calls_the_deletion_off(house: House, alice: Caller, admin: Caller) -> None:
    await house.quotas.set(admin, Holder.WORKSPACE, alice.workspace, {Resource.STORAGE: 8 * MIB})
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_bytes(bytes(5 * MIB))
        (output / "b").write_bytes(bytes(5 * MIB))
        await house.environments.delete(alice, "train")
        row = await house.until(alice, lambda row: row.wish is Wish.STOPPED)
        assert row.state is EnvironmentState.STOPPED
        assert "it was not deleted: the workspace 'team' may hold 8MiB" in row.wish_reason
        assert "its output does not fit; make room, or use --discard-output" in row.wish_reason
        await house.until_clean()  # half an output is none
        assert (output / "b").exists()
        refused = [event for event in await house.trail("environment.delete") if event.outcome == "refused"]
        assert len(refused) == 1
        # Its owner goes in and makes room.
        await house.environments.start(alice, "train")
        await house.until(alice, lambda row: row.state is EnvironmentState.RUNNING)
        (output / "b").unlink()
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    assert list(house.kept()) == ["a"]
    lines = await house.quotas.show(alice)
    used = [line.used for line in lines if line.resource is Resource.STORAGE]
    assert used == [5 * MIB, 5 * MIB]  # the person's, and the workspace's


async def test_what_does_not_fit_is_not_begun(house: House, alice: Caller, admin: Caller) -> None:
    """An ephemeral environment comes back to it round after round: nothing is sent, and not before an hour is over."""
    await house.quotas.set(admin, Holder.USER, "alice", {Resource.STORAGE: 8 * MIB})
    async with house.running():
        output = await house.train(alice, lifecycle=LifecycleChoice(Lifecycle.EPHEMERAL, idle_seconds=60))
        for name in "abc":
            (output / name).write_bytes(bytes(3 * MIB))
        sent: list[str] = []
        house.store.fault = lambda method, key: sent.append(method) if method in ("put", "upload_part") else None
        for _ in range(2):
            await house.environments.delete(alice, "train")
            row = await house.until(alice, lambda row: row.wish is Wish.STOPPED)
            assert "it was not deleted: the data sets, models and images of 'alice' may hold 8MiB" in row.wish_reason
        assert sent == []
        assert await house.artifacts.list(alice) == []
        assert row.lifecycle_from is not None
        row.last_used = row.lifecycle_from - timedelta(minutes=5)
        coming = due(row, house.settings.lifecycle, now())
        assert coming is not None
        assert (coming.step, coming.at) == (Step.DELETE, row.lifecycle_from + timedelta(hours=1))
        await house.quotas.set(admin, Holder.USER, "alice", {Resource.STORAGE: 9 * MIB})
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
    assert sorted(house.kept()) == ["a", "b", "c"]


async def test_what_the_store_has_no_room_for_is_not_begun(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def free() -> int:
        return 2 * MIB

    monkeypatch.setattr(house.store, "free", free)
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_bytes(bytes(3 * MIB))
        await house.environments.delete(alice, "train")
        row = await house.until(alice, lambda row: row.wish is Wish.STOPPED)
        assert "its output holds 3MiB, and the object store has 2MiB left" in row.wish_reason
    assert house.store.objects == {}


async def test_what_is_more_than_is_kept_of_one_calls_it_off_too(house: House, alice: Caller) -> None:
    """A file of holes costs its owner nothing to make; its size is known before a byte of it is read."""
    async with house.running():
        output = await house.train(alice)
        with (output / "huge").open("wb") as file:
            file.truncate(40 * 1024**3)
        await house.environments.delete(alice, "train")
        row = await house.until(alice, lambda row: row.wish is Wish.STOPPED)
        assert "its output holds more than 32MiB" in row.wish_reason
        await house.environments.delete(alice, "train", keep_output_days=0)
        await house.until_gone(alice)
        await house.until_clean()


async def test_the_owner_may_do_without_it_while_it_waits(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
        (output / "b").write_text("2")
        house.store.fault = lambda method, key: (
            Unavailable("the object store is slow") if key.endswith("/b") and method == "put" else None
        )
        await house.environments.delete(alice, "train")
        await house.until(alice, lambda row: bool(row.reason))
        await house.environments.delete(alice, "train", keep_output_days=0)
        await house.until_gone(alice)
        house.store.fault = lambda method, key: None
        await house.until_clean()
    assert not house.engine.workloads


async def test_the_owner_may_do_without_it_while_it_is_copied(house: House, alice: Caller) -> None:
    reached, released = asyncio.Event(), asyncio.Event()
    put = house.store.put

    async def hang(key: str, *arguments: Any, **options: Any) -> str:
        reached.set()
        await released.wait()
        return await put(key, *arguments, **options)

    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
        house.store.put = hang  # type: ignore[method-assign]
        await house.environments.delete(alice, "train")
        await asyncio.wait_for(reached.wait(), 60)
        row = await house.environments.show(alice, "train")
        assert (await house.compute.inspect(row.handle)).state is State.STOPPED
        view = await house.left(alice)
        with pytest.raises(BadInput, match="--discard-output"):
            await house.artifacts.delete(alice, view.name)
        await house.environments.delete(alice, "train", keep_output_days=0)
        await asyncio.sleep(0.3)
        released.set()  # what was on its way arrives, and is removed after that
        await house.until_gone(alice)
        await house.until_clean()


# ---- the end -----------------------------------------------------------------------------------------------------
async def test_it_goes_when_its_time_is_over(house: House, alice: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
        house.later = timedelta(days=2.9)
        await asyncio.sleep(0.5)
        assert (await house.left(alice)).files == 1
        house.later = timedelta(days=3.1)
        house.store.fault = lambda method, key: Unavailable("away") if method == "delete_many" else None
        async with asyncio.timeout(60):
            while await house.artifacts.list(alice):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert house.store.objects  # recorded, and not yet carried out
    house.store.fault = lambda method, key: None
    async with house.running():  # by the next process
        await house.until_clean()
    names = [event.action for event in await house.trail("artifact.")]
    assert names == ["artifact.keep", "artifact.expire", "artifact.gone"]
    assert (await house.audit.verify()).broken_at is None


async def test_who_may_delete_it(house: House, alice: Caller, bob: Caller, admin: Caller) -> None:
    async with house.running():
        output = await house.train(alice)
        (output / "a").write_text("1")
        await house.environments.delete(alice, "train")
        await house.until_gone(alice)
        view = await house.left(alice)
        stranger = Caller("x", "mallory", is_admin=False, workspace_id="other", workspace="other")
        assert await house.artifacts.list(stranger) == []
        for name in (view.name, f"team/{view.name}"):
            with pytest.raises(NotFound, match="there is no artifact"):
                await house.artifacts.show(stranger, name)
            with pytest.raises(NotFound):
                await house.artifacts.delete(stranger, name)
        with pytest.raises(NotFound):
            await house.files.stat(stranger, view.path)
        for attempt in (
            house.artifacts.delete(bob, view.name), house.artifacts.show(bob, view.name),
            house.artifacts.share(bob, view.name, Visibility.WORKSPACE),
        ):  # fmt: skip
            with pytest.raises(NotFound, match=f"^there is no artifact '{view.name}'$"):
                await attempt
        with pytest.raises(NotFound):
            await house.files.stat(bob, f"{view.path}/a")
        with pytest.raises(NotFound):
            await house.files.open_reader(bob, f"{view.path}/a")
        assert not await house.files.digest(alice, "/artifacts", "md5")
        with pytest.raises(BadInput, match="private or of the workspace"):
            await house.artifacts.share(alice, view.name, Visibility.PUBLIC)
        await house.artifacts.share(alice, view.name, Visibility.WORKSPACE)
        assert (await house.files.stat(bob, f"{view.path}/a")).mode == 0o444
        for attempt in (
            house.artifacts.delete(bob, view.name),
            house.artifacts.share(bob, view.name, Visibility.PRIVATE),
        ):
            with pytest.raises(NotAllowed, match="only its owner"):
                await attempt
        with pytest.raises(NotFound, match="there is no artifact"):
            await house.artifacts.show(stranger, view.name)
        with pytest.raises(NotAllowed):
            await house.artifacts.list(bob, everybody=True)
        assert len(await house.artifacts.list(admin, everybody=True)) == 1
        await house.artifacts.delete(alice, view.name)
        assert await house.is_clean()
        with pytest.raises(NotFound):
            await house.artifacts.delete(alice, view.name)
    assert [event.actor for event in await house.trail("artifact.delete")] == ["alice"]
