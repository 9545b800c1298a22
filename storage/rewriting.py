"""Writing into a file that is there already, without truncating it first: `reput`, `put -a`, a client that appends.

Objects cannot be changed in place. So the new object is made of what the client sends and, where the client leaves
the old bytes alone, of the old object: copied inside the store when all of it stays and more follows, else read back
in pieces. Nothing is ever padded. What broke off can be gone on with, unless it was a change in the middle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from storage.errors import AshoreError, BadInput, Conflict
from storage.objects.contract import ObjectFacts, ObjectStore
from storage.objects.parts import SMALLEST_PART
from storage.tree import Node
from storage.upload_writer import UploadWriter

_PIECE = 4 * 1024 * 1024


class Rewriter:
    """A `storage.tree.Writer` over another one. Without any write the old object stays as it is."""

    hashes = True

    def __init__(
        self,
        writer: UploadWriter,
        store: ObjectStore,
        old: ObjectFacts,
        node: Node,
        set_mtime: Callable[[int], Awaitable[None]],
    ) -> None:
        self._writer = writer
        self._store = store
        self._old = old
        self._node = node
        self._set_old_mtime = set_mtime
        self._mtime: int | None = None
        self._kept = old.size
        """Bytes of the old object that still count."""
        self._changed = False
        self._refused: AshoreError | None = None

    @property
    def size(self) -> int:
        return max(self._writer.size, self._kept)

    def set_mtime(self, seconds: int) -> None:
        self._mtime = seconds
        self._writer.set_mtime(seconds)

    def expect_size(self, size: int) -> None:
        self._writer.expect_size(size)

    def doubt(self) -> None:
        self._writer.doubt()

    async def write(self, offset: int, data: bytes) -> None:
        try:
            await self._write(offset, data)
        except AshoreError as error:
            self._refused = self._refused or error
            raise

    async def _write(self, offset: int, data: bytes) -> None:
        if offset > self.size:
            raise BadInput(f"bytes {self.size} to {offset} are missing; a file is never padded")
        if not self._changed and offset == self._old.size >= SMALLEST_PART:
            self._writer.append_to(self._old)
        elif self._writer.size < min(offset, self._kept) and offset != self._old.size:
            self._writer.discard()
        self._changed = True
        await self._keep_until(offset)
        await self._writer.write(offset, data)

    async def flush(self) -> None:
        await self._writer.flush()

    async def truncate(self, size: int) -> None:
        """To what was sent so far, or to 0 at the beginning: then nothing of the old object is kept."""
        if size == self.size:
            return
        if size != self._writer.size:
            await self._writer.truncate(size)
        self._kept, self._changed = 0, True

    async def finish(self) -> Node:
        if self._refused is not None:
            await self._writer.abandon()
            raise self._refused
        if self._changed:
            await self._keep_rest()
            return await self._writer.finish()
        await self._writer.abandon()
        if self._writer.expected_size > self._old.size:
            raise Conflict(f"received {self._old.size} of {self._writer.expected_size} bytes; go on with reput")
        if self._mtime is None:
            return self._node
        await self._set_old_mtime(self._mtime)
        return self._node._replace(mtime=self._mtime)

    async def abandon(self) -> None:
        await self._writer.abandon()

    async def _keep_rest(self) -> None:
        """What follows of the old object. If that breaks off, nobody may go on: it is neither file from then on."""
        if self._writer.size >= self._kept:
            return
        self._writer.discard()
        try:
            await self._keep_until(self._kept)
        except BaseException:
            await self._writer.abandon()
            raise

    async def _keep_until(self, offset: int) -> None:
        """Copy the old bytes between what is written and `offset`."""
        while (start := self._writer.size) < min(offset, self._kept):
            count = min(_PIECE, min(offset, self._kept) - start)
            piece = await self._store.get(self._old.key, offset=start, size=count, etag=self._old.etag)
            await self._writer.write(start, piece)
