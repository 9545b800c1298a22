"""From an archive in the object store to an image in the registry: looked at first, then streamed, layer by layer.

Nothing is unpacked to a disk and no layer is held in memory. Each layer must unpack to what the image's configuration
says before the registry is told that it is complete. Layers that the registry has already are not sent again, so a
transfer that was cut off goes on at the layer where it was. Rows and rights are `reconcilers.archives`' business.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from backends.archives import tar
from backends.archives.bytes import GZIP, ZSTD, Cursor, StoredBytes, UnpackedBytes, packing_of, unpacked
from backends.archives.layout import Files, Layer, Layout, layout_of, may_be_small
from backends.archives.tar import Entry
from backends.images import ImageFacts
from backends.registry import DOCKER_MANIFEST, Registry
from backends.settings import ImageSettings
from storage.errors import AshoreError, BadInput, Unavailable
from storage.objects.contract import ObjectStore

_GIB = 1024**3
_SMALLEST_LIMIT = 64 * 1024 * 1024
_CONFIG = "application/vnd.docker.container.image.v1+json"
_PLAIN = "application/vnd.docker.image.rootfs.diff.tar"
_PACKED = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class Stored:
    """An archive in the object store: this very object and no other of its name."""

    key: str
    etag: str
    size: int


@dataclass(frozen=True)
class Blob:
    """A layer as the registry has it."""

    digest: str
    size: int
    media_type: str


class Transfer:
    """One archive. `note` hears how many of its bytes the present step has read."""

    def __init__(
        self, store: ObjectStore, stored: Stored, settings: ImageSettings, note: Callable[[int], None]
    ) -> None:
        self._store = store
        self._stored = stored
        self._settings = settings
        self._note = note
        self._most = int(settings.archive_gib * _GIB)

    async def sha256(self) -> str:
        """Of the whole file, read once from beginning to end."""
        digest = hashlib.sha256()
        async for piece in self._open().stream(self._stored.size):
            await asyncio.to_thread(digest.update, piece)
        return digest.hexdigest()

    async def look(self) -> Layout:
        """What is in it. BadInput: nothing that can be an image."""
        files = Files()
        cursor = await self._cursor()
        async for entry in tar.entries(cursor, self._settings.archive_files):
            files.add(entry, await cursor.read(entry.size) if may_be_small(entry) else None)
        layout = layout_of(files)
        if sum(layer.entry.size for layer in layout.layers) > self._most:
            raise BadInput(f"the image is larger than {self._settings.archive_gib:g} GiB (backends.images.archive_gib)")
        return layout

    async def send(self, layout: Layout, registry: Registry, repository: str) -> list[Blob]:
        """All layers into the registry, in the order of the image; its manifest is not there yet."""
        done: dict[Entry, Blob] = {}
        cursor: Cursor | None = None
        for layer in sorted(layout.layers, key=lambda one: one.entry.offset):
            if layer.entry in done:
                continue
            if (there := await self._there(registry, repository, layer)) is not None:
                done[layer.entry] = there
                continue
            cursor = cursor or await self._cursor()
            await cursor.skip(layer.entry.offset - cursor.position)
            done[layer.entry] = await self._send_layer(cursor, layer, registry, repository)
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
    def _open(self) -> StoredBytes:
        return StoredBytes(self._store, self._stored.key, self._stored.etag, self._stored.size, self._note)

    async def _cursor(self) -> Cursor:
        """The unpacked archive from its beginning."""
        kind = packing_of(await self._open().read(4))
        whole = self._open()
        if not kind:
            return whole
        return UnpackedBytes(whole.stream(self._stored.size), kind, self._limit(self._stored.size))

    def _limit(self, size: int) -> int:
        """What `size` packed bytes may unpack to."""
        return min(self._most, max(int(size * self._settings.archive_ratio), _SMALLEST_LIMIT))

    async def _there(self, registry: Registry, repository: str, layer: Layer) -> Blob | None:
        """The layer, if it is in this repository already: it was checked before it came there."""
        if layer.digest and layer.digest != layer.diff_id and await registry.has_blob(repository, layer.digest):
            return Blob(layer.digest, layer.entry.size, _PACKED)
        if layer.digest in ("", layer.diff_id) and await registry.has_blob(repository, layer.diff_id):
            return Blob(layer.diff_id, layer.entry.size, _PLAIN)
        return None

    async def _send_layer(self, cursor: Cursor, layer: Layer, registry: Registry, repository: str) -> Blob:
        size = layer.entry.size
        start = await cursor.read(min(4, size))
        kind = packing_of(start)
        pieces = _joined(start, cursor.stream(size - len(start)))
        if kind == ZSTD:  # older engines do not know it
            pieces = unpacked(pieces, kind, self._limit(size))
        check = _Check(pieces, layer, self._limit(size) if kind == GZIP else 0)
        async with registry.upload(repository) as upload:
            try:
                await upload.send(check.stream())
            except AshoreError as error:
                raise check.error or error from error
            blob = check.result(_PACKED if kind == GZIP else _PLAIN, sent_as_it_is=kind != ZSTD)
            await upload.finish(blob.digest)
        return blob


class _Check:
    """Passes a layer on and reads along: both its digests are known at its end."""

    def __init__(self, pieces: AsyncIterator[bytes], layer: Layer, unpack_most: int) -> None:
        self._pieces = pieces
        self._layer = layer
        self._unpack_most = unpack_most
        self._raw = hashlib.sha256()
        self._inner = hashlib.sha256()
        self._size = 0
        self.error: AshoreError | None = None
        """Why it stopped: the client of the registry tells only that it did."""

    async def stream(self) -> AsyncIterator[bytes]:
        reading: asyncio.Task[None] | None = None
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)
        try:
            if self._unpack_most:
                reading = asyncio.create_task(self._read(queue), name="unpacking of a layer")
            async for piece in self._pieces:
                self._size += len(piece)
                hashing = asyncio.create_task(asyncio.to_thread(self._raw.update, piece))
                try:
                    if reading is not None:
                        await self._offer(queue, piece, reading)
                    yield piece  # is sent while it is hashed
                finally:
                    await hashing
            if reading is not None:
                await self._offer(queue, b"", reading)
                await reading
        except AshoreError as error:
            self.error = error
            raise
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def result(self, media_type: str, *, sent_as_it_is: bool) -> Blob:
        """What was sent. BadInput: it is not what the archive says."""
        raw = f"sha256:{self._raw.hexdigest()}"
        inner = f"sha256:{self._inner.hexdigest()}" if self._unpack_most else raw
        if inner != self._layer.diff_id or (sent_as_it_is and self._layer.digest not in ("", raw)):
            raise BadInput("a layer of the image does not have the digest that it should: the archive is damaged")
        return Blob(raw, self._size, media_type)

    async def _offer(self, queue: asyncio.Queue[bytes], piece: bytes, reading: asyncio.Task[None]) -> None:
        putting = asyncio.create_task(queue.put(piece))
        await asyncio.wait((putting, reading), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            reading.result()  # raises what was wrong

    async def _read(self, queue: asyncio.Queue[bytes]) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece

        async for found in unpacked(pieces(), GZIP, self._unpack_most):
            await asyncio.to_thread(self._inner.update, found)


async def _joined(start: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if start:
        yield start
    async for piece in rest:
        yield piece


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def facts_of(layout: Layout, blobs: list[Blob], digest: str) -> ImageFacts:
    """What is known of the image then."""
    size = sum({blob.digest: blob.size for blob in blobs}.values()) + len(layout.config)
    return ImageFacts(digest, size, layout.architecture, layout.cuda, layout.driver)


def check_space(layout: Layout, free: int | None) -> None:
    """Unavailable if the registry has no room for the layers; `free` is None where nobody knows."""
    needed = sum({layer.entry: layer.entry.size for layer in layout.layers}.values())
    if free is not None and needed > free:
        raise Unavailable(f"the registry's disk has no room for it: {needed / _GIB:.1f} GiB are needed")
