"""The tree below /artifacts: what the caller may read of what environments left when they were deleted.

    /<artifact>/<path>        objects `artifacts/<workspace>/<artifact>/<path>`

Rights and rows are `storage.artifacts`'; nothing is ever written here.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from sqlalchemy import select

from storage.access import Action, Caller, Visibility, require
from storage.artifacts import Artifacts, ArtifactView
from storage.database.engine import Database
from storage.errors import BadInput, NotAllowed, NotFound
from storage.names import printable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import ObjectFacts, ObjectStore
from storage.objects.reading import ObjectReader
from storage.records import ArtifactState, FileFact
from storage.tree import Node, Reader, Space, Writer

_READ_ONLY = (
    "/artifacts is read-only: it keeps what environments left; remove one as a whole with: artifact delete NAME"
)
_LONGEST_KEY = 1024


class ArtifactTree:
    """A `storage.tree.Tree`, for reading only."""

    def __init__(self, database: Database, artifacts: Artifacts, store: ObjectStore, budget: MemoryBudget) -> None:
        self._database = database
        self._artifacts = artifacts
        self._store = store
        self._budget = budget

    async def stat(self, caller: Caller, path: str) -> Node:
        require(caller, Action.TREE_READ)
        if path == "/":
            return Node("artifacts", is_directory=True, mode=0o555)
        artifact, rest = await self._find(caller, path)
        if not rest:
            return _top(artifact)
        key = _key(artifact, rest)
        try:
            return (await self._nodes([await self._store.head(key)], artifact))[0]
        except NotFound:
            if await self._has_entries(f"{key}/"):
                return _directory(posixpath.basename(rest), artifact)
            raise NotFound(f"there is no '{printable(f'/artifacts{path}')}'") from None

    async def check(self, caller: Caller, path: str) -> None:
        await self.stat(caller, path)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        require(caller, Action.TREE_READ)
        if path == "/":
            for one in await self._artifacts.list(caller):
                if one.state is ArtifactState.READY:
                    yield _top(one)
            return
        artifact, rest = await self._find(caller, path)
        prefix = f"{_key(artifact, rest)}/" if rest else artifact.prefix
        empty = bool(rest)
        async with aclosing(self._store.list(prefix, delimiter=True)) as pages:
            async for page in pages:
                empty = False
                files = iter(await self._nodes([facts for facts in page if not facts.is_prefix], artifact))
                for facts in page:
                    name = facts.key[len(prefix) :].rstrip("/")
                    node = _directory(name, artifact) if facts.is_prefix else next(files)
                    if name:
                        yield node
        if empty:
            raise NotFound(f"there is no directory '{printable(f'/artifacts{path}')}'")

    async def open_reader(self, caller: Caller, path: str) -> Reader:
        require(caller, Action.TREE_READ)
        artifact, rest = await self._find(caller, path)
        if not rest:
            raise BadInput(f"'{printable(f'/artifacts{path}')}' is a directory")
        key = _key(artifact, rest)
        try:
            facts = await self._store.head(key)
        except NotFound:
            if await self._has_entries(f"{key}/"):
                raise BadInput(f"'{printable(f'/artifacts{path}')}' is a directory") from None
            raise NotFound(f"there is no file '{printable(f'/artifacts{path}')}'") from None
        return ObjectReader(self._store, facts, (await self._nodes([facts], artifact))[0], self._budget, caller.user_id)

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        require(caller, Action.TREE_READ)
        if path == "/" or algorithm not in ("md5", "sha256"):
            return ""
        artifact, rest = await self._find(caller, path)
        async with self._database.reading() as tx:
            known = await tx.get(FileFact, _key(artifact, rest)) if rest else None
        if known is None:
            return ""
        return known.md5 if algorithm == "md5" else known.sha256

    async def space(self, caller: Caller, path: str) -> Space:
        """What the artifacts of the workspace take; how much more there may be is not theirs to say."""
        require(caller, Action.TREE_READ)
        used = sum(one.bytes for one in await self._artifacts.list(caller))
        return Space(total=0, used=used)

    # ---- what is not possible --------------------------------------------------------------------------------
    async def open_writer(
        self, caller: Caller, path: str, *, truncate: bool, exclusive: bool = False, mtime: int | None = None
    ) -> Writer:
        raise NotAllowed(_READ_ONLY)

    async def mkdir(self, caller: Caller, path: str) -> None:
        raise NotAllowed(_READ_ONLY)

    async def rmdir(self, caller: Caller, path: str) -> None:
        raise NotAllowed(_READ_ONLY)

    async def remove(self, caller: Caller, path: str) -> None:
        raise NotAllowed(_READ_ONLY)

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        raise NotAllowed(_READ_ONLY)

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        raise NotAllowed(_READ_ONLY)

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _find(self, caller: Caller, path: str) -> tuple[ArtifactView, str]:
        """The artifact, and the path below it. NotFound: none that may be seen, or not whole yet."""
        name, _, rest = path.strip("/").partition("/")
        try:
            artifact = await self._artifacts.show(caller, name)
        except NotFound:
            artifact = None
        if artifact is None or artifact.state is not ArtifactState.READY:
            raise NotFound(f"there is no '{printable(f'/artifacts/{name}')}'")
        return artifact, rest

    async def _has_entries(self, prefix: str) -> bool:
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                return bool(page)
        return False

    async def _nodes(self, page: Sequence[ObjectFacts], artifact: ArtifactView) -> Sequence[Node]:
        async with self._database.reading() as tx:
            query = select(FileFact.key, FileFact.mtime).where(FileFact.key.in_([facts.key for facts in page]))
            times: dict[str, int] = {row.key: row.mtime for row in await tx.execute(query)}
        created = int(artifact.created.timestamp())
        return [
            Node(
                posixpath.basename(facts.key), is_directory=False, size=facts.size,
                mtime=times.get(facts.key, created), mode=0o444 & _bits(artifact), owner=artifact.owner,
            )
            for facts in page
        ]  # fmt: skip


def _top(artifact: ArtifactView) -> Node:
    return _directory(artifact.name, artifact)


def _directory(name: str, artifact: ArtifactView) -> Node:
    created = int(artifact.created.timestamp())
    return Node(name, is_directory=True, mtime=created, mode=0o555 & _bits(artifact), owner=artifact.owner)


def _bits(artifact: ArtifactView) -> int:
    """Listings show whether others may read it."""
    return 0o700 if artifact.visibility is Visibility.PRIVATE else 0o777


def _key(artifact: ArtifactView, rest: str) -> str:
    key = artifact.prefix + rest
    if len(key.encode()) >= _LONGEST_KEY or "\\" in rest:
        raise NotFound(f"there is no '{printable(f'/artifacts/{artifact.name}/{rest}', limit=200)}'")
    return key
