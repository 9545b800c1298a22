"""A small house for the screens: the real use cases on a real database, a tree in memory, no engine.

Nothing here starts anything; the tests play the reconciler by changing records.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cryptography.fernet import Fernet
from sqlalchemy import update

from backends.applications import Applications
from backends.archives.views import Archives
from backends.builds import Builds
from backends.compute.contract import Usage as Used
from backends.environments import Environments
from backends.hosts import Hosts
from backends.images import Images
from backends.published import PublishedPorts
from backends.services import Address
from backends.settings import BackendSettings, EnvironmentSettings, MachineSettings, PortSettings, RegistrySettings
from backends.usage import Loads
from storage.access import Caller
from storage.accounts import Accounts
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.errors import AlreadyExists, Conflict, NotFound, Unavailable
from storage.models import Models
from storage.objects.contract import ObjectFacts, Usage
from storage.quotas import Quotas
from storage.records import Environment
from storage.sessions import Sessions
from storage.settings import ObjectSettings
from storage.transfers import Transfers
from storage.tree import Node
from storage.uploads import Uploads
from storage.vault import Vault
from tui.terminal import Capabilities, Keyboard, ScreenSize


class MemoryTree:
    """The reading and renaming half of `storage.tree.Tree`, in a dictionary of path → bytes or None (directory)."""

    def __init__(self, entries: Mapping[str, bytes | None]) -> None:
        self.entries: dict[str, bytes | None] = {"/": None, **entries}
        self.read_count = 0

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        if path not in self.entries:
            raise NotFound(f"there is no '{path}'")
        for one in sorted(self.entries):
            if one != "/" and posixpath.dirname(one) == path:
                self.read_count += 1
                yield self._node(one)

    async def mkdir(self, caller: Caller, path: str) -> None:
        if path in self.entries:
            raise AlreadyExists(f"'{path}' is there already")
        self.entries[path] = None

    async def rmdir(self, caller: Caller, path: str) -> None:
        if any(posixpath.dirname(one) == path for one in self.entries):
            raise Conflict(f"'{path}' is not empty")
        del self.entries[path]

    async def remove(self, caller: Caller, path: str) -> None:
        del self.entries[path]

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        self.entries[new] = self.entries.pop(old)

    async def open_reader(self, caller: Caller, path: str) -> MemoryReader:
        return MemoryReader(self._node(path), self.entries[path] or b"")

    def _node(self, path: str) -> Node:
        data = self.entries[path]
        return Node(posixpath.basename(path), data is None, len(data or b""), 1_700_000_000)


@dataclass
class MemoryReader:
    node: Node
    data: bytes

    async def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    async def close(self) -> None:
        return


class TalkingCompute:
    """A compute that only has a log and a usage."""

    def __init__(self, log: bytes = b"") -> None:
        self.log = log
        self.used = Used(cpu=0.0, memory=0, processes=1)

    async def usage(self, handle: str) -> Used:
        return self.used

    async def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        yield self.log


@dataclass
class FakeTerminal:
    """Keeps what is written; shells are opened by name only."""

    capabilities: Capabilities = field(default_factory=lambda: Capabilities(term="xterm-256color", dark=True))
    size: ScreenSize = field(default_factory=ScreenSize)
    is_closed: bool = False
    written: bytearray = field(default_factory=bytearray)
    shells: list[str] = field(default_factory=list)
    shell_status: int = 0
    shell_error: Exception | None = None
    keyboard: Keyboard | None = None
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    shell_gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.shell_gate.set()

    def attach(self, keyboard: Keyboard) -> None:
        self.keyboard = keyboard
        self.attached.set()

    def detach(self, keyboard: Keyboard) -> None:
        if self.keyboard is keyboard:
            self.keyboard = None

    def write(self, data: bytes) -> None:
        self.written += data

    async def open_shell(self, environment: str) -> int:
        self.shells.append(environment)
        await self.shell_gate.wait()
        if self.shell_error is not None:
            raise self.shell_error
        return self.shell_status

    @property
    def text(self) -> str:
        return self.written.decode()


def _machine_of(*users: str) -> MachineSettings:
    """An existing machine; nobody else sees it."""
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILUHRBntthKg9Y8mH+qerxvw+bxhoLptBtHSxo63OpiJ"
    return MachineSettings(address="192.0.2.1", user="trainer", host_key=line, key_file="/nowhere", users=users)


class House:
    """Services as the screens see them, and hands for what other parts of the house would do."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, data: Path) -> None:
        self.database = database
        self.changes = changes
        self.compute = TalkingCompute()
        self.computes: dict[str, Any] = {"docker": self.compute, "local": self.compute, "box": self.compute}
        settings = BackendSettings(
            environments=EnvironmentSettings(most_cpus=64, most_memory_mib=256 * 1024),
            machines={"box": _machine_of("bob")},
            ports=PortSettings(first=30001, last=30002),
        )
        self.quotas = Quotas(database, audit, changes)
        self.images = Images(database, audit, changes, RegistrySettings(url="http://127.0.0.1:5999"))
        self.archives = Archives(database)
        self.environments = Environments(
            database, audit, changes, self.computes, settings, quotas=self.quotas, images=self.images
        )  # fmt: skip
        templates = self.environments.planner.applications
        vault = Vault(Fernet.generate_key())
        self.applications = Applications(database, audit, changes, self.environments, vault, templates)
        self.published = PublishedPorts(database, audit, changes, self.environments, settings.ports)
        self.hosts = Hosts(database, audit, changes, settings)
        self.images = Images(database, audit, changes, RegistrySettings(url="http://127.0.0.1:5999"))
        self.builds = Builds(database, audit, changes, self.images, self.quotas, data)
        self.sessions = Sessions(database, audit, changes)
        self.parts_thrown_away: list[str] = []
        self.transfers = Transfers(
            database, audit, changes, Uploads(database, cast("Any", self), audit, changes, ObjectSettings())
        )
        self.accounts = accounts
        self.files = MemoryTree({})
        self.objects: dict[str, int] = {}
        self.is_away = False
        shelf = cast("Any", self)
        self.datasets = Datasets(database, audit, changes, shelf)
        self.models = Models(database, audit, changes, shelf)
        self.deletions = Deletions(database, audit, changes, shelf)

    # ---- an object store, as far as the screens reach it -----------------------------------------------------
    async def list(self, prefix: str) -> AsyncIterator[Sequence[ObjectFacts]]:
        if self.is_away:
            raise Unavailable("the object store does not answer")
        if found := [ObjectFacts(key, size) for key, size in sorted(self.objects.items()) if key.startswith(prefix)]:
            yield found

    async def delete_many(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self.objects.pop(key, None)

    async def usage(self, prefix: str) -> Usage:
        sizes = [size for key, size in self.objects.items() if key.startswith(prefix)]
        return Usage(len(sizes), sum(sizes))

    async def abort_upload(self, key: str, upload_id: str) -> None:
        self.parts_thrown_away.append(key)

    @property
    def services(self) -> Any:
        return SimpleNamespace(
            database=self.database, changes=self.changes, accounts=self.accounts,
            quotas=self.quotas, sessions=self.sessions, builds=self.builds, images=self.images, archives=self.archives,
            transfers=self.transfers, datasets=self.datasets, models=self.models, deletions=self.deletions,
            applications=self.applications, published=self.published,
            environments=self.environments, hosts=self.hosts, loads=Loads(self.computes), files=self.files,
            address=Address("gpu.example.org", 2022),
        )  # fmt: skip

    async def becomes(self, name: str, **values: object) -> None:
        """What the reconciler does: write a state, then hint."""
        async with self.database.writing() as tx:
            await tx.execute(update(Environment).where(Environment.name == name).values(**values))
        self.changes.tell("environment")


def with_connection(caller: Caller, connection: str) -> Caller:
    return replace(caller, connection=connection)
