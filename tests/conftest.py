"""What all tests share: a migrated database in a fresh data directory, and three people."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from storage.access import Caller
from storage.accounts import Accounts, PublicKey
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from tests import workers
from tests.databases import Databases

# A shell without job control starts background jobs with SIGINT ignored, and every program under test inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Hypothesis would fail an example that takes 200 ms, which on a busy machine says nothing.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_WORKER = os.environ.get("PYTEST_XDIST_WORKER")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Each process gets a short directory: the whole path of a socket may have no more than 107 letters."""
    if _WORKER:
        config.option.basetemp = str(Path(config.option.basetemp).with_name(_WORKER))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _WORKER:
        items[:] = workers.mixed(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> workers.Scheduling:
    return workers.Scheduling(config, log)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    databases = Databases()
    yield databases
    databases.close()


@pytest.fixture
async def database(request: pytest.FixtureRequest, databases: Databases, data_dir: Path) -> AsyncIterator[Database]:
    """SQLite in the data directory; in modules that list `DATABASES`, each of those kinds."""
    with databases.new(getattr(request, "param", "sqlite"), data_dir) as database:
        yield database
        await database.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = getattr(metafunc.module, "DATABASES", ())
    if names and "database" in metafunc.fixturenames:
        metafunc.parametrize("database", names, indirect=True)


@pytest.fixture
async def audit(database: Database) -> AsyncIterator[AuditTrail]:
    trail = AuditTrail(database)
    await trail.start()
    yield trail
    await trail.close()


@pytest.fixture
async def changes(data_dir: Path) -> AsyncIterator[Changes]:
    changes = Changes(data_dir / "run" / "changes")
    await changes.start()
    yield changes
    await changes.close()


@pytest.fixture
async def accounts(database: Database, audit: AuditTrail, changes: Changes) -> Accounts:
    return Accounts(database, audit, changes)


async def person(accounts: Accounts, name: str, *, is_admin: bool = False) -> Caller:
    """A user with one key, signed in."""
    key = PublicKey(f"ssh-ed25519 AAAA{name}", f"SHA256:{name}")
    await accounts.add_user(name, [key], is_admin=is_admin, actor="operator")
    return await accounts.sign_in(name, key.fingerprint, address="127.0.0.1", connection="c0")


@pytest.fixture
async def alice(accounts: Accounts) -> Caller:
    return await person(accounts, "alice")


@pytest.fixture
async def bob(accounts: Accounts) -> Caller:
    return await person(accounts, "bob")


@pytest.fixture
async def admin(accounts: Accounts) -> Caller:
    return await person(accounts, "root-admin", is_admin=True)
