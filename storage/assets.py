"""Data sets and models and their versions: the use cases, each with its check, its record and its audit event.

An asset is a row; a version is a row and the objects under `<datasets|models>/<workspace>/<name>/<version>/`. It is
`uploading` until it is published; from then on its files stay as they are. A name is `mnist`, or `other/mnist` for
what another workspace shares. The files themselves are written and read through `storage.namespace`; what is deleted
goes through `storage.deletions`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.exc import IntegrityError

from storage.access import Caller, Visibility, may_see, require
from storage.asset_facts import checked_facts, checked_tag, refuse_too_many
from storage.asset_rows import add_usage, load, load_foreign, load_own, moves_below, uploads_below
from storage.asset_views import (
    EVERYTHING,
    AssetFile,
    AssetView,
    Filter,
    VersionView,
    parse_reference,
    parse_version,
    prefix_of,
    with_usage,
)
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.deletions import Deletions, Target
from storage.duplicates import Duplicate, duplicates_of
from storage.errors import AlreadyExists, Conflict, InUse, NotFound
from storage.names import check_resource
from storage.objects.contract import ObjectFacts, ObjectStore, Usage
from storage.records import (
    Asset,
    AssetKind,
    AssetShare,
    AssetVersion,
    FileFact,
    Import,
    ImportState,
    Move,
    Upload,
    VersionState,
    Workspace,
)
from storage.tree import normalize
from storage.uses import lock, users_of

__all__ = ["AssetFile", "AssetView", "Assets", "Datasets", "Filter", "VersionView", "parse_reference", "parse_version"]
_NAMED_IN_REFUSAL = 5


class Assets:
    """The assets of one kind, of all workspaces."""

    kind: AssetKind

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, store: ObjectStore, clock: Clock = now
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._store = store
        self._clock = clock
        self._deletions = Deletions(database, audit, changes, store, clock)

    # ---- looking ---------------------------------------------------------------------------------------------
    async def list(self, caller: Caller, wanted: Filter = EVERYTHING) -> Sequence[AssetView]:
        """What the caller may see in the own workspace, by name, with what Ashore itself wrote into it."""
        require(caller, self.kind.action("list"))
        async with self._database.reading() as tx:
            views = await load_own(tx, caller, self.kind)
            return [await self._with_known(tx, view) for view in _visible(caller, views, wanted)]

    async def shared(self, caller: Caller, wanted: Filter = EVERYTHING) -> Sequence[AssetView]:
        """What other workspaces let the caller read, by workspace and name."""
        require(caller, self.kind.action("list"))
        async with self._database.reading() as tx:
            views = await load_foreign(tx, caller, self.kind)
            return [await self._with_known(tx, view) for view in _visible(caller, views, wanted)]

    async def show(self, caller: Caller, name: str) -> AssetView:
        """One asset, its files counted in the store itself."""
        found = await self.find(caller, name, shares=True)
        return replace(found, versions=tuple([await self._counted(version) for version in found.versions]))

    async def find(self, caller: Caller, name: str, *, shares: bool = False) -> AssetView:
        """An asset without totals; cheap enough for every request. NotFound if there is none or none to see."""
        async with self._database.reading() as tx:
            return await self._find(tx, caller, name, "read", shares=shares)

    async def files(self, caller: Caller, name: str, version: str = "", path: str = "") -> AsyncIterator[AssetFile]:
        """All files of a version, or those below `path`, by name; streamed."""
        root = readable(await self.find(caller, name), version).prefix
        start = root + normalize(path).strip("/")
        async for page in self._store.list(start if start.endswith("/") else start + "/"):
            times = await self.mtimes(page)
            for facts in page:
                if not facts.key.endswith("/"):
                    yield AssetFile(facts.key.removeprefix(root), facts.size, times[facts.key])

    async def mtimes(self, page: Sequence[ObjectFacts]) -> dict[str, int]:
        """Key → modification time: what its sender said, else when the store received it."""
        keys = [facts.key for facts in page if not facts.is_prefix]
        known: dict[str, tuple[int, str]] = {}
        if keys:
            async with self._database.reading() as tx:
                query = select(FileFact.key, FileFact.mtime, FileFact.etag).where(_among(keys, page))
                known = {key: (mtime, etag) for key, mtime, etag in await tx.execute(query)}
        return {facts.key: _mtime(facts, known.get(facts.key)) for facts in page}

    async def duplicates(self, caller: Caller, name: str, version: str = "") -> Sequence[Duplicate]:
        """Files of a version that are there more than once, also in other assets of its workspace; worst first."""
        async with self._database.reading() as tx:
            view = await self._find(tx, caller, name, "read")
            found = await duplicates_of(tx, caller, view, readable(view, version).prefix)
        return sorted(found, key=lambda one: (-one.wasted, one.sha256))

    # ---- making ----------------------------------------------------------------------------------------------
    async def create(self, caller: Caller, name: str) -> AssetView:
        """A new, empty asset in the caller's workspace, owned by the caller."""
        check_resource(name, kind=self.kind.noun)
        require(caller, self.kind.action("create"))
        row = Asset(
            kind=self.kind, workspace_id=caller.workspace_id, owner_id=caller.user_id, owner_name=caller.name,
            name=name, visibility=Visibility.WORKSPACE, tags=[], created=self._clock(),
        )  # fmt: skip
        async with self._database.writing() as tx:
            query = select(Asset).where(Asset.workspace_id == caller.workspace_id, Asset.kind == self.kind)
            there = await tx.scalar(query.where(Asset.name == name))
            if there is not None and there.deleting:
                raise Conflict(f"a former {self.kind.noun} '{name}' is still being deleted, try again soon")
            if there is not None:
                raise AlreadyExists(f"there is a {self.kind.noun} '{name}' already")
            tx.add(row)
            try:
                await tx.flush()
            except IntegrityError as error:
                raise AlreadyExists(f"there is a {self.kind.noun} '{name}' already") from error
            await self._audit.add(tx, Event.by(caller, self.kind.action("create"), thing=name))
            view = await load(tx, caller, self.kind, name)
        self._tell(row.id)
        return view

    async def create_version(self, caller: Caller, name: str, version: str) -> VersionView:
        """A new, empty version that its owner may fill."""
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "write")
            await self._add_version(tx, caller, view, AssetVersion(name=version, state=VersionState.UPLOADING))
            made = (await load(tx, caller, self.kind, name)).version(version)
        self._tell(view.id)
        return made

    async def publish(self, caller: Caller, name: str, version: str) -> VersionView:
        """Close a version: its files stay as they are from now on, and are counted in the store.

        Conflict if it is empty, published already, or something is still on its way there.
        """
        found = await self.find(caller, name)
        require(caller, self.kind.action("publish"), found.owned())
        title = f"{found.name}:{version}"
        opened = _still_open(found.version(version or "-"), title)
        if not await self._has_files(opened.prefix):
            raise Conflict(f"'{title}' has no files: there is nothing to publish")
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "publish")
            closing = _still_open(view.version(version), title)
            await self._refuse_unfinished(tx, title, closing.prefix)
            await self._refuse_importing(tx, view, version)
            await _set_version(tx, closing.id, state=VersionState.READY, published=self._clock())
            await self._audit.add(tx, Event.by(caller, self.kind.action("publish"), thing=title))
        self._tell(view.id)
        # Counted after it was closed, so that the totals hold for good.
        closed = (await self.find(caller, name)).version(version)
        counted = await self._counted(closed)
        self._tell(view.id)
        return counted

    # ---- words about it --------------------------------------------------------------------------------------
    async def share(self, caller: Caller, name: str, workspace: str, *, wanted: bool = True) -> AssetView:
        """Let another workspace read it (or not any more, with `wanted` false)."""
        check_resource(workspace, kind="workspace")
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "share", shares=True)
            if wanted and view.visibility is Visibility.PRIVATE:
                raise Conflict(f"'{view.name}' is private: set its visibility to workspace before it is shared")
            other = await tx.scalar(select(Workspace).where(Workspace.name == workspace))
            if other is None:
                raise NotFound(f"there is no workspace '{workspace}'")
            if wanted and other.id == view.workspace_id:
                raise Conflict(f"'{view.name}' belongs to the workspace '{workspace}' itself")
            if wanted and other.id not in view.shares:
                tx.add(AssetShare(asset_id=view.id, workspace_id=other.id, by=caller.name, created=self._clock()))
            elif not wanted and other.id in view.shares:
                await tx.delete(await tx.get_one(AssetShare, (view.id, other.id)))
            elif not wanted:
                raise NotFound(f"'{view.name}' is not shared with '{workspace}'")
            event = Event.by(caller, self.kind.action("share"), thing=view.name, workspace=workspace, shared=wanted)
            await self._audit.add(tx, event)
            await tx.flush()
            view = await load(tx, caller, self.kind, name, shares=True)
        self._tell(view.id)
        return view

    async def change(self, caller: Caller, name: str, **facts: str) -> AssetView:
        """Set description, visibility, default_version, framework or task; what is not named stays.

        An empty `default_version` lets the newest published one be it.
        """
        values = checked_facts(facts)
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "change")
            if chosen := facts.get("default_version"):
                view.version(chosen)
            await tx.execute(update(Asset).where(Asset.id == view.id).values(**values))
            await self._audit.add(tx, Event.by(caller, self.kind.action("change"), thing=view.name, **facts))
            view = await load(tx, caller, self.kind, name, shares=True)
        self._tell(view.id)
        return view

    async def tag(self, caller: Caller, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> AssetView:
        """Add and remove tags; to remove one that is not there is no error."""
        wanted = {checked_tag(tag) for tag in add}
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "change")
            tags = sorted((set(view.tags) | wanted) - set(remove))
            refuse_too_many(tags)
            await tx.execute(update(Asset).where(Asset.id == view.id).values(tags=tags))
            await self._audit.add(tx, Event.by(caller, self.kind.action("change"), thing=view.name, tags=tags))
            view = await load(tx, caller, self.kind, name, shares=True)
        self._tell(view.id)
        return view

    # ---- deleting --------------------------------------------------------------------------------------------
    async def delete(self, caller: Caller, name: str) -> str:
        """Remove an asset with all its versions and files; the id of the recorded deletion.

        Nobody sees it any more when this returns, and its objects are gone unless they are many. InUse while an
        environment has it mounted, or links lead to it.
        """
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "delete")
            await _refuse_used(tx, view)
            await tx.execute(update(Asset).where(Asset.id == view.id).values(deleting=True))
            prefix = prefix_of(view.workspace, view.name, kind=self.kind)
            target = Target(self.kind, view.id, view.workspace_id, view.name, prefix)
            deletion = self._deletions.begin(tx, caller, target)
            await self._audit.add(tx, Event.by(caller, self.kind.action("delete"), thing=view.name))
        self._tell(view.id)
        await self._deletions.hasten(deletion)
        return deletion

    async def delete_version(self, caller: Caller, name: str, version: str) -> str:
        """Remove one version with all its files; as `delete`."""
        async with self._database.writing() as tx:
            view = await self._find(tx, caller, name, "delete")
            gone = view.version(version or "-")
            await _refuse_used(tx, view, gone)
            await _set_version(tx, gone.id, state=VersionState.DELETING)
            title = f"{view.name}:{version}"
            prefix = prefix_of(view.workspace, view.name, version, kind=self.kind)
            target = Target(self.kind, view.id, view.workspace_id, title, prefix, gone.id)
            deletion = self._deletions.begin(tx, caller, target)
            await self._audit.add(tx, Event.by(caller, self.kind.action("delete"), thing=title))
        self._tell(view.id)
        await self._deletions.hasten(deletion)
        return deletion

    # ---- steps -----------------------------------------------------------------------------------------------
    async def _find(self, tx: Transaction, caller: Caller, name: str, verb: str, *, shares: bool = False) -> AssetView:
        view = await load(tx, caller, self.kind, name, shares=shares)
        require(caller, self.kind.action(verb), view.owned())
        return view

    async def _add_version(self, tx: Transaction, caller: Caller, view: AssetView, row: AssetVersion) -> None:
        check_resource(row.name, kind="version")
        query = select(AssetVersion).where(AssetVersion.asset_id == view.id, AssetVersion.name == row.name)
        there = await tx.scalar(query)
        if there is not None and there.state is VersionState.DELETING:
            raise Conflict(f"a former version '{row.name}' of '{view.name}' is still being deleted, try again soon")
        if there is not None:
            raise AlreadyExists(f"the {self.kind.noun} '{view.name}' has a version '{row.name}' already")
        row.asset_id, row.created = view.id, self._clock()
        tx.add(row)
        await tx.flush()
        await self._audit.add(tx, Event.by(caller, self.kind.action("create"), thing=f"{view.name}:{row.name}"))

    async def _refuse_importing(self, tx: Transaction, view: AssetView, version: str) -> None:
        running = select(Import.id).where(
            Import.workspace_id == view.workspace_id, Import.kind == self.kind.value, Import.name == view.name,
            Import.version == version, Import.state.in_((ImportState.QUEUED, ImportState.RUNNING)),
        )  # fmt: skip
        if (there := await tx.scalar(running)) is not None:
            raise Conflict(f"'{view.name}:{version}' is being imported: wait, or end it with: import cancel {there}")

    async def _refuse_unfinished(self, tx: Transaction, title: str, prefix: str) -> None:
        count = await tx.scalar(select(func.count()).select_from(Upload).where(uploads_below(prefix)))
        if count:
            raise Conflict(
                f"'{title}' cannot be published while uploads to it are unfinished ({count}):"
                " go on with them, or end them with 'upload abort'"
            )
        if await tx.scalar(select(Move.id).where(moves_below(prefix)).limit(1)) is not None:
            raise Conflict(f"a directory of '{title}' is still being moved: try again in a moment")

    async def _has_files(self, prefix: str) -> bool:
        async for page in self._store.list(prefix):
            if any(not facts.key.endswith("/") for facts in page):
                return True
        return False

    async def _counted(self, version: VersionView) -> VersionView:
        """With totals of the store; those of a published version are remembered."""
        if version.counted or not version.prefix:
            return version
        usage = await self._store.usage(version.prefix)
        if version.sealed and not version.is_link:
            await self._remember(version, usage)
            version = replace(version, counted=True)
        return with_usage(version, usage)

    async def _remember(self, version: VersionView, usage: Usage) -> None:
        async with self._database.writing() as tx:
            await _set_version(tx, version.id, files=usage.files, bytes=usage.bytes, counted=self._clock())

    async def _with_known(self, tx: Transaction, view: AssetView) -> AssetView:
        return replace(view, versions=await add_usage(tx, view))

    def _tell(self, asset_id: str) -> None:
        self._changes.tell(self.kind.value, asset_id)


