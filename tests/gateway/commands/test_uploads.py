"""`upload list|show|abort`: what people see of files on their way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from storage.access import Caller
from storage.clock import now
from storage.database.engine import Database
from storage.records import FileFact, Upload, UploadState
from tests.gateway.commands.conftest import Desk, Shelf

MIB = 1024 * 1024
Make = Callable[..., Awaitable[str]]


@pytest.fixture
def make(database: Database, alice: Caller) -> Make:
    """A row as the engine writes it."""

    async def make(
        path: str = "/datasets/d/v1/x", *, owner: Caller = alice, age: float = 10.0, **values: object
    ) -> str:
        moment = now()
        row = Upload(**{
            "owner_id": owner.user_id, "path": path, "key": path[1:], "s3_upload_id": "s3", "part_size": 8 * MIB,
            "size": 40 * MIB, "created": moment - timedelta(seconds=age), "touched": moment, **values,
        })  # fmt: skip
        async with database.writing() as tx:
            tx.add(row)
        return row.id

    return make


async def test_what_is_on_its_way(desk: Desk, alice: Caller, make: Make) -> None:
    live = await make("/datasets/d/v1/live")
    parked = await make("/datasets/d/v1/parked", state=UploadState.PARKED, size=3 * MIB)
    await make("/datasets/d/v1/done", state=UploadState.DONE)
    answer = await desk.run(alice, "upload list")
    assert answer.out.splitlines()[0].split() == ["ID", "USER", "STATE", "SENT", "%", "RATE", "LEFT", "FILE"]
    assert [line.split()[:4] for line in answer.out.splitlines()[1:]] == [
        [live, "alice", "uploading", "40MiB"], [parked, "alice", "interrupted", "3MiB"],
    ]  # fmt: skip
    assert "4MiB/s" in answer.out
    assert "reput" in answer.err
    first, second = json.loads((await desk.run(alice, "upload list --json")).out)
    assert (first["state"], first["bytes"], first["bytes_per_second"]) == ("sending", 40 * MIB, 4 * MIB)
    assert (second["state"], second["expected"], second["percent"]) == ("parked", None, None)


async def test_what_ended_in_doubt_is_shown_until_it_is_replaced(
    desk: Desk, alice: Caller, make: Make, database: Database
) -> None:
    key = "datasets/d/v1/x"
    upload = await make(state=UploadState.DONE, suspect=True, etag="one", key=key)
    async with database.writing() as tx:
        tx.add(FileFact(key=key, size=40 * MIB, etag="one", mtime=1, suspect=True))
    (row,) = json.loads((await desk.run(alice, "upload list --json")).out)
    assert (row["id"], row["state"]) == (upload, "suspect")
    assert "go on with reput" in (await desk.run(alice, f"upload show {upload}")).out
    async with database.writing() as tx:
        await tx.merge(FileFact(key=key, size=50 * MIB, etag="two", mtime=1, suspect=False))
    assert json.loads((await desk.run(alice, "upload list --json")).out) == []


async def test_how_much_is_left(desk: Desk, alice: Caller, make: Make) -> None:
    await make(expected_size=400 * MIB, resumed=now() - timedelta(seconds=5), age=500.0)
    answer = await desk.run(alice, "upload list")
    assert answer.out.splitlines()[1].split()[2:7] == ["uploading", "40MiB", "10", "8MiB/s", "45s"]


async def test_nothing(desk: Desk, alice: Caller) -> None:
    answer = await desk.run(alice, "upload list")
    assert (answer.status, answer.out) == (0, "")
    assert "nothing is being sent" in answer.err


async def test_a_stalled_one(desk: Desk, alice: Caller, make: Make) -> None:
    await make(touched=now() - timedelta(minutes=5), age=600.0)
    (row,) = json.loads((await desk.run(alice, "upload list --json")).out)
    assert (row["state"], row["bytes_per_second"]) == ("stalled", 0)


async def test_others_are_seen_by_administrators_only(
    desk: Desk, alice: Caller, bob: Caller, admin: Caller, make: Make
) -> None:
    upload = await make()
    assert (await desk.run(bob, "upload list")).out == ""
    assert (await desk.run(bob, "upload list --all")).status == 77
    assert upload in (await desk.run(admin, "upload list --all")).out
    for verb in ("show", "abort"):
        answer = await desk.run(bob, f"upload {verb} {upload}")
        assert (answer.status, answer.err) == (1, f"there is no upload '{upload}'\n")


async def test_show_and_abort(desk: Desk, alice: Caller, admin: Caller, make: Make, shelf: Shelf) -> None:
    upload = await make()
    assert "last bytes" in (await desk.run(alice, f"upload show {upload}")).out
    assert (await desk.run(alice, f"upload abort {upload}")).out == f"ended  {upload}\nfile   /datasets/d/v1/x\n"
    assert shelf.aborted == [("datasets/d/v1/x", "s3")]
    again = await desk.run(alice, f"upload abort {upload}")
    assert (again.status, again.err) == (1, "this upload is ended: there is nothing to end\n")
    shown = json.loads((await desk.run(alice, f"upload show {upload} --json")).out)
    assert shown["state"] == "ended"
    (event,) = [e for e in await desk.services.audit.search(admin) if e.action == "upload.abort"]
    assert (event.actor, event.thing, event.detail["upload"]) == ("alice", "/datasets/d/v1/x", upload)
    assert (await desk.run(alice, "upload show nothing")).status == 1


async def test_names_that_a_terminal_would_obey(desk: Desk, alice: Caller, make: Make) -> None:
    upload = await make("/datasets/d/v1/\x1b]52;c;eA==\x07\u202egnp")
    for command in ("upload list", f"upload show {upload}", f"upload abort {upload}"):
        answer = await desk.run(alice, command)
        assert not set(answer.out) & set("\x1b\x07\u202e")


async def test_watching(desk: Desk, alice: Caller, make: Make) -> None:
    """Two looks: a line each, and the second knows how fast it went between them."""
    answers: list[str] = []
    upload = await make()
    watching = asyncio.create_task(_follow(desk, alice, answers))
    async with asyncio.timeout(60):
        while len(answers) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [json.loads(line)[0]["id"] for line in answers[:2]] == [upload, upload]


async def _follow(desk: Desk, caller: Caller, answers: list[str]) -> None:
    from gateway.commands import Context, run
    from tests.gateway.commands.conftest import Typed

    context = Context(
        desk.services, caller, desk.settings, Typed(b""), answers.append, answers.append, host="gw", port=2022
    )
    await run(context, "upload list --watch --json")
