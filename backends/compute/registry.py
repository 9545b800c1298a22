"""Which computes serve in this process: the embedded ones that the settings allow and this machine can run, and the
machines of the settings."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from backends import guest_tree
from backends.compute.contract import Compute
from backends.compute.docker.driver import DockerCompute
from backends.compute.local import LocalCompute
from backends.compute.ssh.driver import MachineCompute
from backends.settings import BackendSettings
from storage.errors import AshoreError, Unavailable

log = logging.getLogger(__name__)
LOOK_SECONDS = 15.0
FIRST_SECONDS = 3.0
"""How long machines may keep the start waiting; what answers later joins then."""


class Computes(dict[str, Compute]):
    """The computes that answer, by name. `absent`: machines of the settings that do not, and why."""

    def __init__(self) -> None:
        super().__init__()
        self.absent: dict[str, str] = {}


@asynccontextmanager
async def computes_of(settings: BackendSettings, directory: Path) -> AsyncIterator[Computes]:
    """The computes that answer, by name. One that answers later joins them then; why it is absent goes to the log.

    `directory` is the data directory: the guest's tree and the homes of `local` are kept below it.
    """
    registry = _Registry(settings, directory)
    await registry.look(here=True)
    looking = asyncio.create_task(registry.run(), name="absent computes")
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                await registry.has_asked.wait()
        yield registry.computes
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await registry.close()


class _Registry:
    def __init__(self, settings: BackendSettings, directory: Path) -> None:
        self.computes = Computes()
        self.has_asked = asyncio.Event()
        """Every machine was asked once."""
        self._settings = settings
        self._directory = directory
        self._guest: Path | None = None
        self._absent: dict[str, str] = {}
        """Name → why it is not offered; empty before the first look."""
        self._places = {"local": "bubblewrap", "docker": settings.docker.socket}
        for name, enabled in (("local", settings.local.enabled), ("docker", settings.docker.enabled)):
            if enabled:
                self._absent[name] = ""
        self._machines = {name: MachineCompute(name, machine) for name, machine in settings.machines.items()}
        for name, machine in settings.machines.items():
            self._places[name] = f"{machine.user} at {machine.address}, port {machine.port}"
            self._absent[name] = ""
            self.computes.absent[name] = "it does not answer"

    async def run(self) -> None:
        """Until everything serves."""
        await self.look(here=False)
        self.has_asked.set()
        while self._absent:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look(here=True)
            await self.look(here=False)

    async def look(self, *, here: bool) -> None:
        """Offer those that were absent and answer now: engines `here`, or all machines at the same time."""
        names = [name for name in self._absent if (name not in self._machines) is here]
        if not here:
            await asyncio.gather(*(self._look_at(name) for name in names))
            return
        for name in names:
            await self._look_at(name)

    async def close(self) -> None:
        """Let go of everything, machines that never answered included."""
        for compute in {*self.computes.values(), *self._machines.values()}:
            await compute.close()

    async def _look_at(self, name: str) -> None:
        try:
            compute = await self._connected(name)
        except AshoreError as error:
            if self._absent[name] != error.message:
                log.warning("the compute '%s' is not offered: %s (%s)", name, error.message, self._places[name])
            self._absent[name] = error.message
            if name in self._machines:
                self.computes.absent[name] = error.message
        else:
            self.computes[name] = compute
            self.computes.absent.pop(name, None)
            del self._absent[name]

    async def _connected(self, name: str) -> Compute:
        if name in self._machines:
            return await self._answering(name, self._machines[name])
        if self._guest is None:
            self._guest = await asyncio.to_thread(guest_tree.build, self._directory / "guest")
        make: dict[str, Callable[[Path], Compute]] = {"local": self._local, "docker": self._docker}
        compute = make[name](self._guest)
        try:
            return await self._answering(name, compute)
        except BaseException:
            await compute.close()
            raise

    async def _answering(self, name: str, compute: Compute) -> Compute:
        engine = await compute.check()
        log.info("the compute '%s' is served by %s", name, engine)
        return compute

    def _local(self, guest: Path) -> Compute:
        if shutil.which("bwrap") is None:
            raise Unavailable("bwrap is not installed")
        return LocalCompute(self._directory, guest, self._settings)

    def _docker(self, guest: Path) -> Compute:
        return DockerCompute(guest, self._settings.docker)
