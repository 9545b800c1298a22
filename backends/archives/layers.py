"""One layer on its way from an archive to the registry: unpacked where that must be, counted, and checked.

What a layer is sent under is a digest that the registry computes itself, as every registry must, and refuses to keep
it under another one. So nothing is hashed here but what it does not see: the content of packed layers. Which layers
there are, and in which order, is `transfer`'s business.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from backends.archives.bytes import GZIP, ZSTD, Cursor, packing_of, unpacked
from backends.archives.climbing import Climbing
from backends.archives.layout import Layer
from backends.registry import Registry
from storage.errors import AshoreError, BadInput, Unavailable

_GIB = 1024**3
_SMALLEST_LIMIT = 64 * 1024 * 1024
_PLAIN = "application/vnd.docker.image.rootfs.diff.tar"
_PACKED = "application/vnd.docker.image.rootfs.diff.tar.gzip"
Free = Callable[[], int | None]


@dataclass(frozen=True)
class Blob:
    """A layer as the registry has it."""

    digest: str
    size: int
    media_type: str

    @property
    def is_packed(self) -> bool:
        return self.media_type == _PACKED


class Allowance:
    """What one image may take: unpacked, all layers together, and on the registry's disk while it is sent.

    `free`: bytes that this disk takes, None where nobody knows. `ratio`: how many times its size a layer may unpack to.
    """

    def __init__(self, most: int, ratio: float, free: Free) -> None:
        self._most = self._left = most
        self._ratio = ratio
        self._free = free

    def of_packed(self, size: int) -> int:
        """What `size` packed bytes may unpack to."""
        return min(self._most, max(int(size * self._ratio), _SMALLEST_LIMIT))

    def unpack(self, size: int) -> None:
        """So many more bytes are in the image. BadInput if they are too many."""
        self._left -= size
        if self._left < 0:
            raise BadInput(
                f"its layers unpack to more than {self._most / _GIB:g} GiB together (backends.images.archive_gib)"
            )

    def store(self, size: int) -> None:
        """So many more bytes are about to be sent. Unavailable if they would take what others need: later they fit."""
        free = self._free()
        if free is not None and free < size:
            raise Unavailable("the registry's disk became full while it was loaded: it goes on when there is room")


class Passage:
    """One layer; its cursor must not be behind its beginning. `times`: how often the image has it."""

    def __init__(self, layer: Layer, times: int, allowance: Allowance) -> None:
        self._layer = layer
        self._times = times
        self._allowance = allowance
        self._raw = hashlib.sha256()
        self._inner = hashlib.sha256()
        self._climbing = Climbing()
        self._sent = 0
        self._is_there = False
        self._error: AshoreError | None = None
        """Why it ended before its end."""

    async def send(self, cursor: Cursor, registry: Registry, repository: str) -> Blob:
        """Into the registry, where it is kept only if it is what the archive and its configuration say."""
        await cursor.skip(self._layer.entry.offset - cursor.position)
        kind, pieces = await self._opened(cursor)
        async with registry.upload(repository) as upload:
            await upload.send(self._kept(self._counted(kind, pieces)))
            if self._error is not None:
                raise self._error
            blob = self._blob(kind)
            try:
                await upload.finish(blob.digest)
            except BadInput as error:
                raise (_other_digest() if "DIGEST" in error.message else error) from error
        return blob

    async def count(self, blob: Blob, cursor: Cursor) -> None:
        """One that the registry has already. A packed one is read nevertheless: what it unpacks to must be known, and
        that it is the same."""
        if not blob.is_packed:
            self._allowance.unpack(self._times * blob.size)
            return
        await cursor.skip(self._layer.entry.offset - cursor.position)
        self._is_there = True
        kind, pieces = await self._opened(cursor)
        async for _ in self._counted(kind, pieces):
            pass
        self._blob(kind)

    # ---- steps -----------------------------------------------------------------------------------------------
    async def _opened(self, cursor: Cursor) -> tuple[bytes, AsyncIterator[bytes]]:
        size = self._layer.entry.size
        start = await cursor.read(min(4, size))
        return packing_of(start), _joined(start, cursor.stream(size - len(start)))

    def _counted(self, kind: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What is to be sent, after it was counted."""
        if kind == GZIP:
            return self._read_along(pieces)
        if kind == ZSTD:  # older engines do not know it
            pieces = unpacked(pieces, kind, self._allowance.of_packed(self._layer.entry.size))
        return self._counted_plain(pieces)

    async def _counted_plain(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._allowance.unpack(self._times * len(piece))
            await asyncio.to_thread(self._climbing.see, piece)
            yield piece

    async def _kept(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """With room on the disk for each piece; what is wrong is remembered, and ends it: see `BlobUpload.send`."""
        try:
            async for piece in pieces:
                self._allowance.store(len(piece))
                self._sent += len(piece)
                yield piece
        except AshoreError as error:
            self._error = error

    def _blob(self, kind: bytes) -> Blob:
        """What was sent. BadInput: it is not what the archive says."""
        wanted, named = self._layer.diff_id, self._layer.digest
        if kind != GZIP:
            if kind != ZSTD and named not in ("", wanted):
                raise _other_digest()
            return Blob(wanted, self._sent, _PLAIN)
        raw = f"sha256:{self._raw.hexdigest()}" if self._must_hash else named
        if f"sha256:{self._inner.hexdigest()}" != wanted or named not in ("", raw):
            raise _other_digest()
        return Blob(raw, self._sent, _PACKED)

    async def _read_along(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The packed pieces as they are, while they are unpacked aside."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)
        reading = asyncio.create_task(self._read(queue), name="unpacking of a layer")
        try:
            async for piece in pieces:
                hashing = asyncio.create_task(self._hash(piece))
                try:
                    await _offer(queue, piece, reading)
                    yield piece  # is sent while it is hashed
                finally:
                    await hashing
            await _offer(queue, b"", reading)
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @property
    def _must_hash(self) -> bool:
        """Else the registry compares it with the digest that the archive names."""
        return self._is_there or not self._layer.digest

    async def _hash(self, piece: bytes) -> None:
        if self._must_hash:
            await asyncio.to_thread(self._raw.update, piece)

    async def _read(self, queue: asyncio.Queue[bytes]) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece

        async for found in unpacked(pieces(), GZIP, self._allowance.of_packed(self._layer.entry.size)):
            self._allowance.unpack(self._times * len(found))
            await asyncio.to_thread(self._look, found)

    def _look(self, piece: bytes) -> None:
        self._inner.update(piece)
        self._climbing.see(piece)


async def _offer(queue: asyncio.Queue[bytes], piece: bytes, reading: asyncio.Task[None]) -> None:
    putting = asyncio.create_task(queue.put(piece))
    try:
        await asyncio.wait((putting, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
    if reading.done():
        reading.result()  # raises what was wrong


async def _joined(start: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if start:
        yield start
    async for piece in rest:
        yield piece


async def there(layer: Layer, registry: Registry, repository: str) -> Blob | None:
    """The layer, if it is in this repository already: it was checked before it came there."""
    is_packed = layer.digest not in ("", layer.diff_id)
    digest = layer.digest if is_packed else layer.diff_id
    size = await registry.blob_size(repository, digest)
    return None if size is None else Blob(digest, size, _PACKED if is_packed else _PLAIN)


def _other_digest() -> BadInput:
    return BadInput("a layer of the image does not have the digest that it should: the archive is damaged")
