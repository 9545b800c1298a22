"""The webhook: told once for each crossing, through failures and restarts, and its address is kept out of the log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from backends.quota_watch import QuotaWatch
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.quota_limits import Resource
from storage.quotas import Quotas
from storage.records import Environment, EnvironmentState, Holder
from storage.settings import QuotaSettings

GIB = 1024**3
HANG = "hang"


class Hook:
    """A web server that answers as it is told, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.got: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.port = 0
        self.took = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("Content-Length"))
        body = json.loads(await reader.readexactly(length))
        answer = self.answers.pop(0) if self.answers else "204 No Content"
        if answer == HANG:
            await reader.read()
        else:
            writer.write(f"HTTP/1.1 {answer}\r\nLocation: http://127.0.0.1:{self.port}/elsewhere\r\n\r\n".encode())
            await writer.drain()
            if answer.startswith("2"):
                self.got.append(body)
                self.took.set()
        writer.close()
        await writer.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=s3cret"


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    hook = Hook()
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.port = server.sockets[0].getsockname()[1]
    yield hook
    server.close()
    await server.wait_closed()


@pytest.fixture
def quotas(database: Database, audit: AuditTrail, changes: Changes) -> Quotas:
    return Quotas(database, audit, changes)


def watch(database: Database, changes: Changes, quotas: Quotas, hook: Hook, **settings: Any) -> QuotaWatch:
    chosen = QuotaSettings(webhook=SecretStr(hook.url), **settings)
    one = QuotaWatch(database, changes, quotas, chosen)
    one._waits = (0.0, 0.0)
    return one


async def use(database: Database, owner: Caller, memory: int) -> None:
    """The owner's one environment has so much memory."""
    async with database.writing() as tx:
        await tx.merge(
            Environment(
                id="e1", owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, name="a",
                compute="local", memory=memory, state=EnvironmentState.RUNNING, created=now(),
            )
        )  # fmt: skip


async def test_each_crossing_is_told_once(
    database: Database, changes: Changes, quotas: Quotas, hook: Hook, alice: Caller
) -> None:
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: 10 * GIB})
    await use(database, alice, 8 * GIB)
    assert await watch(database, changes, quotas, hook).look() == 0
    await use(database, alice, 9 * GIB)
    assert await watch(database, changes, quotas, hook).look() == 1
    await use(database, alice, 10 * GIB)
    assert await watch(database, changes, quotas, hook).look() == 0  # another process, after a restart
    assert hook.got == [
        {
            "event": "quota.warning", "of": "user", "name": "alice", "resource": "memory", "used": 9 * GIB,
            "allowed": 10 * GIB, "percent": 90,
            "text": "Ashore: the user alice uses 9GiB of 10GiB (memory, 90 %)",
        }
    ]  # fmt: skip
    assert hook.heads[0].startswith("POST /hook?token=s3cret HTTP/1.1\r\n")
    await use(database, alice, 1 * GIB)
    assert await watch(database, changes, quotas, hook).look() == 0
    await use(database, alice, 9 * GIB)
    assert await watch(database, changes, quotas, hook).look() == 1
    assert len(hook.got) == 2


@pytest.mark.parametrize("answer", ["500 Oops", "302 Found", "nonsense", HANG])
async def test_what_is_not_taken_is_sent_again(
    database: Database, changes: Changes, quotas: Quotas, hook: Hook, alice: Caller, answer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: GIB})
    await use(database, alice, GIB)
    one = watch(database, changes, quotas, hook, webhook_seconds=0.2)
    hook.answers = [answer]
    assert await one.look() == 1
    assert len(hook.heads) == 2
    await quotas.set_by_operator(Holder.WORKSPACE, "team", {Resource.MEMORY: GIB})
    hook.answers = [answer] * 3
    with caplog.at_level(logging.DEBUG):
        assert await one.look() == 0
        assert "did not take a message" in caplog.text
        assert await one.look() == 1
    assert [message["of"] for message in hook.got] == ["user", "workspace"]
    assert not any("/elsewhere" in head for head in hook.heads)
    assert "s3cret" not in caplog.text


async def test_nobody_there(database: Database, changes: Changes, quotas: Quotas, hook: Hook, alice: Caller) -> None:
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: GIB})
    await use(database, alice, GIB)
    one = watch(database, changes, quotas, hook)
    hook.port = 1
    one = watch(database, changes, quotas, hook)
    assert await one.look() == 0


async def test_it_runs_until_it_is_cancelled(
    database: Database, changes: Changes, quotas: Quotas, hook: Hook, alice: Caller
) -> None:
    await QuotaWatch(database, changes, quotas, QuotaSettings()).run()  # no webhook: nothing to do
    await quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: GIB})
    await use(database, alice, GIB)
    task = asyncio.create_task(watch(database, changes, quotas, hook).run(), name="quota watch")
    async with asyncio.timeout(60):
        await hook.took.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "http://", "nonsense", "https://me:pw@host/x", "http://h/a b", "http://h:x/", "http://h/\n"]
)
def test_addresses_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        QuotaSettings(webhook=SecretStr(url))
    assert "write http://host/path" in str(caught.value)
    assert "pw" not in str(caught.value)
