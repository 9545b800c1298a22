"""Published ports: ports of environments that everybody who reaches the gateway can reach, without SSH."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record


class PublishedPort(Record):
    """One port inside of an environment, and the one of the gateway that leads there."""

    __tablename__ = "published_ports"

    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"), primary_key=True)
    port: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """On the environment's own loopback."""
    external_port: Mapped[int] = mapped_column(unique=True)
    """Of the gateway."""
    published: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(32))
    """Who published it."""
