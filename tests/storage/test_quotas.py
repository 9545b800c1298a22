"""Quotas as records: defaults, exceptions, who may see and set them, and what is told of them."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import select, update

from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import BadInput, NotAllowed, NotFound
from storage.quota_limits import QuotaLine, Resource, Subject, checked, holds, size_words
from storage.quota_usage import HOLDS
from storage.quotas import Quotas
from storage.records import (
    Asset,
    AuditEvent,
    Build,
    BuildState,
    Environment,
    EnvironmentState,
    FileFact,
    Holder,
    Image,
    ImageKind,
    ImageState,
    Upload,
    UploadState,
    User,
    Wish,
    Workspace,
)
from storage.settings import ObjectSettings, QuotaSettings
from tests.databases import KINDS

DATABASES = KINDS

GIB = 1024**3


@pytest.fixture
def quotas(database: Database, audit: AuditTrail, changes: Changes) -> Quotas:
    settings = QuotaSettings(user_memory_mib=8 * 1024, workspace_cpus=12)
    return Quotas(database, audit, changes, settings, ObjectSettings(workspace_gib=3), environments=5)


def by_resource(lines: list[QuotaLine] | tuple[QuotaLine, ...], holder: Holder) -> dict[Resource, QuotaLine]:
    return {line.resource: line for line in lines if line.subject.holder is holder}


def environment(owner: Caller, name: str, state: EnvironmentState, wish: Wish = Wish.RUNNING) -> Environment:
    return Environment(
        owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, name=name, compute="local",
        cpus=2.0, memory=GIB, gpus=1, state=state, wish=wish, created=now(),
    )  # fmt: skip


async def test_what_the_settings_allow(quotas: Quotas, alice: Caller) -> None:
    lines = list(await quotas.show(alice))
    mine, ours = by_resource(lines, Holder.USER), by_resource(lines, Holder.WORKSPACE)
    assert {resource: line.allowed for resource, line in mine.items()} == {
        Resource.ENVIRONMENTS: 5, Resource.CPUS: None, Resource.MEMORY: 8 * GIB, Resource.GPUS: None,
        Resource.STORAGE: None, Resource.UPLOADS: 200, Resource.PARKED: 500 * GIB,
        Resource.BUILDS: 4,
    }  # fmt: skip
    assert {resource: line.allowed for resource, line in ours.items()} == {
        Resource.ENVIRONMENTS: None, Resource.CPUS: 12, Resource.MEMORY: None, Resource.GPUS: None,
        Resource.STORAGE: 3 * GIB, Resource.BUILDS: None,
    }  # fmt: skip
    assert all(line.used == 0 and not line.by for line in lines)


async def test_what_is_used(quotas: Quotas, database: Database, alice: Caller, bob: Caller) -> None:
    stopped = environment(bob, "b", EnvironmentState.STOPPED, Wish.STOPPED)
    asset = Asset(
        workspace_id=alice.workspace_id, owner_id=alice.user_id, owner_name="alice", name="mnist", created=now()
    )
    waiting = Upload(
        owner_id=alice.user_id, path="/d", key="k", sent_as="k", s3_upload_id="u", part_size=5, size=7,
        state=UploadState.PARKED,
        created=now(), touched=now(),
    )  # fmt: skip
    done = Upload(
        owner_id=alice.user_id, path="/e", key="l", sent_as="l", part_size=5, size=9, state=UploadState.DONE,
        created=now(), touched=now(),
    )  # fmt: skip
    builds = [
        Build(
            image_id="i", owner_id=alice.user_id, owner_name="alice", workspace_id=alice.workspace_id, name="x",
            tag="t", number=number, base="b", reference="r", target="t", dockerfile="", state=state, created=now(),
        )
        for number, state in enumerate(BuildState)
    ]  # fmt: skip
    facts = [FileFact(key=f"datasets/team/{name}/v1/f", size=10, mtime=0) for name in ("mnist", "mnist2", "other")]
    async with database.writing() as tx:
        tx.add_all([environment(alice, "a", EnvironmentState.RUNNING), stopped, asset, waiting, done, *builds, *facts])
    lines = list(await quotas.show(alice))
    assert {resource: line.used for resource, line in by_resource(lines, Holder.USER).items()} == {
        Resource.ENVIRONMENTS: 1, Resource.CPUS: 2, Resource.MEMORY: GIB, Resource.GPUS: 1, Resource.STORAGE: 10,
        Resource.UPLOADS: 1, Resource.PARKED: 7, Resource.BUILDS: 3,
    }  # fmt: skip
    assert {resource: line.used for resource, line in by_resource(lines, Holder.WORKSPACE).items()} == {
        Resource.ENVIRONMENTS: 2, Resource.CPUS: 2, Resource.MEMORY: GIB, Resource.GPUS: 1,
        Resource.STORAGE: 30, Resource.BUILDS: 3,
    }  # fmt: skip


async def test_images_count_with_the_size_that_the_registry_tells(
    quotas: Quotas, database: Database, alice: Caller, bob: Caller
) -> None:
    def image(owner: Caller, name: str, state: ImageState) -> Image:
        return Image(
            workspace_id=owner.workspace_id, owner_id=owner.user_id, owner_name=owner.name, name=name, tag="v1",
            kind=ImageKind.CUSTOM, state=state, size=100, former=[], created=now(), touched=now(),
        )  # fmt: skip

    async with database.writing() as tx:
        tx.add_all([image(alice, "a", ImageState.READY), image(alice, "b", ImageState.BUILDING)])
        tx.add_all([image(alice, "c", ImageState.DELETING), image(bob, "a", ImageState.READY)])
    lines = list(await quotas.show(alice))
    assert by_resource(lines, Holder.USER)[Resource.STORAGE].used == 200
    assert by_resource(lines, Holder.WORKSPACE)[Resource.STORAGE].used == 300


async def test_the_rule_in_sql_is_the_rule(database: Database, alice: Caller) -> None:
    states = [(state, wish) for state in EnvironmentState for wish in Wish]
    rows = [environment(alice, f"{state}-{wish}", state, wish) for state, wish in states]
    for state, wish in states:
        for reserves in (False, True):
            row = environment(alice, f"{state}-{wish}-there-{reserves}", state, wish)
            row.host, row.reserves = "gpu1", reserves
            rows.append(row)
    async with database.writing() as tx:
        tx.add_all(rows)
    async with database.reading() as tx:
        holding = set(await tx.scalars(select(Environment.name).where(HOLDS)))
    assert holding == {row.name for row in rows if holds(row)}
    assert {"running-stopped", "creating-stopped", "requested-running"} <= holding
    assert not {"stopped-stopped", "failed-running", "requested-stopped", "deleting-deleted-there-False"} & holding


async def test_exceptions_are_made_seen_and_taken_back(
    quotas: Quotas, database: Database, alice: Caller, admin: Caller
) -> None:
    await quotas.set(admin, Holder.USER, "alice", {Resource.MEMORY: 16 * GIB, Resource.ENVIRONMENTS: math.inf})
    await quotas.set(admin, Holder.USER, "alice", {Resource.CPUS: 1.5})
    mine = by_resource(list(await quotas.show(alice)), Holder.USER)
    assert (mine[Resource.MEMORY].allowed, mine[Resource.MEMORY].by) == (16 * GIB, "root-admin")
    assert (mine[Resource.ENVIRONMENTS].allowed, mine[Resource.ENVIRONMENTS].left) == (None, None)
    assert mine[Resource.CPUS].allowed == 1.5
    assert mine[Resource.UPLOADS].by == ""
    await quotas.set(admin, Holder.USER, "alice", {Resource.MEMORY: None})
    assert by_resource(list(await quotas.show(alice)), Holder.USER)[Resource.MEMORY].allowed == 8 * GIB
    assert {line.resource for line in await quotas.exceptions(admin)} == {Resource.CPUS, Resource.ENVIRONMENTS}
    await quotas.clear(admin, Holder.USER, "alice")
    assert await quotas.exceptions(admin) == []
    async with database.reading() as tx:
        events = (await tx.scalars(select(AuditEvent).where(AuditEvent.action.like("quota.%")))).all()
    assert [(event.action, event.actor, event.thing) for event in events] == [
        ("quota.set", "root-admin", "alice"), ("quota.set", "root-admin", "alice"),
        ("quota.set", "root-admin", "alice"), ("quota.clear", "root-admin", "alice"),
    ]  # fmt: skip
    assert events[0].detail == {"of": "user", "memory": 16 * GIB, "environments": -1}


async def test_who_may_see_whose(quotas: Quotas, database: Database, alice: Caller, bob: Caller, admin: Caller) -> None:
    assert await quotas.show(alice, user="alice")
    assert await quotas.show(alice, workspace="team")
    assert await quotas.show(admin, user="alice")
    for name in ("bob", "nobody", "../x"):
        with pytest.raises(NotFound, match=f"^there is no user '{name}'$"):
            await quotas.show(alice, user=name)
    async with database.writing() as tx:
        tx.add(Workspace(id="w2", name="lab", created=now()))
        await tx.flush()
        await tx.execute(update(User).where(User.name == "bob").values(workspace_id="w2"))
    with pytest.raises(NotFound, match=r"^there is no workspace 'lab'$"):
        await quotas.show(alice, workspace="lab")
    with pytest.raises(BadInput):
        await quotas.show(alice, user="alice", workspace="team")


async def test_only_administrators_change_anything(quotas: Quotas, alice: Caller) -> None:
    for attempt in (
        quotas.set(alice, Holder.USER, "alice", {Resource.CPUS: 99}),
        quotas.clear(alice, Holder.USER, "alice"),
        quotas.exceptions(alice),
    ):
        with pytest.raises(NotAllowed):
            await attempt


@pytest.mark.parametrize(
    ("resource", "amount", "holder"),
    [
        (Resource.CPUS, -1, Holder.USER),
        (Resource.CPUS, math.nan, Holder.USER),
        (Resource.MEMORY, 1.5, Holder.USER),
        (Resource.MEMORY, 2.0**62, Holder.USER),
        (Resource.ENVIRONMENTS, 2**31, Holder.USER),
        (Resource.UPLOADS, 1, Holder.WORKSPACE),
        (Resource.PARKED, math.inf, Holder.WORKSPACE),
    ],
)
def test_what_no_quota_can_be(resource: Resource, amount: float, holder: Holder) -> None:
    with pytest.raises(BadInput):
        checked(resource, amount, holder)


async def test_nothing_to_set_and_nobody_to_set_it_for(quotas: Quotas, admin: Caller) -> None:
    with pytest.raises(BadInput):
        await quotas.set(admin, Holder.USER, "root-admin", {})
    with pytest.raises(NotFound):
        await quotas.set(admin, Holder.WORKSPACE, "moon", {Resource.CPUS: 1})


async def test_a_limit_alone_is_read_once_and_anew_when_it_is_changed(quotas: Quotas, alice: Caller) -> None:
    async def allowed() -> float | None:
        return await quotas.allowed(Holder.USER, alice.user_id, Resource.MEMORY)

    assert await allowed() == 8 * GIB
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: GIB})
    assert await allowed() == GIB
    await quotas.clear_by_operator(Holder.USER, "alice")
    assert await allowed() == 8 * GIB


@pytest.mark.parametrize(
    ("used", "allowed", "more", "fits"),
    [(1, 2, 1, True), (1, 2, 1.5, False), (3, 2, 1, False), (3, 2, 0, True), (9, None, 9, True), (0, 0, 1, False),
     (0.1, 0.3, 0.2, True)],
)  # fmt: skip
def test_what_fits(used: float, allowed: float | None, more: float, fits: bool) -> None:
    line = QuotaLine(Subject(Holder.USER, "u", "alice"), Resource.CPUS, used, allowed)
    assert (line.refusal(more, whose="your") == "") is fits
    assert line.left is None or line.left >= 0


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (GIB, "1GiB"), (2**60, "1024PiB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert size_words(size) == words
