"""Runs the imports that people asked for: one at a time each, a few at once, again where a source was away.

An import that a crash cut off is still `running` in its row and is simply taken up. One process of a house runs this.
"""

from __future__ import annotations

import contextlib
import logging

from backends.import_rows import TOPIC, ImportEnded, ImportRows
from backends.import_run import ImportRun
from backends.reconcilers.loop import ReconcilerLoop
from backends.settings import ImportSettings
from backends.sources.registry import connect, parse_source
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError, NotAllowed, NotFound, TimedOut, Unavailable
from storage.records import Import, ImportState
from storage.tree import Tree
from storage.vault import Vault

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0


class ImportReconciler:
    """The loop over imports."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        accounts: Accounts,
        tree: Tree,
        vault: Vault,
        settings: ImportSettings,
        clock: Clock = now,
    ) -> None:
        self._rows = ImportRows(database, audit, changes, clock)
        self._accounts = accounts
        self._tree = tree
        self._vault = vault
        self._settings = settings
        self._failures: dict[str, tuple[int, int]] = {}
        """Import → times in a row that it was cut off, and the bytes that it had then."""
        self._loop = ReconcilerLoop(
            "imports", TOPIC, changes=changes, look=self._rows.waiting, act=self.act, pause=_LOOK_SECONDS,
            parallel=max(1, settings.parallel),
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled; what is on its way then is parked and taken up by the next process."""
        await self._loop.run()

    async def act(self, import_id: str) -> None:
        """Run one import to its end. Unavailable if it is to be tried again."""
        row = await self._rows.begin(import_id)
        if row is None:
            self._failures.pop(import_id, None)
            return
        try:
            await self._fetch(row)
        except ImportEnded:
            self._failures.pop(import_id, None)
        except (Unavailable, TimedOut) as error:
            await self._try_later(row, error)
        except AshoreError as error:
            await self._rows.end(row, ImportState.FAILED, error.message)
        else:
            self._failures.pop(import_id, None)
            await self._rows.end(row, ImportState.DONE)

    async def _fetch(self, row: Import) -> None:
        caller = await self._caller(row)
        address = parse_source(self._vault.open(row.sealed_source) if row.sealed_source else row.source)
        source = connect(address, self._settings)
        run = ImportRun(row, caller, self._tree, source, self._rows, self._settings)
        try:
            await run.run()
        except ImportEnded:
            await run.drop_unfinished()
            raise
        finally:
            row.bytes_done = max(row.bytes_done, run.received)
            await source.close()

    async def _caller(self, row: Import) -> Caller:
        """The person who asked, with the rights that he has now."""
        try:
            caller = await self._accounts.caller_for(row.owner_name, connection=f"import-{row.id}"[:16])
        except NotFound as error:
            raise NotAllowed(f"'{row.owner_name}' may not come in any more") from error
        if (caller.user_id, caller.workspace_id) != (row.owner_id, row.workspace_id):
            raise NotAllowed(f"'{row.owner_name}' is in another workspace now")
        return caller

    async def _try_later(self, row: Import, error: AshoreError) -> None:
        count, received = self._failures.get(row.id, (0, -1))
        count = 1 if row.bytes_done > received else count + 1
        self._failures[row.id] = count, row.bytes_done
        if count >= self._settings.attempts:
            del self._failures[row.id]
            await self._rows.end(row, ImportState.FAILED, error.message)
            return
        with contextlib.suppress(ImportEnded):
            await self._rows.note(row.id, (), reason=error.message, rate=0)
        raise error
