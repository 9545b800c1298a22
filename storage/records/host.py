"""Hosts: the machines that run environments, as the gateway saw them last."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record


class HostState(StrEnum):
    """What can be done with a host now."""

    ONLINE = "online"
    OFFLINE = "offline"
    """It does not answer; what runs there may well go on."""
    MAINTENANCE = "maintenance"
    """An administrator lets nothing new start there."""


class Host(Record):
    """One machine with an engine. It is reached by the settings of the same name."""

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    compute: Mapped[str] = mapped_column(String(48))
    """The compute that it belongs to: `docker`."""
    is_up: Mapped[bool] = mapped_column(default=False)
    """It answers, or has not failed to for long enough."""
    is_drained: Mapped[bool] = mapped_column(default=False)
    is_here: Mapped[bool] = mapped_column(default=False)
    """It sees the gateway's own files; others get data sets and models in volumes of their own."""
    reason: Mapped[str] = mapped_column(default="")
    """Why it is not up; one sentence."""
    drain_reason: Mapped[str] = mapped_column(default="")
    """Why an administrator drained it."""
    cpus: Mapped[float] = mapped_column(default=0.0)
    """Cores to share out; 0 before it answered for the first time, as `memory`."""
    memory: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes."""
    gpu_driver: Mapped[str] = mapped_column(String(40), default="")
    """Version of NVIDIA's driver, as it was told last; empty: none, or not known, as `cuda`."""
    cuda: Mapped[str] = mapped_column(String(16), default="")
    """The newest CUDA that this driver knows: `12.4`."""
    gpu_trouble: Mapped[str] = mapped_column(default="")
    """Why its GPUs could not be asked the last time; what is known of them is older then."""
    last_heartbeat: Mapped[datetime | None]
    """When it answered last."""

    @property
    def state(self) -> HostState:
        if self.is_drained:
            return HostState.MAINTENANCE
        return HostState.ONLINE if self.is_up else HostState.OFFLINE
