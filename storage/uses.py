"""Which environments have which versions mounted, now and before. What is in use is not deleted.

Environments call `begin` and `end` inside the transactions that make and take away their mounts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Select, func, or_, select, update

from storage.access import Caller, require
from storage.asset_rows import load
from storage.asset_views import prefix_of
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import NotFound
from storage.records import (
    Asset,
    AssetKind,
    AssetUse,
    AssetVersion,
    Environment,
    EnvironmentState,
    VersionState,
    Wish,
    Workspace,
)


@dataclass(frozen=True)
class Mount:
    """Where a version is to be seen: an environment, and the path inside it."""

    environment_id: str
    environment_name: str
    path: str


@dataclass(frozen=True)
class UseView:
    """One use. `unmounted` is None while it lasts."""

    version: str
    environment: str
    user: str
    path: str
    mounted: datetime
    unmounted: datetime | None


@dataclass(frozen=True)
class Mounted:
    """What an environment has mounted at `path`: the version that was chosen, and where its files are."""

    path: str
    kind: AssetKind
    workspace: str
    name: str
    version: str
    source_id: str = ""
    """The version whose files these are: another one than was chosen, if that is a link. Empty: it leads nowhere."""
    prefix: str = ""
    """Keys of its files begin with it."""
    sealed: bool = False
    """Published: nothing changes any more."""
    bytes: int = 0

    @property
    def asset(self) -> str:
        """As use cases take it, from every workspace."""
        return f"{self.workspace}/{self.name}"

    def reference(self, workspace: str) -> str:
        """What somebody in `workspace` types to mean it."""
        name = self.name if self.workspace == workspace else self.asset
        return f"{name}:{self.version}"


class Uses:
    """The ledger of mounts."""

    def __init__(self, database: Database, clock: Clock = now) -> None:
        self._database = database
        self._clock = clock

    async def begin(self, tx: Transaction, caller: Caller, version_id: str, mount: Mount) -> AssetUse:
        """Note a mount, if the version is still there for `caller`; NotFound otherwise. Its deletion is refused now."""
        query = select(AssetVersion, Asset, Workspace.name).join(Asset, Asset.id == AssetVersion.asset_id)
        query = query.join(Workspace, Workspace.id == Asset.workspace_id).where(
            AssetVersion.id == version_id, AssetVersion.state != VersionState.DELETING, Asset.deleting.is_(False)
        )
        # Whoever deletes it locks this row as well, so that one of the two sees what the other has done.
        query = query.with_for_update(of=Asset)
        found = (await tx.execute(query)).one_or_none()
        if found is None:
            raise NotFound("this version is not there any more")
        version, asset, workspace = found
        view = await load(tx, caller, asset.kind, f"{workspace}/{asset.name}")
        require(caller, asset.kind.action("read"), view.owned())
        use = AssetUse(
            asset_id=asset.id, version_id=version.id, version_name=version.name,
            environment_id=mount.environment_id, environment_name=mount.environment_name, path=mount.path,
            user_id=caller.user_id, user_name=caller.name, mounted=self._clock(),
        )  # fmt: skip
        tx.add(use)
        return use

    async def end(self, tx: Transaction, environment_id: str) -> None:
        """Everything that the environment had mounted is free again. Safe to repeat."""
        await tx.execute(
            update(AssetUse)
            .where(AssetUse.environment_id == environment_id, AssetUse.unmounted.is_(None))
            .values(unmounted=self._clock())
        )

    async def sources_in_use(self, elsewhere: Collection[str] = ()) -> set[str]:
        """Versions whose files are seen, or about to be seen, by environments that are not at rest, and not on the
        hosts `elsewhere`."""
        async with self._database.reading() as tx:
            return await sources_in_use(tx, elsewhere)

    async def sources_held(self, host: str) -> set[str]:
        """Versions that environments placed on `host` have mounted, also those that are at rest."""
        async with self._database.reading() as tx:
            return set((await tx.scalars(_sources().where(Environment.host == host))).all())

    async def history(self, caller: Caller, kind: AssetKind, name: str, *, limit: int = 200) -> Sequence[UseView]:
        """Who used an asset, and when; the newest first."""
        async with self._database.reading() as tx:
            view = await load(tx, caller, kind, name)
            require(caller, kind.action("read"), view.owned())
            query = select(AssetUse).where(AssetUse.asset_id == view.id).order_by(AssetUse.mounted.desc())
            rows = (await tx.scalars(query.limit(limit))).all()
        return [
            UseView(row.version_name, row.environment_name, row.user_name, row.path, row.mounted, row.unmounted)
            for row in rows
        ]


async def users_of(tx: Transaction, asset_id: str, version_id: str = "") -> Sequence[str]:
    """`environment (person)` of everybody who has an asset, or one version of it, mounted now."""
    query = select(AssetUse).where(AssetUse.asset_id == asset_id, AssetUse.unmounted.is_(None))
    if version_id:
        query = query.where(AssetUse.version_id == version_id)
    rows = (await tx.scalars(query.order_by(AssetUse.environment_name))).all()
    return list(dict.fromkeys(f"{row.environment_name} ({row.user_name})" for row in rows))


async def lock(tx: Transaction, asset_id: str) -> None:
    """From here to the end of `tx` nobody else begins to use it, or deletes it."""
    await tx.execute(select(Asset.id).where(Asset.id == asset_id).with_for_update())


async def mounted(tx: Transaction, environment_ids: Sequence[str]) -> Mapping[str, Sequence[Mounted]]:
    """What environments have mounted, in the order of their choice: data sets first, then models. Those that have
    nothing are not in it."""
    query = select(AssetUse, AssetVersion, Asset, Workspace.name)
    query = query.join(AssetVersion, AssetVersion.id == AssetUse.version_id)
    query = query.join(Asset, Asset.id == AssetUse.asset_id).join(Workspace, Workspace.id == Asset.workspace_id)
    query = query.where(AssetUse.environment_id.in_(environment_ids), AssetUse.unmounted.is_(None))
    found: dict[str, list[Mounted]] = {}
    for use, version, asset, workspace in (await tx.execute(query)).all():
        source = await _source(tx, version) if version.is_link else (version, asset, workspace)
        one = Mounted(use.path, asset.kind, workspace, asset.name, version.name)
        found.setdefault(use.environment_id, []).append(one if source is None else _with_files(one, *source))
    for mounts in found.values():
        mounts.sort(key=lambda one: (one.kind.value, len(one.path), one.path))
    return found


def _with_files(one: Mounted, version: AssetVersion, asset: Asset, workspace: str) -> Mounted:
    prefix = prefix_of(workspace, asset.name, version.name, kind=asset.kind)
    sealed = version.state is VersionState.READY
    return replace(one, source_id=version.id, prefix=prefix, sealed=sealed, bytes=version.bytes)


async def _source(tx: Transaction, link: AssetVersion) -> tuple[AssetVersion, Asset, str] | None:
    """What a link leads to; None if that is gone."""
    query = select(AssetVersion, Asset, Workspace.name).join(Asset, Asset.id == AssetVersion.asset_id)
    query = query.join(Workspace, Workspace.id == Asset.workspace_id)
    query = query.where(
        AssetVersion.id == (link.target_id or ""),
        AssetVersion.state == VersionState.READY,
        Asset.deleting.is_(False),
    )
    row = (await tx.execute(query)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


async def sources_in_use(tx: Transaction, elsewhere: Collection[str] = ()) -> set[str]:
    """Versions whose files are seen, or about to be seen, by environments that are not at rest."""
    query = _sources().where(
        or_(Environment.wish == Wish.RUNNING, Environment.state != EnvironmentState.STOPPED),
        Environment.host.not_in(elsewhere),
    )
    return set((await tx.scalars(query)).all())


def _sources() -> Select[str]:
    """Versions whose files somebody has mounted: those that were chosen, or what they lead to."""
    query = select(func.coalesce(AssetVersion.target_id, AssetVersion.id)).join(
        AssetUse, AssetUse.version_id == AssetVersion.id
    )
    return query.join(Environment, Environment.id == AssetUse.environment_id).where(AssetUse.unmounted.is_(None))


async def still_there(tx: Transaction, version_ids: Sequence[str]) -> set[str]:
    """Those of `version_ids` that are not gone, or going."""
    query = select(AssetVersion.id).join(Asset, Asset.id == AssetVersion.asset_id)
    query = query.where(
        AssetVersion.id.in_(version_ids), AssetVersion.state != VersionState.DELETING, Asset.deleting.is_(False)
    )
    return set((await tx.scalars(query)).all())
