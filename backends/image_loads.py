"""Brings images of a registry that is on this machine only to engines that are not: through the gateway, as an archive.

The engine has it then under a name of its own (`image_names.loaded_name`) that no registry answers to. It is looked at
afterwards: what runs is what the digest says. A load that was cut off begins anew; an engine keeps nothing of half a
load. Who may have which image is decided before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

from backends.compute.contract import Compute, HasImages, Progress
from backends.image_archive import ImageArchive
from backends.image_names import loaded_name
from backends.registry import Registry
from storage.errors import BadInput, Unavailable

OUT_OF_REACH = (
    "this image is in a registry that only the gateway's own machine reaches, so it runs on no other: an "
    "administrator can set backends.registry.url to a name that all machines reach"
)

_AT_ONCE = 4
"""A slow engine holds its connection to the registry for as long as it takes a layer, and others need some, too."""


class ImageLoads:
    """The loads of this process: one at a time for an image and an engine. Without a registry there are none."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry
        self._under_way: dict[tuple[str, str], asyncio.Lock] = {}
        self._users: Counter[tuple[str, str]] = Counter()
        self._room = asyncio.Semaphore(_AT_ONCE)

    def is_needed(self, compute: Compute, reference: str) -> bool:
        """Whether `reference` is to be brought there, as the engine cannot pull it."""
        return self._in_registry(compute, reference) is not None

    def name_there(self, compute: Compute, reference: str) -> str:
        """What the engine is told to run for `reference`."""
        return loaded_name(reference) if self.is_needed(compute, reference) else reference

    def login_there(self, compute: Compute, reference: str, auth: str) -> str:
        """What of `auth` its engine is told for `reference`: a registry of this machine has its login here only, as
        whoever answers at its address on another machine is somebody else.

        BadInput: it cannot pull it, and is not brought it either, as that is in another project (official images).
        """
        if not auth or self._registry is None or not self._registry.is_here:
            return auth
        if not isinstance(compute, HasImages) or compute.is_here:
            return auth
        if not self.is_needed(compute, reference):
            raise BadInput(OUT_OF_REACH)
        return ""

    async def bring(self, compute: Compute, reference: str, title: str, progress: Progress) -> bool:
        """It is there when this returns; False: it was already.

        NotFound: the registry has it no more. Unavailable: one of both is away.
        """
        place = self._in_registry(compute, reference)
        if place is None or self._registry is None:
            return False
        assert isinstance(compute, HasImages)
        name = loaded_name(reference)
        async with self._alone(compute.name, name, title, progress):
            known = await compute.image_id(name)
            try:
                archive = await ImageArchive.of(self._registry, *place, name)
            except Unavailable:
                if known:  # it was looked at when it came, and an environment must start without the registry
                    return False
                raise
            if known in archive.ids:
                return False
            async with self._room:
                await compute.load_image(_told(archive, title, progress), title)
            if await compute.image_id(name) not in archive.ids:
                await compute.drop_image(name)
                raise Unavailable(f"the Docker engine made another image of '{title}'")
        return True

    def _in_registry(self, compute: Compute, reference: str) -> tuple[str, str] | None:
        """Repository and digest of what cannot be pulled there."""
        if self._registry is None or not self._registry.is_here:
            return None
        if not isinstance(compute, HasImages) or compute.is_here:
            return None
        return self._registry.place_of(reference)

    @contextlib.asynccontextmanager
    async def _alone(self, place: str, name: str, title: str, progress: Progress) -> AsyncIterator[None]:
        key = (place, name)
        lock = self._under_way.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            if lock.locked():
                progress(f"loading {title}: somebody else's environment has begun with it")
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._under_way[key]


async def _told(archive: ImageArchive, title: str, progress: Progress) -> AsyncGenerator[bytes]:
    """The archive, with a line for each percent of it."""
    total, sent, shown = max(archive.size, 1), 0, -1
    async with contextlib.aclosing(archive.pieces()) as pieces:
        async for piece in pieces:
            sent += len(piece)
            percent = min(99, 100 * sent // total)
            if percent != shown:
                shown = percent
                progress(f"loading {title} {percent} %")
            yield piece
    progress(f"loading {title}: its host unpacks it")
