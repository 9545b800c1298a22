"""Assets in the database: rows become views, with what a caller may know of links and shares. No rule, no audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from storage.access import Caller, may_see
from storage.asset_views import AssetView, VersionView, parse_reference, prefix_of, with_usage
from storage.database.transaction import Transaction
from storage.errors import NotFound
from storage.names import printable
from storage.objects.contract import Usage
from storage.records import (
    Asset,
    AssetKind,
    AssetShare,
    AssetVersion,
    FileFact,
    Move,
    Upload,
    UploadState,
    VersionState,
    Workspace,
)

_OVER = tuple(state for state in UploadState if state.value in ("done", "aborted", "lost"))


def below(prefix: str) -> ColumnElement[bool]:
    """SQL: facts of the objects under `prefix`, which ends with a slash. A range, so that the index serves."""
    return _in_range(FileFact.key, prefix)


def uploads_below(prefix: str) -> ColumnElement[bool]:
    """SQL: uploads under `prefix` that are not over: running, finishing, or waiting to be gone on with."""
    return _in_range(Upload.key, prefix) & Upload.state.not_in(_OVER)


def moves_below(prefix: str) -> ColumnElement[bool]:
    """SQL: directories under `prefix` that are being moved."""
    return _in_range(Move.old, prefix) | _in_range(Move.new, prefix)


async def known_usage(tx: Transaction, prefix: str) -> Usage:
    """What Ashore itself wrote below `prefix`; objects that other S3 tools put there are not in it."""
    query = select(func.count(), func.coalesce(func.sum(FileFact.size), 0)).where(below(prefix))
    files, total = (await tx.execute(query)).one()
    return Usage(int(files), int(total))


async def load(tx: Transaction, caller: Caller, kind: AssetKind, name: str, *, shares: bool = False) -> AssetView:
    """The asset that `name` (`mnist`, `other/mnist`) means to `caller`; NotFound if there is none, or it is going.

    With `shares` the view tells with whom it is shared; otherwise only as far as visibility needs it.
    """
    reference = parse_reference(name, kind)
    workspace = reference.workspace or caller.workspace
    query = _rows(kind).where(Asset.name == reference.name, Asset.deleting.is_(False))
    row = (await tx.execute(query.where(Workspace.name == workspace))).one_or_none()
    if row is None:
        raise NotFound(f"there is no {kind.noun} '{printable(name, limit=100)}'")
    foreign = row[0].workspace_id != caller.workspace_id
    return (await _views(tx, caller, [row], shares=shares or foreign))[0]


async def load_own(tx: Transaction, caller: Caller, kind: AssetKind) -> Sequence[AssetView]:
    """All assets of the caller's workspace by name, what they may not see included."""
    query = _rows(kind).where(Asset.workspace_id == caller.workspace_id, Asset.deleting.is_(False))
    return await _views(tx, caller, (await tx.execute(query.order_by(Asset.name))).all(), shares=True)


async def load_foreign(tx: Transaction, caller: Caller, kind: AssetKind) -> Sequence[AssetView]:
    """All assets of other workspaces, by workspace and name."""
    query = _rows(kind).where(Asset.workspace_id != caller.workspace_id, Asset.deleting.is_(False))
    rows = (await tx.execute(query.order_by(Workspace.name, Asset.name))).all()
    return await _views(tx, caller, rows, shares=True)


async def add_usage(tx: Transaction, view: AssetView) -> tuple[VersionView, ...]:
    """Its versions, those that were not counted when they were published with what is known without the store."""
    versions = []
    for version in view.versions:
        if version.prefix and not version.counted:
            version = with_usage(version, await known_usage(tx, version.prefix))
        versions.append(version)
    return tuple(versions)


def _rows(kind: AssetKind) -> Select[Asset, str]:
    query: Select[Asset, str] = select(Asset, Workspace.name).join(Workspace, Workspace.id == Asset.workspace_id)
    return query.where(Asset.kind == kind)


