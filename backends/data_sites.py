"""How data come to the environments of each machine: by a copy there, or by the bucket that is mounted there already.

The gateway's own machine has one cache of folders; every other Docker host has one of volumes in its own engine. With
a shared root nothing is copied, and what environments see is checked before they start.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backends.compute.contract import Compute, HostMount, Mount, Progress
from backends.compute.places import host_of, place_of
from backends.compute.volumes import HasVolumes
from backends.data_cache import DataCache
from backends.data_shelves import FolderShelf, VolumeShelf, Wanted
from backends.settings import BackendSettings, DockerHostSettings
from storage.audit import AuditTrail
from storage.errors import Unavailable
from storage.names import printable
from storage.objects.contract import ObjectStore
from storage.records import Environment
from storage.uses import Uses

_LOOK_SECONDS = 20
"""A mount whose server is away may keep everybody waiting who looks at it."""


def cache_directory(data: Path, host: str = "") -> Path:
    """Where the copies for a machine are noted, below the data directory; without `host` our own, with the files."""
    return data / "cache-hosts" / host if host else data / "cache"


@dataclass(frozen=True)
class Site:
    """One machine. `engine`: what can be asked there; None on our own."""

    cache: DataCache
    root: str = ""
    """Where the bucket is mounted already; empty: nowhere."""
    host: str = ""
    engine: HasVolumes | None = None

    async def bring(self, wanted: Wanted, progress: Progress) -> None:
        """Return when the files are there. See `mounts.EnvironmentData.fetch` for errors."""
        if not self.root:
            await self.cache.fetch(wanted, progress)
            return
        folder = self._folder(wanted.prefix)
        shown = printable(str(folder), limit=300)
        if self.engine is None and not await _is_folder(folder):
            raise Unavailable(
                f"{wanted.title} is not to be seen on this machine: there is no folder {shown};"
                f" is the bucket mounted at {self.root}?"
            )
        if self.engine is not None and not await self.engine.has_folder(folder, progress):
            raise Unavailable(
                f"{wanted.title} is not to be seen on the host {self.host}: there is no folder {shown};"
                f" is the bucket mounted at {self.root}?"
            )

    async def point(self, version_id: str, prefix: str, path: str) -> Mount:
        """What an environment sees of a version at `path`."""
        return HostMount(self._folder(prefix), path) if self.root else await self.cache.mount(version_id, path)

    def _folder(self, prefix: str) -> Path:
        if not prefix:
            raise Unavailable("the version that is mounted leads nowhere")
        return Path(self.root, prefix)


class Sites:
    """The machines. `data` is the data directory; `computes` are those that serve, by place."""

    def __init__(
        self,
        data: Path,
        store: ObjectStore,
        audit: AuditTrail,
        settings: BackendSettings,
        computes: Mapping[str, Compute],
        uses: Uses,
    ) -> None:
        self._data = data
        self._store = store
        self._audit = audit
        self._settings = settings
        self._computes = computes
        self._uses = uses
        self._here = DataCache(
            cache_directory(data), FolderShelf(store), audit, settings.cache, self._in_use_here
        )  # fmt: skip
        self._elsewhere: dict[str, DataCache] = {}

    def of(self, environment: Environment) -> Site:
        """The machine of an environment."""
        place = place_of(environment.compute, environment.host)
        host = self._settings.docker.hosts.get(environment.host)
        compute = self._computes.get(place)
        if isinstance(compute, HasVolumes) and compute.is_elsewhere:
            root = host.shared_root if host is not None else ""
            return Site(self._cache_of(environment.host, compute, host), root, environment.host, compute)
        root = (host.shared_root if host is not None else "") or self._settings.cache.shared_root
        return Site(self._here, root)

    def caches(self) -> Mapping[str, DataCache]:
        """Those of machines that have copies and can be asked, by a few words for people."""
        found = {"of this machine": self._here}
        for place, compute in tuple(self._computes.items()):
            name = host_of(place)
            if isinstance(compute, HasVolumes) and compute.is_elsewhere and cache_directory(self._data, name).is_dir():
                settings = self._settings.docker.hosts.get(name)
                found[f"on the host {name}"] = self._cache_of(name, compute, settings)
        return found

    def _cache_of(self, host: str, engine: HasVolumes, settings: DockerHostSettings | None) -> DataCache:
        if host not in self._elsewhere:
            limits = self._settings.cache.model_copy(update={"gib": settings.cache_gib if settings is not None else 0})
            self._elsewhere[host] = DataCache(
                cache_directory(self._data, host), VolumeShelf(self._store, engine, host), self._audit, limits,
                partial(self._uses.sources_held, host),
            )  # fmt: skip
        return self._elsewhere[host]

    async def _in_use_here(self) -> Collection[str]:
        computes = tuple(self._computes.items())
        elsewhere = [host_of(place) for place, one in computes if isinstance(one, HasVolumes) and one.is_elsewhere]
        return await self._uses.sources_in_use(elsewhere)


async def _is_folder(folder: Path) -> bool:
    looking = asyncio.ensure_future(asyncio.to_thread(os.path.isdir, folder))
    done, _ = await asyncio.wait([looking], timeout=_LOOK_SECONDS)
    return bool(done) and looking.result()
