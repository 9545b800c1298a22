"""A house for commands: the real use cases and reconciler, the memory compute, a dictionary for objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from backends.applications import Applications
from backends.archives.views import Archives
from backends.builds import Builds
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.guest import Guests
from backends.hosts import Hosts
from backends.image_care import ImageCare
from backends.images import Images
from backends.published import PublishedPorts
from backends.reconcilers.environments import EnvironmentReconciler
from backends.services import Services
from backends.settings import (
    BackendSettings,
    EnvironmentSettings,
    ImageSettings,
    OfficialImageSettings,
    RegistrySettings,
)
from backends.usage import Loads
from gateway.commands import Context, run
from gateway.settings import Settings
from storage.access import Caller
from storage.accounts import Accounts
from storage.artifacts import Artifacts
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.errors import BadInput, Unavailable
from storage.models import Models
from storage.objects.contract import ObjectFacts, Usage
from storage.quotas import Quotas
from storage.recordings import Recordings
from storage.records import Environment
from storage.sessions import Sessions
from storage.settings import ObjectSettings
from storage.transfers import Transfers
from storage.uploads import Uploads
from storage.uses import Uses
from storage.vault import Vault


class Shelf:
    """The part of an object store that commands reach, in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False
        self.aborted: list[tuple[str, str]] = []

    async def abort_upload(self, key: str, upload_id: str) -> None:
        self.aborted.append((key, upload_id))

    async def check(self) -> None:
        return

    async def list(self, prefix: str, *, delimiter: bool = False) -> AsyncIterator[Sequence[ObjectFacts]]:
        if self.away:
            raise Unavailable("the object store does not answer")
        if found := [key for key in sorted(self.objects) if key.startswith(prefix)]:
            yield [ObjectFacts(key, len(self.objects[key])) for key in found]

    async def delete_many(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self.objects.pop(key, None)

    async def usage(self, prefix: str) -> Usage:
        sizes = [len(data) for key, data in self.objects.items() if key.startswith(prefix)]
        return Usage(len(sizes), sum(sizes))


class LoopbackGuests(Guests):
    """Guests whose connections go to a real SSH server of this process that runs what it is told."""

    server: asyncssh.SSHAcceptor | None = None
    connection: asyncssh.SSHClientConnection | None = None

    async def connect(
        self, caller: Caller, environment: Environment, *, agent_path: str | None = None, owner: object | None = None
    ) -> asyncssh.SSHClientConnection:
        if self.server is None:
            self.server = await asyncssh.listen(
                "127.0.0.1", 0, server_host_keys=[await self.host_key(caller.user_id, "loopback")],
                process_factory=_run_here, server_factory=_Open, encoding=None,
            )  # fmt: skip
        self.connection = await asyncssh.connect(
            "127.0.0.1", self.server.get_port(), known_hosts=None, username=caller.name, config=None,
            client_keys=None, agent_path=None,
        )  # fmt: skip
        return self.connection

    async def close(self) -> None:
        await super().close()
        if self.connection is not None:
            self.connection.close()
            await self.connection.wait_closed()
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()


class _Open(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


async def _run_here(process: asyncssh.SSHServerProcess[bytes]) -> None:
    program = await asyncio.create_subprocess_shell(
        process.command or "true", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await program.communicate(await process.stdin.read())
    process.stdout.write(out)
    process.exit(program.returncode or 0)


@dataclass
class Answer:
    """What a command printed, and its exit status."""

    status: int = -1
    out: str = ""
    err: str = ""


@dataclass
class Typed:
    """Standard input that is all there."""

    data: bytes

    async def read_all(self, limit: int) -> bytes:
        if len(self.data) > limit:
            raise BadInput(f"the input is longer than {limit} bytes")
        return self.data


@dataclass
class Desk:
    """Runs commands, as a caller would over SSH."""

    services: Services
    settings: Settings = field(default_factory=Settings)

    async def run(self, caller: Caller, command: str, *, stdin: bytes = b"", **context: Any) -> Answer:
        answer = Answer()

        def out(text: str) -> None:
            answer.out += text

        def err(text: str) -> None:
            answer.err += text

        surroundings: dict[str, Any] = {"host": "gw.example.org", "port": 2022} | context
        answer.status = await run(
            Context(self.services, caller, self.settings, Typed(stdin), out, err, **surroundings), command
        )
        return answer


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def services(
    database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, data_dir: Path, shelf: Shelf
) -> AsyncIterator[Services]:
    official = OfficialImageSettings(name="pytorch:2.4", reference="docker.io/pytorch/pytorch:2.4.1", cuda="12.4")
    settings = BackendSettings(
        environments=EnvironmentSettings(most_cpus=64, most_memory_mib=256 * 1024),
        registry=RegistrySettings(url="http://127.0.0.1:5999"), images=ImageSettings(official=(official,)),
    )  # fmt: skip
    quotas = Quotas(database, audit, changes)
    images = Images(database, audit, changes, settings.registry, settings.images)
    compute = MemoryCompute(MemoryEngine(data_dir / "memory"))
    computes = {"memory": compute}
    guests = LoopbackGuests(database, Vault.in_directory(data_dir), computes, changes)
    reconciler = EnvironmentReconciler(database, audit, changes, computes, guests, settings)
    loop = asyncio.create_task(reconciler.run(), name="environments reconciler")
    uploads = Uploads(database, cast("Any", shelf), audit, changes, ObjectSettings())
    environments = Environments(database, audit, changes, computes, settings, quotas=quotas, images=images)
    templates = environments.planner.applications
    yield Services(
        database=database, audit=audit, changes=changes, accounts=accounts, quotas=quotas,
        sessions=Sessions(database, audit, changes),
        recordings=Recordings(database, audit, data_dir / "recordings"),
        datasets=Datasets(database, audit, changes, cast("Any", shelf)),
        models=Models(database, audit, changes, cast("Any", shelf)),
        artifacts=Artifacts(database, audit, changes, cast("Any", shelf)),
        deletions=Deletions(database, audit, changes, cast("Any", shelf)), uses=Uses(database),
        uploads=uploads, transfers=Transfers(database, audit, changes, uploads),
        images=images, image_care=ImageCare(database, audit, images, {}, None), registry=None,
        builds=Builds(database, audit, changes, images, quotas, data_dir / "builds"),
        archives=Archives(database),
        imports=cast("Any", None), links=cast("Any", None),
        moves=cast("Any", None), store=cast("Any", shelf), files=cast("Any", None),
        environments=environments,
        applications=Applications(database, audit, changes, environments, Vault.in_directory(data_dir), templates),
        published=PublishedPorts(database, audit, changes, environments, settings.ports),
        hosts=Hosts(database, audit, changes, settings, data_dir), loads=Loads(computes), guests=guests,
        computes=computes,
    )  # fmt: skip
    loop.cancel()
    await uploads.close()
    await asyncio.gather(loop, return_exceptions=True)
    await guests.close()
    await compute.close()


@pytest.fixture
def desk(services: Services) -> Desk:
    return Desk(services)
