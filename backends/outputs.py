"""Brings what an environment left in /gemini/output into the object store, before the environment is deleted.

The compute gives a tar archive of that folder as it comes, and file by file it becomes objects below the artifact's
prefix: bounded memory, nothing on this machine's disk. Before that, one pass adds up what it holds: what does not fit
is not begun. A copy that broke off is begun anew and passes over the files that are there already. Nothing in the
archive is believed: what it calls its files only ever ends a key.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from backends.compute.contract import Compute, HasOutput, Progress
from backends.compute.tar_stream import Entry, Kind, TarStream
from backends.lifecycle import keep_days
from backends.settings import LifecycleSettings
from storage.access import Caller
from storage.artifacts import Artifacts, Tally
from storage.asset_rows import known_usage
from storage.database.engine import Database
from storage.errors import Conflict, NotFound, OverQuota
from storage.names import printable
from storage.objects.contract import ObjectStore
from storage.quota_limits import size_words
from storage.quotas import Owner
from storage.records import Artifact, ArtifactState, Environment, FileFact
from storage.room import Room
from storage.upload_target import Target
from storage.uploads import Uploads

_GIB = 1024**3
_LONGEST_SEGMENT = 255
_LONGEST = 850
"""Bytes of a name: with its prefix it must fit into a key (1024), and with `/artifacts/…` into a path (1000)."""
_LONG_NAMES = "ashore-long-names"
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_UNWELCOME = frozenset("\\\x7f\ufffe\uffff")
_ADVICE = "its output does not fit"


class Outputs:
    """Keeps outputs, for the environments reconciler."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        uploads: Uploads,
        settings: LifecycleSettings,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._uploads = uploads
        self._settings = settings
        self._room = Room(database, uploads.quotas)

    def days(self, environment: Environment) -> int:
        """For how long its output is kept; 0: not at all."""
        return keep_days(environment, self._settings)

    async def is_kept(self, environment_id: str) -> bool:
        """Whether all of it is in the store."""
        artifact = await self._artifacts.of_environment(environment_id)
        return artifact is not None and artifact.state is ArtifactState.READY

    async def discard(self, environment_id: str) -> None:
        """Nothing of it is kept, also not what is in the store already."""
        await self._artifacts.give_up(environment_id)

    async def keep(
        self, environment: Environment, workspace: str, compute: Compute, handle: str, progress: Progress
    ) -> None:
        """Copy all of it; durable when this returns. The workload must not run.

        OverQuota: it does not fit, or is more than is kept. Conflict: this compute cannot give it. Unavailable: the
        engine or the store is away.
        """
        if not isinstance(compute, HasOutput):
            raise Conflict(f"the compute '{compute.name}' cannot give its output away")
        # Looked at as a whole first: one that does not fit would be sent again and again, up to where the room ends.
        await self._check_whole(environment, workspace, await self._size(compute, handle, progress))
        copy = _Copy(self, environment, workspace, progress)
        async with aclosing(compute.output(handle)) as pieces:
            async for top, entry, stream in _entries(pieces):
                await copy.take(_below(top, entry.name), entry, stream, top)
        if copy.artifact is None:
            await self._artifacts.give_up(environment.id)  # what a copy that broke off has brought, if there was one
        elif not await self._artifacts.finish(copy.artifact, copy.tally, days=await self._days_now(environment)):
            raise Conflict("its output is not wanted any more")

    async def _size(self, compute: HasOutput, handle: str, progress: Progress) -> int:
        """Bytes of its files; one with two names counts once. OverQuota as soon as they are more than is kept."""
        files = total = 0
        async with aclosing(compute.output(handle)) as pieces:
            async for _, entry, _ in _entries(pieces):
                if entry.kind is Kind.FILE:
                    files, total = files + 1, total + entry.size
                    self.check_size(total)
                    progress(f"looking at its output: {size_words(total)} in {files} files")
        return total

    async def _check_whole(self, environment: Environment, workspace: str, size: int) -> None:
        begun = await self._artifacts.of_environment(environment.id)
        owner = Owner(environment.owner_id, environment.owner_name, environment.workspace_id)
        await self._room.check_whole(owner, workspace, begun.prefix if begun else "", size, advice=_ADVICE)
        free = await self.store.free()
        async with self._database.reading() as tx:
            there = (await known_usage(tx, begun.prefix)).bytes if begun else 0
        if free is not None and size - there > free:
            raise OverQuota(f"its output holds {size_words(size)}, and the object store has {size_words(free)} left")

    def check_size(self, size: int) -> None:
        """OverQuota: more than is kept of one environment."""
        if self.most and size > self.most:
            raise OverQuota(
                f"its output holds more than {size_words(self.most)}, and no more is kept of one environment"
            )

    async def _days_now(self, environment: Environment) -> int:
        """A copy takes long: its owner may have chosen another number meanwhile."""
        async with self._database.reading() as tx:
            return self.days(await tx.get(Environment, environment.id) or environment)

    # ---- for a copy ------------------------------------------------------------------------------------------
    @property
    def most(self) -> int:
        """Bytes that are kept of one environment; 0: no limit."""
        return int(self._settings.keep_output_gib * _GIB)

    @property
    def store(self) -> ObjectStore:
        return self._uploads.store

    @property
    def uploads(self) -> Uploads:
        return self._uploads

    async def begin(self, environment: Environment, workspace: str) -> Artifact:
        return await self._artifacts.begin(environment, workspace)

    async def check(self, artifact: Artifact) -> None:
        """Conflict: it is not wanted any more."""
        if not await self._artifacts.is_wanted(artifact.id):
            raise Conflict("its output is not wanted any more")

    async def room(self, owner: Owner, workspace: str, key: str, size: int) -> int:
        return await self._room.check(owner, workspace, key, key, size, advice=_ADVICE)

    async def fact(self, key: str) -> FileFact | None:
        async with self._database.reading() as tx:
            return await tx.get(FileFact, key)

    async def put_fact(self, fact: FileFact) -> None:
        async with self._database.writing() as tx:
            await tx.merge(fact)


