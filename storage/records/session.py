"""What happened: SSH sessions, recordings, and the audit trail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id


class SshSession(Record):
    """One channel that a person used: a menu, a command, a shell, a transfer, a forward."""

    __tablename__ = "ssh_sessions"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(String(16), index=True)
    user_name: Mapped[str] = mapped_column(String(32))
    kind: Mapped[str] = mapped_column(String(16))
    """menu, command, shell, exec, sftp, data, forward, jump, hold."""
    environment: Mapped[str] = mapped_column(String(48), default="")
    detail: Mapped[str] = mapped_column(default="")
    """The command, or the destination of a forward."""
    address: Mapped[str] = mapped_column(String(64), default="")
    connection: Mapped[str] = mapped_column(String(16), default="")
    instance: Mapped[str] = mapped_column(String(16), index=True)
    """The gateway process that holds it; rows of a dead process are closed at the next start."""
    started: Mapped[datetime]
    ended: Mapped[datetime | None] = mapped_column(index=True)
    end_wanted: Mapped[str] = mapped_column(default="")
    """Why somebody wants it ended; empty: nobody does."""
    exit_status: Mapped[int | None]
    bytes_in: Mapped[int] = mapped_column(BigInteger, default=0)
    """From the client."""
    bytes_out: Mapped[int] = mapped_column(BigInteger, default=0)
    """To the client."""


class Recording(Record):
    """A terminal session on disk as asciicast v2."""

    __tablename__ = "recordings"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    session_id: Mapped[str] = mapped_column(String(16), index=True)
    user_id: Mapped[str] = mapped_column(String(16), index=True)
    user_name: Mapped[str] = mapped_column(String(32))
    environment: Mapped[str] = mapped_column(String(48), default="")
    started: Mapped[datetime]
    seconds: Mapped[float] = mapped_column(default=0.0)
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    """Of the finished file; empty while it is being written."""


class AuditEvent(Record):
    """One link of the chain. `hash` covers every other column and the hash before."""

    __tablename__ = "audit_events"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[datetime] = mapped_column(index=True)
    action: Mapped[str] = mapped_column(String(48), index=True)
    outcome: Mapped[str] = mapped_column(String(16))
    """ok, refused or failed."""
    actor: Mapped[str] = mapped_column(String(64), index=True)
    """A user's name, `system`, `operator`, or what an unknown client called itself, made printable."""
    thing: Mapped[str] = mapped_column(default="")
    address: Mapped[str] = mapped_column(String(64), default="")
    connection: Mapped[str] = mapped_column(String(16), default="", index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Record):
    """The last link; its one row is what writers take turns on."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
