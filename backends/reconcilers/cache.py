"""Keeps copies of data sets and models in order, here and on other hosts: what was deleted goes, and what is above the
limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from backends.data_sites import Sites
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AshoreError
from storage.records import AssetKind
from storage.uses import still_there

log = logging.getLogger(__name__)
_PAUSE_SECONDS = 600.0
_SETTLE_SECONDS = 5.0


class CacheKeeper:
    """The loop over the copies. One process of a house runs it."""

    def __init__(self, sites: Sites, database: Database, changes: Changes) -> None:
        self._sites = sites
        self._database = database
        self._changes = changes

    async def run(self) -> None:
        """Until cancelled."""
        with self._changes.subscribe(*(kind.value for kind in AssetKind)) as hints:
            while True:
                await self.sweep()
                try:
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        await hints.get()
                except TimeoutError:
                    continue
                await asyncio.sleep(_SETTLE_SECONDS)  # hints come in crowds
                while not hints.empty():
                    hints.get_nowait()

    async def sweep(self) -> None:
        """Once."""
        for name, cache in self._sites.caches().items():
            try:
                await cache.sweep(self._still_there)
            except (AshoreError, OSError) as error:
                log.warning("the copies of data sets %s could not be looked after: %s", name, error)

    async def _still_there(self, version_ids: Collection[str]) -> Collection[str]:
        async with self._database.reading() as tx:
            return await still_there(tx, list(version_ids))