class Datasets(Assets):
    """The data sets of all workspaces."""

    kind = AssetKind.DATASET


def readable(view: AssetView, version: str = "") -> VersionView:
    """The version of that name, if its files can be reached; NotFound otherwise."""
    found = view.version(version)
    if found.is_broken:
        raise NotFound(f"'{view.name}:{found.name}' leads to a version that is gone or not shared with you any more")
    return found


_PAST = {VersionState.READY: "published", VersionState.ERROR: "broken", VersionState.DELETING: "being deleted"}


def _still_open(version: VersionView, title: str) -> VersionView:
    if version.state is not VersionState.UPLOADING:
        raise Conflict(f"'{title}' is {_PAST[version.state]} already")
    return version


def _visible(caller: Caller, views: Sequence[AssetView], wanted: Filter) -> list[AssetView]:
    return [view for view in views if may_see(caller, view.owned()) and wanted.takes(view)]


async def _set_version(tx: Transaction, version_id: str, **values: Any) -> None:
    await tx.execute(update(AssetVersion).where(AssetVersion.id == version_id).values(**values))


async def _refuse_used(tx: Transaction, view: AssetView, version: VersionView | None = None) -> None:
    title = view.name if version is None else f"{view.name}:{version.name}"
    await lock(tx, view.id)
    if users := await users_of(tx, view.id, version.id if version is not None else ""):
        raise InUse(f"'{title}' is mounted in {_some(users)}: delete that environment first")
    ids = [one.id for one in view.versions] if version is None else [version.id]
    query = select(Workspace.name, Asset.name, AssetVersion.name).join(Asset, Asset.id == AssetVersion.asset_id)
    query = query.join(Workspace, Workspace.id == Asset.workspace_id).where(
        AssetVersion.target_id.in_(ids), AssetVersion.state != VersionState.DELETING, Asset.deleting.is_(False),
        Asset.id != view.id if version is None else AssetVersion.id != version.id,
    )  # fmt: skip
    links = [f"{workspace}/{name}:{one}" for workspace, name, one in await tx.execute(query)]
    if links:
        raise InUse(f"'{title}' is linked by {_some(links)}: remove those links first")


def _some(names: Sequence[str]) -> str:
    more, shown = len(names) - _NAMED_IN_REFUSAL, ", ".join(names[:_NAMED_IN_REFUSAL])
    return f"{shown} and {more} more" if more > 0 else shown


def _mtime(facts: ObjectFacts, known: tuple[int, str] | None) -> int:
    # Facts about an object that another S3 tool has replaced since are no longer about it.
    if known is not None and (not known[1] or known[1] == facts.etag):
        return known[0]
    return int(facts.modified.timestamp()) if facts.modified else 0


def _among(keys: Sequence[str], page: Sequence[ObjectFacts]) -> ColumnElement[bool]:
    """SQL: facts of `keys`. Where the page has no directories, nothing else lies between the first and the last."""
    if len(keys) == len(page) and len(keys) > 1:
        return FileFact.key.between(keys[0], keys[-1])
    return FileFact.key.in_(keys)
