"""From an archive in the object store to an image in the registry: looked at first, then streamed, layer by layer.

Nothing is unpacked to a disk and no layer is held in memory. Each layer must unpack to what the image's configuration
says before the registry is told that it is complete. Layers that the registry has already are not sent again, so a
transfer that was cut off goes on at the layer where it was. Rows and rights are `reconcilers.archives`' business.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from backends.archives import tar
from backends.archives.bytes import Cursor, StoredBytes, UnpackedBytes, packing_of, refuse_other_packing
from backends.archives.layers import Allowance, Blob, Free, Passage, there
from backends.archives.layout import Files, Layer, Layout, layout_of, may_be_small
from backends.images import ImageFacts
from backends.registry import DOCKER_MANIFEST, Registry
from backends.settings import ImageSettings
from storage.errors import BadInput, Unavailable
from storage.objects.contract import ObjectStore

_GIB = 1024**3
_CONFIG = "application/vnd.docker.container.image.v1+json"
_AT_ONCE = 2


@dataclass(frozen=True)
class Stored:
    """An archive in the object store: this very object and no other of its name."""

    key: str
    etag: str
    size: int


class Transfer:
    """One archive. `note` hears how many of its bytes the present step has read; `free`: see `layers.Allowance`."""

    def __init__(
        self,
        store: ObjectStore,
        stored: Stored,
        settings: ImageSettings,
        note: Callable[[int], None],
        free: Free = lambda: None,
    ) -> None:
        self._store = store
        self._stored = stored
        self._settings = settings
        self._note = note
        self._free = free
        self._most = int(settings.archive_gib * _GIB)

    async def sha256(self) -> str:
        """Of the whole file, read once from beginning to end."""
        digest = hashlib.sha256()
        async for piece in self._open().stream(self._stored.size):
            await asyncio.to_thread(digest.update, piece)
        return digest.hexdigest()

    async def look(self) -> Layout:
        """What is in it. BadInput: nothing that can be an image."""
        if not self._stored.size:
            raise BadInput("the file is empty")
        refuse_other_packing(await self._open().read(8))
        files = Files()
        cursor = await self._cursor()
        async for entry in tar.entries(cursor, self._settings.archive_files):
            files.add(entry, await cursor.read(entry.size) if may_be_small(entry) else None)
        layout = layout_of(files)
        if sum(layer.entry.size for layer in layout.layers) > self._most:
            raise BadInput(f"the image is larger than {self._settings.archive_gib:g} GiB (backends.images.archive_gib)")
        return layout

    def check_room(self, layers: Iterable[Layer]) -> None:
        """Unavailable if the registry's disk has no room for these."""
        needed, free = sum({layer.entry: layer.entry.size for layer in layers}.values()), self._free()
        if free is not None and needed > free:
            raise Unavailable(f"the registry's disk has no room for it: {needed / _GIB:.1f} GiB are needed")

    async def send(self, layout: Layout, registry: Registry, repository: str) -> list[Blob]:
        """All layers into the registry, in the order of the image; its manifest is not there yet."""
        times = Counter(layer.entry for layer in layout.layers)
        layers = {layer.entry: layer for layer in sorted(layout.layers, key=lambda one: one.entry.offset)}
        done = {
            layer.entry: blob for layer in layers.values()
            if (blob := await there(layer, registry, repository)) is not None
        }  # fmt: skip
        self.check_room(layer for layer in layers.values() if layer.entry not in done)
        allowance = Allowance(self._most, self._settings.archive_ratio, self._free)

        async def carry(layer: Layer, cursor: Cursor) -> None:
            passage = Passage(layer, times[layer.entry], allowance)
            if (blob := done.get(layer.entry)) is not None:
                await passage.count(blob, cursor)
            else:
                done[layer.entry] = await passage.send(cursor, registry, repository)

        await self._each(layers.values(), carry)
        return [done[layer.entry] for layer in layout.layers]

    async def publish(self, layout: Layout, blobs: list[Blob], registry: Registry, repository: str, tag: str) -> str:
        """Configuration and manifest: the image is in the registry; its digest."""
        config = f"sha256:{hashlib.sha256(layout.config).hexdigest()}"
        if not await registry.has_blob(repository, config):
            async with registry.upload(repository) as upload:
                await upload.send(_once(layout.config))
                await upload.finish(config)
        facts = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": _CONFIG, "size": len(layout.config), "digest": config},
            "layers": [{"mediaType": blob.media_type, "size": blob.size, "digest": blob.digest} for blob in blobs],
        }
        body = json.dumps(facts, indent=1).encode()
        await registry.put_manifest(repository, tag, body, DOCKER_MANIFEST)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    # ---- steps -----------------------------------------------------------------------------------------------
    def _open(self, note: Callable[[int], None] | None = None) -> StoredBytes:
        return StoredBytes(self._store, self._stored.key, self._stored.etag, self._stored.size, note or self._note)

    async def _packing(self) -> bytes:
        return packing_of(await self._open().read(4))

    async def _cursor(self) -> Cursor:
        """The unpacked archive from its beginning."""
        kind, whole = await self._packing(), self._open()
        if not kind:
            return whole
        allowance = Allowance(self._most, self._settings.archive_ratio, self._free)
        return UnpackedBytes(whole.stream(self._stored.size), kind, allowance.of_packed(self._stored.size))

    async def _each(self, layers: Iterable[Layer], carry: Callable[[Layer, Cursor], Awaitable[None]]) -> None:
        """`carry` for each, two at once where the archive can be read at any place: one is read while one is sent."""
        if await self._packing():
            cursor = await self._cursor()
            for layer in layers:
                await carry(layer, cursor)
            return
        slots, meter = asyncio.Semaphore(_AT_ONCE), _Meter(self._note)

        async def one(layer: Layer) -> None:
            async with slots:
                await carry(layer, self._open(meter.part(layer.entry.offset)))

        tasks = [asyncio.create_task(one(layer), name="layer of an archive") for layer in layers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Meter:
    """Adds up what several cursors have read."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self._note = note
        self._read = 0

    def part(self, start: int) -> Callable[[int], None]:
        """For one cursor that reads from `start` on."""
        last = start

        def note(position: int) -> None:
            nonlocal last
            self._read += position - last
            last = position
            self._note(self._read)

        return note


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def facts_of(layout: Layout, blobs: list[Blob], digest: str) -> ImageFacts:
    """What is known of the image then."""
    size = sum({blob.digest: blob.size for blob in blobs}.values()) + len(layout.config)
    return ImageFacts(digest, size, layout.architecture, layout.cuda, layout.driver)
