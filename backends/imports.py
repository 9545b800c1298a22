"""Imports as people ask for them: request, list, show, cancel, try again. The work is the reconciler's.

A request makes the data set and the version at once, so that whatever is wrong with the names or the rights is said
to the person who asks. What the source says comes later, in the state of the import.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import select, update

from backends.import_rows import TOPIC
from backends.settings import ImportSettings
from backends.sources.registry import SourceAddress, connect, parse_source
from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, InUse, NotAllowed, NotFound
from storage.names import check_resource, printable
from storage.records import Import, ImportState
from storage.settings import ObjectSettings
from storage.tree import Tree
from storage.vault import Vault

KINDS = ("dataset", "model")
_OPEN = (ImportState.QUEUED, ImportState.RUNNING)
_NUMBERED = re.compile(r"v([0-9]{1,9})")


@dataclass(frozen=True)
class ImportView:
    """An import as people see it. `bytes` and `files`: of the whole, 0 while unknown; `rate` in bytes per second."""

    id: str
    owner: str
    kind: str
    name: str
    version: str
    source: str
    revision: str
    state: ImportState
    reason: str
    files: int
    files_done: int
    bytes: int
    bytes_done: int
    rate: int
    created: datetime
    started: datetime | None
    finished: datetime | None

    @property
    def target(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def percent(self) -> int | None:
        """Of the bytes; None while nobody knows how many there are."""
        if self.state is ImportState.DONE:
            return 100
        return min(99, 100 * self.bytes_done // self.bytes) if self.bytes else None

    @property
    def seconds_left(self) -> int | None:
        if self.state is not ImportState.RUNNING or not self.rate or not self.bytes:
            return None
        return max(0, self.bytes - self.bytes_done) // self.rate


class Imports:
    """The imports of all workspaces."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        tree: Tree,
        vault: Vault,
        settings: ImportSettings,
        clock: Clock = now,
        *,
        own: ObjectSettings | None = None,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._tree = tree
        self.vault = vault
        self._settings = settings
        self._clock = clock
        self._own = own

    async def request(self, caller: Caller, kind: str, name: str, version: str, source: str) -> ImportView:
        """Begin to fill `name:version` from `source`; without a version, a new one (v1, v2 …).

        BadInput, NotAllowed, Conflict for what can be known without asking the source.
        """
        require(caller, Action.IMPORT_REQUEST)
        if kind not in KINDS:
            raise BadInput(f"imports fill data sets and models, not a {printable(kind, limit=40)}")
        check_resource(name, kind=kind)
        address = parse_source(source)
        await connect(address, self._settings).close()
        self._check_not_ours(address)
        if address.kind.startswith("hf-") and address.kind != f"hf-{kind}":
            raise BadInput(f"this repository holds a {address.kind[3:]}: import it with '{address.kind[3:]} import'")
        version = check_resource(version, kind="version") if version else await self._next_version(caller, kind, name)
        await self._make_version(caller, f"/{kind}s/{name}", version)
        sealed = self.vault.seal(address.written) if address.written != address.shown else ""
        row = Import(
            owner_id=caller.user_id, owner_name=caller.name, workspace_id=caller.workspace_id, kind=kind, name=name,
            version=version, source=address.shown, sealed_source=sealed, created=self._clock(), touched=self._clock(),
        )  # fmt: skip
        async with self._database.writing() as tx:
            busy = select(Import.id).where(
                Import.workspace_id == caller.workspace_id, Import.kind == kind, Import.name == name,
                Import.version == version, Import.state.in_(_OPEN),
            )  # fmt: skip
            if (there := await tx.scalar(busy)) is not None:
                raise InUse(f"'{name}:{version}' is being imported already: import show {there}")
            tx.add(row)
            await tx.flush()
            event = Event.by(
                caller,
                Action.IMPORT_REQUEST,
                thing=f"{kind}:{name}:{version}",
                source=address.shown,
                **{"import": row.id},
            )
            await self._audit.add(tx, event)
        self._changes.tell(TOPIC, row.id)
        return _view(row)

    async def list(self, caller: Caller, *, everybody: bool = False, over: bool = False) -> Sequence[ImportView]:
        """The caller's imports, newest first (or everybody's, for administrators); `over`: also those that ended well
        or were cancelled."""
        require(caller, Action.IMPORT_LIST)
        query = select(Import).order_by(Import.created.desc()).limit(500)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(Import.owner_id == caller.user_id, Import.workspace_id == caller.workspace_id)
        if not over:
            query = query.where(Import.state.in_((*_OPEN, ImportState.FAILED)))
        async with self._database.reading() as tx:
            return [_view(row) for row in await tx.scalars(query)]

    async def show(self, caller: Caller, import_id: str) -> ImportView:
        return _view(await self._row(caller, Action.IMPORT_SHOW, import_id))

    async def cancel(self, caller: Caller, import_id: str) -> ImportView:
        """End an import; files that have arrived stay. Conflict if it is over."""
        row = await self._row(caller, Action.IMPORT_CANCEL, import_id)
        await self._move(caller, row, _OPEN, ImportState.CANCELLED, "import.cancel")
        return _view(await self._row(caller, Action.IMPORT_SHOW, import_id))

    async def retry(self, caller: Caller, import_id: str) -> ImportView:
        """Go on with an import that failed or was cancelled; what has arrived is not fetched again."""
        row = await self._row(caller, Action.IMPORT_CANCEL, import_id)
        ended = (ImportState.FAILED, ImportState.CANCELLED)
        await self._move(caller, row, ended, ImportState.QUEUED, "import.retry")
        return _view(await self._row(caller, Action.IMPORT_SHOW, import_id))

    def _check_not_ours(self, address: SourceAddress) -> None:
        """Ashore's own bucket holds what others may not share: it is read through the tree, with its rights."""
        own = self._own
        if own is None or address.kind != "s3" or address.place != own.bucket:
            return
        if urlsplit(own.endpoint).netloc.lower() == urlsplit(self._settings.s3_endpoint).netloc.lower():
            raise NotAllowed("this is Ashore's own bucket: copy from its data sets instead")

    # ---- steps -----------------------------------------------------------------------------------------------
    async def _row(self, caller: Caller, action: Action, import_id: str) -> Import:
        async with self._database.reading() as tx:
            row = await tx.get(Import, import_id)
        if row is None:
            raise NotFound(f"there is no import '{printable(import_id, limit=20)}'")
        require(caller, action, Owned("import", import_id, row.owner_id, row.workspace_id))
        return row

    async def _move(
        self, caller: Caller, row: Import, before: tuple[ImportState, ...], after: ImportState, action: str
    ) -> None:
        moment = self._clock()
        values = {"state": after, "rate": 0, "touched": moment, "finished": moment if after.is_over else None}
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Import)
                .where(Import.id == row.id, Import.state.in_(before))
                .values(**values)
                .returning(Import.id)
            )
            if changed.scalar_one_or_none() is None:
                raise Conflict(f"this import is {row.state.value}")
            event = Event.by(caller, action, thing=f"{row.kind}:{row.name}:{row.version}", **{"import": row.id})
            await self._audit.add(tx, event)
        self._changes.tell(TOPIC, row.id)

    async def _next_version(self, caller: Caller, kind: str, name: str) -> str:
        """v1 for the first one, else one more than the highest."""
        highest = 0
        try:
            async for node in self._tree.list(caller, f"/{kind}s/{name}"):
                if (match := _NUMBERED.fullmatch(node.name)) is not None:
                    highest = max(highest, int(match[1]))
        except NotFound:
            pass
        return f"v{highest + 1}"

    async def _make_version(self, caller: Caller, top: str, version: str) -> None:
        """The version, there and writable by the caller."""
        for path in (top, f"{top}/{version}"):
            try:
                await self._tree.mkdir(caller, path)
            except AlreadyExists:
                continue
        # Asks for the right to write, and whether the version is published; nothing is stored.
        writer = await self._tree.open_writer(caller, f"{top}/{version}/.import", truncate=True)
        await writer.abandon()


def _view(row: Import) -> ImportView:
    return ImportView(
        row.id, row.owner_name, row.kind, row.name, row.version, row.source, row.revision, row.state, row.reason,
        row.files, row.files_done, row.bytes, row.bytes_done, row.rate, row.created, row.started, row.finished,
    )  # fmt: skip
