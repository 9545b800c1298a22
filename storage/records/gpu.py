"""GPUs: the cards of hosts, and the devices that a card in MIG mode is divided into, as they were seen last.

Who has which is a column of the environment (`cards`), held as long as the environment `reserves`.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record


class GpuMode(StrEnum):
    """How an environment has its GPUs."""

    NONE = "none"
    EXCLUSIVE = "exclusive"
    """Whole cards, for it alone."""
    SHARED = "shared"
    """Cards that a few others have too; nothing divides their memory."""
    MIG = "mig"
    """Devices of cards in MIG mode, each for it alone."""


class Gpu(Record):
    """One card, or one MIG device."""

    __tablename__ = "gpus"

    uuid: Mapped[str] = mapped_column(String(96), primary_key=True)
    """`GPU-…` or `MIG-…`; the same after a reboot, and nowhere else in the world."""
    host: Mapped[str] = mapped_column(String(48), index=True)
    model: Mapped[str]
    """Such as `NVIDIA A100-SXM4-80GB`."""
    memory: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""
    parent: Mapped[str] = mapped_column(String(96), default="")
    """Of a MIG device: the card that it is a part of."""
    profile: Mapped[str] = mapped_column(String(32), default="")
    """Of a MIG device: its size, such as `1g.10gb`."""
    is_present: Mapped[bool] = mapped_column(default=True)
    """Its host showed it when it was asked last. What has vanished is kept here as long as somebody holds it."""
