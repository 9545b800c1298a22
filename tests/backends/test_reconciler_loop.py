"""The loop: hints, the timer, one action per key, retries, and a clean end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from backends.reconcilers import loop as loop_module
from backends.reconcilers.loop import ReconcilerLoop
from storage.changes import Changes
from storage.errors import Unavailable

Act = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def running(changes: Changes, act: Act, *keys: str, pause: float = 60.0) -> AsyncIterator[ReconcilerLoop]:
    async def look() -> list[str]:
        return list(keys)

    loop = ReconcilerLoop("test", "thing", changes=changes, look=look, act=act, pause=pause)
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.01)
    try:
        yield loop
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_it_acts_on_what_it_sees_at_the_start_and_on_hints(changes: Changes) -> None:
    done: list[str] = []

    async def act(key: str) -> None:
        done.append(key)

    async with running(changes, act, "a"):
        await until(lambda: done == ["a"])
        changes.tell("thing", "b")
        changes.tell("other", "c")
        await until(lambda: done == ["a", "b"])


async def test_the_timer_finds_what_no_hint_told(changes: Changes) -> None:
    done: list[str] = []

    async def act(key: str) -> None:
        done.append(key)

    async with running(changes, act, "a", pause=0.05):
        await until(lambda: len(done) >= 3)


async def test_one_action_per_key_and_eight_keys_at_once(changes: Changes) -> None:
    now: list[str] = []
    most = 0
    over = asyncio.Event()

    async def act(key: str) -> None:
        nonlocal most
        assert key not in now
        now.append(key)
        most = max(most, len(now))
        await over.wait()
        now.remove(key)

    async with running(changes, act, *(str(number) for number in range(20))):
        changes.tell("thing", "3")
        await until(lambda: len(now) == 8)
        over.set()
        await until(lambda: not now)
    assert most == 8


async def test_a_hint_during_an_action_is_not_lost(changes: Changes) -> None:
    count = 0
    gate = asyncio.Event()

    async def act(key: str) -> None:
        nonlocal count
        count += 1
        await gate.wait()

    async with running(changes, act, "a"):
        await until(lambda: count == 1)
        for _ in range(5):
            changes.tell("thing", "a")
        await asyncio.sleep(0.05)
        gate.set()
        await until(lambda: count == 2)
        await asyncio.sleep(0.05)
    assert count == 2


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a defect")])
async def test_an_error_is_tried_again_and_harms_nobody_else(
    changes: Changes, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.02)
    tries: dict[str, int] = {"good": 0, "bad": 0}

    async def act(key: str) -> None:
        tries[key] += 1
        if key == "bad" and tries[key] < 4:
            raise error

    async with running(changes, act, "bad", "good"):
        await until(lambda: tries == {"good": 1, "bad": 4})
        await asyncio.sleep(0.1)
    assert tries == {"good": 1, "bad": 4}


async def test_pauses_between_tries_grow(changes: Changes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE", 0.05)
    times: list[float] = []

    async def act(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        raise Unavailable("away")

    async with running(changes, act, "a"):
        await until(lambda: len(times) == 4)
    pauses = [later - sooner for sooner, later in zip(times, times[1:], strict=False)]
    assert pauses[0] < pauses[1] < pauses[2]


async def test_a_look_that_fails_does_not_end_the_loop(changes: Changes) -> None:
    looks = 0

    async def look() -> list[str]:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise Unavailable("away") if looks == 1 else RuntimeError("a defect")
        return ["a"]

    done = asyncio.Event()

    async def act(key: str) -> None:
        done.set()

    task = asyncio.create_task(ReconcilerLoop("test", "thing", changes=changes, look=look, act=act, pause=0.02).run())
    await asyncio.wait_for(done.wait(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_end_waits_for_actions(changes: Changes) -> None:
    steps: list[str] = []

    async def act(key: str) -> None:
        steps.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("cleared")

    async with running(changes, act, "a"):
        await until(lambda: steps == ["begun"])
    assert steps == ["begun", "cleared"]
