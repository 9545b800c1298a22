"""Artifacts: what environments that are gone have left in /gemini/output."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.access import Visibility
from storage.records.base import Record, new_id


class ArtifactState(StrEnum):
    """copying → ready; deleting until its last object is gone."""

    COPYING = "copying"
    READY = "ready"
    DELETING = "deleting"


class Artifact(Record):
    """The output of one environment: the objects under its prefix. Nobody writes to it."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("uq_artifacts_workspace_name", "workspace_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    owner_name: Mapped[str] = mapped_column(String(32))
    environment_id: Mapped[str] = mapped_column(String(16), index=True)
    environment_name: Mapped[str] = mapped_column(String(48))
    name: Mapped[str] = mapped_column(String(80))
    """Of its directory in the data tree: environment, date, short id."""
    prefix: Mapped[str] = mapped_column(String(200))
    """Of its keys; ends with a slash."""
    visibility: Mapped[Visibility] = mapped_column(default=Visibility.PRIVATE)
    """Its owner's alone, or of the workspace; never public."""
    state: Mapped[ArtifactState] = mapped_column(default=ArtifactState.COPYING)
    files: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    remarks: Mapped[list[str]] = mapped_column(default=list)
    """What could not be kept as it was, one line each: links, sockets, names that an object store does not take."""
    unlisted: Mapped[int] = mapped_column(default=0)
    """How many such lines there were beyond those."""
    created: Mapped[datetime]
    expires: Mapped[datetime | None] = mapped_column(index=True)
    """When it is deleted by itself; null while it is being copied."""
    reason: Mapped[str] = mapped_column(default="")
    """Why its deletion does not go on right now."""
