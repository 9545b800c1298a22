"""Which computes serve in this process, by place: the embedded ones that the settings allow and this machine can run,
and every Docker host of the settings.

Hosts that the settings name are there from the start: whether one answers is in its record. An embedded compute is
offered when it answers for the first time.
"""

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
from backends.compute.places import host_of, place_of
from backends.settings import HERE, BackendSettings
from storage.errors import AshoreError, Unavailable

log = logging.getLogger(__name__)
LOOK_SECONDS = 15.0


@asynccontextmanager
async def computes_of(settings: BackendSettings, directory: Path) -> AsyncIterator[dict[str, Compute]]:
    """The computes by place. One that answers later joins them then; why it is absent goes to the log.

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
        self._here = place_of("docker", HERE)
        self._places = {"local": "bubblewrap", self._here: settings.docker.socket}
        if settings.local.enabled:
            self._absent["local"] = ""
        if settings.docker.enabled:
            hosts = settings.docker.hosts or (HERE,)
            self._absent |= {place_of("docker", host): "" for host in hosts}
            self._places |= {place_of("docker", name): host.url for name, host in settings.docker.hosts.items()}

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
        host = self._settings.docker.hosts.get(host_of(name))
        if host is not None:
            return DockerCompute(self._guest, self._settings.docker, host, name=name)
        make: dict[str, Callable[[Path], Compute]] = {"local": self._local, self._here: self._docker}
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
        return DockerCompute(guest, self._settings.docker, name=self._here)
