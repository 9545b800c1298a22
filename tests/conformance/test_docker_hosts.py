"""Two hosts that are real: one behind its socket, one behind a line that is cut and mended."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import update

from backends.compute.docker.driver import DockerCompute
from backends.environments import Environments
from backends.guest import Guests
from backends.hosts import Hosts
from backends.planning import Request
from backends.reconcilers.environments import EnvironmentReconciler
from backends.reconcilers.hosts import HostWatch
from backends.settings import (
    BackendSettings,
    DockerHostSettings,
    DockerSettings,
    EnvironmentSettings,
    PlacementSettings,
)
from storage.access import Action, Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import NotFound
from storage.records import Environment, EnvironmentState, HostState, Workspace
from storage.vault import Vault
from tests.conformance.docker_hosts import ENGINE, Cuttable

MIB = 1024**2


class House:
    """The use cases and loops of a gateway over two hosts."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, data: Path, guest: Path, cuttable: Path
    ) -> None:
        urls = {"near": f"unix://{ENGINE}", "far": f"unix://{cuttable}"}
        hosts = {name: DockerHostSettings(url=url) for name, url in urls.items()}
        settings = BackendSettings(
            docker=DockerSettings(hosts=hosts),
            environments=EnvironmentSettings(reconcile_seconds=0.5, stop_grace_seconds=1),
            placement=PlacementSettings(heartbeat_seconds=0.2),
        )
        self.computes = {f"docker/{name}": DockerCompute(guest, settings.docker, host) for name, host in hosts.items()}
        self.environments = Environments(database, audit, changes, self.computes, settings)
        self.guests = Guests(database, Vault.in_directory(data), self.computes, changes)
        self.hosts = Hosts(database, audit, changes, settings)
        self.watch = HostWatch(database, audit, changes, self.computes, settings.placement)
        self.reconciler = EnvironmentReconciler(database, audit, changes, self.computes, self.guests, settings)

    async def close(self) -> None:
        await self.guests.close()
        for compute in self.computes.values():
            await compute.close()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Cuttable]:
    line = Cuttable(tmp_path / "far.sock")
    await line.mend()
    yield line
    await line.cut()


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, data_dir: Path, guest: Path, line: Cuttable, alice: Caller
) -> AsyncIterator[House]:
    async with database.writing() as tx:  # a network of its own, whoever else uses this engine
        await tx.execute(update(Workspace).values(name=f"team-{secrets.token_hex(4)}"))
    house = House(database, audit, changes, data_dir, guest, line.path)
    await house.watch.look()
    loops = [asyncio.create_task(house.reconciler.run()), asyncio.create_task(house.watch.run())]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(house.close)
        stack.callback(lambda: [loop.cancel() for loop in loops])
        yield house
        for row in await house.environments.list(alice):
            await house.environments.delete(alice, row.name)
        await _until(lambda: _is_empty(house, alice))
    await asyncio.gather(*loops, return_exceptions=True)


async def _is_empty(house: House, caller: Caller) -> bool:
    return not await house.environments.list(caller)


async def _until(test: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(90):
        while not await test():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_each_host_by_itself(house: House, line: Cuttable, alice: Caller, admin: Caller) -> None:
    """One host is cut off: the other is served as before, nothing is lost, and it comes back without hands."""
    for name in ("near", "far"):
        await house.environments.create(alice, Request(name, host=name, cpus=1, memory=256 * MIB))
    for name in ("near", "far"):
        row = await house.environments.wait(alice, name)
        link = await house.guests.connect(alice, row)
        assert (await link.run("echo kept > file; id -un")).stdout == "developer\n"
    await line.cut()

    async def is_away() -> bool:
        row = await house.environments.show(alice, "far")
        host = await house.hosts.show(admin, "far")
        return row.reason == "its host far does not answer" and host.state is HostState.OFFLINE

    await _until(is_away)
    assert (await house.environments.show(alice, "far")).state is EnvironmentState.RUNNING
    near = await house.environments.open(alice, Action.EXEC, "near")
    assert (await (await house.guests.connect(alice, near)).run("cat file")).stdout == "kept\n"
    await house.environments.restart(alice, "near")
    assert (await house.environments.wait(alice, "near")).state is EnvironmentState.RUNNING
    await line.mend()

    async def is_back() -> bool:
        row = await house.environments.show(alice, "far")
        return not row.reason and (await house.hosts.show(admin, "far")).state is HostState.ONLINE

    await _until(is_back)
    far: Environment = await house.environments.open(alice, Action.EXEC, "far")
    assert (await (await house.guests.connect(alice, far)).run("cat file")).stdout == "kept\n"
    await house.environments.delete(alice, "far")
    with pytest.raises(NotFound):
        await house.environments.wait(alice, "far")
