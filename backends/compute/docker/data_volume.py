"""Data for an engine that does not see this machine's files: volumes of the Engine, filled through its archive API.

Helper containers do it. The one that receives archives never runs; those that remove files and flush the disk run for
a moment, and carry the label `ashore.fill` with the volume's name. They are made of an image of the settings, never of
one that a person chose: what a volume holds is seen by others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from pathlib import Path

from backends.compute.contract import Progress
from backends.compute.docker import config
from backends.compute.docker.engine import Engine
from backends.compute.docker.sending import send
from storage.errors import BadInput

_SETTLE_SECONDS = 1800
"""A slow disk may have gigabytes to write."""


class DataVolumes:
    """The data volumes of one engine; `image` is what helpers are made of."""

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine = engine
        self._image = image

    async def has(self, name: str) -> bool:
        return await self._engine.volume_labels(name) is not None

    async def delete(self, name: str) -> None:
        """Conflict: a container has it."""
        await self.clear([name])
        await self._engine.delete_volume(name)

    async def clear(self, volumes: Collection[str]) -> None:
        """Remove what a crash left of helpers for these volumes."""
        for shown in await self._engine.containers(config.FILL):
            if shown["Labels"].get(config.FILL) in volumes:
                await self._engine.delete_container(shown["Id"])

    @contextlib.asynccontextmanager
    async def writer(self, name: str, progress: Progress) -> AsyncIterator[Writer]:
        """Open a volume; it is made unless it is there."""
        await self._engine.image(self._image, progress)
        await self.clear([name])
        await self._engine.create_volume(config.data_volume(name))
        helper = f"{name}-fill"
        try:
            await self._engine.create_container(helper, config.filler(self._image, name))
            yield Writer(self._engine, helper, name, self._image)
        finally:
            await asyncio.shield(self._engine.delete_container(helper))

    async def has_folder(self, folder: Path, progress: Progress) -> bool:
        """By a container that is made with it and never runs: the Engine refuses what it cannot find."""
        await self._engine.image(self._image, progress)
        name = f"ashore-look-{secrets.token_hex(4)}"
        try:
            await self._engine.create_container(name, config.looker(self._image, folder))
        except BadInput:
            return False
        finally:
            await asyncio.shield(self._engine.delete_container(name))
        return True


class Writer:
    """See `compute.volumes.VolumeWriter`."""

    def __init__(self, engine: Engine, helper: str, volume: str, image: str) -> None:
        self._engine = engine
        self._helper = helper
        self._volume = volume
        self._image = image

    async def put(self, tar: AsyncGenerator[bytes]) -> None:
        await send(
            tar, lambda pieces: self._engine.put_stream(self._helper, config.COPY, pieces), title=self._volume
        )  # fmt: skip

    async def remove(self, paths: Sequence[str]) -> None:
        await self._engine.run_once(config.filler(self._image, self._volume, config.REMOVE, paths))

    async def settle(self) -> None:
        await self._engine.run_once(config.filler(self._image, self._volume, config.SETTLE), seconds=_SETTLE_SECONDS)
