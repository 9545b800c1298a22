"""The shelf, the reconciler and a real registry over a store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from backends.archives.shelf import ImageShelf
from backends.archives.views import Archives
from backends.images import Images
from backends.reconcilers.archives import ArchiveReconciler
from backends.registry import Registry
from backends.settings import ImageSettings, RegistrySettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AshoreError
from storage.records import FileFact, Image, ImageArchive
from storage.settings import ObjectSettings
from storage.uploads import Uploads
from tests.storage.memory_store import MemoryStore


class House:
    """The shelf, the reconciler and a real registry over a store in memory."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, at: RegistrySettings,
        settings: ImageSettings,
    ) -> None:  # fmt: skip
        self.database, self.audit, self.changes, self.accounts = database, audit, changes, accounts
        self.store = MemoryStore()
        self.settings, self.at = settings, at
        self.uploads = Uploads(database, self.store, audit, changes, ObjectSettings())
        self.images = Images(database, audit, changes, at, settings)
        self.registry = Registry(at)
        self.shelf = ImageShelf(
            database, audit, self.store, self.uploads, self.images, settings, None, self.time  # type: ignore[arg-type]
        )  # fmt: skip
        self.archives = Archives(database, self.time)
        self.later = timedelta(0)
        self.free: int | None = None

    def time(self) -> Any:
        return now() + self.later

    def reconciler(self) -> ArchiveReconciler:
        return ArchiveReconciler(
            self.database, self.audit, self.changes, self.accounts, self.uploads, self.images, self.registry,
            self.settings, self.time, free=lambda: self.free,
        )  # fmt: skip

    async def put(self, caller: Caller, name: str, content: bytes) -> None:
        writer = await self.shelf.open_writer(caller, f"/{name}", truncate=True)
        try:
            for at in range(0, len(content), 1 << 20):
                await writer.write(at, content[at : at + (1 << 20)])
            await writer.finish()
        except AshoreError:
            await writer.abandon()
            raise

    async def work(self) -> None:
        """One round over everything."""
        reconciler = self.reconciler()
        for key in await reconciler.look():
            await reconciler.act(key)

    async def sent(self, caller: Caller, name: str, content: bytes) -> ImageArchive:
        """What became of an archive."""
        await self.put(caller, name, content)
        await self.work()
        return (await self.rows())[-1]

    async def rows(self) -> Sequence[ImageArchive]:
        async with self.database.reading() as tx:
            return (await tx.scalars(select(ImageArchive).order_by(ImageArchive.created))).all()

    async def image(self, row: ImageArchive) -> Image:
        async with self.database.reading() as tx:
            return await tx.get_one(Image, row.image_id)

    async def objects(self) -> list[str]:
        return [facts.key async for page in self.store.list("") for facts in page]

    async def facts(self) -> Sequence[FileFact]:
        async with self.database.reading() as tx:
            return (await tx.scalars(select(FileFact))).all()
