"""A house that takes archives, and what `docker save` makes."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.registry_child import EmbeddedRegistry
from backends.settings import ImageSettings, RegistrySettings
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from tests.backends.archives.files import IMAGE
from tests.backends.archives.house import House


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[EmbeddedRegistry]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    yield child
    await child.close()


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, child: EmbeddedRegistry
) -> AsyncIterator[House]:
    house = House(
        database, audit, changes, accounts, await child.start(RegistrySettings()), ImageSettings(archive_gib=1)
    )
    yield house
    await house.uploads.close()
    await house.registry.close()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`docker save` of a real image."""
    path = tmp_path_factory.mktemp("saved") / "image.tar"
    subprocess.run(["docker", "save", "-o", path, IMAGE], check=True)
    return path
