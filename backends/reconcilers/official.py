"""Asks the registry from time to time which official images it has. One process of a house runs this.

Repositories and tags that are no names here (capital letters, more than one part) are left out: nobody could write
them. A registry that does not answer changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping

from backends import harbor
from backends.image_names import parse_image
from backends.official import OfficialList
from backends.reconcilers.builds import facts_of
from backends.registry import Registry
from backends.settings import OfficialImageSettings
from storage.errors import AshoreError, NotFound

log = logging.getLogger(__name__)
_PAUSE = 300.0
_MOST = 1000
"""Images that are offered: each is a few requests, and a line in everybody's list."""


class OfficialImages:
    """The loop. `listings`: registries that see a project each, by what its references begin with: `host/library/`."""

    def __init__(self, listings: Mapping[str, Registry], shelf: OfficialList) -> None:
        self._listings = listings
        self._shelf = shelf

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except (AshoreError, OSError) as error:
                log.warning("the official images of the registry are those of last time: %s", error)
            await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Ask once, and keep the answer. Unavailable: the registry did not answer everything; the former list stays."""
        found: dict[str, OfficialImageSettings] = {}
        for prefix, listing in self._listings.items():
            for repository in await harbor.below(listing):
                for tag in await listing.tags(repository):
                    name = f"{repository}:{tag}"
                    if "/" in repository or parse_image(name) is None or name in found:
                        continue
                    if len(found) == _MOST:
                        log.warning("more than %s official images are in the registry; the rest is left out", _MOST)
                        self._shelf.keep(list(found.values()))
                        return
                    if (one := await self._one(prefix, listing, repository, tag)) is not None:
                        found[name] = one
        self._shelf.keep(list(found.values()))

    async def _one(self, prefix: str, listing: Registry, repository: str, tag: str) -> OfficialImageSettings | None:
        """None if it has just gone."""
        name = f"{repository}:{tag}"
        try:
            manifest = await listing.manifest(repository, tag)
            reference = f"{prefix}{repository}@{manifest.digest}"
            known = self._shelf.known().get(name)
            if known is not None and known.reference == reference:
                return known
            config = manifest.facts.get("config")  # a list of several architectures has none
            inside = json.loads(await listing.blob(repository, str(config["digest"]))) if config else {}
        except NotFound:
            return None
        facts = facts_of(manifest.digest, manifest.facts, inside)
        return OfficialImageSettings(
            name=name, reference=reference, architecture=facts.architecture, cuda=facts.cuda, driver=facts.driver
        )
