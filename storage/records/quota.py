"""What administrators allow one person or one workspace, where that differs from the settings."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record

UNLIMITED = -1
"""In a column of `Quota`: no limit. Null: what the settings say."""


class Holder(StrEnum):
    """Who has a quota; nobody's limit replaces another's: what is used must fit into both."""

    USER = "user"
    WORKSPACE = "workspace"


class Quota(Record):
    """The exceptions of one person or workspace; no row: there are none."""

    __tablename__ = "quotas"

    holder: Mapped[Holder] = mapped_column(primary_key=True)
    holder_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The id of the user or workspace."""
    environments: Mapped[int | None]
    cpus: Mapped[float | None]
    memory: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes, as `storage` and `parked`."""
    gpus: Mapped[int | None]
    storage: Mapped[int | None] = mapped_column(BigInteger)
    uploads: Mapped[int | None]
    """Interrupted uploads that wait to be gone on with; of users only."""
    parked: Mapped[int | None] = mapped_column(BigInteger)
    """What those hold together; of users only."""
    builds: Mapped[int | None]
    """Builds of images that wait or run at once."""
    by: Mapped[str] = mapped_column(String(64))
    """Who changed it last."""
    changed: Mapped[datetime]


class QuotaWarning(Record):
    """Usage that has crossed the threshold and was told; the row goes when it has fallen below again."""

    __tablename__ = "quota_warnings"

    holder: Mapped[Holder] = mapped_column(primary_key=True)
    holder_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    resource: Mapped[str] = mapped_column(String(16), primary_key=True)
    told: Mapped[datetime]
