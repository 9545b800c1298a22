"""`image build|check|log|history|cancel`, as people type them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from backends.builders.memory import MemoryBuilder, MemoryEngine
from backends.reconcilers.builds import BuildReconciler
from backends.services import Services
from backends.settings import BuildSettings
from storage.access import Caller
from tests.gateway.commands.conftest import Desk


@pytest.fixture
async def builder(services: Services) -> AsyncIterator[MemoryEngine]:
    engine = MemoryEngine()
    loop = BuildReconciler(
        services.database, services.audit, services.changes, services.images, services.builds, MemoryBuilder(engine),
        BuildSettings(),
    )  # fmt: skip
    task = asyncio.create_task(loop.run())
    yield engine
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_building_and_looking_back(desk: Desk, alice: Caller, bob: Caller, builder: MemoryEngine) -> None:
    built = await desk.run(alice, "image build tools:v1 --base debian:bookworm --wait", stdin=b"RUN echo hello\n")
    assert built.status == 0
    assert "Step 3/3 : RUN echo hello\nhello\n" in built.err
    assert "success" in built.out
    failed = await desk.run(alice, "image build tools:v2 --base tools:v1 --wait --json", stdin=b"\nRUN exit 9\n")
    assert failed.status == 1
    facts = json.loads(failed.out)
    assert (facts["number"], facts["state"], facts["failed_line"]) == (2, "failed", 2)
    assert facts["base"] == "tools:v1"
    assert failed.err == ""
    history = json.loads((await desk.run(alice, "image history tools --json")).out)
    assert [(row["number"], row["tag"], row["state"]) for row in history] == [(2, "v2", "failed"), (1, "v1", "success")]
    assert "step 3 of 3 (line 2) failed: exit status 9" in (await desk.run(alice, "image history tools")).out
    assert (await desk.run(alice, "image build tools: --base debian", stdin=b"RUN a")).status == 2
    heads = [(await desk.run(alice, f"image history{name}")).out.split()[:2] for name in ("", " tools")]
    assert heads == [["IMAGE", "BUILD"], ["BUILD", "TAG"]]
    assert (await desk.run(alice, "image history")).out.splitlines()[1].startswith("tools ")
    assert (await desk.run(bob, "image history")).out == ""
    assert (await desk.run(bob, "image history tools")).status == 1
    listed = json.loads((await desk.run(alice, "image list --json")).out)
    assert {row["name"]: row["state"] for row in listed}["tools:v1"] == "ready"


async def test_the_log(desk: Desk, alice: Caller, bob: Caller, builder: MemoryEngine) -> None:
    await desk.run(alice, "image build tools --base debian:bookworm", stdin=b"RUN echo one && sleep 0.3 && echo two\n")
    followed = await desk.run(alice, "image log tools -f")
    assert followed.status == 0
    assert "\none\ntwo\n" in followed.out
    whole = json.loads((await desk.run(alice, "image log tools --json")).out)
    assert whole["log"] == followed.out
    assert whole["offset"] == len(followed.out.encode())
    rest = await desk.run(alice, f"image log tools:latest --build 1 --offset {followed.out.index('two')}")
    assert rest.out.startswith("two\n")
    assert (await desk.run(alice, "image log tools --build 7")).status == 1
    assert (await desk.run(alice, "image log tools --offset -3")).status == 2
    assert (await desk.run(bob, "image log tools")).status == 1


async def test_cancelling(desk: Desk, alice: Caller, builder: MemoryEngine) -> None:
    await desk.run(alice, "image build tools --base debian:bookworm", stdin=b"RUN sleep 1000\n")
    assert json.loads((await desk.run(alice, "image cancel tools --json")).out)["state"] == "cancelled"
    assert (await desk.run(alice, "image log tools -f")).status == 1
    again = await desk.run(alice, "image cancel tools")
    assert again.status == 1
    assert "is over: cancelled" in again.err


async def test_what_is_refused_is_said_line_by_line(desk: Desk, alice: Caller) -> None:
    """Without anything being queued; both as words and for programs."""
    text = b"RUN a\nUSER root\nADD http://x /y\n"
    checked = await desk.run(alice, "image check", stdin=text)
    assert checked.status == 2
    assert [line.partition(": ")[0] for line in checked.err.splitlines()] == ["line 2, column 1", "line 3, column 5"]
    built = await desk.run(alice, "image build tools --base debian:bookworm", stdin=text)
    assert (built.status, built.err, built.out) == (2, checked.err, "")
    rows = json.loads((await desk.run(alice, "image check --json", stdin=text)).out)
    assert [(row["line"], row["column"]) for row in rows] == [(2, 1), (3, 5)]
    good = await desk.run(alice, "image check", stdin=b"RUN true\n")
    assert (good.status, good.out, good.err) == (0, "", "this can be built\n")
    assert json.loads((await desk.run(alice, "image check --json", stdin=b"RUN true\n")).out) == []
    broken = await desk.run(alice, "image check", stdin=b"RUN \xff")
    assert (broken.status, broken.err) == (2, "line 1, column 5: the Dockerfile is not UTF-8 text here\n")
    assert json.loads((await desk.run(alice, "image check --json", stdin=b"RUN \xff")).out)[0]["line"] == 1
    assert (await desk.run(alice, "image build tools", stdin=b"RUN a")).status == 2
    assert "nothing was built yet" in (await desk.run(alice, "image history")).err


async def test_a_quota_that_is_full_is_said_by_the_check(desk: Desk, alice: Caller, admin: Caller) -> None:
    """Before anything is queued; what is wrong with the text is said all the same."""
    await desk.run(admin, "quota set --user alice --builds 1")
    assert (await desk.run(alice, "image build tools --base debian:bookworm", stdin=b"RUN true\n")).status == 0
    sentence = "your quota of open builds is 1, with 1 in use, and this needs 1: an administrator can raise it"
    checked = await desk.run(alice, "image check", stdin=b"RUN true\n")
    assert (checked.status, checked.out, checked.err) == (1, "", f"not now: {sentence}\n")
    wrong = await desk.run(alice, "image check --json", stdin=b"USER root\n")
    assert wrong.status == 2
    assert [(row["line"], row["message"]) for row in json.loads(wrong.out)][1:] == [(0, sentence)]
    refused = await desk.run(alice, "image build more --base debian:bookworm", stdin=b"RUN true\n")
    assert (refused.status, refused.out, refused.err) == (1, "", f"{sentence}\n")
    lines = json.loads((await desk.run(alice, "quota show --json")).out)
    found = {row["of"]: row for row in lines if row["resource"] == "builds"}
    assert (found["user"]["used"], found["user"]["allowed"], found["user"]["set_by"]) == (1, 1, "root-admin")
    assert (found["workspace"]["used"], found["workspace"]["allowed"]) == (1, None)
