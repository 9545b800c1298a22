"""Many environments: listed, looked after, and made at once.

The list and the look are those of one process over 200 records, with the engine of the tests: what is measured is
ours, and no engine's. Fifty at once are made by a real Docker through the gateway's own port.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from backends.compute.contract import WorkloadSpec
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.reconcilers.environments import EnvironmentReconciler
from backends.settings import BackendSettings
from storage.access import Caller
from storage.accounts import Accounts, PublicKey
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.database.migrate import migrate
from storage.records import Environment, EnvironmentState
from tests.bench.bed import Bed
from tests.bench.measure import ROUNDS, Figure, Result
from tests.stories.clients import eventually

MANY = 200
AT_ONCE = 50


def results(bed: Bed) -> Iterator[Result]:
    listed, looked = asyncio.run(_many(bed.directory / "many-environments"))
    yield Figure(f"list of {MANY} environments (at most 100)", "ms", listed * 1000)
    yield Figure(f"look over {MANY} environments, CPU (at most 2)", "s", looked)
    yield Figure(f"{AT_ONCE} environments at once on docker, all up", "s", _at_once(bed))


async def _many(directory: Path) -> tuple[float, float]:
    """Seconds of one list, and seconds of CPU of one look by the reconciler."""
    async with _house(directory) as (environments, reconciler, alice):

        async def once() -> None:
            rows = await environments.list(alice)
            await environments.mounts(alice, rows)
            assert len(rows) == MANY

        listed = await _median(once, time.perf_counter)

        async def look() -> None:
            assert await reconciler.look() == []

        return listed, await _median(look, time.process_time)


async def _median(work: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> float:
    taken = []
    for _ in range(ROUNDS):
        start = clock()
        await work()
        taken.append(clock() - start)
    return statistics.median(taken)


@asynccontextmanager
async def _house(directory: Path) -> AsyncIterator[tuple[Environments, EnvironmentReconciler, Caller]]:
    directory.mkdir(mode=0o700)
    database = Database.in_directory(directory)
    await migrate(database)
    audit, changes = AuditTrail(database), Changes(directory / "run" / "changes")
    await audit.start()
    await changes.start()
    accounts = Accounts(database, audit, changes)
    key = PublicKey("ssh-ed25519 AAAAalice", "SHA256:alice")
    await accounts.add_user("alice", [key], is_admin=False, actor="operator")
    alice = await accounts.sign_in("alice", key.fingerprint, address="127.0.0.1", connection="bench")
    computes = {"memory": MemoryCompute(MemoryEngine(directory / "engine"))}
    settings = BackendSettings()
    await _fill(database, computes["memory"], alice)
    environments = Environments(database, audit, changes, computes, settings)
    yield environments, EnvironmentReconciler(database, audit, changes, computes, cast("Any", None), settings), alice
    for part in (computes["memory"], changes, audit, database):
        await part.close()


async def _fill(database: Database, compute: MemoryCompute, owner: Caller) -> None:
    """Records of environments that run, and what runs."""
    for number in range(MANY):
        row = Environment(
            owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, name=f"e{number}",
            compute="memory", cpus=1.0, memory=1 << 30, state=EnvironmentState.RUNNING, created=now(), started=now(),
        )  # fmt: skip
        async with database.writing() as tx:
            tx.add(row)
            await tx.flush()
            spec = WorkloadSpec(id=row.id, name=row.name, owner=owner.name, workspace=owner.workspace)
            row.handle = await compute.create(spec, lambda _: None)
        await compute.start(row.handle, spec, lambda _: None)


def _at_once(bed: Bed) -> float:
    """Seconds from the first request to the last environment that runs."""
    gateway = bed.gateway
    gateway.ssh("carol", "quota", "set", "--user", "alice", "--environments", str(2 * AT_ONCE))
    names = [f"many-{number}" for number in range(AT_ONCE)]

    def make(name: str) -> None:
        gateway.ssh("alice", "env", "create", name, "--compute", "docker", "--cpu", "0.1", "--memory", "64MiB")

    def running() -> bool:
        rows = gateway.json("alice", "env", "list")
        assert not [row for row in rows if row["state"] == "failed"], rows
        return sum(row["state"] == "running" and row["name"] in names for row in rows) == AT_ONCE

    start = time.perf_counter()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(make, names))
    eventually(running, seconds=600)
    taken = time.perf_counter() - start
    for name in names:
        gateway.ssh("alice", "env", "delete", name)
    eventually(lambda: len(gateway.json("alice", "env", "list")) == 1, seconds=600)
    return taken
