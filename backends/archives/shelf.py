"""/images: where archives of images are put. Each person sees their own; what is there is on its way to be an image.

Bytes go through the upload engine, as those of data sets; `reconcilers.archives` takes what has arrived. Objects are
`images/<workspace>/<user id>/<file>`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from sqlalchemy import select

from backends.image_names import name_of_file
from backends.images import Images
from backends.settings import ImageSettings
from storage.access import Action, Caller, require
from storage.asset_rows import below
from storage.audit import AuditTrail, Event
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound, Unavailable
from storage.hot_queries import is_locked_out
from storage.names import printable
from storage.objects.contract import ObjectStore
from storage.objects.reading import ObjectReader
from storage.overlay import final_key, unfinished_node
from storage.quotas import Owner
from storage.records import ARCHIVE_OVER, ArchiveState, FileFact, ImageArchive, UploadState
from storage.rewriting import Rewriter
from storage.room import Room
from storage.tree import Node, Reader, Space, Tree, Writer
from storage.upload_target import Target
from storage.uploads import Uploads

_GIB = 1024**3
_ROOT = Node("images", is_directory=True, mode=0o755)
_REMEMBERED = timedelta(hours=1)
"""How long a file is told of that is an image by now: clients ask for the size of what they have just sent."""
_REMOVAL_SECONDS = 30.0
_POLL_SECONDS = 0.05


class ImageShelf:
    """A `storage.tree.Tree` with one directory."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        store: ObjectStore,
        uploads: Uploads,
        images: Images,
        settings: ImageSettings,
        data: Tree,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._store = store
        self._uploads = uploads
        self._images = images
        self._most = int(settings.archive_gib * _GIB)
        self._data = data
        self._clock = clock
        self._room = Room(database, uploads.quotas)

    # ---- looking ---------------------------------------------------------------------------------------------
    async def stat(self, caller: Caller, path: str) -> Node:
        require(caller, Action.TREE_READ)
        if path == "/":
            return _ROOT
        key = _key(caller, path)
        row = await self._uploads.rows.current(caller.user_id, key)
        if row is not None:
            return unfinished_node(row, caller.name)
        if (fact := await self._fact(key)) is not None:
            return _node(fact, caller)
        if (gone := await self._just_gone(key)) is not None:
            moment = int(gone.created.timestamp())
            return Node(path[1:], False, gone.size, moment, 0o400, caller.name)
        raise NotFound(f"there is no '{printable(path)}' in /images")

    async def check(self, caller: Caller, path: str) -> None:
        await self.stat(caller, path)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        require(caller, Action.TREE_READ)
        if path != "/":
            raise NotFound(f"there is no directory '{printable(path)}' in /images")
        prefix = _key(caller, "/")
        nodes = {node.name: node for node in [_node(fact, caller) for fact in await self._facts(prefix)]}
        for row in await self._uploads.unfinished(caller, prefix):
            node = unfinished_node(row, caller.name)
            nodes[node.name] = node
        for name in sorted(nodes):
            yield nodes[name]

    async def open_reader(self, caller: Caller, path: str) -> Reader:
        node = await self.stat(caller, path)
        if node.is_directory:
            raise BadInput("'/images' is a directory")
        if node.unfinished:
            raise Conflict(f"'{printable(path)}' has not arrived as a whole yet; go on with reput")
        facts = await self._store.head(_key(caller, path))
        return ObjectReader(self._store, facts, node, self._uploads.budget, caller.user_id)

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        fact = await self._fact(_key(caller, path)) if path != "/" else None
        if fact is None or algorithm not in ("md5", "sha256"):
            return ""
        return fact.md5 if algorithm == "md5" else fact.sha256

    async def space(self, caller: Caller, path: str) -> Space:
        return await self._data.space(caller, "/")

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
        target = self._target(caller, path, only_new=exclusive)
        if not truncate and not exclusive:
            resumed = await self._uploads.resume(caller, target, mtime=mtime)
            if resumed is not None:
                return resumed
        there = await self._fact(target.name_key)
        if there is not None and exclusive:
            raise AlreadyExists(f"there is a file '{printable(path)}' already")
        if there is not None and not truncate:  # reput after an interrupt that looked like an end
            facts = await self._store.head(there.key)
            writer = self._uploads.new(caller, target, mtime=mtime)
            return Rewriter(writer, self._store, facts, _node(there, caller), _forget)
        return await self._uploads.open(caller, target, mtime=mtime)

    async def mkdir(self, caller: Caller, path: str) -> None:
        raise NotAllowed("archives go directly into /images: put model.tar /images/model_v1.tar")

    async def rmdir(self, caller: Caller, path: str) -> None:
        raise NotAllowed(f"'{printable(path)}' cannot be removed")

    async def remove(self, caller: Caller, path: str) -> None:
        """Of what has not arrived as a whole; the rest is an image soon, and deleted as such."""
        require(caller, Action.IMAGE_CREATE)
        key = _key(caller, path)
        if await self._uploads.remove(caller, key):
            await self._audit.record(Event.by(caller, Action.UPLOAD_ABORT, thing=f"/images{path}"))
            return
        if await self._fact(key) is not None:
            raise Conflict(f"'{printable(path)}' becomes an image: delete that with 'image delete'")
        raise NotFound(f"there is no '{printable(path)}' in /images")

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        """The rename that programs do at the end; no other."""
        source, target = _key(caller, old), self._target(caller, new, only_new=not replace)
        row = await self._uploads.rows.current(caller.user_id, source)
        if row is None:
            raise NotFound(f"there is no unfinished '{printable(old)}' in /images")
        if row.key != target.key or row.state not in (UploadState.SEALED, UploadState.COMPLETING):
            raise BadInput("in /images a file keeps the name that it was sent under: send it again")
        await self._uploads.commit(caller, row, target.guard, only_new=not replace)
        await self._audit.record(Event.by(caller, "file.rename", thing=f"/images{old}", to=f"/images{new}"))

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        if path == "/":
            return
        row = await self._uploads.rows.current(caller.user_id, _key(caller, path))
        if row is not None:
            await self._uploads.set_mtime(row, seconds)

    # ---- steps -----------------------------------------------------------------------------------------------
    def _target(self, caller: Caller, path: str, *, only_new: bool) -> Target:
        """BadInput for a name that says no image, before a byte is sent."""
        require(caller, Action.IMAGE_CREATE)
        self._images.require_registry()
        sent_as = _key(caller, path)
        key = final_key(sent_as)
        name_of_file(key.rpartition("/")[2])

        async def still_allowed() -> None:
            if await is_locked_out(self._database, caller.user_id):
                raise NotAllowed("your account is locked")
            await self._until_removed(key)

        async def room(size: int) -> int:
            if size > self._most:
                raise BadInput(f"an archive may have {self._most / _GIB:g} GiB")
            owner = Owner.of(caller)
            return min(self._most, await self._room.check(owner, caller.workspace, key, sent_as, size))

        return Target(
            f"/images{path}", key, still_allowed, only_new=only_new, sent_as=sent_as, is_watched=True, room=room
        )

    async def _until_removed(self, key: str) -> None:
        """Wait while a former file of this name is being removed: a removal has no condition that stores know.

        The other side is `reconcilers.archives`, which lets go if it sees our row.
        """
        going = select(ImageArchive.id).where(
            ImageArchive.key == key, ImageArchive.state.in_(ARCHIVE_OVER), ImageArchive.finished.is_(None)
        )
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while True:
            async with self._database.reading() as tx:
                if (await tx.scalars(going.limit(1))).first() is None:
                    return
            if time.monotonic() > deadline:
                raise Unavailable("the former file of this name cannot be removed now: go on with reput later")
            await asyncio.sleep(_POLL_SECONDS)

    async def _fact(self, key: str) -> FileFact | None:
        async with self._database.reading() as tx:
            return await tx.get(FileFact, key)

    async def _facts(self, prefix: str) -> Sequence[FileFact]:
        async with self._database.reading() as tx:
            return (await tx.scalars(select(FileFact).where(below(prefix)))).all()

    async def _just_gone(self, key: str) -> ImageArchive | None:
        since = self._clock() - _REMEMBERED
        query = select(ImageArchive).where(
            ImageArchive.key == key, ImageArchive.state == ArchiveState.READY, ImageArchive.finished > since
        )
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(ImageArchive.created.desc()).limit(1))).first()


async def _forget(seconds: int) -> None:
    """Nobody asks for the time of an archive."""


def _key(caller: Caller, path: str) -> str:
    if path.count("/") > 1:
        raise NotFound(f"there is no '{printable(path)}' in /images: archives go directly into it")
    if "\\" in path:
        raise BadInput(f"'{printable(path)}' has a backslash in it, which object stores do not keep")
    return f"images/{caller.workspace}/{caller.user_id}{path}"


def _node(fact: FileFact, caller: Caller) -> Node:
    return Node(fact.key.rpartition("/")[2], False, fact.size, fact.mtime, 0o400, caller.name)
