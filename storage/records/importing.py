"""Imports: data sets and models that Ashore itself fetches from elsewhere, and what is done of each."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id


class ImportState(StrEnum):
    """queued → running → done; failed with a reason, from where it may be queued again; cancelled by a person."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (ImportState.DONE, ImportState.FAILED, ImportState.CANCELLED)


class Import(Record):
    """One job that fills a version from a source outside."""

    __tablename__ = "imports"
    __table_args__ = (Index("ix_imports_workspace_id_created", "workspace_id", "created"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    kind: Mapped[str] = mapped_column(String(16))
    """`dataset` or `model`."""
    name: Mapped[str] = mapped_column(String(48))
    version: Mapped[str] = mapped_column(String(48))
    source: Mapped[str]
    """As people see it: without a query, which may hold a signature."""
    sealed_source: Mapped[str] = mapped_column(default="")
    """The whole address, sealed by the vault; empty where `source` is all of it."""
    revision: Mapped[str] = mapped_column(String(64), default="")
    """The commit that a revision of the source meant when its files were listed."""
    state: Mapped[ImportState] = mapped_column(default=ImportState.QUEUED, index=True)
    reason: Mapped[str] = mapped_column(default="")
    """What went wrong last, as a sentence."""
    is_listed: Mapped[bool] = mapped_column(default=False)
    """Whether the files of the source are known, all of them."""
    files: Mapped[int] = mapped_column(default=0)
    files_done: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of all files whose size the source tells."""
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    """Received, the file that is on its way included."""
    rate: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes per second, lately; 0 when it does not run."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    touched: Mapped[datetime]


class ImportFile(Record):
    """One file of an import, from the listing of its source to its place in the version."""

    __tablename__ = "import_files"

    import_id: Mapped[str] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(String(1000))
    """Below the version."""
    location: Mapped[str] = mapped_column(default="")
    """What its source calls it, where that is not the path."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    etag: Mapped[str] = mapped_column(default="")
    """The source's name for these very bytes; a resumed transfer asks for it."""
    digest: Mapped[str] = mapped_column(String(80), default="")
    """`sha256:…`, `md5:…` or `git:…` (SHA-1 of a Git blob) as the source gives it; empty if it gives none."""
    prefix: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes that this import has received of it in an earlier life, if that was worth noting."""
    prefix_sha256: Mapped[str] = mapped_column(String(64), default="")
    """Of those bytes, where the source gives no digest of the whole: what is gone on with must begin like this."""
    done: Mapped[bool] = mapped_column(default=False)