async def _views(
    tx: Transaction, caller: Caller, rows: Sequence[tuple[Asset, str]], *, shares: bool
) -> Sequence[AssetView]:
    ids = [asset.id for asset, _ in rows]
    versions: dict[str, list[AssetVersion]] = {}
    query = select(AssetVersion).where(_among(ids), AssetVersion.state != VersionState.DELETING)
    for version in await tx.scalars(query.order_by(AssetVersion.created, AssetVersion.name)):
        versions.setdefault(version.asset_id, []).append(version)
    targets = await _targets(tx, caller, [version for some in versions.values() for version in some])
    sharing = await _shares(tx, ids) if shares else {}
    return [
        _view(asset, workspace, versions.get(asset.id, ()), targets, sharing.get(asset.id, {}))
        for asset, workspace in rows
    ]


def _among(ids: Sequence[str]) -> ColumnElement[bool]:
    return AssetVersion.asset_id == ids[0] if len(ids) == 1 else AssetVersion.asset_id.in_(ids)


async def _shares(tx: Transaction, ids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    query = select(AssetShare.asset_id, AssetShare.workspace_id, Workspace.name)
    query = query.join(Workspace, Workspace.id == AssetShare.workspace_id).where(AssetShare.asset_id.in_(ids))
    found: dict[str, dict[str, str]] = {}
    for asset_id, workspace_id, name in await tx.execute(query.order_by(Workspace.name)):
        found.setdefault(asset_id, {})[workspace_id] = name
    return found


async def _targets(tx: Transaction, caller: Caller, links: Iterable[AssetVersion]) -> Mapping[str, VersionView]:
    """What links lead to, by the id of the version; without what the caller may not see."""
    ids = {link.target_id for link in links if link.target_id}
    if not ids:
        return {}
    query = select(AssetVersion, Asset, Workspace.name).join(Asset, Asset.id == AssetVersion.asset_id)
    query = query.join(Workspace, Workspace.id == Asset.workspace_id).where(
        AssetVersion.id.in_(ids), AssetVersion.state == VersionState.READY, Asset.deleting.is_(False)
    )
    rows = (await tx.execute(query)).all()
    sharing = await _shares(tx, [asset.id for _, asset, _ in rows])
    found = {}
    for version, asset, workspace in rows:
        view = _view(asset, workspace, [version], {}, sharing.get(asset.id, {}))
        if may_see(caller, view.owned()):
            found[version.id] = _linked(view)
    return found


def _linked(view: AssetView) -> VersionView:
    (version,) = view.versions
    link = f"{view.workspace}/{view.name}:{version.name}"
    return VersionView(
        version.name, version.state, version.created, version.published, version.files, version.bytes,
        version.id, version.prefix, counted=version.counted, is_link=True, link=link,
    )  # fmt: skip


def _view(
    row: Asset,
    workspace: str,
    versions: Iterable[AssetVersion],
    targets: Mapping[str, VersionView],
    shares: Mapping[str, str],
) -> AssetView:
    kind = row.kind
    return AssetView(
        row.id, kind, row.name, row.owner_name, row.owner_id, row.workspace_id, workspace, row.created,
        versions=tuple(
            _version(one, prefix_of(workspace, row.name, one.name, kind=kind), targets.get(one.target_id or ""))
            for one in versions
        ),
        description=row.description, visibility=row.visibility, tags=tuple(row.tags),
        chosen_version=row.default_version, framework=row.framework, task=row.task, shares=shares,
    )  # fmt: skip


def _version(row: AssetVersion, prefix: str, target: VersionView | None) -> VersionView:
    files, size, counted = row.files, row.bytes, row.counted is not None
    if row.is_link:
        prefix = target.prefix if target else ""
        files, size, counted = (target.files, target.bytes, target.counted) if target else (0, 0, True)
    return VersionView(
        row.name, row.state, row.created, row.published, files, size, row.id, prefix, counted=counted,
        metrics=row.metrics, is_link=row.is_link, link=target.link if target else "",
    )  # fmt: skip


def _in_range(column: InstrumentedAttribute[str], prefix: str) -> ColumnElement[bool]:
    return (column >= prefix) & (column < prefix[:-1] + "0")  # "0" follows "/"
