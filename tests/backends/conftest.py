"""Sandboxes and guests for the tests of this folder: real bubblewrap, real sshd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backends import guest_tree
from backends.compute.contract import WorkloadSpec
from backends.compute.local import LocalCompute
from backends.guest import Guests
from backends.settings import BackendSettings
from storage.access import Caller
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.records import Environment, EnvironmentState
from storage.vault import Vault
from tests import machines


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest_tree.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
async def local(data_dir: Path, guest: Path) -> AsyncIterator[LocalCompute]:
    compute = LocalCompute(data_dir, guest, BackendSettings())
    yield compute
    for found in await compute.found():
        await compute.delete(found.handle)
    await compute.close()


@pytest.fixture
async def guests(database: Database, data_dir: Path, local: LocalCompute, changes: Changes) -> AsyncIterator[Guests]:
    guests = Guests(database, Vault.in_directory(data_dir), {"local": local}, changes)
    yield guests
    await guests.close()


class Bench:
    """Makes environments as the reconciler would."""

    def __init__(self, database: Database, guests: Guests, local: LocalCompute) -> None:
        self._database, self._guests, self._local = database, guests, local

    async def add(self, owner: Caller, name: str, variables: dict[str, str] | None = None) -> Environment:
        environment = Environment(
            owner_id=owner.user_id, owner_name=owner.name, workspace_id=owner.workspace_id, name=name,
            compute="local", created=now(), variables=variables or {},
        )  # fmt: skip
        async with self._database.writing() as tx:
            tx.add(environment)
        return await self.start(environment)

    async def start(self, environment: Environment) -> Environment:
        files = await self._guests.prepare(environment)
        spec = WorkloadSpec(
            environment.id, environment.name, environment.owner_name, "default",
            variables=dict(environment.variables), guest_files=files,
        )  # fmt: skip
        handle = await self._local.create(spec, _silent)
        await self._local.start(handle, spec, _silent)
        async with self._database.writing() as tx:
            record = await tx.get_one(Environment, environment.id)
            record.handle, record.state = handle, EnvironmentState.RUNNING
        return record


@pytest.fixture
def bench(database: Database, guests: Guests, local: LocalCompute) -> Bench:
    return Bench(database, guests, local)


@pytest.fixture
async def train(bench: Bench, alice: Caller) -> Environment:
    """A running environment of alice's."""
    return await bench.add(alice, "train")


def _silent(line: str) -> None:
    assert line


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, guest: Path) -> Iterator[machines.Machine]:
    """A machine for the compute kind `ssh`; each test has environments of its own there."""
    with machines.served(tmp_path_factory.mktemp("machine"), guest) as machine:
        yield machine
