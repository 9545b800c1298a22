"""Images that people may run environments from, and archives of images that are on their way to be one."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.access import Visibility
from storage.records.base import Record, new_id


class ImageKind(StrEnum):
    """Where an image comes from."""

    OFFICIAL = "official"
    """Named by the settings; it has no row."""
    CUSTOM = "custom"
    """Built here."""
    IMPORTED = "imported"
    """Brought as an archive."""


class ImageState(StrEnum):
    """building → ready or failed; deleting → gone. One with a digest can be used in every state but the last."""

    BUILDING = "building"
    """A build or an archive is about to become it; a former one of its name stays in use."""
    READY = "ready"
    FAILED = "failed"
    """It never was ready; `reason` says why."""
    DELETING = "deleting"


class Image(Record):
    """An image of one person, in the registry of the house.

    Each has a repository of its own there: a registry removes by digest, with every tag of that repository that has it.
    """

    __tablename__ = "images"
    __table_args__ = (
        Index("uq_images_workspace_owner_name_tag", "workspace_id", "owner_id", "name", "tag", unique=True),
    )

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(48))
    tag: Mapped[str] = mapped_column(String(48))
    kind: Mapped[ImageKind]
    state: Mapped[ImageState] = mapped_column(default=ImageState.BUILDING, index=True)
    reason: Mapped[str] = mapped_column(default="")
    """What went wrong last, as a sentence; also of one that is ready, when it was to be replaced."""
    visibility: Mapped[Visibility] = mapped_column(default=Visibility.PRIVATE)
    description: Mapped[str] = mapped_column(default="")
    digest: Mapped[str] = mapped_column(String(80), default="")
    """Of its manifest, `sha256:…`; empty until it was ready once."""
    former: Mapped[list[str]] = mapped_column(default=list)
    """Digests that it had before, and that are still in the registry."""
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of its layers as the registry keeps them."""
    architecture: Mapped[str] = mapped_column(String(32), default="")
    """As the image says: `amd64`, `arm64`."""
    cuda: Mapped[str] = mapped_column(String(32), default="")
    """Version of CUDA inside, where its labels or variables tell."""
    driver: Mapped[str] = mapped_column(String(64), default="")
    """The NVIDIA driver that it asks for, where it tells: `>=450`."""
    base: Mapped[str] = mapped_column(default="")
    """What it was built from, as the person wrote it."""
    created: Mapped[datetime]
    touched: Mapped[datetime]
    ready: Mapped[datetime | None]
    """Since when it has its digest."""

    @property
    def repository(self) -> str:
        """Its path in the registry, without the host."""
        return f"{self.workspace_id}/{self.id}/{self.name}"

    @property
    def title(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def is_usable(self) -> bool:
        return bool(self.digest) and self.state is not ImageState.DELETING


class ArchiveState(StrEnum):
    """received → verifying → loading → pushing → ready; failed with a reason."""

    RECEIVED = "received"
    """Its last byte is in the object store."""
    VERIFYING = "verifying"
    """It is read for the first time: what is in it, and whether that can be an image."""
    LOADING = "loading"
    """Its layers are read and checked against their digests while they go to the registry."""
    PUSHING = "pushing"
    """Configuration and manifest follow."""
    READY = "ready"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (ArchiveState.READY, ArchiveState.FAILED)


ARCHIVE_OVER = tuple(state for state in ArchiveState if state.is_over)


class ImageArchive(Record):
    """An archive in the object store that becomes an image."""

    __tablename__ = "image_archives"
    __table_args__ = (Index("ix_image_archives_owner_id_created", "owner_id", "created"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    image_id: Mapped[str] = mapped_column(String(16), default="", index=True)
    """Empty where its name could not become that of an image."""
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    path: Mapped[str] = mapped_column(String(1100))
    """In the data tree: `/images/model_v1.tar`."""
    key: Mapped[str] = mapped_column(String(1100), index=True)
    etag: Mapped[str] = mapped_column(String(80))
    """The very object that is read; another one of this name is another archive. Empty once it is gone."""
    state: Mapped[ArchiveState] = mapped_column(default=ArchiveState.RECEIVED, index=True)
    reason: Mapped[str] = mapped_column(default="")
    size: Mapped[int] = mapped_column(BigInteger)
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of the archive that the present step has read."""
    sha256: Mapped[str] = mapped_column(String(64), default="")
    """Of the whole file."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Times in a row that it was cut off."""
    created: Mapped[datetime]
    touched: Mapped[datetime]
    finished: Mapped[datetime | None]
    """When it was over. None although it is: its object is being removed, and whoever has another one waits."""
