"""The data tree: data sets and models as files, for SFTP, `scp` and the menu's browser.

    /README.txt                      what is here
    /datasets/<name>/<version>/…     objects `datasets/<workspace>/<name>/<version>/…`; the same for models
    /shared/<workspace>/…            what other workspaces share, read-only

Who may do what is `decide()`'s business. What is above the files is in `storage.top_directories`, what makes a
directory in a store that has none in `storage.directories`, how renames go on in `storage.moves`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace as replace_fields

from sqlalchemy import delete

from storage.access import Action, Caller, require
from storage.asset_cache import AssetCache
from storage.assets import Assets, Datasets, readable
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.directories import Directories, file_above
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound
from storage.fact_batch import time_batch
from storage.hot_queries import found_around, is_known, is_locked_out, is_open, sent_and_known
from storage.models import Models
from storage.moves import Moves, Names
from storage.names import printable
from storage.objects.contract import ObjectFacts, ObjectStore
from storage.objects.reading import ObjectReader, TextReader
from storage.overlay import final_key, unfinished_in, unfinished_node
from storage.places import (
    Place,
    Spot,
    directory_node,
    folder_node,
    place_of,
    readme,
    readme_node,
    version_node,
)
from storage.quotas import Owner
from storage.records import AssetKind, FileFact, Upload, UploadState
from storage.rewriting import Rewriter
from storage.room import Room
from storage.top_directories import TopDirectories
from storage.tree import Node, Reader, Space, Writer
from storage.upload_target import Target
from storage.uploads import Uploads, put_fact

_MOVED_AT_ONCE = 5.0
"""Seconds that a client waits for its directory to be moved; then the rest happens behind its back."""
_LONGEST_KEY = 1024
_SHARED = "/shared is read-only: it shows what other workspaces keep"

Nodes = list[Node]


class DataTree:
    """The tree of the caller's workspace; a `storage.tree.Tree`."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        store: ObjectStore,
        uploads: Uploads,
        datasets: Datasets,
        models: Models,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._store = store
        self._uploads = uploads
        self._datasets = datasets
        self._clock = clock
        self.moves = Moves(database, store, audit, changes, clock)
        self._directories = Directories(database, store)
        self._room = Room(database, uploads.quotas)
        self._times = time_batch(database)
        assets: dict[AssetKind, Assets] = {AssetKind.DATASET: datasets, AssetKind.MODEL: models}
        self._tops = TopDirectories(assets, AssetCache(changes), self._directories)

    # ---- looking ---------------------------------------------------------------------------------------------
    async def stat(self, caller: Caller, path: str) -> Node:
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if place.path == "/README.txt":
            return readme_node(caller)
        if place.kind is None or not place.asset:
            return await self._tops.stat_folder(caller, place)
        if not place.rest:
            return await self._tops.stat(caller, place)
        spot = await self._shown(await self._spot(caller, place, recent=True))
        facts, row = await asyncio.gather(
            self._directories.head(spot.key), self._uploads.rows.current(caller.user_id, spot.key)
        )
        if row is not None:
            return unfinished_node(row, caller.name)
        if facts is not None:
            return (await self._file_nodes([facts], spot))[0]
        if await self._directories.has_entries(spot.prefix) or await self._uploads.unfinished(caller, spot.prefix):
            return directory_node(place.name, spot)
        raise NotFound(f"there is no '{printable(path)}'")

    async def check(self, caller: Caller, path: str) -> None:
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if place.kind is not None and place.rest and not (await self.moves.shown()).moves:
            spot = await self._spot(caller, place, recent=True)
            if await is_known(self._database, spot.key):
                return
        await self.stat(caller, path)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if place.path == "/README.txt":
            raise NotFound("'/README.txt' is a file")
        if place.path == "/":
            yield readme_node(caller)
            for name in ("datasets", "models", "shared"):
                yield folder_node(name, is_shared=name == "shared")
        elif place.kind is None or not place.asset:
            for node in await self._tops.list_folder(caller, place):
                yield node
        elif not place.version:
            found = await self._tops.find(caller, place)
            for version in found.versions:
                yield version_node(found, version, is_shared=place.is_shared)
        else:
            async for node in self._list_objects(caller, await self._shown(await self._spot(caller, place))):
                yield node

    async def open_reader(self, caller: Caller, path: str) -> Reader:
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if place.path == "/README.txt":
            return TextReader(readme_node(caller), readme(caller))
        if not place.rest:
            raise BadInput(f"'{printable(path)}' is a directory")
        spot = await self._shown(await self._spot(caller, place))
        facts = await self._directories.head(spot.key)
        if facts is None:
            if await self._directories.has_entries(spot.prefix):
                raise BadInput(f"'{printable(path)}' is a directory")
            if await self._uploads.rows.current(caller.user_id, spot.key) is not None:
                raise Conflict(f"'{printable(path)}' has not arrived as a whole yet; go on with reput")
            raise NotFound(f"there is no file '{printable(path)}'")
        node = (await self._file_nodes([facts], spot))[0]
        return ObjectReader(self._store, facts, node, self._uploads.budget, caller.user_id)

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        """See `storage.tree.Tree`. Only facts about the very object that is there count."""
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if not place.rest or algorithm not in ("md5", "sha256"):
            return ""
        spot = await self._shown(await self._spot(caller, place))
        row = await self._uploads.rows.current(caller.user_id, spot.key)
        if row is not None and row.state is UploadState.SEALED:
            return row.md5 if algorithm == "md5" else row.sha256
        facts = await self._directories.head(spot.key)
        async with self._database.reading() as tx:
            known = await tx.get(FileFact, spot.key)
        if facts is None or known is None or (known.etag, known.size) != (facts.etag, facts.size):
            return ""
        return known.md5 if algorithm == "md5" else known.sha256

    async def locate(self, caller: Caller, path: str) -> ObjectFacts:
        """The object of a file that the caller may read; NotFound or BadInput if `path` is none."""
        require(caller, Action.TREE_READ)
        place = place_of(path)
        if not place.rest:
            raise BadInput(f"'{printable(path)}' is no file of a version")
        facts = await self._directories.head((await self._spot(caller, place)).key)
        if facts is None:
            raise NotFound(f"there is no file '{printable(path)}'")
        return facts

    async def space(self, caller: Caller, path: str) -> Space:
        """What the workspace has stored, what is on its way or broke off included, and what still fits."""
        require(caller, Action.TREE_READ)
        used, left = await self._room.space(caller)
        if left is not None:
            return Space(total=used + left, used=used)
        free = await self._store.free()
        return Space(total=0 if free is None else used + free, used=used)

    # ---- changing --------------------------------------------------------------------------------------------
    async def open_writer(
        self,
        caller: Caller,
        path: str,
        *,
        truncate: bool,
        exclusive: bool = False,
        mtime: int | None = None,
    ) -> Writer:
        """See `storage.tree.Tree`. Directories on the way need not exist below a version."""
        spot = await self._writable(caller, path, recent=True)
        target = self._target(caller, spot, only_new=exclusive)
        if truncate and not exclusive:
            return await self._open_anew(caller, spot, target, mtime)
        if not truncate and not exclusive:
            resumed = await self._uploads.resume(caller, target, mtime=mtime)
            if resumed is not None:
                return resumed
        facts, is_directory, _ = await asyncio.gather(
            self._directories.head(spot.key),
            self._directories.has_entries(spot.prefix),
            self._directories.refuse_file_above(spot),
        )
        if is_directory:
            raise BadInput(f"'{printable(path)}' is a directory")
        if facts is not None and exclusive:
            raise AlreadyExists(f"there is a file '{printable(path)}' already")
        if truncate or facts is None:
            return await self._uploads.open(caller, target, mtime=mtime)
        node = (await self._file_nodes([facts], spot))[0]
        writer = self._uploads.new(caller, target, mtime=mtime)
        return Rewriter(writer, self._store, facts, node, lambda seconds: self._set_fact(facts, seconds))

    async def _open_anew(self, caller: Caller, spot: Spot, target: Target, mtime: int | None) -> Writer:
        """The way of nearly all files; one query, and no request to the store where nothing can be."""
        found = await found_around(self._database, spot.key, spot.ancestors, caller.user_id)
        if file := found.get("above"):
            raise file_above(spot, file)
        if "below" in found or not (self._directories.is_young(spot) or not await self._directories.some(spot.prefix)):
            raise BadInput(f"'{printable(spot.place.path)}' is a directory")
        return await self._uploads.open(caller, target, mtime=mtime, is_alone="upload" not in found)

    async def mkdir(self, caller: Caller, path: str) -> None:
        place = place_of(path)
        if place.is_shared:
            raise NotAllowed(_SHARED)
        if place.kind is None or not place.asset:
            raise AlreadyExists(f"there is a '{printable(path)}' already")
        if not place.version:
            await self._tops.kept(place).create(caller, place.asset)
            return
        if not place.rest:
            await self._tops.make_version(caller, place)
            return
        spot = await self._writable(caller, path)
        facts, is_directory, _ = await asyncio.gather(
            self._directories.head(spot.key),
            self._directories.has_entries(spot.prefix),
            self._directories.refuse_file_above(spot),
        )
        if facts is not None or is_directory:
            raise AlreadyExists(f"there is a '{printable(path)}' already")
        await self._store.put(spot.prefix, b"")
        self._directories.note_new(spot)
        await self._audit.record(Event.by(caller, "file.mkdir", thing=spot.place.path))

    async def rmdir(self, caller: Caller, path: str) -> None:
        place = place_of(path)
        if place.is_shared:
            raise NotAllowed(_SHARED)
        if not place.asset:
            raise NotAllowed(f"'{printable(path)}' cannot be removed")
        if not place.rest:
            await self._tops.remove(caller, place)
            return
        spot = await self._writable(caller, path)
        entries = await self._directories.some(spot.prefix)
        if not entries:
            raise NotFound(f"there is no directory '{printable(path)}'")
        if [facts.key for facts in entries] != [spot.prefix] or await self._uploads.rows.all_below(spot.prefix):
            raise Conflict(f"the directory '{printable(path)}' is not empty")
        await self._store.delete(spot.prefix)
        await self._audit.record(Event.by(caller, "file.rmdir", thing=spot.place.path))
        await self._directories.keep_parent(spot)

    async def remove(self, caller: Caller, path: str) -> None:
        spot = await self._writable(caller, path)
        if await self._uploads.remove(caller, spot.key):
            await self._audit.record(Event.by(caller, "upload.abort", thing=spot.place.path))
            return
        facts = await self._directories.head(spot.key)
        if facts is None:
            if await self._uploads.remove(caller, spot.key, unseen=True):
                return
            if await self._directories.has_entries(spot.prefix):
                raise BadInput(f"'{printable(path)}' is a directory")
            raise NotFound(f"there is no file '{printable(path)}'")
        await self._store.delete(spot.key)
        async with self._database.writing() as tx:
            await tx.execute(delete(FileFact).where(FileFact.key == spot.key))
            await self._audit.add(tx, Event.by(caller, "file.remove", thing=spot.place.path, bytes=facts.size))
        await self._directories.keep_parent(spot)

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        source, target = await self._writable(caller, old), await self._writable(caller, new)
        facts, is_directory, row = await asyncio.gather(
            self._directories.head(source.key), self._directories.has_entries(source.prefix),
            self._uploads.rows.current(caller.user_id, source.key),
        )  # fmt: skip
        if facts is None and not is_directory and row is None:
            raise NotFound(f"there is no '{printable(old)}'")
        if source.key == target.key:
            return
        there, is_directory_there, _ = await asyncio.gather(
            self._directories.head(target.key),
            self._directories.has_entries(target.prefix),
            self._directories.refuse_file_above(target),
        )
        is_file = facts is not None or row is not None
        if is_directory_there or (there is not None and (not replace or not is_file)):
            raise AlreadyExists(f"there is a '{printable(new)}' already")
        if row is not None:
            await self._rename_unfinished(caller, row, source, target, replace=replace)
        elif facts is not None:
            await self._rename_file(caller, source, target)
        else:
            await self._rename_directory(caller, source, target)
            return
        await self._directories.keep_parent(source)

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        """Remembered for files; directories have no time of their own, which is no error."""
        place = place_of(path)
        if not place.rest and not place.is_shared:
            await self._tops.refuse_sealed(caller, place)
            return
        spot = await self._writable(caller, path, recent=True)
        await self._still_writable(caller, spot)
        is_sent, known = await sent_and_known(self._database, spot.key, caller.user_id)
        row = await self._uploads.rows.current(caller.user_id, spot.key) if is_sent else None
        if row is not None:
            await self._uploads.set_mtime(row, seconds)
            return
        facts = await self._directories.head(spot.key)
        if facts is not None and facts.etag == known:
            await self._times.add((facts, seconds))
        elif facts is not None:
            await self._set_fact(facts, seconds)
        elif not await self._directories.has_entries(spot.prefix):
            raise NotFound(f"there is no '{printable(path)}'")

    # ---- places ----------------------------------------------------------------------------------------------
    async def _spot(self, caller: Caller, place: Place, *, recent: bool = False) -> Spot:
        """`recent`: what was true a second ago is good enough."""
        found = await self._tops.find(caller, place, recent=recent)
        version = readable(found, place.version)
        root = version.prefix
        if "\\" in place.rest:  # several S3 servers take it for a slash
            raise BadInput(f"'{printable(place.path)}' has a backslash in it, which object stores do not keep")
        if len((root + place.rest).encode()) >= _LONGEST_KEY:
            raise BadInput("this path is too long for the object store")
        return Spot(place, found, version, root)

    async def _owned(self, caller: Caller, path: str, *, recent: bool = False) -> Spot:
        """The spot of a path below a version, if the caller may write there."""
        place = place_of(path)
        if place.is_shared:
            raise NotAllowed(_SHARED)
        try:
            if place.kind is None or not place.rest:
                if place.version:
                    await self._tops.stat(caller, place)  # that the version is missing is the better hint
                folder = place.kind.folder if place.kind else "datasets"
                raise NotAllowed(f"files and directories go below a version: /{folder}/NAME/VERSION/...")
            spot = await self._spot(caller, place, recent=recent)
        except NotFound as error:
            raise NotFound(
                f"{error.message}; make it with: mkdir {place.top}, mkdir {place.top}/{place.version}"
            ) from error
        require(caller, place.kind.action("write"), spot.asset.owned(spot.version))
        return spot

    async def _writable(self, caller: Caller, path: str, *, recent: bool = False) -> Spot:
        """The same, if nobody is moving what is there."""
        spot = await self._owned(caller, path, recent=recent)
        if (await self.moves.shown(fresh=not recent)).is_busy(spot.key):
            raise Conflict(f"'{printable(path)}' is being moved; try again in a moment")
        return spot

    async def _shown(self, spot: Spot) -> Spot:
        """The spot as its path leads to it while directories are being moved; NotFound for their old names."""
        shown = await self.moves.shown()
        if not shown.moves:
            return spot
        if shown.is_hidden(spot.key):
            raise NotFound(f"there is no '{printable(spot.place.path)}'")
        return replace_fields(spot, stored_at=shown.stored_at(spot.key))

    # ---- objects ---------------------------------------------------------------------------------------------
    async def _set_fact(self, facts: ObjectFacts, seconds: int) -> None:
        async with self._database.writing() as tx:
            await put_fact(tx, facts.key, facts.size, facts.etag, seconds)

    async def _file_nodes(self, page: Sequence[ObjectFacts], spot: Spot) -> Nodes:
        times = await self._datasets.mtimes(page)
        mode, owner = 0o444 if spot.is_read_only else 0o644, spot.asset.owner
        return [Node(facts.key.rpartition("/")[2], False, facts.size, times[facts.key], mode, owner) for facts in page]

    def _target(self, caller: Caller, spot: Spot, *, only_new: bool) -> Target:
        async def still_writable() -> None:
            await self._still_writable(caller, spot)

        async def room(size: int) -> int:
            return await self._check_room(spot, size)

        return Target(
            spot.place.path, final_key(spot.key), still_writable, only_new=only_new, sent_as=spot.key, room=room
        )

    async def _still_writable(self, caller: Caller, spot: Spot) -> None:
        """Asked just before something appears at `spot`: never from memory."""
        asset, version = spot.asset, spot.version
        if await is_open(
            self._database, version.id, owner_id=asset.owner_id, workspace_id=asset.workspace_id,
            caller_id=caller.user_id,
        ):  # fmt: skip
            return
        if await is_locked_out(self._database, caller.user_id):
            raise NotAllowed("your account is locked")
        await self._writable(caller, spot.place.path)

    async def _check_room(self, spot: Spot, size: int) -> int:
        """How many bytes a file may have as things stand; OverQuota if `size` of them are too much."""
        asset = spot.asset
        owner = Owner(asset.owner_id, asset.owner, asset.workspace_id)
        return await self._room.check(owner, asset.workspace, final_key(spot.key), spot.key, size)

    async def _list_objects(self, caller: Caller, spot: Spot) -> AsyncIterator[Node]:
        prefix = spot.prefix
        unfinished = unfinished_in(prefix, await self._uploads.unfinished(caller, prefix))
        shown, hidden = (await self.moves.shown()).names_in(prefix)
        # What the store does not list is put where its key would be; both are in the order of keys.
        extra: dict[str, Node] = {name + "/": directory_node(name, spot) for name in unfinished.directories | shown}
        extra |= {name: unfinished_node(row, caller.name) for name, row in unfinished.files.items()}
        waiting, start = sorted(extra), len(prefix)
        empty = not extra and bool(spot.place.rest)
        async for page in self._store.list(prefix, delimiter=True):
            empty = False
            finished = iter(await self._file_nodes([facts for facts in page if not facts.is_prefix], spot))
            for facts in page:
                key = facts.key[start:]
                node = directory_node(key.rstrip("/"), spot) if facts.is_prefix else next(finished)
                while waiting and waiting[0] <= key:
                    name = waiting.pop(0)
                    if name == key:
                        node = extra[name]
                    else:
                        yield extra[name]
                if node.name and node.name not in hidden:
                    yield node
        if empty:
            raise NotFound(f"there is no directory '{printable(spot.place.path)}'")
        for name in waiting:
            yield extra[name]

    # ---- renaming --------------------------------------------------------------------------------------------
    async def _rename_unfinished(
        self, caller: Caller, row: Upload, source: Spot, target: Spot, *, replace: bool
    ) -> None:
        """The rename that programs do at the end makes the object; to another name, it is copied from there."""
        elsewhere = row.key != target.key
        if elsewhere and row.state is UploadState.SEALED and await self._directories.head(row.key) is not None:
            final = printable(row.key.rpartition("/")[2])
            raise Conflict(f"'{printable(row.path)}' was made for the name '{final}': rename it to that first")

        async def still_writable() -> None:
            await self._still_writable(caller, target)

        await self._uploads.commit(caller, row, still_writable, only_new=elsewhere or not replace)
        if elsewhere:
            await self._rename_file(caller, source, target, made=row.key)
            return
        await self._audit.record(Event.by(caller, "file.rename", thing=source.place.path, to=target.place.path))

    async def _rename_file(self, caller: Caller, source: Spot, target: Spot, *, made: str = "") -> None:
        """`made`: the key where the object is, if its path does not say that."""
        names = Names(made or source.key, target.key, source.place.path, target.place.path)
        await self.moves.rename(caller, names, lambda: self._still_owned(caller, source, target))

    async def _still_owned(self, caller: Caller, source: Spot, target: Spot) -> None:
        for spot in {source.version.id: source, target.version.id: target}.values():
            await self._owned(caller, spot.place.path)

    async def _rename_directory(self, caller: Caller, source: Spot, target: Spot) -> None:
        """Seen at once. Small directories are done when this returns, so that they can be written to."""
        if source.root != target.root:
            raise BadInput("directories can be renamed within one version only")
        if target.prefix.startswith(source.prefix):
            raise BadInput("a directory cannot be moved into itself")
        for spot in (source, target):
            if await self._uploads.rows.all_below(spot.prefix):
                where = printable(spot.place.path)
                raise Conflict(f"uploads into '{where}' are not finished: finish or remove them first")
        await self._directories.keep_after_move(source)
        self._directories.grow_up(target)
        names = Names(source.prefix, target.prefix, source.place.path, target.place.path)
        task = await self.moves.begin(caller, names, lambda: self._still_owned(caller, source, target))
        await asyncio.wait([task], timeout=_MOVED_AT_ONCE)
