"""A house for the screens, and menus on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from tests.tui.house import FakeTerminal, House
from tui.app import AshoreApp

Menu = Callable[..., AshoreApp]


@pytest.fixture
def house(database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, data_dir: Path) -> House:
    return House(database, audit, changes, accounts, data_dir)


@pytest.fixture
def terminal() -> FakeTerminal:
    return FakeTerminal()


@pytest.fixture
def menu(house: House, terminal: FakeTerminal, alice: Caller) -> Menu:
    """Makes a menu of alice's, in English unless told otherwise."""

    def make(language: str = "en", caller: Caller = alice) -> AshoreApp:
        return AshoreApp(terminal, house.services, caller, language)

    return make
