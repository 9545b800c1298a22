"""The bytes of an archive, read from the object store in order: plain ones can skip, packed ones are unpacked.

A few pieces are asked for ahead, and no more: memory does not grow with the archive. What the bytes mean is `tar`'s and
`layout`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import zstandard

from storage.errors import BadInput
from storage.objects.contract import ObjectStore

PIECE = 8 * 1024 * 1024
"""Read at once, and on such bounds: the parts that an upload begins with are as large, and a store that keeps parts
packed, as SeaweedFS does, unpacks a whole one for each read of it."""
_AHEAD = 2
_SMALL = 64 * 1024
_OUT = 4 * 1024 * 1024
_WINDOW = 128 * 1024 * 1024
"""Of zstd: what `zstd --ultra` needs at most without `--long`."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"\x04\x22\x4d\x18": "lz4"}


class Cursor(Protocol):
    """A place in a stream of bytes that moves forward only."""

    position: int

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer only at the end. For small things."""
        ...

    async def skip(self, size: int) -> None: ...

    def stream(self, size: int) -> AsyncIterator[bytes]:
        """The next `size` bytes in pieces; BadInput if the end comes before."""
        ...


class StoredBytes:
    """One object, whole or from `position` on."""

    def __init__(self, store: ObjectStore, key: str, etag: str, size: int, note: Callable[[int], None]) -> None:
        self._store = store
        self._key = key
        self._etag = etag
        self.size = size
        self.position = 0
        self._note = note
        self._held = b""
        """Bytes from `position` on that are here already."""

    async def read(self, size: int) -> bytes:
        if len(self._held) < size and self.position + len(self._held) < self.size:
            wanted = max(size - len(self._held), _SMALL)
            self._held += await self._get(self.position + len(self._held), wanted)
        found, self._held = self._held[:size], self._held[size:]
        self._move(len(found))
        return found

    async def skip(self, size: int) -> None:
        self._held = self._held[size:]
        self._move(min(size, self.size - self.position))

    async def stream(self, size: int) -> AsyncIterator[bytes]:
        end = self.position + size
        if end > self.size:
            raise too_short()
        if self._held:
            yield await self.read(min(len(self._held), size))
        waiting: deque[asyncio.Task[bytes]] = deque()
        asked = self.position
        try:
            while self.position < end:
                while asked < end and len(waiting) < _AHEAD:
                    wanted = min(PIECE - asked % PIECE, end - asked)
                    waiting.append(asyncio.create_task(self._get(asked, wanted), name="piece of an archive"))
                    asked += wanted
                piece = await waiting.popleft()
                self._move(len(piece))
                yield piece
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _get(self, offset: int, size: int) -> bytes:
        wanted = min(size, self.size - offset)
        piece = await self._store.get(self._key, offset=offset, size=wanted, etag=self._etag)
        if len(piece) != wanted:
            raise too_short()
        return piece

    def _move(self, size: int) -> None:
        self.position += size
        self._note(self.position)


class UnpackedBytes:
    """What a packed stream holds. BadInput: it is damaged, or unpacks to more than `most` bytes."""

    def __init__(self, pieces: AsyncIterator[bytes], kind: bytes, most: int) -> None:
        self.position = 0
        self._pieces = unpacked(pieces, kind, most)
        self._held = b""
        self._at = 0
        """Of `_held`: what is behind it has not been given out. Cutting it off each time would copy 4 MiB a header."""

    async def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and (piece := await self._next(size - len(found))):
            found += piece
        return bytes(found)

    async def skip(self, size: int) -> None:
        async for _ in self.stream(size):
            pass

    async def stream(self, size: int) -> AsyncIterator[bytes]:
        left = size
        while left:
            piece = await self._next(left)
            if not piece:
                raise too_short()
            left -= len(piece)
            yield piece

    async def _next(self, most: int) -> bytes:
        if self._at >= len(self._held):
            self._held, self._at = b"", 0
            with contextlib.suppress(StopAsyncIteration):
                self._held = await anext(self._pieces)
        found = self._held[self._at : self._at + most]
        self._at += len(found)
        self.position += len(found)
        return found


def packing_of(start: bytes) -> bytes:
    """GZIP, ZSTD, or nothing, by how it begins."""
    return next((mark for mark in (GZIP, ZSTD) if start.startswith(mark)), b"")


def refuse_other_packing(start: bytes) -> None:
    """BadInput if it begins as something does that we do not unpack."""
    name = next((name for mark, name in _OTHERS.items() if start.startswith(mark)), "")
    if name:
        raise BadInput(f"it is packed with {name}: send it as it is, or packed with gzip or zstd")


async def unpacked(pieces: AsyncIterator[bytes], kind: bytes, most: int) -> AsyncIterator[bytes]:
    """The content of a packed stream in pieces of at most 4 MiB; several members one after the other are one.

    BadInput: it is damaged, or more than `most` bytes.
    """
    unpack: Unpacker = _Gzip() if kind == GZIP else _Zstd()
    total = 0
    async for piece in pieces:
        rest = piece
        while True:
            found, rest = await asyncio.to_thread(unpack.some, rest)
            total += len(found)
            if total > most:
                raise BadInput("it unpacks to far more than its size allows: it looks made to fill disks")
            if found:
                yield found
            if not rest and len(found) < _OUT:
                break
    if not unpack.is_complete:
        raise too_short()


class Unpacker(Protocol):
    @property
    def is_complete(self) -> bool: ...

    def some(self, data: bytes) -> tuple[bytes, bytes]:
        """About 4 MiB of content at most, and what of `data` must be given again."""
        ...


class _Members:
    """Members, or frames, one after the other; they are fed a little at a time, so that little is copied at each end.

    Some tools write an empty one, and eStargz one for each file. Many of next to nothing are made to keep us busy.
    """

    _FEED = 16 * 1024
    _MOST_EMPTY = 1000
    _MANY = 10_000
    _LEAST = 64
    """Bytes that each of many must have on average."""

    def __init__(self) -> None:
        self._begun = False
        self._yielded = False
        self._empty = 0
        self._count = 0
        self._total = 0

    @property
    def is_complete(self) -> bool:
        return not self._begun

    def _note(self, size: int, *, is_over: bool) -> None:
        """The present member gave `size` bytes."""
        self._begun = not is_over
        self._yielded = self._yielded or size > 0
        self._total += size
        if not is_over:
            return
        self._count += 1
        self._empty = 0 if self._yielded else self._empty + 1
        self._yielded = False
        is_dust = self._count > self._MANY and self._total < self._count * self._LEAST
        if self._empty > self._MOST_EMPTY or is_dust:
            raise BadInput("it consists of empty pieces: it looks made to keep others waiting")


class _Gzip(_Members):
    def __init__(self) -> None:
        super().__init__()
        self._member = zlib.decompressobj(31)
        self._has_more = False
        """It holds content that was too much for one call."""

    def some(self, data: bytes) -> tuple[bytes, bytes]:
        found, at, view = bytearray(), 0, memoryview(data)
        while (at < len(view) or self._has_more) and len(found) < _OUT:
            piece = view[at : at + self._FEED]
            if self._member.eof:
                if not bytes(piece).strip(b"\0"):  # padding behind the last member
                    at += len(piece)
                    continue
                self._member = zlib.decompressobj(31)
            try:
                some = self._member.decompress(piece, _OUT)
            except zlib.error as error:
                raise damaged() from error
            found += some
            # At its end zlib may say the same bytes in both.
            at += len(piece) - len(self._member.unused_data if self._member.eof else self._member.unconsumed_tail)
            self._has_more = len(some) == _OUT and not self._member.eof
            self._note(len(some), is_over=self._member.eof)
        return bytes(found), bytes(view[at:])


class _Zstd(_Members):
    """This library gives all that its input holds, which for zeros is 30,000 times as much."""

    _FEED = 1024

    def __init__(self) -> None:
        super().__init__()
        self._context = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._frame = self._context.decompressobj()

    def some(self, data: bytes) -> tuple[bytes, bytes]:
        found, at, view = bytearray(), 0, memoryview(data)
        while at < len(view) and len(found) < _OUT:
            if self._frame.eof:
                self._frame = self._context.decompressobj()
            piece = view[at : at + self._FEED]
            try:
                some = self._frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise damaged() from error
            found += some
            at += len(piece) - len(self._frame.unused_data)
            self._note(len(some), is_over=self._frame.eof)
        return bytes(found), bytes(view[at:])


async def digested(pieces: AsyncIterator[bytes], digest: hashlib._Hash) -> AsyncIterator[bytes]:
    """The same pieces, after each has been added to `digest`."""
    async for piece in pieces:
        await asyncio.to_thread(digest.update, piece)
        yield piece


def too_short() -> BadInput:
    return BadInput("the archive ends too early: it was cut off before it was sent, or is damaged")


def damaged() -> BadInput:
    return BadInput("the archive cannot be unpacked: it is damaged")
