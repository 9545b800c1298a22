"""Uploads that are on their way into the store, and directories that are being moved."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id


class UploadState(StrEnum):
    """open → sealing → completing → done; parked when the connection was lost, sealed when it waits for a rename."""

    OPEN = "open"
    """A writer takes bytes."""
    SEALING = "sealing"
    """The client has closed the file; the last parts are on their way."""
    COMPLETING = "completing"
    """All parts are in the store and listed in the row; the object is being made, or is there already."""
    DONE = "done"
    PARKED = "parked"
    """Nobody writes; what is safely stored waits to be gone on with."""
    SEALED = "sealed"
    """Complete under a temporary name; its rename makes the object."""
    ABORTED = "aborted"
    """Given up by its owner, or kept for too long."""
    LOST = "lost"
    """The store has thrown the parts away."""


class Upload(Record):
    """An object on its way into the store. Its S3 upload id is ours to remember: no store lists them reliably."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    path: Mapped[str] = mapped_column(String(1100))
    """The path in the data tree, as the client named it."""
    key: Mapped[str] = mapped_column(String(1100), index=True)
    """Where the object will appear."""
    sent_as: Mapped[str] = mapped_column(String(1100), default="", index=True)
    """The key that `path` stands for: `key`, or that of a temporary name."""
    s3_upload_id: Mapped[str] = mapped_column(default="")
    """Empty until the first part is sent."""
    part_size: Mapped[int] = mapped_column(BigInteger)
    copied: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of an older object that the first parts copy; the schedule of parts starts behind them."""
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes that are safely in the store."""
    expected_size: Mapped[int | None] = mapped_column(BigInteger)
    """Of the whole file, where the client has told."""
    etag: Mapped[str] = mapped_column(String(80), default="")
    """What the finished object must have, known before it is completed; empty until then."""
    parts: Mapped[list[Any]] = mapped_column(default=list)
    """`[number, etag, size]` of all parts, written before the object is completed."""
    sha256: Mapped[str] = mapped_column(String(64), default="")
    md5: Mapped[str] = mapped_column(String(32), default="")
    """Both of the whole file, when it is sealed and was sent without a break; else empty."""
    mtime: Mapped[int | None] = mapped_column(BigInteger)
    suspect: Mapped[bool] = mapped_column(default=False)
    """It ended as an interrupted upload does."""
    superseded: Mapped[bool] = mapped_column(default=False)
    """Its owner has begun anew under the same name: it may still finish, but not be gone on with."""
    state: Mapped[UploadState] = mapped_column(default=UploadState.OPEN)
    epoch: Mapped[int] = mapped_column(default=1)
    """Counts its writers. A writer with an older number may not change the row any more."""
    instance: Mapped[str] = mapped_column(String(16), default="")
    """The process that writes it now; empty when none does."""
    lease_until: Mapped[datetime | None]
    """Until then the process is believed to be alive; it goes on saying so."""
    created: Mapped[datetime]
    resumed: Mapped[datetime | None]
    """When the present writer began."""
    touched: Mapped[datetime]
    """When bytes were stored, or the state changed."""


class Move(Record):
    """A directory that is being renamed: its objects are copied one by one, then the old ones are removed."""

    __tablename__ = "moves"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    old: Mapped[str] = mapped_column(String(1100), index=True)
    """Key prefix that ends with a slash."""
    new: Mapped[str] = mapped_column(String(1100), index=True)
    by_id: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(String(1100))
    to: Mapped[str] = mapped_column(String(1100))
    copied: Mapped[bool] = mapped_column(default=False)
    """All copies are there: readers are led to `new`, and the objects of `old` are being removed."""
    objects: Mapped[int] = mapped_column(BigInteger, default=0)
    instance: Mapped[str] = mapped_column(String(16), default="")
    """The process that works on it; empty, or silent since `touched` for too long: nobody does."""
    touched: Mapped[datetime]
    created: Mapped[datetime]
