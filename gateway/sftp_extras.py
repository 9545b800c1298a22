"""Two SFTP extensions that read files: `copy-data` and `check-file` (draft-ietf-secsh-filexfer-extensions-00).

Server-side copies save the client both ways over its link. Hashes of whole files come from the records where those
know them; everything else is read. No packet is taken apart here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

from gateway.sftp_packets import Fields
from gateway.transfers import Transfer
from storage.errors import BadInput, NotAllowed

ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
_PIECE = 1024 * 1024
_LEAST_BLOCK = 256
_MOST_HASHES = 128 * 1024


async def copy_data(
    source: Transfer, target: Transfer, *, offset: int, length: int, to: int, is_lost: Callable[[], bool]
) -> None:
    """Copy `length` bytes (0: all that follow) from `offset` of `source` to `to` of `target`; stops with the channel.

    BadInput if the source ends before `length` bytes.
    """
    if source.reader is None:
        raise NotAllowed("the file to copy from is not open for reading")
    if target.writer is None:
        raise NotAllowed("the file to copy to is not open for writing")
    left = length
    while (left or not length) and not is_lost():
        data = await source.read(offset, min(_PIECE, left) if length else _PIECE)
        if not data:
            break
        await target.write(to, data)
        offset, to, left = offset + len(data), to + len(data), left - len(data) if length else 0
    if length and left:
        raise BadInput(f"the file to copy from ended {left} bytes too early")
    target.copied()


class Check:
    """What `check-file` asks: the algorithms in the order of the client's liking, a range, and the size of blocks."""

    def __init__(self, fields: Fields) -> None:
        self.algorithm = _chosen(fields.string().decode("ascii", "replace").split(","))
        self.offset = fields.uint64()
        self.length = fields.uint64()
        """0: up to the end."""
        self.block = fields.uint32()
        """0: one hash over everything."""
        if self.block and self.block < _LEAST_BLOCK:
            raise BadInput(f"blocks of fewer than {_LEAST_BLOCK} bytes are not hashed")

    def is_whole(self, size: int) -> bool:
        """Whether one hash over the whole file of `size` bytes is wanted."""
        covers = self.offset == 0 and (self.length == 0 or self.length >= size)
        return covers and (self.block == 0 or self.block >= size)

    async def hashes(self, read: Callable[[int, int], Awaitable[bytes]], size: int) -> bytes:
        """The hashes one after the other; `read` gives up to so many bytes from an offset."""
        end = min(size, self.offset + self.length) if self.length else size
        block = self.block or max(end - self.offset, 1)
        count = -(-max(end - self.offset, 0) // block)
        if count * hashlib.new(self.algorithm, usedforsecurity=False).digest_size > _MOST_HASHES:
            raise BadInput("these are too many hashes for one answer; ask for larger blocks or a shorter range")
        starts = range(self.offset, end, block) if end > self.offset else range(self.offset, self.offset + 1)
        return b"".join([await self._hash(read, start, min(start + block, end)) for start in starts])

    async def _hash(self, read: Callable[[int, int], Awaitable[bytes]], start: int, end: int) -> bytes:
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        while start < end and (data := await read(start, min(_PIECE, end - start))):
            await asyncio.to_thread(digest.update, data)
            start += len(data)
        return digest.digest()


def _chosen(wanted: Sequence[str]) -> str:
    for name in wanted:
        if name.strip().lower() in ALGORITHMS:
            return name.strip().lower()
    raise BadInput(f"none of these hashes is made here; there are {', '.join(ALGORITHMS)}")
