"""A cancellation never leaves a call of the database half-way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database.engine import Database
from storage.database.transaction import finished


@pytest.fixture
async def numbers(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.in_directory(tmp_path)
    async with database.writing() as tx:
        await tx.execute(text("CREATE TABLE numbers (number INTEGER)"))
    yield database
    await database.close()


async def insert(database: Database, number: int) -> None:
    async with database.writing() as tx:
        await tx.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})
        await tx.execute(text("UPDATE numbers SET number = number + 1 WHERE number = :number"), {"number": number})


async def test_work_ends_before_its_cancellation_is_raised() -> None:
    ended: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.append("work")

    task = asyncio.create_task(finished(work()))
    for _ in range(3):
        await asyncio.sleep(0.005)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]


async def test_a_timeout_around_work_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await finished(asyncio.sleep(0.05))


async def test_errors_and_results_come_through() -> None:
    async def work(divisor: int) -> int:
        return 6 // divisor

    assert await finished(work(3)) == 2
    with pytest.raises(ZeroDivisionError):
        await finished(work(0))


async def test_cancelled_writers_keep_no_lock_and_lose_no_connection(
    numbers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(1)
    pool = numbers.engine.pool
    for _ in range(60):
        tasks = [asyncio.create_task(insert(numbers, number)) for number in range(dice.choice((1, 3, 9)))]
        for task in tasks:
            await asyncio.sleep(dice.random() * 0.004)
            task.cancel()
            if dice.random() < 0.4:
                await asyncio.sleep(dice.random() * 0.001)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):  # a kept lock would cost twenty seconds and then an error
            await insert(numbers, -1)
    assert not caplog.records
    assert pool.status().endswith("Current Checked out connections: 0")


async def test_a_close_waits_for_what_is_under_way(tmp_path: Path) -> None:
    """A task that was cancelled a moment before may still wait for its call: its connection was never closed then."""
    numbers = Database.in_directory(tmp_path)
    async with numbers.writing() as tx:
        await tx.execute(text("CREATE TABLE numbers (number INTEGER)"))
    tasks = [asyncio.create_task(insert(numbers, number)) for number in range(4)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await numbers.close()
    assert numbers.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await asyncio.gather(*tasks, return_exceptions=True)
    assert numbers.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
