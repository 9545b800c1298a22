"""What administrators do with images and the registry: bring images to hosts beforehand, and see what is kept.

Both ask engines and registries, and wait for them. The catalogue itself is `backends.images`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from backends import harbor
from backends.compute.contract import Compute, HasImages, Progress
from backends.compute.places import host_of, place_of
from backends.image_loads import ImageLoads
from backends.images import NO_REGISTRY, Images
from backends.registry import Registry
from storage.access import Action, Caller, require
from storage.audit import AuditTrail, Event
from storage.database.engine import Database
from storage.errors import NotFound, Unavailable
from storage.names import printable
from storage.records import Image

_DOCKER = "docker"


@dataclass(frozen=True)
class Stored:
    """A repository of the registry. `title` and `owner` are empty where no image here speaks of it."""

    repository: str
    tags: Sequence[str]
    title: str = ""
    owner: str = ""


class ImageCare:
    """For administrators."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        images: Images,
        computes: Mapping[str, Compute],
        registry: Registry | None,
    ) -> None:
        self._database = database
        self._audit = audit
        self._images = images
        self._computes = computes
        self._registry = registry
        self._loads = ImageLoads(registry)

    async def pull(self, caller: Caller, written: str, host: str, progress: Progress) -> bool:
        """Bring an image to a Docker host, so that the first environment there need not wait for it.

        False: it was there already.

        NotFound: no such host. BadInput: no such image, or none that this host can have. Unavailable: the host does not
        answer, or cannot reach it.
        """
        require(caller, Action.IMAGE_PULL)
        place = place_of(_DOCKER, host)
        compute = self._computes.get(place)
        if not isinstance(compute, HasImages):
            known = ", ".join(sorted(host_of(one) for one in self._computes if host_of(one))) or "none"
            raise NotFound(f"there is no Docker host '{printable(host, limit=48)}' now (there are: {known})")
        async with self._database.reading() as tx:
            chosen = await self._images.resolve(tx, caller, written)
        source = self._images.source_of(chosen)
        if self._loads.is_needed(compute, source.reference):
            is_new = await self._loads.bring(compute, source.reference, chosen.title, progress)
        else:
            auth = self._loads.login_there(compute, source.reference, source.auth)
            is_new = await compute.pull_image(source.reference, chosen.title, auth, progress)
        facts = {"host": host, "digest": chosen.digest, "new": is_new}
        await self._audit.record(Event.by(caller, Action.IMAGE_PULL, thing=chosen.title, **facts))
        return is_new

    async def stored(self, caller: Caller) -> Sequence[Stored]:
        """Everything in the registry, by repository, with whose image it is. Unavailable: it cannot be asked."""
        require(caller, Action.IMAGE_LIST)
        require(caller, Action.USER_MANAGE)
        if self._registry is None:
            raise Unavailable(NO_REGISTRY)
        async with self._database.reading() as tx:
            rows = {row.repository: row for row in await tx.scalars(select(Image))}
        found = []
        for name in await harbor.below(self._registry):
            tags, row = await self._registry.tags(name), rows.get(name)
            found.append(Stored(name, tags, row.title, row.owner_name) if row else Stored(name, tags))
        return found
