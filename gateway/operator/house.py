"""What the operator's commands open: settings, records, and the way to a running `serve`."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from backends.composition import HouseSettings
from gateway.settings import Settings, load
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.database.migrate import migrate
from storage.errors import BadInput, NotFound

SETTINGS_FILE = "ashore.toml"


@dataclass(frozen=True)
class Records:
    """The records of a house, as far as the operator's commands go."""

    database: Database
    audit: AuditTrail
    accounts: Accounts


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of `--config`, else of `ashore.toml` in the data directory, else the defaults."""
    own: Path = options.data / SETTINGS_FILE
    try:
        chosen: Path | None = options.config or (own if own.is_file() else None)
    except OSError as error:
        raise BadInput(f"{own} cannot be read: {error.strerror}") from error
    return load(chosen)


@asynccontextmanager
async def open_records(options: argparse.Namespace, *, make: bool = False) -> AsyncIterator[Records]:
    """The records, their schema up to date. `make`: also where there is no data directory yet; else NotFound."""
    settings = settings_of(options)
    prepare_directory(options.data, make=make)
    database = database_of(settings, options.data)
    try:
        await migrate(database)
        audit = AuditTrail(database)
        # Never started: the operator only tells, and a socket of its own would be one more file in run/.
        changes = Changes(options.data / "run" / "changes")
        yield Records(database, audit, Accounts(database, audit, changes))
    finally:
        await database.close()


def database_of(settings: Settings, data: Path) -> Database:
    """The database of the settings, or the SQLite file of the data directory."""
    return Database(settings.database.url) if settings.database.url else Database.in_directory(data)


def prepare_directory(data: Path, *, make: bool) -> None:
    """See to it that the data directory is there, readable by its owner only."""
    if data.is_dir():
        if make:
            _make_private(data)
        return
    if not make:
        raise NotFound(f"there is no data directory {data}: 'ashore init --data {data}' makes one")
    try:
        data.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BadInput(f"the data directory {data} cannot be made: {error.strerror}") from error
    sys.stderr.write(f"made the data directory {data}\n")


def _make_private(data: Path) -> None:
    # Records and recordings are in it; `mkdir` and service managers leave directories open to everybody.
    facts = data.stat()
    if facts.st_uid == os.geteuid() and facts.st_mode & 0o077:
        data.chmod(0o700)
        sys.stderr.write(f"closed {data} to other users\n")


def is_served(data: Path) -> bool:
    """Whether a `serve` is running in this directory."""
    try:
        descriptor = os.open(data / "run" / "serve.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def address(settings: Settings, data: Path) -> tuple[str, int]:
    """Host name and port under which people reach the gateway: those of a running `serve`, else of the settings."""
    if is_served(data):
        try:
            running = HouseSettings.read(data / "run" / "house.json")
        except (OSError, ValueError):
            pass  # it is just starting
        else:
            return running.public_host, running.public_port
    return settings.gateway.public_name or socket.gethostname(), settings.gateway.port or 2022
