"""Applications: programs that Ashore keeps running in an environment, for people who come through `ssh -L`."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.records.base import Record


class ApplicationState(StrEnum):
    """What an application does."""

    WAITING = "waiting"
    """Its environment does not run."""
    STARTING = "starting"
    RUNNING = "running"
    """It takes connections."""
    MISSING = "missing"
    """Its program is not in the environment."""
    FAILED = "failed"
    """It ended, and is started again after a pause."""
    ENDING = "ending"
    """Its owner wants it no more: it is ended and forgotten as soon as its environment runs and answers."""


class Application(Record):
    """One application of one environment. Which program that is stands in the settings, or is built in."""

    __tablename__ = "applications"

    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    secret: Mapped[str] = mapped_column(default="")
    """Sealed; empty before it is needed for the first time, and for one that needs none."""
    state: Mapped[ApplicationState] = mapped_column(default=ApplicationState.WAITING)
    """As it was found at `seen`; it means nothing once its environment was stopped or started after that."""
    reason: Mapped[str] = mapped_column(default="")
    """Why, one sentence; empty when there is nothing to say."""
    seen: Mapped[datetime | None]
