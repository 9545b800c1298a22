"""MD5 and SHA-256 of files: while they arrive, and afterwards for those whose upload had a break.

`StreamHash` digests parts in their order, in threads. `HashJobs` reads finished objects back. Both leave the event
loop free. Which digests count for an object is decided by its ETag and size, never by its name.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AshoreError, Conflict, NotFound
from storage.objects.contract import Body, ObjectStore
from storage.records import FileFact

log = logging.getLogger(__name__)
_INLINE = 64 * 1024
_PIECE = 4 * 1024 * 1024
_AT_ONCE = 100


@dataclass(frozen=True)
class Digests:
    """Hexadecimal; empty where nobody knows."""

    md5: str = ""
    sha256: str = ""


class StreamHash:
    """Digests of what is fed in order. A piece out of order ends it: the digests are then unknown."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._next = 0
        self._running: asyncio.Task[None] | None = None
        self._broken = False

    def feed(self, offset: int, body: Body) -> asyncio.Task[None] | None:
        """Begin to digest `body`, which must not change until the returned task is done; None if it is not taken."""
        if self._broken or offset != self._next:
            self._broken = True
            return None
        self._next += len(body)
        self._running = asyncio.create_task(self._add(self._running, body), name="hash an upload")
        return self._running

    def stop(self) -> None:
        """The digests will not be those of the whole file."""
        self._broken = True

    async def finish(self, size: int) -> Digests:
        """Of all that was fed, if that is `size` bytes."""
        if self._running is not None:
            await self._running
        if self._broken or self._next != size:
            return Digests()
        return Digests(self._md5.hexdigest(), self._sha256.hexdigest())

    async def _add(self, before: asyncio.Task[None] | None, body: Body) -> None:
        if before is not None:
            await before
        if len(body) <= _INLINE:
            self._update(body)
        else:
            await asyncio.to_thread(self._update, body)

    def _update(self, body: Body) -> None:
        self._md5.update(body)
        self._sha256.update(body)


class HashJobs:
    """The loop that digests finished files which have no digests yet, one at a time."""

    def __init__(self, database: Database, store: ObjectStore, changes: Changes, *, pause: float = 300.0) -> None:
        self._database = database
        self._store = store
        self._changes = changes
        self._pause = pause

    async def run(self) -> None:
        """Until cancelled; woken by uploads that have ended."""
        with self._changes.subscribe("file") as hints:
            while True:
                try:
                    await self.work()
                except AshoreError as error:
                    log.warning("hashes of stored files: %s", error.message)
                try:
                    async with asyncio.timeout(self._pause):
                        await hints.get()
                except TimeoutError:
                    continue

    async def work(self) -> int:
        """Digest everything that has no digests now; how many files that were."""
        done, after = 0, ""
        while True:
            # Archives of images are read, and hashed, by those who make images of them.
            wanted = (FileFact.sha256 == "", FileFact.key > after, FileFact.key.not_like("images/%"))
            query = select(FileFact).where(*wanted).order_by(FileFact.key)
            async with self._database.reading() as tx:
                facts = (await tx.scalars(query.limit(_AT_ONCE))).all()
            if not facts:
                return done
            for fact in facts:
                done += await self._digest(fact)
            after = facts[-1].key

    async def _digest(self, fact: FileFact) -> int:
        same = (FileFact.key == fact.key, FileFact.etag == fact.etag, FileFact.size == fact.size)
        try:
            found = await self._read(fact)
        except (NotFound, Conflict):
            # Another tool removed or replaced it: what we know is about an object that is gone.
            async with self._database.writing() as tx:
                await tx.execute(delete(FileFact).where(*same))
            return 0
        async with self._database.writing() as tx:
            await tx.execute(update(FileFact).where(*same).values(md5=found.md5, sha256=found.sha256))
        return 1

    async def _read(self, fact: FileFact) -> Digests:
        digest = StreamHash()
        facts = await self._store.head(fact.key)
        if (facts.etag, facts.size) != (fact.etag, fact.size):
            raise Conflict("the file was replaced meanwhile")
        for offset in range(0, fact.size, _PIECE):
            piece = await self._store.get(fact.key, offset=offset, size=_PIECE, etag=fact.etag)
            if (task := digest.feed(offset, piece)) is not None:
                await task
        return await digest.finish(fact.size)
