"""Builds: Dockerfiles that became images, or did not, and how far each came."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id


class BuildState(StrEnum):
    """queued → building → pushing → success; failed with a reason; cancelled by a person."""

    QUEUED = "queued"
    BUILDING = "building"
    PUSHING = "pushing"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (BuildState.SUCCESS, BuildState.FAILED, BuildState.CANCELLED)


class Build(Record):
    """One build of an image. Its log is a file, named by its id."""

    __tablename__ = "builds"
    __table_args__ = (
        Index("uq_builds_workspace_owner_name_number", "workspace_id", "owner_id", "name", "number", unique=True),
    )

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    image_id: Mapped[str] = mapped_column(String(16), index=True)
    """The image may be gone by now: this is no reference."""
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str] = mapped_column(String(48))
    tag: Mapped[str] = mapped_column(String(48))
    number: Mapped[int]
    """Of its owner's builds of this name, whatever the tag: 1, 2, 3 …"""
    base: Mapped[str]
    """As the person wrote it."""
    reference: Mapped[str]
    """What that meant when the build was asked for: `HOST/…`, or `/…` in the registry of this house."""
    target: Mapped[str]
    """Where it is pushed to in the registry of this house: `/repository:tag`."""
    dockerfile: Mapped[str]
    """As the person wrote it, without FROM."""
    state: Mapped[BuildState] = mapped_column(default=BuildState.QUEUED, index=True)
    reason: Mapped[str] = mapped_column(default="")
    """What went wrong, as a sentence."""
    failed_step: Mapped[int] = mapped_column(default=0)
    """Counts from 1, FROM being the first; 0: none failed."""
    failed_line: Mapped[int] = mapped_column(default=0)
    """Line of `dockerfile` in which that step begins."""
    digest: Mapped[str] = mapped_column(String(80), default="")
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of its layers in the registry."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Times that it was begun; more than one after a restart of the gateway."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]

    @property
    def title(self) -> str:
        return f"{self.name}:{self.tag}"
