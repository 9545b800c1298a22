"""Tells the records, once a second, how far the live uploads of this process are.

That keeps their leases, shows them to everybody, and is how a writer hears that its upload was ended elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from storage.errors import AshoreError, Unavailable
from storage.settling import ended
from storage.upload_rows import Held
from storage.upload_writer import UploadWriter

if TYPE_CHECKING:
    from storage.uploads import Uploads

log = logging.getLogger(__name__)
_TICK = 1.0
_ROW_AFTER = 2.0
"""Seconds after which an upload that has not filled a part is shown to others."""
_RENEW_AFTER = 10.0
_IDLE = 20.0
"""Seconds after which a silent client gives its memory to those who wait for some."""


class UploadProgress:
    """One loop for all live uploads."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._renewed = 0.0

    async def run(self) -> None:
        """For as long as there are any."""
        while self._uploads.live:
            await asyncio.sleep(_TICK)
            try:
                await self._tick()
            except AshoreError as error:
                log.warning("the progress of uploads cannot be noted: %s", error.message)

    async def _tick(self) -> None:
        """Keep the rows of what is going on alive and up to date, and make those of slow beginners."""
        moment = self._uploads.monotonic()
        renew = moment - self._renewed > _RENEW_AFTER
        self._renewed = moment if renew else self._renewed
        progress: list[tuple[Held, dict[str, Any]]] = []
        for writer in tuple(self._uploads.live):
            if writer.held is None:
                await self._begin_row(writer)
            elif writer.is_open and (size := writer.kept) > writer.noted:  # a closed one knows its size better
                writer.noted = size
                told = {"size": size, "touched": self._uploads.clock(), "expected_size": writer.expected_size or None}
                progress.append((writer.held, told))
            elif renew:
                progress.append((writer.held, {}))
        lost = await self._uploads.rows.tick(progress) if progress else set()
        for writer in tuple(self._uploads.live):
            if writer.held is not None and writer.held.id in lost and writer.is_open:
                self._uploads.run(self._dispossess(writer), f"end {writer.target.key}")
        self._free_idle()

    async def _begin_row(self, writer: UploadWriter) -> None:
        if not writer.has_bytes or self._uploads.monotonic() - writer.born < _ROW_AFTER:
            return
        async with writer.lock:
            if writer.held is None and writer.is_open:
                writer.held = await self._uploads.rows.add(self._uploads.row_of(writer, ""))

    async def _dispossess(self, writer: UploadWriter) -> None:
        """Somebody has ended the upload, or another process goes on with it."""
        writer.fail(ended())
        await writer.abandon()

    def _free_idle(self) -> None:
        """Who sends nothing while others wait for memory gives up what does not fill a part. Readers come first."""
        if not self._uploads.budget.is_short or self._uploads.budget.reclaim():
            return
        idle = [
            w for w in self._uploads.live if w.is_open and w.holds_memory and self._uploads.monotonic() - w.busy > _IDLE
        ]
        if idle:
            longest = min(idle, key=lambda writer: writer.busy)
            longest.fail(Unavailable("nothing came for a while and others needed the memory; go on with reput"))
