"""Environments: what a person wants to run, what runs, and the host key that belongs to its name."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id
from storage.records.gpu import GpuMode

# SQLite's INTEGER has 64 bits as it is, and altering it there would copy the table.
_BYTES = BigInteger().with_variant(Integer, "sqlite")


class EnvironmentState(StrEnum):
    """requested → queued → creating → running → stopping → stopped; failed; deleting → gone."""

    REQUESTED = "requested"
    QUEUED = "queued"
    CREATING = "creating"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETING = "deleting"


class Wish(StrEnum):
    """What the owner wants; the reconciler brings the state there."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class Lifecycle(StrEnum):
    """When an environment is started, stopped or deleted without anybody asking."""

    PERSISTENT = "persistent"
    """Never."""
    EPHEMERAL = "ephemeral"
    """Deleted some time after its last session ended, or when nobody came at all."""
    SCHEDULED = "scheduled"
    """Started and stopped at times of a clock."""
    ON_DEMAND = "on-demand"
    """Stopped when it shows no sign of life; the next login starts it."""


class Environment(Record):
    """One environment of one person."""

    __tablename__ = "environments"
    __table_args__ = (Index("uq_environments_owner_name", "owner_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    owner_name: Mapped[str] = mapped_column(String(32))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str] = mapped_column(String(48))
    compute: Mapped[str] = mapped_column(String(48))
    """Name of the compute in the settings: `local`, `docker` …"""
    host: Mapped[str] = mapped_column(String(48), default="", index=True)
    """The host of that compute where it is, with its home; empty for a compute without hosts."""
    reserves: Mapped[bool] = mapped_column(default=False)
    """Its CPUs, memory and GPUs are taken from its host. Given back only when its engine has said that nothing runs."""
    image: Mapped[str] = mapped_column(default="")
    """As people write it."""
    image_id: Mapped[str] = mapped_column(String(16), default="", index=True)
    """The image of the house that it was made from; empty: `image` is a reference that any registry may answer."""
    image_digest: Mapped[str] = mapped_column(String(80), default="")
    """What `image_id` had when the environment was made: it stays the same when the image is replaced."""
    cpus: Mapped[float] = mapped_column(default=0.0)
    """Cores; 0: no limit, which only records from before there were limits have."""
    memory: Mapped[int] = mapped_column(_BYTES, default=0)
    """Bytes; 0 as for `cpus`."""
    gpus: Mapped[int] = mapped_column(default=0)
    """How many GPUs it asked for."""
    gpu_mode: Mapped[GpuMode] = mapped_column(default=GpuMode.NONE)
    gpu_model: Mapped[str] = mapped_column(String(64), default="")
    """Part of the model's name, or of a MIG profile, that it asked for; empty: any."""
    cards: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """UUID → model of the GPUs that it has while it `reserves`; else those that it had last, which it gets again if
    they are free."""
    variables: Mapped[dict[str, Any]] = mapped_column(default=dict)
    wish: Mapped[Wish] = mapped_column(default=Wish.RUNNING)
    state: Mapped[EnvironmentState] = mapped_column(default=EnvironmentState.REQUESTED)
    reason: Mapped[str] = mapped_column(default="")
    """Why it is in this state, one sentence; empty when there is nothing to say."""
    progress: Mapped[str] = mapped_column(default="")
    """What the driver does right now, such as `pulling debian:bookworm 61 %`."""
    handle: Mapped[str] = mapped_column(default="")
    """The driver's name for what runs; empty before it is made."""
    restarts: Mapped[int] = mapped_column(default=0)
    """Grows with each restart that its owner asked for."""
    restarted: Mapped[int] = mapped_column(default=0)
    """The value of `restarts` that has been carried out."""
    client_key: Mapped[str] = mapped_column(default="")
    """Sealed private key that opens the guest of the present start."""
    version: Mapped[int] = mapped_column(default=1)
    """Grows with each change; an apply is guarded by it."""
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    last_used: Mapped[datetime | None]
    """Somebody was connected then, idle or not; written from time to time while somebody is."""
    lifecycle: Mapped[Lifecycle] = mapped_column(default=Lifecycle.PERSISTENT)
    lifecycle_from: Mapped[datetime | None]
    """Its times count from here: its life cycle was chosen, somebody started or stopped it, or its schedule did."""
    idle_seconds: Mapped[int] = mapped_column(default=0)
    """After which an on-demand one sleeps and an ephemeral one is deleted; 0: what the settings say."""
    start_at: Mapped[str] = mapped_column(String(100), default="")
    """Cron expression in `timezone`, as `stop_at`; empty: no such time."""
    stop_at: Mapped[str] = mapped_column(String(100), default="")
    timezone: Mapped[str] = mapped_column(String(64), default="")
    """IANA name; empty: what the settings say."""
    last_active: Mapped[datetime | None]
    """The last strong sign of life (`backends.activity`); written late, by up to `lifecycle.write_seconds`."""
    last_typed: Mapped[datetime | None]
    """Somebody typed in a terminal."""
    warned: Mapped[datetime | None]
    """Since when its terminals are told that it will be stopped or deleted; null: they are not."""
    wish_reason: Mapped[str] = mapped_column(default="")
    """Why it is wished so, where nobody wished it; empty once somebody does."""
    keep_output_days: Mapped[int | None]
    """For how long its /gemini/output is kept when it is deleted, days; 0: not at all; null: as the settings say."""


class EnvironmentKey(Record):
    """The SSH host key of an environment *name*: it outlives the environment, so a rebuild alarms nobody."""

    __tablename__ = "environment_keys"

    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    private_key: Mapped[str]
    """Sealed OpenSSH private key."""
    public_key: Mapped[str]
    created: Mapped[datetime]


class LostEnvironment(Record):
    """One that was given up with its host: so that its owner is told why it is gone, and what is left of it, should
    that machine come back, is known to have been ours."""

    __tablename__ = "lost_environments"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Of the environment. Its owner may be gone by now: nothing here is a reference."""
    owner_id: Mapped[str] = mapped_column(String(16), index=True)
    owner_name: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(48))
    host: Mapped[str] = mapped_column(String(48))
    lost: Mapped[datetime]
