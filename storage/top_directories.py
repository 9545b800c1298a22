"""What is above the files: /datasets, /models, /shared, the data sets and models in them, and their versions.

Their rows and rules are `storage.assets`'; here they look like directories. Objects are `storage.namespace`'s business.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby

from storage.access import Caller, require
from storage.asset_cache import AssetCache
from storage.asset_views import AssetView
from storage.assets import Assets
from storage.directories import Directories
from storage.errors import AlreadyExists, Conflict, NotFound
from storage.names import check_resource, printable
from storage.places import Place, asset_node, folder_node, version_node
from storage.records import AssetKind
from storage.tree import Node

Nodes = list[Node]
Neighbours = dict[str, dict[AssetKind, tuple[AssetView, ...]]]


class TopDirectories:
    """For `storage.namespace`, which takes paths apart."""

    def __init__(self, assets: dict[AssetKind, Assets], cache: AssetCache, directories: Directories) -> None:
        self._assets = assets
        self._cache = cache
        self._directories = directories

    def kept(self, place: Place) -> Assets:
        """The use cases of what `place` is about."""
        if place.kind is None:
            raise NotFound(f"there is no '{printable(place.path)}'")
        return self._assets[place.kind]

    async def find(self, caller: Caller, place: Place, *, recent: bool = False) -> AssetView:
        kept = self.kept(place)
        found = self._cache.get(caller, place.kind, place.asset) if recent else None
        if found is None:
            begun = self._cache.begin()
            found = await kept.find(caller, place.asset)
            self._cache.put(caller, place.kind, place.asset, found, begun)
        if place.is_shared and found.workspace_id == caller.workspace_id:
            raise NotFound(f"there is no '{printable(place.path)}': what is yours is not below /shared")
        return found

    async def make_version(self, caller: Caller, place: Place) -> None:
        """With its asset if that is new: `scp -r` makes the last directory of its target only."""
        assets = self.kept(place)
        check_resource(place.version, kind="version")
        try:
            await assets.create_version(caller, place.asset, place.version)
        except NotFound:
            with suppress(AlreadyExists):  # another connection was faster
                await assets.create(caller, place.asset)
            await assets.create_version(caller, place.asset, place.version)

    async def refuse_sealed(self, caller: Caller, place: Place) -> None:
        """Directories above the files have no times, but what is published is not even touched."""
        if place.kind is not None and place.version:
            found = await self.find(caller, place)
            require(caller, place.kind.action("write"), found.owned(found.version(place.version)))

    async def stat_folder(self, caller: Caller, place: Place) -> Node:
        if place.is_shared and place.workspace and place.workspace not in await self._neighbours(caller):
            raise NotFound(f"there is no '{printable(place.path)}'")
        return folder_node(place.name, is_shared=place.is_shared)

    async def list_folder(self, caller: Caller, place: Place) -> Nodes:
        """What is above the assets: /datasets, /models, /shared and the two levels below it."""
        if not place.is_shared:
            return [asset_node(asset) for asset in await self.kept(place).list(caller)]
        neighbours = await self._neighbours(caller)
        if not place.workspace:
            return [folder_node(name, is_shared=True) for name in neighbours]
        if place.workspace not in neighbours:
            raise NotFound(f"there is no '{printable(place.path)}'")
        kinds = neighbours[place.workspace]
        if place.kind is None:
            return [folder_node(kind.folder, is_shared=True) for kind in kinds]
        return [asset_node(asset, is_shared=True) for asset in kinds.get(place.kind, ())]

    async def _neighbours(self, caller: Caller) -> Neighbours:
        """Workspace → kind → what it shares with the caller."""
        found: Neighbours = {}
        for kind, assets in self._assets.items():
            for workspace, views in groupby(await assets.shared(caller), lambda view: view.workspace):
                found.setdefault(workspace, {})[kind] = tuple(views)
        return dict(sorted(found.items()))

    async def stat(self, caller: Caller, place: Place) -> Node:
        found = await self.find(caller, place)
        if place.version:
            return version_node(found, found.version(place.version), is_shared=place.is_shared)
        return asset_node(found, is_shared=place.is_shared)

    async def remove(self, caller: Caller, place: Place) -> None:
        assets = self.kept(place)
        found = await assets.find(caller, place.asset)
        require(caller, found.kind.action("delete"), found.owned())
        if not place.version:
            if found.versions:
                raise Conflict(f"the {found.kind.noun} '{found.name}' has versions; remove them first")
            await assets.delete(caller, found.name)
            return
        version = found.version(place.version)
        require(caller, found.kind.action("write"), found.owned(version))
        if [facts for facts in await self._directories.some(version.prefix) if facts.key != version.prefix]:
            raise Conflict(f"the version '{version.name}' of '{found.name}' is not empty")
        await assets.delete_version(caller, found.name, version.name)
