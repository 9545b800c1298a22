"""Directories where the store knows none: one exists because something lies in it, or because a marker says so.

A marker is a zero-byte object `path/`, written only for directories that would be empty. A file below a file, or over
a directory, is refused, though S3 would take it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing

from sqlalchemy import select

from storage.asset_rows import below
from storage.database.engine import Database
from storage.errors import BadInput, NotFound
from storage.names import printable
from storage.objects.contract import ObjectFacts, ObjectStore
from storage.places import Spot
from storage.records import FileFact

_YOUNG_SECONDS = 600.0
_MOST_YOUNG = 10_000


class Directories:
    """What is where, below a version."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database = database
        self._store = store
        self._young: dict[str, float] = {}
        """Prefix → when it was made here."""

    async def head(self, key: str) -> ObjectFacts | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def some(self, prefix: str) -> Sequence[ObjectFacts]:
        """The first objects below `prefix`, its own marker included."""
        # Without a delimiter: SeaweedFS goes on to list prefixes whose last object has gone.
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                return page
        return []

    async def has_entries(self, prefix: str) -> bool:
        """Whether `prefix` is a directory. What Ashore wrote itself is found without asking the store."""
        async with self._database.reading() as tx:
            known = await tx.scalar(select(FileFact.key).where(below(prefix)).limit(1))
        return known is not None or bool(await self.some(prefix))

    async def refuse_file_above(self, spot: Spot) -> None:
        if not spot.ancestors:
            return
        async with self._database.reading() as tx:
            query = select(FileFact.key).where(FileFact.key.in_(spot.ancestors)).limit(1)
            file = await tx.scalar(query)
        if file is not None:
            raise file_above(spot, file)

    def note_new(self, spot: Spot) -> None:
        now = time.monotonic()
        self.grow_up(spot)
        if len(self._young) >= _MOST_YOUNG:
            self._young = {prefix: moment for prefix, moment in self._young.items() if now - moment < _YOUNG_SECONDS}
        if len(self._young) < _MOST_YOUNG:
            self._young[spot.prefix] = now

    def grow_up(self, spot: Spot) -> None:
        """The directory around `spot` has one in it: a marker in the store, which the records do not know."""
        self._young.pop(spot.key.rpartition("/")[0] + "/", None)

    def is_young(self, spot: Spot) -> bool:
        """Whether the directory was made here a moment ago: then nothing is in it that the records do not know."""
        made = self._young.get(spot.key.rpartition("/")[0] + "/")
        if made is None:
            return False
        return time.monotonic() - made < _YOUNG_SECONDS

    async def keep_parent(self, spot: Spot) -> None:
        """A directory stays when its last entry has gone, as in any file system."""
        parent = spot.key.rpartition("/")[0] + "/"
        if parent != spot.root and not await self.has_entries(parent):
            await self._store.put(parent, b"")

    async def keep_after_move(self, spot: Spot) -> None:
        """The directory above stays, though what is moved away is all that is in it."""
        parent = spot.key.rpartition("/")[0] + "/"
        if parent == spot.root:
            return
        async with aclosing(self._store.list(parent)) as pages:
            async for page in pages:
                if any(not facts.key.startswith(spot.prefix) for facts in page):
                    return
        await self._store.put(parent, b"")


def file_above(spot: Spot, key: str) -> BadInput:
    return BadInput(f"'{printable(key.removeprefix(spot.root))}' is a file; nothing can be below it")
