"""Models: assets that also have metrics, and versions that are links to what somebody else keeps.

What other workspaces publish is the catalogue of pretrained models. It is linked, never copied: a link is a version
whose files are those of its target, and it can be read as long as its reader may read the target.
"""

from __future__ import annotations

from collections.abc import Mapping

from storage.access import Caller
from storage.asset_facts import checked_metrics, refuse_too_many_metrics
from storage.asset_rows import load
from storage.asset_views import AssetView, Reference, VersionView
from storage.assets import Assets, readable
from storage.audit import Event
from storage.errors import Conflict
from storage.records import AssetKind, AssetVersion, VersionState


class Models(Assets):
    """The models of all workspaces."""

    kind = AssetKind.MODEL

    async def link(self, caller: Caller, name: str, version: str, target: Reference) -> AssetView:
        """A version of the own model `name` that leads to a published version; made and published in one."""
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "write")
            other = await self._find(tx, caller, target.asset, "read")
            aim = readable(other, target.version)
            if aim.state is not VersionState.READY:
                raise Conflict(f"'{other.name}:{aim.name}' is not published yet: only what is published can be linked")
            moment = self._clock()
            # A link to a link would break with it: what is remembered is where the files are.
            row = AssetVersion(
                name=version, state=VersionState.READY, published=moment, is_link=True,
                target_id=(await tx.get_one(AssetVersion, aim.id)).target_id or aim.id,
            )  # fmt: skip
            await self._add_version(tx, caller, view, row)
            detail = {"target": f"{other.workspace}/{other.name}:{aim.name}"}
            await self._audit.add(tx, Event.by(caller, "model.link", thing=f"{view.name}:{version}", **detail))
            view = await load(tx, caller, self.kind, name, shares=True)
        self._tell(view.id)
        return view

    async def set_metrics(self, caller: Caller, name: str, version: str, metrics: Mapping[str, float]) -> VersionView:
        """Add metrics to a version, published or not; a name that is there is replaced."""
        wanted = checked_metrics(metrics)
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "change")
            row = await tx.get_one(AssetVersion, view.version(version).id)
            merged = {**row.metrics, **wanted}
            refuse_too_many_metrics(merged)
            row.metrics = merged
            title = f"{view.name}:{row.name}"
            await self._audit.add(tx, Event.by(caller, self.kind.action("change"), thing=title, metrics=wanted))
            await tx.flush()
            view = await load(tx, caller, self.kind, name)
        self._tell(view.id)
        return view.version(row.name)