@dataclass
class _Copy:
    """One pass over an archive."""

    outputs: Outputs
    environment: Environment
    workspace: str
    progress: Progress

    def __post_init__(self) -> None:
        one = self.environment
        self.tally = Tally()
        self.artifact: Artifact | None = None
        self._owner = Owner(one.owner_id, one.owner_name, one.workspace_id)
        self._caller = Caller(
            one.owner_id, one.owner_name, is_admin=False, workspace_id=one.workspace_id, workspace=self.workspace,
            connection=f"output-{one.id}"[:16],
        )  # fmt: skip

    async def take(self, path: str | None, entry: Entry, stream: TarStream, top: str) -> None:
        """Keep one entry, or remark why not. `path` is below the output; None: it leads out of it."""
        if entry.kind is Kind.FOLDER:
            return
        artifact = self.artifact = self.artifact or await self.outputs.begin(self.environment, self.workspace)
        if path is None:
            self.tally.remark(f"{_shown(entry.name)}: left out, it leads out of the output")
        elif entry.kind is Kind.LINK:
            self.tally.remark(f"{_shown(path)} -> {_shown(entry.target)}: left out, it is a symbolic link")
        elif entry.kind is Kind.OTHER:
            self.tally.remark(f"{_shown(path)}: left out, it is neither a file nor a folder")
        elif entry.kind is Kind.HARD_LINK:
            await self._second_name(artifact, path, entry, _below(top, entry.target))
        else:
            await self._file(artifact, path, entry, stream)
        amount = size_words(self.tally.bytes)
        self.progress(f"keeping its output: {amount} in {self.tally.files} files")

    async def _file(self, artifact: Artifact, path: str, entry: Entry, stream: TarStream) -> None:
        self.outputs.check_size(self.tally.bytes + entry.size)
        key = artifact.prefix + self._named(path)
        known = await self.outputs.fact(key)
        if known is None or (known.size, known.mtime) != (entry.size, entry.mtime) or known.suspect:
            await self._store(artifact, path, key, entry, stream)
        self._count(entry.size)

    async def _store(self, artifact: Artifact, path: str, key: str, entry: Entry, stream: TarStream) -> None:
        async def guard() -> None:
            await self.outputs.check(artifact)

        async def room(size: int) -> int:
            return await self.outputs.room(self._owner, self.workspace, key, size)

        shown = f"/artifacts/{artifact.name}/{_shown(path)}"
        writer = await self.outputs.uploads.open(self._caller, Target(shown, key, guard, room=room), mtime=entry.mtime)
        writer.expect_size(entry.size)
        try:
            offset = 0
            async for piece in stream.content():
                await writer.write(offset, bytes(piece))
                offset += len(piece)
            await writer.finish()
        except BaseException:
            writer.discard()
            await asyncio.shield(writer.abandon())
            raise

    async def _second_name(self, artifact: Artifact, path: str, entry: Entry, first: str | None) -> None:
        """A file with two names is two objects: nobody should have to know which name came first."""
        source = artifact.prefix + kept_name(first) if first else ""
        known = await self.outputs.fact(source) if source else None
        if known is None:
            self.tally.remark(f"{_shown(path)}: left out, it is a second name of '{_shown(entry.target)}'")
            return
        self.outputs.check_size(self.tally.bytes + known.size)
        key = artifact.prefix + self._named(path)
        there = await self.outputs.fact(key)
        if there is None or (there.size, there.mtime) != (known.size, known.mtime):
            await self.outputs.room(self._owner, self.workspace, key, known.size)
            await self.outputs.check(artifact)
            etag = await self.outputs.store.copy(source, key)
            await self.outputs.put_fact(
                FileFact(key=key, size=known.size, etag=etag, mtime=known.mtime, sha256=known.sha256, md5=known.md5,
                         suspect=False)
            )  # fmt: skip
        self._count(known.size)

    def _named(self, path: str) -> str:
        name = kept_name(path)
        if name != path:
            self.tally.remark(f"{_shown(path)}: kept as {_shown(name)}")
        return name

    def _count(self, size: int) -> None:
        self.tally.files += 1
        self.tally.bytes += size


