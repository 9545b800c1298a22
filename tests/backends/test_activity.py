"""Signs of life: what counts, and that writing them down costs little and loses nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from backends.activity import TOPIC, Activity
from backends.settings import LifecycleSettings
from storage.access import Caller
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import Unavailable
from storage.records import Environment


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def seconds(self) -> float:
        return self.moment.timestamp()

    def pass_(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def train(database: Database, alice: Caller) -> str:
    row = Environment(
        owner_id=alice.user_id, owner_name="alice", workspace_id=alice.workspace_id, name="train", compute="local",
        created=now(),
    )  # fmt: skip
    async with database.writing() as tx:
        tx.add(row)
    return row.id


@pytest.fixture
async def activity(database: Database, changes: Changes, time: Time) -> Activity:
    return Activity(database, changes, LifecycleSettings(), time.now, time.seconds)


async def row(database: Database, environment_id: str) -> Environment:
    async with database.reading() as tx:
        return await tx.get_one(Environment, environment_id)


async def test_a_key_is_written_with_its_time(activity: Activity, database: Database, time: Time, train: str) -> None:
    activity.typed(train)
    typed = time.moment
    time.pass_(10)
    await activity.flush()
    found = await row(database, train)
    assert (found.last_active, found.last_typed, found.last_used) == (typed, typed, None)


async def test_many_signs_are_one_write(activity: Activity, database: Database, train: str) -> None:
    statements: list[str] = []
    event.listen(
        database.engine.sync_engine, "before_cursor_execute", lambda *call: statements.append(str(call[2])), named=False
    )
    for _ in range(10_000):
        activity.sign(train)
    await activity.flush()
    await activity.flush()
    assert sum(statement.startswith("UPDATE") for statement in statements) == 1


async def test_the_newest_of_several_processes_holds(
    activity: Activity, database: Database, changes: Changes, time: Time, train: str
) -> None:
    other = Activity(database, changes, LifecycleSettings(), time.now, time.seconds)
    other.sign(train)
    time.pass_(5)
    activity.sign(train)
    await activity.flush()
    await other.flush()
    assert (await row(database, train)).last_active == time.moment


async def test_an_editor_that_nobody_touches_is_no_sign(
    activity: Activity, database: Database, time: Time, train: str
) -> None:
    """VS Code's server and client send a frame of 13 bytes, in a WebSocket frame of up to 19, every five seconds on
    each of two connections, for as long as the window is open. Five windows for eight hours are no sign of life."""
    for _ in range(8 * 3600 // 5):
        for _ in range(5 * 2 * 2):
            activity.traffic(train, 19)
        time.pass_(5)
    await activity.flush()
    assert (await row(database, train)).last_active is None


async def test_somebody_who_works_in_an_editor_is_one(
    activity: Activity, database: Database, time: Time, train: str
) -> None:
    """A file that is opened, or a list of completions: some 20 KiB at once."""
    for _ in range(5):
        activity.traffic(train, 4096)
    await activity.flush()
    assert (await row(database, train)).last_active == time.moment


async def test_what_flows_steadily_is_one(activity: Activity, database: Database, time: Time, train: str) -> None:
    for _ in range(120):
        activity.traffic(train, 500)
        time.pass_(1)
    await activity.flush()
    found = (await row(database, train)).last_active
    assert found is not None
    assert found > time.moment - timedelta(seconds=60)


async def test_a_connection_is_present_until_it_ends(
    activity: Activity, database: Database, time: Time, train: str
) -> None:
    with activity.presence(train), activity.presence(train):
        time.pass_(100)
        await activity.flush()
        assert (await row(database, train)).last_used == time.moment
        time.pass_(100)
    ended = time.moment
    time.pass_(100)
    await activity.flush()
    await activity.flush()
    found = await row(database, train)
    assert (found.last_used, found.last_active) == (ended, None)


async def test_a_database_that_is_away_loses_nothing(
    activity: Activity, database: Database, time: Time, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    activity.typed(train)
    typed = time.moment

    def away() -> None:
        raise Unavailable("the database is busy or away, please try again")

    with monkeypatch.context() as patch:
        patch.setattr(database, "writing", away)
        with pytest.raises(Unavailable):
            await activity.flush()
    time.pass_(60)
    await activity.flush()
    assert (await row(database, train)).last_typed == typed


async def test_where_people_were_warned_a_key_is_written_at_once(
    database: Database, changes: Changes, train: str
) -> None:
    activity = Activity(database, changes, LifecycleSettings(write_seconds=3600))
    activity.watch(frozenset({train}))
    await activity.start()
    try:
        with changes.subscribe(TOPIC) as hints:
            activity.typed(train)
            async with asyncio.timeout(20):
                assert (await hints.get()).key == train
        assert (await row(database, train)).last_typed is not None
    finally:
        await activity.close()


async def test_the_rest_is_written_at_the_end(database: Database, changes: Changes, train: str) -> None:
    activity = Activity(database, changes, LifecycleSettings(write_seconds=3600))
    await activity.start()
    activity.sign(train)
    await activity.close()
    assert (await row(database, train)).last_active is not None
