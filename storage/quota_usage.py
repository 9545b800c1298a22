"""What people and workspaces use, counted from the records. Decides nothing."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from storage.asset_rows import known_usage
from storage.database.transaction import Transaction
from storage.quota_limits import HOLDING, RUNNING, Amounts, Resource, Subject
from storage.records import (
    Artifact,
    Asset,
    AssetKind,
    Build,
    BuildState,
    Environment,
    EnvironmentState,
    Holder,
    Image,
    ImageState,
    User,
    Wish,
    Workspace,
)
from storage.upload_rows import held_by

HOLDS: ColumnElement[bool] = or_(
    Environment.reserves.is_(True),
    and_(
        Environment.host == "",
        or_(
            Environment.state.in_(HOLDING),
            and_(Environment.wish == Wish.RUNNING, Environment.state != EnvironmentState.FAILED),
        ),
    ),
)
"""Environments whose CPUs, memory and GPUs count. On a host it is those that have some of it reserved, whatever their
state: one that failed may still run, and one that is being stopped or deleted may have given all back."""


async def used_by(tx: Transaction, subject: Subject, resources: Collection[Resource]) -> Amounts:
    """How much of `resources` the subject uses. Storage is what Ashore itself wrote, images in the registry too."""
    used: dict[Resource, float] = {}
    wanted = set(resources)
    if wanted & set(RUNNING):
        used |= await _by_environments(tx, subject)
    if Resource.STORAGE in wanted:
        prefixes = await prefixes_of(tx, subject)
        files = sum([(await known_usage(tx, prefix)).bytes for prefix in prefixes])
        used[Resource.STORAGE] = files + await _by_images(tx, subject)
    if wanted & {Resource.UPLOADS, Resource.PARKED}:
        used |= await _by_uploads(tx, subject)
    if Resource.BUILDS in wanted:
        used[Resource.BUILDS] = await _open_builds(tx, subject)
    return {resource: used[resource] for resource in resources}


async def prefixes_of(tx: Transaction, subject: Subject) -> list[str]:
    """Key prefixes, each ending with a slash, below which everything counts as the subject's."""
    if subject.holder is Holder.WORKSPACE:
        folders = (*(kind.folder for kind in AssetKind), "artifacts", "images")
        return [f"{folder}/{subject.name}/" for folder in folders]
    query = (
        select(Asset.kind, Workspace.name, Asset.name)
        .join(Workspace, Workspace.id == Asset.workspace_id)
        .where(Asset.owner_id == subject.id)
    )
    found = [f"{kind.folder}/{workspace}/{name}/" for kind, workspace, name in (await tx.execute(query)).all()]
    found += await tx.scalars(select(Artifact.prefix).where(Artifact.owner_id == subject.id))
    home = select(Workspace.name).join(User, User.workspace_id == Workspace.id).where(User.id == subject.id)
    return [*found, *(f"images/{workspace}/{subject.id}/" for workspace in await tx.scalars(home))]


async def _by_environments(tx: Transaction, subject: Subject) -> Amounts:
    column = Environment.owner_id if subject.holder is Holder.USER else Environment.workspace_id
    query = select(
        func.count(),
        func.coalesce(func.sum(case((HOLDS, Environment.cpus), else_=0.0)), 0.0),
        func.coalesce(func.sum(case((HOLDS, Environment.memory), else_=0)), 0),
        func.coalesce(func.sum(case((HOLDS, Environment.gpus), else_=0)), 0),
    ).where(column == subject.id)
    count, cpus, memory, gpus = (await tx.execute(query)).one()
    return {
        Resource.ENVIRONMENTS: int(count), Resource.CPUS: round(float(cpus), 6), Resource.MEMORY: int(memory),
        Resource.GPUS: int(gpus),
    }  # fmt: skip


async def _by_images(tx: Transaction, subject: Subject) -> int:
    """Bytes of images as the registry keeps them. A layer that several of them have counts in each: whose is it?"""
    column = Image.owner_id if subject.holder is Holder.USER else Image.workspace_id
    query = select(func.coalesce(func.sum(Image.size), 0))
    return int(await tx.scalar(query.where(column == subject.id, Image.state != ImageState.DELETING)) or 0)


async def _by_uploads(tx: Transaction, subject: Subject) -> Amounts:
    held = await held_by(tx, subject.id)
    return {Resource.UPLOADS: held.files, Resource.PARKED: held.bytes}


async def _open_builds(tx: Transaction, subject: Subject) -> int:
    column = Build.owner_id if subject.holder is Holder.USER else Build.workspace_id
    is_open = Build.state.in_([state for state in BuildState if not state.is_over])
    return await tx.scalar(select(func.count()).select_from(Build).where(column == subject.id, is_open)) or 0
