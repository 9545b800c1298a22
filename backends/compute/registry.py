"""Which computes serve in this process: the embedded ones that the settings allow and this machine can run."""

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
from backends.settings import BackendSettings
from storage.errors import AshoreError, Unavailable

log = logging.getLogger(__name__)
LOOK_SECONDS = 15.0


@asynccontextmanager
async def computes_of(settings: BackendSettings, directory: Path) -> AsyncIterator[dict[str, Compute]]:
    """The computes that answer, by name. One that answers later joins them then; why it is absent goes to the log.

    `directory` is the data directory: the guest's tree and the homes of `local` are kept below it.
    """
    registry = _Registry(settings, directory)
    await registry.look()
    looking = asyncio.create_task(registry.run(), name="absent computes")
    try:
        yield registry.computes
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        for compute in registry.computes.values():
            await compute.close()


class _Registry:
    def __init__(self, settings: BackendSettings, directory: Path) -> None:
        self.computes: dict[str, Compute] = {}
        self._settings = settings
        self._directory = directory
        self._guest: Path | None = None
        self._absent: dict[str, str] = {}
        """Name → why it is not offered; empty before the first look."""
        self._places = {"local": "bubblewrap", "docker": settings.docker.socket}
        for name, enabled in (("local", settings.local.enabled), ("docker", settings.docker.enabled)):
            if enabled:
                self._absent[name] = ""

    async def run(self) -> None:
        """Until everything serves."""
        while self._absent:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Offer those that were absent and answer now."""
        for name in tuple(self._absent):
            try:
                self.computes[name] = await self._connected(name)
            except AshoreError as error:
                if self._absent[name] != error.message:
                    log.warning("the compute '%s' is not offered: %s (%s)", name, error.message, self._places[name])
                self._absent[name] = error.message
            else:
                del self._absent[name]

    async def _connected(self, name: str) -> Compute:
        if self._guest is None:
            self._guest = await asyncio.to_thread(guest_tree.build, self._directory / "guest")
        make: dict[str, Callable[[Path], Compute]] = {"local": self._local, "docker": self._docker}
        compute = make[name](self._guest)
        try:
            engine = await compute.check()
        except BaseException:
            await compute.close()
            raise
        log.info("the compute '%s' is served by %s", name, engine)
        return compute

    def _local(self, guest: Path) -> Compute:
        if shutil.which("bwrap") is None:
            raise Unavailable("bwrap is not installed")
        return LocalCompute(self._directory, guest, self._settings)

    def _docker(self, guest: Path) -> Compute:
        return DockerCompute(guest, self._settings.docker)
