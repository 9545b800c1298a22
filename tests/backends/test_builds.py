"""Builds: what a request says at once, what becomes of it, and logs that are followed while they grow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backends.build_log import LogWriter
from backends.builders.contract import Order, Write
from backends.builders.docker import DockerBuilder
from backends.builders.memory import MemoryBuilder, MemoryEngine
from backends.builders.registry import ELSEWHERE, NO_BUILDER, builder_of, why_not
from backends.builds import LOG_TOPIC, Builds, BuildView, DockerfileRefused
from backends.images import Images
from backends.reconcilers import builds
from backends.reconcilers.builds import BuildReconciler, facts_of
from backends.settings import BackendSettings, BuildSettings, DockerHostSettings, DockerSettings, RegistrySettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, Conflict, InUse, NotFound, OverQuota, Unavailable
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import AuditEvent, Build, BuildState, Holder, Image, ImageState
from tests.databases import KINDS

DATABASES = KINDS

FAR = DockerHostSettings(url="tcp://10.9.8.7:2375", insecure=True)
NEAR = DockerHostSettings(url="unix:///var/run/docker.sock")
REGISTRY = RegistrySettings(url="http://127.0.0.1:5999")
_GENEROUS = 60.0


class Yard:
    """Everything that builds, with a builder that does as it is told."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, data: Path, settings: BuildSettings
    ) -> None:
        self.database, self.audit, self.changes, self.settings = database, audit, changes, settings
        self.images = Images(database, audit, changes, REGISTRY)
        self.quotas = Quotas(database, audit, changes)
        self.builds = Builds(database, audit, changes, self.images, self.quotas, data / "builds")
        self.engine = MemoryEngine()

    @asynccontextmanager
    async def running(self, builder: MemoryBuilder | None = None) -> AsyncIterator[None]:
        """The loop of one gateway, which is cancelled at the end as when it stops."""
        loop = BuildReconciler(
            self.database, self.audit, self.changes, self.images, self.builds, builder or MemoryBuilder(self.engine),
            self.settings,
        )  # fmt: skip
        task = asyncio.create_task(loop.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def ask(self, caller: Caller, text: str, name: str = "model", tag: str = "v1") -> BuildView:
        return await self.builds.request(caller, name, tag, base="debian:bookworm", text=text)

    async def until(
        self, caller: Caller, state: BuildState, name: str = "model", number: int | None = None
    ) -> BuildView:
        view = await self.builds.show(caller, name, number)
        async with asyncio.timeout(_GENEROUS):
            while view.state is not state:
                assert not view.state.is_over, view
                await asyncio.sleep(0.02)
                view = await self.builds.show(caller, name, number)
        return view

    async def log(self, caller: Caller, name: str = "model", number: int | None = None, *, wait: bool = True) -> str:
        async with asyncio.timeout(_GENEROUS):
            found = [piece.data async for piece in self.builds.follow(caller, name, number, wait=wait)]
        return b"".join(found).decode()


@pytest.fixture
def yard(database: Database, audit: AuditTrail, changes: Changes, data_dir: Path) -> Yard:
    return Yard(database, audit, changes, data_dir, BuildSettings(parallel=2, history=2))


async def test_a_build_becomes_an_image(yard: Yard, alice: Caller) -> None:
    asked = await yard.ask(alice, "RUN echo hello")
    assert (asked.state, asked.number, asked.title) == (BuildState.QUEUED, 1, "model:v1")
    assert (await yard.images.show(alice, "model:v1")).state is ImageState.BUILDING
    async with yard.running():
        log = await yard.log(alice)
        view = await yard.until(alice, BuildState.SUCCESS)
    image = await yard.images.show(alice, "model:v1")
    assert image.digest == view.digest
    assert image.state is ImageState.READY
    assert image.base == "debian:bookworm"
    assert f"127.0.0.1:5999/{alice.workspace_id}/{image.id}/model:v1" in yard.engine.pushed
    assert "Step 3/3 : RUN echo hello\nhello\n" in log
    assert f"pushed as {view.digest}" in log
    async with yard.database.reading() as tx:
        actions = list(await tx.scalars(select(AuditEvent.action)))
    assert [one for one in actions if one.startswith("build.")] == ["build.request", "build.success"]


async def test_a_failure_says_which_line_of_the_text_it_was(yard: Yard, alice: Caller) -> None:
    async with yard.running():
        await yard.ask(alice, "# of mine\nRUN echo a\nRUN \\\n exit 4\nRUN echo never")
        view = await yard.until(alice, BuildState.FAILED)
        assert (view.failed_step, view.failed_line) == (4, 3)
        assert view.reason == "step 4 of 5 (line 3) failed: exit status 4"
        assert view.reason in await yard.log(alice)
        image = await yard.images.show(alice, "model")
        assert image.state is ImageState.FAILED
        assert view.reason in image.reason
        await yard.ask(alice, "RUN echo better")
        assert (await yard.until(alice, BuildState.SUCCESS)).number == 2
    assert [one.number for one in await yard.builds.list(alice, "model")] == [2, 1]


class _Pruned(MemoryBuilder):
    """Notes what it was told to keep."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.kept: list[Collection[str]] = []

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        self.kept.append(keep)
        return await super().prune(days=days, keep=keep)


async def test_old_layers_are_removed_without_a_build_and_whatever_restarts(yard: Yard, alice: Caller) -> None:
    """The time of the last removal must outlive the process: one that starts every day would never come to it."""
    await yard.ask(alice, "RUN a")
    async with yard.running():
        digest = (await yard.until(alice, BuildState.SUCCESS)).digest
    assert yard.builds.pruned_path.exists()
    yard.builds.pruned_path.unlink()
    builder = _Pruned(yard.engine)
    for hours in (0, 1, 25):
        if hours:
            moment = time.time() - hours * 3600
            os.utime(yard.builds.pruned_path, (moment, moment))
        async with yard.running(builder):
            if hours != 1:
                await _until(lambda: yard.builds.pruned_path.exists() and _age(yard.builds.pruned_path) < 600)
            await asyncio.sleep(0.1)
    assert builder.kept == [{digest}, {digest}]


class _Hangs(MemoryBuilder):
    """As with a storage that does not answer."""

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_removal_of_old_layers_that_hangs_is_given_up(
    yard: Yard, alice: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Builds wait for it; so it is not tried again at once, either."""
    monkeypatch.setattr(builds, "_PRUNE_MOST_SECONDS", 0.5)
    async with yard.running(_Hangs(yard.engine)):
        await _until(lambda: "could not remove old layers" in caplog.text)
        await yard.ask(alice, "RUN a")
        await yard.until(alice, BuildState.SUCCESS)
    assert _age(yard.builds.pruned_path) < 600


async def test_a_queued_build_finds_the_registry_that_has_another_port(yard: Yard, alice: Caller) -> None:
    """Whoever has taken the former port while the gateway was down would be sent the image, and the login."""
    async with yard.running():
        await yard.ask(alice, "RUN a", "base")
        await yard.until(alice, BuildState.SUCCESS, "base")
    await yard.builds.request(alice, "model", "v1", base="base:v1", text="RUN b")
    async with yard.database.reading() as tx:
        (row,) = await tx.scalars(select(Build).where(Build.name == "model"))
    assert row.reference.startswith(f"/{alice.workspace_id}/")
    assert row.target == f"/{alice.workspace_id}/{row.image_id}/model:v1"
    yard.engine.pushed.clear()
    yard.images = Images(yard.database, yard.audit, yard.changes, RegistrySettings(url="http://127.0.0.1:5998"))
    async with yard.running():
        await yard.until(alice, BuildState.SUCCESS)
    assert list(yard.engine.pushed) == [f"127.0.0.1:5998{row.target}"]
    orders = [order for order in yard.engine.images.values() if order.target == f"127.0.0.1:5998{row.target}"]
    assert [order.recipe.base for order in orders] == [f"127.0.0.1:5998{row.reference}"]


async def test_a_row_with_the_host_in_it_is_taken_as_it_is(yard: Yard, alice: Caller) -> None:
    await yard.ask(alice, "RUN a")
    async with yard.database.writing() as tx:
        await tx.execute(update(Build).values(target="127.0.0.1:5999/w/i/model:v1"))
    async with yard.running():
        await yard.until(alice, BuildState.SUCCESS)
    assert list(yard.engine.pushed) == ["127.0.0.1:5999/w/i/model:v1"]


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


async def _until(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(_GENEROUS):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_where_no_storage_is_left_nothing_is_built(yard: Yard, alice: Caller, bob: Caller, admin: Caller) -> None:
    """What a build makes is known when it is over: that stays, and nothing follows."""
    quotas = Quotas(yard.database, yard.audit, yard.changes)
    await quotas.set(admin, Holder.USER, "alice", {Resource.STORAGE: 100})
    await yard.ask(alice, "RUN a")
    async with yard.running():
        await yard.until(alice, BuildState.SUCCESS)
    async with yard.database.writing() as tx:
        await tx.execute(update(Image).values(size=150))
    with pytest.raises(OverQuota, match=r"^your quota of storage is full \(150B of 100B\): delete images or data sets"):
        await yard.ask(alice, "RUN b", name="other")
    assert len(await yard.images.list(alice)) == 1
    await yard.ask(bob, "RUN b")
    await yard.images.delete(alice, "model:v1")
    await yard.ask(alice, "RUN b", name="other")


class _Asks(MemoryBuilder):
    """A step that prints no end of line before it has an answer."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.answer = asyncio.Event()

    async def build(self, order: Order, write: Write) -> str:
        write(b"before\nPassword: ")
        await self.answer.wait()
        write(b"thanks\n")
        return await super().build(order, write)


async def test_who_follows_sees_a_line_that_does_not_end(yard: Yard, alice: Caller) -> None:
    builder, seen = _Asks(yard.engine), b""
    await yard.ask(alice, "RUN a")
    async with yard.running(builder), asyncio.timeout(_GENEROUS):
        async for piece in yard.builds.follow(alice, "model"):
            seen += piece.data
            assert piece.offset == len(seen)
            if seen == b"before\nPassword: ":
                builder.answer.set()
    assert seen.startswith(b"before\nPassword: thanks\n")


async def test_what_is_wrong_is_said_when_it_is_asked_for(yard: Yard, alice: Caller, bob: Caller) -> None:
    with pytest.raises(DockerfileRefused, match="line 1, column 1: USER is not allowed") as refused:
        await yard.ask(alice, "USER root\nADD http://x /y")
    assert [problem.line for problem in refused.value.problems] == [1, 2]
    assert [problem.line for problem in await yard.builds.check(alice, "RUN a\nFROM b")] == [2]
    with pytest.raises(BadInput):
        await yard.ask(alice, "RUN a", name="../x")
    with pytest.raises(BadInput, match="is in the registry of this house"):
        await yard.builds.request(alice, "model", "v1", base="127.0.0.1:5999/w/1/secret", text="RUN a")
    with pytest.raises(BadInput):
        await yard.builds.request(alice, "model", "v1", base="debian\nRUN evil", text="RUN a")
    await yard.ask(alice, "RUN a")
    with pytest.raises(InUse, match="is being made already"):
        await yard.ask(alice, "RUN a")
    await yard.ask(bob, "RUN a")
    for number in range(3):
        await yard.ask(alice, "RUN a", name=f"other{number}")
    with pytest.raises(OverQuota, match="your quota of open builds is 4, with 4 in use, and this needs 1"):
        await yard.ask(alice, "RUN a", name="fifth")


async def test_of_two_requests_for_the_last_place_one_gets_it(yard: Yard, alice: Caller, bob: Caller) -> None:
    """Counted and taken in one transaction: between a look and the request the other one may have come."""
    await yard.quotas.set_by_operator(Holder.USER, "alice", {Resource.BUILDS: 1})
    names = ("a", "b", "c")
    answers = await asyncio.gather(*(yard.ask(alice, "RUN a", name=name) for name in names), return_exceptions=True)
    assert sum(isinstance(answer, BuildView) for answer in answers) == 1
    assert sum(isinstance(answer, OverQuota) for answer in answers) == 2
    (view,) = await yard.builds.list(alice)
    assert [image.name for image in await yard.images.list(alice) if image.owner == "alice"] == [view.name]
    await yard.builds.cancel(alice, view.name)
    await yard.ask(alice, "RUN a", name="d")


async def test_what_a_workspace_may_build_counts_for_all_its_people(yard: Yard, alice: Caller, bob: Caller) -> None:
    await yard.quotas.set_by_operator(Holder.WORKSPACE, "team", {Resource.BUILDS: 2})
    assert not (await yard.builds.room(bob)).refusals
    await yard.ask(alice, "RUN a")
    async with yard.running():
        await yard.until(alice, BuildState.SUCCESS)
    for name in ("b", "c"):
        await yard.ask(alice, "RUN a", name=name)
    room = await yard.builds.room(bob)
    assert [(line.subject.name, line.used, line.allowed) for line in room.quotas] == [("bob", 0, 4), ("team", 2, 2)]
    sentence = "the workspace team's quota of open builds is 2, with 2 in use, and this needs 1"
    assert [refusal.partition(":")[0] for refusal in room.refusals] == [sentence]
    with pytest.raises(OverQuota, match=sentence):
        await yard.ask(bob, "RUN a")
    assert await yard.builds.list(bob) == []
    async with yard.database.reading() as tx:
        event = (await tx.scalars(select(AuditEvent).where(AuditEvent.outcome == "refused"))).one()
    assert (event.action, event.actor, event.thing) == ("build.request", "bob", "model:v1")
    assert event.detail["reason"].startswith(sentence)


async def test_nobody_sees_anothers_builds(yard: Yard, alice: Caller, bob: Caller, admin: Caller) -> None:
    await yard.ask(alice, "RUN echo secret")
    for stranger in (bob, admin):
        with pytest.raises(NotFound):
            await yard.builds.show(stranger, "model")
        with pytest.raises(NotFound):
            await yard.log(stranger)
        with pytest.raises(NotFound):
            await yard.builds.cancel(stranger, "model")
        assert await yard.builds.list(stranger) == []
    with pytest.raises(NotFound, match="there is no build 7"):
        await yard.builds.show(alice, "model", 7)


async def test_an_administrator_stops_a_build_by_its_owners_name(
    yard: Yard, alice: Caller, bob: Caller, admin: Caller
) -> None:
    """To everybody else it is as if there were none."""
    await yard.ask(alice, "RUN sleep 1000")
    written = "alice/model:v1"
    for forbidden in (yard.builds.show(bob, written), yard.builds.cancel(bob, written)):
        with pytest.raises(NotFound, match=f"there is no build of '{written}'"):
            await forbidden
    assert (await yard.builds.show(admin, f"{alice.workspace}/{written}")).owner == "alice"
    assert (await yard.builds.cancel(admin, written)).state is BuildState.CANCELLED
    assert (await yard.images.show(alice, "model")).state is ImageState.FAILED


async def test_cancelling_stops_it_and_the_former_image_stays(yard: Yard, alice: Caller) -> None:
    async with yard.running():
        await yard.ask(alice, "RUN echo one")
        first = await yard.until(alice, BuildState.SUCCESS)
        await yard.ask(alice, "RUN echo begun && sleep 1000")
        await yard.until(alice, BuildState.BUILDING)
        async with asyncio.timeout(_GENEROUS):
            while "\nbegun" not in await yard.log(alice, wait=False):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await yard.builds.cancel(alice, "model")).state is BuildState.CANCELLED
        assert "cancelled" in await yard.log(alice)
        async with asyncio.timeout(_GENEROUS):
            while yard.engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(Conflict, match="is over: cancelled"):
            await yard.builds.cancel(alice, "model")
    image = await yard.images.show(alice, "model")
    assert (image.digest, image.state) == (first.digest, ImageState.READY)


async def test_one_that_waits_is_cancelled_without_being_begun(yard: Yard, alice: Caller) -> None:
    await yard.ask(alice, "RUN echo never")
    await yard.builds.cancel(alice, "model:v1")
    async with yard.running():
        await yard.ask(alice, "RUN echo now", name="other")
        await yard.until(alice, BuildState.SUCCESS, "other")
    assert await yard.log(alice) == ""


async def test_a_cap_on_what_runs_at_once(yard: Yard, alice: Caller, bob: Caller) -> None:
    async with yard.running():
        for caller in (alice, bob):
            for name in ("a", "b"):
                await yard.ask(caller, "RUN sleep 1000", name=name)
        async with asyncio.timeout(_GENEROUS):
            while len(yard.engine.running) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert len(yard.engine.running) == 2
        assert (await yard.builds.show(bob, "a")).state is BuildState.QUEUED
        await yard.builds.cancel(alice, "a")
        await yard.until(bob, BuildState.BUILDING, "a")


async def test_one_that_takes_too_long_is_ended(
    database: Database, audit: AuditTrail, changes: Changes, data_dir: Path, alice: Caller
) -> None:
    yard = Yard(database, audit, changes, data_dir, BuildSettings(timeout_minutes=0.002))
    async with yard.running():
        await yard.ask(alice, "RUN sleep 1000")
        view = await yard.until(alice, BuildState.FAILED)
        assert view.reason == "it took longer than 0.002 minutes"
        assert not yard.engine.running


async def test_a_restart_begins_it_anew_and_says_so(yard: Yard, alice: Caller) -> None:
    """One whose gateway dies again and again is given up: perhaps it is the reason."""
    await yard.ask(alice, "RUN sleep 1000")
    for _ in range(3):
        async with yard.running():
            await yard.until(alice, BuildState.BUILDING)
            async with asyncio.timeout(_GENEROUS):
                while not yard.engine.running:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert not yard.engine.running
    async with yard.running():
        view = await yard.until(alice, BuildState.FAILED)
    assert view.reason == "the gateway was restarted while it was built, several times"
    log = await yard.log(alice)
    assert log.count("the gateway was restarted: the build begins anew") == 3
    assert (await yard.images.show(alice, "model")).state is ImageState.FAILED


async def test_a_builder_that_is_away_is_a_reason(yard: Yard, alice: Caller) -> None:
    class Away(MemoryBuilder):
        async def build(self, order: Order, write: Write) -> str:
            raise Unavailable("the Docker engine does not answer")

    async with yard.running(Away(yard.engine)):
        await yard.ask(alice, "RUN a")
        assert (await yard.until(alice, BuildState.FAILED)).reason == "the Docker engine does not answer"


async def test_a_house_without_a_builder_says_so(
    database: Database, audit: AuditTrail, changes: Changes, data_dir: Path, alice: Caller
) -> None:
    images = Images(database, audit, changes, REGISTRY)
    builds = Builds(database, audit, changes, images, Quotas(database, audit, changes), data_dir, why_not=NO_BUILDER)
    with pytest.raises(Unavailable, match="this house builds no images"):
        await builds.request(alice, "model", "v1", base="x", text="RUN a")


async def test_what_waits_when_the_builder_is_gone_has_failed(yard: Yard, data_dir: Path, alice: Caller) -> None:
    await yard.ask(alice, "RUN a")
    builds = Builds(
        yard.database, yard.audit, yard.changes, yard.images, yard.quotas, data_dir, why_not=NO_BUILDER
    )  # fmt: skip
    await builds.give_up()
    view = await builds.show(alice, "model")
    assert (view.state, view.reason) == (BuildState.FAILED, NO_BUILDER)
    assert view.finished is not None
    image = await yard.images.show(alice, "model")
    assert (image.state, image.reason) == (ImageState.FAILED, f"build 1: {NO_BUILDER}")


async def test_a_log_that_cannot_be_written_is_a_reason(yard: Yard, alice: Caller) -> None:
    """As on a full disk: it is not tried for ever, and the image does not stay as one that is being made."""
    view = await yard.ask(alice, "RUN a")
    yard.builds.log_path(view.id).mkdir(parents=True)
    async with yard.running():
        view = await yard.until(alice, BuildState.FAILED)
    assert "cannot be written: Is a directory" in view.reason
    assert (await yard.images.show(alice, "model")).state is ImageState.FAILED


@pytest.mark.parametrize(
    ("hosts", "chosen", "url", "why"),
    [
        ({"far": FAR}, "", "http://127.0.0.1:5999", ELSEWHERE),
        ({"far": FAR, "near": NEAR}, "far", "http://127.0.0.1:5999", ELSEWHERE),
        ({"far": FAR, "near": NEAR}, "", "http://127.0.0.1:5999", ""),
        ({"far": FAR}, "", "https://registry.example", ""),
        ({}, "", "http://127.0.0.1:5999", ""),
    ],
)
async def test_another_machine_does_not_build_for_a_registry_that_is_here(
    hosts: dict[str, DockerHostSettings], chosen: str, url: str, why: str, tmp_path: Path
) -> None:
    """It would push to its own 127.0.0.1, and give the password to whoever listens there."""
    settings = BackendSettings(
        docker=DockerSettings(hosts=hosts), builds=BuildSettings(builder="docker", host=chosen),
        registry=RegistrySettings(url=url),
    )  # fmt: skip
    assert why_not(settings) == why
    builder = builder_of(settings, tmp_path)
    assert (builder is None) == bool(why)
    if isinstance(builder, DockerBuilder):
        assert builder.is_here or url.startswith("https:")
        await builder.close()


async def test_old_builds_are_forgotten_with_their_logs(yard: Yard, alice: Caller) -> None:
    ids = []
    async with yard.running():
        for number in range(1, 5):
            ids.append((await yard.ask(alice, f"RUN echo {number}")).id)
            await yard.until(alice, BuildState.SUCCESS)
        async with asyncio.timeout(_GENEROUS):
            while len(await yard.builds.list(alice)) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert [one.number for one in await yard.builds.list(alice)] == [4, 3]
    assert [yard.builds.log_path(one).exists() for one in ids] == [False, False, True, True]


# ---- following ---------------------------------------------------------------------------------------------------
async def test_a_log_is_followed_from_any_offset_without_a_gap(yard: Yard, alice: Caller, changes: Changes) -> None:
    """Many readers, who begin at any moment, while it grows: each has every line once."""
    build = await yard.ask(alice, "RUN a")
    lines = [f"line {number}\n".encode() for number in range(3000)]

    async def read(delay: float) -> bytes:
        await asyncio.sleep(delay)
        snapshot = [piece async for piece in yard.builds.follow(alice, "model", wait=False)]
        offset = snapshot[-1].offset if snapshot else 0
        rest = [piece.data async for piece in yard.builds.follow(alice, "model", offset=offset)]
        return b"".join([piece.data for piece in snapshot] + rest)

    readers = [asyncio.create_task(read(delay)) for delay in (0, 0.05, 0.1, 0.2, 0.4)]
    with LogWriter(yard.builds.log_path(build.id), most=10**7, told=lambda: changes.tell(LOG_TOPIC, build.id)) as log:
        for start in range(0, len(lines), 50):
            log.write(b"".join(lines[start : start + 50]))
            await asyncio.sleep(0.01)
        await yard.builds.cancel(alice, "model")
        log.write(b"the last one\n")
    async with asyncio.timeout(_GENEROUS):
        found = await asyncio.gather(*readers)
    assert all(one == b"".join(lines) + b"the last one\n" for one in found)


async def test_following_100000_lines_costs_little(yard: Yard, alice: Caller) -> None:
    build = await yard.ask(alice, "RUN a")
    with LogWriter(yard.builds.log_path(build.id), most=10**8, told=lambda: None) as log:
        for number in range(100_000):
            log.write(f"{number}: something that a program says of itself, in a line of usual length\n".encode())
    await yard.builds.cancel(alice, "model")
    before = time.process_time()
    size = 0
    async for piece in yard.builds.follow(alice, "model"):
        size += piece.data.count(b"\n")
    assert size == 100_000
    assert time.process_time() - before < 1.0


async def test_a_lost_hint_costs_a_moment_and_no_line(yard: Yard, alice: Caller) -> None:
    build = await yard.ask(alice, "RUN a")
    with LogWriter(yard.builds.log_path(build.id), most=10**7, told=lambda: None) as log:
        follow = yard.builds.follow(alice, "model")
        log.write(b"one\n")
        assert (await anext(follow)).data == b"one\n"
        log.write(b"two\n")
        async with asyncio.timeout(_GENEROUS):
            assert (await anext(follow)).data == b"two\n"
        async with yard.database.writing() as tx:
            await tx.execute(update(Build).values(state=BuildState.FAILED))
    async with asyncio.timeout(_GENEROUS):
        assert [piece async for piece in follow] == []


def test_an_image_tells_what_it_needs() -> None:
    manifest = {"layers": [{"size": 10}, {"size": 5}]}
    variables = ["CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470", "A"]
    facts = facts_of("sha256:1", manifest, {"architecture": "amd64", "config": {"Env": variables}})
    assert (facts.size, facts.architecture, facts.cuda) == (15, "amd64", "12.4.1")
    assert facts_of("sha256:1", {}, {}).size == 0


def test_every_error_of_a_build_is_of_our_tree() -> None:
    assert issubclass(DockerfileRefused, AshoreError)
