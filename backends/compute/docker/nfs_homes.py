"""Homes on an NFS server: volumes of Docker's `local` driver, which the host's own kernel mounts.

Each home is a folder of the export, because an export that is mounted as it is would show everybody's. Docker does not
make that folder, and leaves it when the volume goes: a helper container does both, with the whole export for a moment.
It is made of an image of the settings, never of one that a person chose: it sees everybody's homes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from backends.compute.docker import config
from backends.compute.docker.config import JSON, Place
from backends.compute.docker.data_volume import DataVolumes
from backends.compute.docker.engine import Engine
from backends.settings import DockerHostSettings, DockerSettings
from storage.errors import AshoreError, Unavailable
from storage.names import printable

LABEL = "ashore.nfs"
"""Of a home's volume: its export."""
_OPTIONS_LABEL = "ashore.nfs.options"
_MAKE = 'cd "$COPY" && mkdir -p -- "$1"'
_REMOVE = 'cd "$COPY" && rm -rf -- "$1"'
_MAKE_SECONDS = 60
_REMOVE_SECONDS = 3600
"""A home may hold millions of files."""


@dataclass(frozen=True)
class Export:
    """What a server gives, as `SERVER:/PATH`, and how it is mounted."""

    address: str
    options: str = ""

    @classmethod
    def of(cls, settings: DockerSettings, host: DockerHostSettings) -> Self | None:
        """Where the settings want the homes of `host`; None: on its own disk."""
        address = host.homes_nfs or settings.homes_nfs
        return cls(address, host.homes_nfs_options or settings.homes_nfs_options) if address else None

    @classmethod
    def of_home(cls, labels: Mapping[str, str]) -> Self | None:
        """Where a home is whose volume has these labels; the settings may name another export by now."""
        address = labels.get(LABEL)
        return cls(address, labels.get(_OPTIONS_LABEL, "")) if address else None


def driver_options(export: Export, folder: str = "") -> Mapping[str, str]:
    """What Docker's `local` driver needs for the whole export, or for a folder of it."""
    server, _, path = export.address.partition(":")
    options = ",".join(filter(None, (f"addr={server}", export.options)))
    return {"type": "nfs", "o": options, "device": f":{path.rstrip('/')}/{folder}"}


def home_volume(body: JSON, export: Export, place: Place) -> JSON:
    """`body`, of `POST /volumes/create`, for a home on `export`."""
    labels = {**body["Labels"], LABEL: export.address, _OPTIONS_LABEL: export.options}
    return {**body, "Labels": labels, "Driver": "local", "DriverOpts": driver_options(export, place.container)}


class NfsHomes:
    """Makes and removes the folders, by helpers of `image`. Unavailable: the host cannot mount the export."""

    def __init__(self, engine: Engine, volumes: DataVolumes, image: str) -> None:
        self._engine = engine
        self._volumes = volumes
        self._image = image

    async def make_for(self, labels: Mapping[str, str], place: Place) -> None:
        """The folder for the home whose volume has these labels, if it is on an export."""
        if (export := Export.of_home(labels)) is not None:
            await self._run(export, place, _MAKE, _MAKE_SECONDS)

    async def remove_for(self, labels: Mapping[str, str], place: Place) -> None:
        """The same folder with everything in it; no-op when it is gone. No container has the home any more."""
        if (export := Export.of_home(labels)) is not None:
            await self._run(export, place, _REMOVE, _REMOVE_SECONDS)

    async def _run(self, export: Export, place: Place, script: str, seconds: float) -> None:
        await self._engine.image(self._image, lambda line: None)
        name = f"{place.container}-nfs"
        await self._volumes.delete(name)  # of a process that was cut off
        whole = {"Name": name, "Labels": {LABEL: "export"}, "Driver": "local", "DriverOpts": driver_options(export)}
        try:
            await self._engine.create_volume(whole)
            await self._engine.run_once(config.filler(self._image, name, script, [place.container]), seconds=seconds)
        except AshoreError as error:
            reason = printable(error.message, limit=300)
            raise Unavailable(f"the home on {export.address} (NFS) cannot be used: {reason}") from error
        finally:
            await asyncio.shield(self._volumes.delete(name))
