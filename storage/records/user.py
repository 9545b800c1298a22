"""People: users, their keys, their workspaces, and invitations."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record, new_id


class User(Record):
    """Somebody who may log in."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    disabled: Mapped[bool] = mapped_column(default=False)
    language: Mapped[str] = mapped_column(String(8), default="")
    """`en` or `zh`; empty: what the client's LANG says."""
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    """The current workspace."""
    created: Mapped[datetime]


class Workspace(Record):
    """A team: data sets belong to it, its members see each other's."""

    __tablename__ = "workspaces"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(48), unique=True)
    created: Mapped[datetime]


class SshKey(Record):
    """A public key that proves to be its user."""

    __tablename__ = "ssh_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    """`SHA256:…`, as ssh-keygen prints it."""
    line: Mapped[str]
    """`ssh-ed25519 AAAA…`, without comment or options."""
    title: Mapped[str] = mapped_column(String(100), default="")
    created: Mapped[datetime]
    last_used: Mapped[datetime | None]


class Invite(Record):
    """A one-time login name: the first key that comes with it is bound to a user."""

    __tablename__ = "invites"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the token in hexadecimal; the token itself is never kept."""
    user_name: Mapped[str] = mapped_column(String(32))
    is_admin: Mapped[bool] = mapped_column(default=False)
    expires: Mapped[datetime]
    used: Mapped[datetime | None]
    created: Mapped[datetime]
