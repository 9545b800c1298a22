"""Takes out of the registry what no image needs any more, and gives the space back when nothing is on its way.

What is deleted is marked in the records first (`backends.images`), so a crash loses nothing. One process runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy import exists, select

from backends.compute.contract import Compute, HasImages
from backends.image_names import loaded_name
from backends.images import TOPIC, Images
from backends.reconcilers.loop import ReconcilerLoop
from backends.registry import Registry
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AshoreError, NotFound, Unavailable
from storage.records import Environment, EnvironmentState, Image, ImageState

log = logging.getLogger(__name__)
_LOOK_SECONDS = 300.0
_AT_LATEST_SECONDS = 6 * 3600
_PARALLEL = 4
"""So that one engine that hangs keeps few images waiting."""
_DROP_SECONDS = 20.0
"""How long an engine may take for one copy; it goes on with it when we do not wait any more."""
_PULLING = (EnvironmentState.REQUESTED, EnvironmentState.QUEUED, EnvironmentState.CREATING)


class Collector(Protocol):
    """A registry of ours that can give space back; `backends.registry_child.EmbeddedRegistry`."""

    @property
    def has_garbage(self) -> bool: ...

    @property
    def garbage_seconds(self) -> float:
        """How long there has been some."""
        ...

    def note_garbage(self) -> None: ...

    async def collect(self) -> bool:
        """The registry takes nothing meanwhile. False: nothing was given back, as somebody pushes, or it failed."""
        ...


class ImageReconciler:
    """The loop over images that are to go. `collector` is None for a registry that others look after."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        registry: Registry | None,
        collector: Collector | None = None,
        *,
        images: Images | None = None,
        computes: Mapping[str, Compute] | None = None,
    ) -> None:
        self._images = images
        self._computes = computes or {}
        self._database = database
        self._audit = audit
        self._changes = changes
        self._registry = registry
        self._collector = collector
        self._loop = ReconcilerLoop(
            "images",
            TOPIC,
            changes=changes,
            look=self.look,
            act=self.act,
            pause=_LOOK_SECONDS,
            parallel=_PARALLEL,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self._loop.run()

    async def look(self) -> Sequence[str]:
        """Ids of the images that have something to be removed; space is given back on the way if it is quiet."""
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(Image))).all()
            pinned = set(await tx.scalars(select(Environment.image_digest)))
        wanted = [row.id for row in rows if row.state is ImageState.DELETING or set(row.former) - pinned - {row.digest}]
        collector = self._collector
        if not wanted and collector is not None and await self._is_due(collector) and await collector.collect():
            log.info("the image registry gave back the space of what was deleted")
        return wanted

    async def act(self, image_id: str) -> None:
        """Remove what is not used. Unavailable: the registry cannot be asked, try again later."""
        async with self._database.reading() as tx:
            row = await tx.get(Image, image_id)
            pinned = set(
                await tx.scalars(select(Environment.image_digest).where(Environment.image_id == image_id))
            )  # fmt: skip
        if row is None:
            return
        if row.state is ImageState.DELETING:
            await self._remove(row)
        elif unused := [digest for digest in row.former if digest not in pinned and digest != row.digest]:
            await self._delete(row, unused)
            async with self._database.writing() as tx:
                changed = await tx.get(Image, image_id, with_for_update=True)
                if changed is not None:
                    changed.former = [digest for digest in changed.former if digest not in unused]

    async def _is_due(self, collector: Collector) -> bool:
        """Pulls that are cut off are tried again, so a house where somebody always pulls gets its space back, too."""
        return collector.has_garbage and (collector.garbage_seconds > _AT_LATEST_SECONDS or await self.is_quiet())

    async def is_quiet(self) -> bool:
        """Whether nobody pulls now, as far as the records tell; whoever pushes keeps the collector off by itself."""
        async with self._database.reading() as tx:
            pulling = exists().where(Environment.state.in_(_PULLING), Environment.image_digest != "")
            return not await tx.scalar(select(pulling))

    async def _remove(self, row: Image) -> None:
        digests = {digest for digest in (row.digest, *row.former) if digest}
        digests |= await self._tagged(row)
        if digests:
            await self._delete(row, sorted(digests))
        async with self._database.writing() as tx:
            gone = await tx.get(Image, row.id, with_for_update=True)
            if gone is None or gone.state is not ImageState.DELETING:
                return
            await tx.delete(gone)
            await self._audit.add(tx, Event("image.gone", thing=row.title, detail={"image": row.id}))
        self._changes.tell(TOPIC, "")

    async def _tagged(self, row: Image) -> set[str]:
        """What its tags lead to: a build pushes before it is known whether it was cancelled meanwhile."""
        if self._registry is None:
            return set()
        found = set()
        for tag in await self._registry.tags(row.repository):
            with contextlib.suppress(NotFound):
                found.add((await self._registry.manifest(row.repository, tag)).digest)
        return found - {""}

    async def _delete(self, row: Image, digests: Sequence[str]) -> None:
        if self._registry is None:
            raise Unavailable(f"'{row.title}' is still in the registry, which is not there now")
        if self._collector is not None:
            self._collector.note_garbage()
        for digest in digests:
            await self._registry.delete_manifest(row.repository, digest)
        # Before its row goes: nothing else knows these digests, so a crash in between would leave the copies for ever.
        await self._drop_copies(row, digests)

    async def _drop_copies(self, row: Image, digests: Sequence[str]) -> None:
        """On all hosts at the same time."""
        if self._images is None:
            return
        references = [self._images.reference(row, digest) for digest in digests]
        computes = tuple(self._computes.items())
        await asyncio.gather(
            *(_drop(place, one, row, references) for place, one in computes if isinstance(one, HasImages))
        )


async def _drop(place: str, compute: HasImages, row: Image, references: Sequence[str]) -> None:
    """On one that has pulled it. One that is away, or hangs, keeps its copies: that costs space, and no more."""
    try:
        for reference in references:
            async with asyncio.timeout(_DROP_SECONDS):
                await compute.drop_image(reference)
                await compute.drop_image(loaded_name(reference))
    except AshoreError as error:
        log.warning("%s keeps its copy of '%s': %s", place, row.title, error.message)
    except TimeoutError:
        log.warning("%s may keep its copy of '%s': it did not answer in %g s", place, row.title, _DROP_SECONDS)
