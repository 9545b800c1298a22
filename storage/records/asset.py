"""Data sets, models and their versions, the index of their files, and uploads that are on their way."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.access import Action, Visibility
from storage.records.base import Record, new_id


class AssetKind(StrEnum):
    """What an asset is; the value begins the names of its actions."""

    DATASET = "dataset"
    MODEL = "model"

    @property
    def noun(self) -> str:
        """As people say it."""
        return "data set" if self is AssetKind.DATASET else "model"

    @property
    def folder(self) -> str:
        """Its directory in the data tree, and the first segment of its keys."""
        return "datasets" if self is AssetKind.DATASET else "models"

    def action(self, verb: str) -> Action:
        """The action of `verb` (list, read, create, write, publish, change, share, delete) on this kind."""
        return Action(f"{self.value}.{verb}")


class VersionState(StrEnum):
    """uploading → ready (published, immutable); error when its bytes cannot be trusted; deleting until
    they are gone."""

    UPLOADING = "uploading"
    READY = "ready"
    ERROR = "error"
    DELETING = "deleting"


class Asset(Record):
    """A named data set or model of a workspace."""

    __tablename__ = "assets"
    __table_args__ = (Index("uq_assets_workspace_kind_name", "workspace_id", "kind", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    kind: Mapped[AssetKind] = mapped_column(default=AssetKind.DATASET)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(48))
    description: Mapped[str] = mapped_column(default="")
    visibility: Mapped[Visibility] = mapped_column(default=Visibility.WORKSPACE)
    tags: Mapped[list[str]] = mapped_column(default=list)
    """Sorted, each once."""
    default_version: Mapped[str] = mapped_column(String(48), default="")
    """Chosen by its owner; empty: the newest published one."""
    framework: Mapped[str] = mapped_column(String(48), default="")
    """Models: pytorch, tensorflow, onnx …"""
    task: Mapped[str] = mapped_column(String(48), default="")
    """Models: classification, detection, nlp …"""
    deleting: Mapped[bool] = mapped_column(default=False)
    """Nobody sees it any more; the row goes when its objects are gone, so that the name cannot be used before."""
    created: Mapped[datetime]


class AssetVersion(Record):
    """One version of an asset: the objects under its prefix, or a link to a version that has them."""

    __tablename__ = "asset_versions"
    __table_args__ = (Index("uq_asset_versions_asset_name", "asset_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    asset_id: Mapped[str] = mapped_column(ForeignKey("assets.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(48))
    state: Mapped[VersionState] = mapped_column(default=VersionState.UPLOADING)
    created: Mapped[datetime]
    published: Mapped[datetime | None]
    files: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Both counted in the store when it was published; they hold where `counted` is set."""
    counted: Mapped[datetime | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Models: name → number, such as accuracy."""
    target_id: Mapped[str | None] = mapped_column(ForeignKey("asset_versions.id", ondelete="SET NULL"), index=True)
    """The version whose files these are; never itself a link. Null: its own, or of one that is gone."""
    is_link: Mapped[bool] = mapped_column(default=False)


class AssetShare(Record):
    """Another workspace that may read an asset."""

    __tablename__ = "asset_shares"

    asset_id: Mapped[str] = mapped_column(ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True)
    by: Mapped[str] = mapped_column(String(32))
    created: Mapped[datetime]


class AssetUse(Record):
    """An environment has, or had, a version mounted. Names are kept, so that history outlives the environment."""

    __tablename__ = "asset_uses"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    asset_id: Mapped[str] = mapped_column(ForeignKey("assets.id", ondelete="CASCADE"), index=True)
    version_id: Mapped[str] = mapped_column(String(16), index=True)
    version_name: Mapped[str] = mapped_column(String(48))
    environment_id: Mapped[str] = mapped_column(String(16), index=True)
    environment_name: Mapped[str] = mapped_column(String(48))
    user_id: Mapped[str] = mapped_column(String(16))
    user_name: Mapped[str] = mapped_column(String(32))
    path: Mapped[str]
    """Where it is inside the environment."""
    mounted: Mapped[datetime]
    unmounted: Mapped[datetime | None]


class Deletion(Record):
    """Objects that have to go: written with the wish to delete, so that a crash loses neither."""

    __tablename__ = "deletions"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    asset_id: Mapped[str] = mapped_column(String(16), index=True)
    version_id: Mapped[str] = mapped_column(String(16), default="")
    """Empty: the asset with all its versions."""
    workspace_id: Mapped[str] = mapped_column(String(16), index=True)
    kind: Mapped[AssetKind]
    title: Mapped[str] = mapped_column(String(100))
    """`mnist` or `mnist:v1`."""
    prefix: Mapped[str] = mapped_column(String(200))
    """Keys below it are to be removed; ends with a slash."""
    by_id: Mapped[str] = mapped_column(String(16))
    by_name: Mapped[str] = mapped_column(String(32))
    removed: Mapped[int] = mapped_column(BigInteger, default=0)
    """Objects that are gone."""
    reason: Mapped[str] = mapped_column(default="")
    """Why it does not go on right now."""
    holder: Mapped[str] = mapped_column(String(16), default="")
    """Who works on it; empty, or silent since `touched` for too long: nobody does."""
    touched: Mapped[datetime]
    created: Mapped[datetime]
    finished: Mapped[datetime | None] = mapped_column(index=True)


class FileFact(Record):
    """What S3 cannot tell about an object in a listing: the modification time that its sender gave."""

    __tablename__ = "file_facts"

    key: Mapped[str] = mapped_column(String(1100), primary_key=True)
    """Bucket-relative object key."""
    suspect: Mapped[bool] = mapped_column(default=False)
    """Its upload ended as an interrupted one does: it may lack its end."""
    size: Mapped[int] = mapped_column(BigInteger)
    etag: Mapped[str] = mapped_column(String(80), default="")
    mtime: Mapped[int] = mapped_column(BigInteger)
    """Seconds since 1970."""
    sha256: Mapped[str] = mapped_column(String(64), default="", index=True)
    md5: Mapped[str] = mapped_column(String(32), default="")