async def _entries(pieces: AsyncGenerator[bytes]) -> AsyncIterator[tuple[str, Entry, TarStream]]:
    """What is in the folder, each with the name of the folder itself, and the stream to read its content from.

    Nothing if there is no such folder. Conflict: it is none.
    """
    stream = TarStream(pieces)
    try:
        top = await stream.next()
    except NotFound:
        return
    if top is not None and top.kind is not Kind.FOLDER:
        raise Conflict("its output is no folder, and links are not followed")
    while top is not None and (entry := await stream.next()) is not None:
        yield top.name, entry, stream


def kept_name(path: str) -> str:
    """The end of the key for `path`; other paths have other ones.

    Bytes that are no UTF-8, control characters and backslashes become `%XX`, and so does a `%` that looks like one of
    these. What is too long then is called after its SHA-256.
    """
    name = "/".join(_encoded(segment) for segment in path.split("/"))
    segments = [len(segment.encode()) for segment in name.split("/")]
    if max(segments) <= _LONGEST_SEGMENT and len(name.encode()) <= _LONGEST:
        return name
    return f"{_LONG_NAMES}/{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"


def _encoded(segment: str) -> str:
    pieces = []
    for at, character in enumerate(segment):
        following = segment[at + 1 : at + 3]
        is_escape = character == "%" and len(following) == 2 and set(following) <= _HEXADECIMAL
        if is_escape or character < " " or character in _UNWELCOME or "\ud800" <= character <= "\udfff":
            pieces += [f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape")]
        else:
            pieces.append(character)
    return "".join(pieces)


def _below(top: str, name: str) -> str | None:
    """`name` as seen from the folder `top`; None: it is not below it, or is the folder itself."""
    segments, above = _segments(name), _segments(top)
    if ".." in segments or segments[: len(above)] != above:
        return None
    return "/".join(segments[len(above) :]) or None


def _segments(name: str) -> list[str]:
    return [segment for segment in name.split("/") if segment not in ("", ".")]


def _shown(path: str) -> str:
    return printable(path, limit=300)
