"""The loop that looks after uploads which nobody writes: settles what dead processes left, ends what is too old."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from storage.errors import AshoreError
from storage.settings import ObjectSettings
from storage.uploads import Uploads

log = logging.getLogger(__name__)
_SETTLE_SECONDS = 60.0
_HOUR = 3600.0


class UploadSweep:
    """Every minute: rows whose lease is over are settled. Every hour: what has waited for too long is thrown away.

    It never touches an upload that is being written, in whatever process.
    """

    def __init__(self, uploads: Uploads, settings: ObjectSettings) -> None:
        self._uploads = uploads
        self._keep = timedelta(days=settings.parked_days)
        self._swept = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.work()
            except AshoreError as error:
                log.warning("looking after unfinished uploads: %s", error.message)
            await asyncio.sleep(_SETTLE_SECONDS)

    async def work(self) -> None:
        """One round."""
        settled = await self._uploads.recover(even_leased=False)
        if settled:
            log.info("settled %s uploads whose process is gone", settled)
        if self._swept and self._uploads.monotonic() - self._swept < _HOUR:
            return
        self._swept = self._uploads.monotonic()
        if expired := await self._uploads.parked.expire(self._keep):
            log.info("threw away %s uploads that nobody went on with", expired)
        await self._uploads.parked.drop_tails()
