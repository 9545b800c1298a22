"""Files and directories that are being renamed. S3 knows no rename: objects are copied, then the old ones are removed.

A rename is recorded first. That of a directory is answered at once: whoever looks sees the new name from then on
(`Shown`), while a task copies. A file has its old name until the copy is there. As long as it lasts nobody writes to
either name and nothing there is published, so nothing can be overwritten or missed. A crash loses nothing: somebody
goes on, and to copy once more does no harm. To remove does, so whoever removes first makes sure that the move is still
his.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, or_, select, update

from storage.access import Caller
from storage.asset_rows import uploads_below
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError, Conflict
from storage.names import printable
from storage.objects.contract import ObjectFacts, ObjectStore, prefixes_of
from storage.records import Deletion, FileFact, Move, Upload, UploadState, new_id
from storage.upload_target import Guard

log = logging.getLogger(__name__)
_AT_ONCE = 8
_PAGE = 200
_SILENT = timedelta(seconds=60)
_BEAT = _SILENT.total_seconds() / 4
"""Seconds after which a process says again that it works on a move, however long one page takes."""
_FRESH = 0.5
"""Seconds for which this process believes what it knows about the moves of others."""


Work = asyncio.Task[AshoreError | None]
"""Of one move; what stopped it, if it is not done."""


@dataclass(frozen=True)
class Names:
    """What is renamed, as keys and as paths. Keys of directories end with a slash."""

    old: str
    new: str
    path: str
    to: str


@dataclass(frozen=True)
class Shown:
    """The moves under way, as they change what a tree shows."""

    moves: Sequence[Move] = ()

    @property
    def directories(self) -> Sequence[Move]:
        return [move for move in self.moves if move.old.endswith("/")]

    def is_hidden(self, key: str) -> bool:
        """Whether `key` has another name by now."""
        return any(_is_in(key, move.old) for move in self.directories)

    def stored_at(self, key: str) -> str:
        """Where the object or directory (with its slash) that is shown as `key` lies."""
        for move in self.directories:
            if not move.copied and _is_in(key, move.new):
                return (move.old + (key + "/").removeprefix(move.new)).rstrip("/") + "/" * key.endswith("/")
        return key

    def is_busy(self, key: str) -> bool:
        """Whether something at, below or above `key` is being moved: it must not be changed now."""
        return any(
            _is_in(key, end.rstrip("/") + "/") or end.startswith(key.rstrip("/") + "/")
            for move in self.moves
            for end in (move.old, move.new)
        )

    def names_in(self, prefix: str) -> tuple[set[str], set[str]]:
        """Directories directly in `prefix` to show, though they are not there yet, and to hide."""
        shown = {_name(move.new) for move in self.directories if _parent(move.new) == prefix}
        hidden = {_name(move.old) for move in self.directories if _parent(move.old) == prefix}
        return shown, hidden - shown


class _Overtaken(Exception):
    """The move is somebody else's by now, or it has been ended."""


class Moves:
    """The use case and its work."""

    def __init__(
        self, database: Database, store: ObjectStore, audit: AuditTrail, changes: Changes, clock: Clock = now
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._changes = changes
        self._clock = clock
        self._instance = new_id()
        self._tasks: dict[str, Work] = {}
        self._known = Shown()
        self._looked = 0.0

    async def close(self) -> None:
        """Stop; the next start goes on."""
        for task in tuple(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def shown(self, *, fresh: bool = False) -> Shown:
        """What is under way now; without `fresh`, what this process knew half a second ago."""
        if fresh or time.monotonic() - self._looked > _FRESH:
            await self._look()
        return self._known

    async def begin(self, caller: Caller, names: Names, allowed: Guard) -> Work:
        """Move a directory; the task that does it. `allowed` is asked once the move is recorded, and raises if not."""
        return self._start(await self._record(caller, names, allowed))

    async def rename(self, caller: Caller, names: Names, allowed: Guard) -> None:
        """Move a file; returns when it is done, and goes on if the caller is cancelled."""
        move = await self._record(caller, names, allowed)
        if (error := await asyncio.shield(self._start(move))) is not None:
            await self._give_up(caller, move)
            raise error

    async def recover(self) -> int:
        """Go on with what nobody works on; how many moves that were."""
        async with self._database.writing() as tx:
            gone = or_(Move.instance == "", Move.touched < self._clock() - _SILENT)
            query = select(Move).where(gone, Move.id.not_in(tuple(self._tasks))).with_for_update()
            moves = (await tx.scalars(query)).all()
            for move in moves:
                move.instance, move.touched = self._instance, self._clock()
        await self._look()
        for move in moves:
            self._start(move)
        return len(moves)

    async def run(self) -> None:
        """The loop that goes on with moves whose process is gone. Until cancelled."""
        while True:
            try:
                await self.recover()
            except AshoreError as error:
                log.warning("looking after moves: %s", error.message)
            await asyncio.sleep(_SILENT.total_seconds())

    # ---- the work --------------------------------------------------------------------------------------------
    async def _record(self, caller: Caller, names: Names, allowed: Guard) -> Move:
        moment = self._clock()
        move = Move(
            id=new_id(), old=names.old, new=names.new, by_id=caller.user_id, path=names.path, to=names.to,
            instance=self._instance, touched=moment, created=moment,
        )  # fmt: skip
        async with self._database.writing() as tx:
            if await tx.scalar(select(Upload.id).where(_in_the_way(move)).limit(1)) is not None:
                raise Conflict(
                    f"'{printable(names.path)}' or '{printable(names.to)}' is being sent at this moment;"
                    " try again when that is finished"
                )
            tx.add(move)
            await self._audit.add(tx, Event.by(caller, "file.rename", thing=names.path, to=names.to))
        await self._look()
        try:
            await allowed()
        except AshoreError:
            await self._give_up(caller, move)
            raise
        return move

    async def _give_up(self, caller: Caller, move: Move) -> None:
        """Nothing has been moved. What is copied already is finished by whoever looks next."""
        async with self._database.writing() as tx:
            found = await tx.execute(delete(Move).where(*self._ours(move), Move.copied.is_(False)).returning(Move.id))
            if found.scalar_one_or_none() is not None:
                event = Event.by(caller, "file.rename", outcome="failed", thing=move.path, to=move.to)
                await self._audit.add(tx, event)
        await self._look()

    def _start(self, move: Move) -> Work:
        task = asyncio.create_task(self._move(move), name=f"move {move.old}")
        self._tasks[move.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(move.id, None))
        return task

    async def _move(self, move: Move) -> AshoreError | None:
        """Until it is done, or what stopped it."""
        beat = asyncio.create_task(self._beat(move), name=f"beat of the move {move.old}")
        try:
            await (self._move_all(move) if move.old.endswith("/") else self._move_file(move))
        except _Overtaken:
            log.warning("the move of %s is not ours any more", move.old)
            return Conflict(f"'{printable(move.path)}' is moved by somebody else, or was deleted")
        except AshoreError as error:
            # Whoever looks next when it has been silent for a minute goes on with it.
            log.warning("the move of %s does not go on now: %s", move.old, error.message, exc_info=error)
            return error
        finally:
            beat.cancel()
            await asyncio.wait([beat])
            await asyncio.shield(self._look())
            self._changes.tell("file")
        return None

    async def _move_file(self, move: Move) -> None:
        """Copy, note the facts, then remove the old one: readers see old or new."""
        if not move.copied:
            facts = await self._store.head(move.old)
            etag = await self._store.copy(move.old, move.new)
            async with self._database.writing() as tx:
                is_ours = await self._touch(tx, move, copied=True, objects=1)
                if is_ours:
                    await copy_fact(tx, facts, move.new, etag)
                is_deleted = not is_ours and await self._is_deleted(tx, move)
            if is_deleted:
                await self._store.delete(move.new)
            if not is_ours:
                raise _Overtaken
        await self._store.delete(move.old)
        async with self._database.writing() as tx:
            if await self._touch(tx, move):
                await tx.execute(delete(FileFact).where(FileFact.key == move.old))
                await tx.execute(delete(Move).where(*self._ours(move)))

    async def _move_all(self, move: Move) -> None:
        copied: dict[str, str] = {}
        async with aclosing(self._store.list(move.old)) as pages:
            async for page in pages:
                for start in range(0, len(page), _PAGE):
                    await self._copy(move, page[start : start + _PAGE], copied)
        await self._note(move, copied=True)
        await self._look()
        while page := await self._first(move.old):
            await self._copy(move, [f for f in page if copied.get(f.key) != f.etag], copied)
            await self._drop(move, page)
        async with self._database.writing() as tx:
            await tx.execute(delete(Move).where(*self._ours(move)))

    async def _beat(self, move: Move) -> None:
        """Until cancelled, or overtaken: then the next step hears of it."""
        while True:
            await asyncio.sleep(_BEAT)
            try:
                await self._note(move)
            except _Overtaken:
                return
            except AshoreError as error:
                log.warning("nobody hears that the move of %s goes on: %s", move.old, error.message)

    async def _copy(self, move: Move, page: Sequence[ObjectFacts], copied: dict[str, str]) -> None:
        """Copy a page with its facts. If a deletion has ended the move, nothing of the page is left."""
        etags = await copy_all(self._store, page, move.old, move.new)
        async with self._database.writing() as tx:
            is_ours = await self._touch(tx, move, objects=len(copied) + len(page))
            for facts in page if is_ours else ():
                if not facts.key.endswith("/"):
                    await copy_fact(tx, facts, move.new + facts.key.removeprefix(move.old), etags[facts.key])
            is_deleted = not is_ours and await self._is_deleted(tx, move)
        if is_deleted:
            await self._store.delete_many([move.new + facts.key.removeprefix(move.old) for facts in page])
        if not is_ours:
            raise _Overtaken
        copied |= {facts.key: facts.etag for facts in page}

    async def _drop(self, move: Move, page: Sequence[ObjectFacts]) -> None:
        await self._note(move)
        keys = [facts.key for facts in page]
        await self._store.delete_many(keys + prefixes_of(keys, move.old))
        async with self._database.writing() as tx:
            if not await self._touch(tx, move):
                raise _Overtaken
            await tx.execute(delete(FileFact).where(FileFact.key.in_(keys)))

    async def _first(self, prefix: str) -> Sequence[ObjectFacts]:
        async with aclosing(self._store.list(prefix)) as pages:
            async for page in pages:
                return page
        return []

    async def _note(self, move: Move, **values: object) -> None:
        """Write progress; _Overtaken if it is not our move any more."""
        async with self._database.writing() as tx:
            is_ours = await self._touch(tx, move, **values)
        if not is_ours:
            raise _Overtaken

    async def _touch(self, tx: Transaction, move: Move, **values: object) -> bool:
        done = await tx.execute(
            update(Move).where(*self._ours(move)).values(touched=self._clock(), **values).returning(Move.id)
        )
        return done.scalar_one_or_none() is not None

    def _ours(self, move: Move) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return Move.id == move.id, Move.instance == self._instance

    async def _is_deleted(self, tx: Transaction, move: Move) -> bool:
        """Whether what the move leads to was deleted since it began, and not only finished by somebody else."""
        prefixes = await tx.scalars(select(Deletion.prefix).where(Deletion.created >= move.created))
        return any(move.new.startswith(prefix) for prefix in prefixes)

    async def _look(self) -> None:
        async with self._database.reading() as tx:
            self._known = Shown((await tx.scalars(select(Move))).all())
        self._looked = time.monotonic()


async def copy_all(store: ObjectStore, page: Sequence[ObjectFacts], old: str, new: str) -> Mapping[str, str]:
    """Copy objects whose keys begin with `old` to keys that begin with `new`; ETags of the copies by old key."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def copy(facts: ObjectFacts) -> str:
        async with room:
            target = new + facts.key.removeprefix(old)
            if facts.key.endswith("/"):
                return await store.put(target, b"")
            return await store.copy(facts.key, target)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {facts.key: group.create_task(copy(facts), name=f"copy {facts.key}") for facts in page}
    except ExceptionGroup as errors:
        known, unforeseen = errors.split(AshoreError)
        if known is None or unforeseen is not None:
            raise
        raise known.exceptions[0] from errors
    return {key: task.result() for key, task in tasks.items()}


async def copy_fact(tx: Transaction, old: ObjectFacts, key: str, etag: str) -> None:
    """What is known about an object holds for its copy `key` too."""
    known = await tx.get(FileFact, old.key)
    same = known is not None and (known.size, known.etag) == (old.size, old.etag)
    if known is not None and same:
        fact = FileFact(
            key=key, size=old.size, etag=etag, mtime=known.mtime, md5=known.md5, sha256=known.sha256,
            suspect=known.suspect,
        )  # fmt: skip
    else:
        mtime = int(old.modified.timestamp()) if old.modified else 0
        fact = FileFact(key=key, size=old.size, etag=etag, mtime=mtime, md5="", sha256="", suspect=False)
    await tx.merge(fact)


def _in_the_way(move: Move) -> ColumnElement[bool]:
    """SQL: uploads that would be lost. A directory waits for all that is not over, a file for what is being finished:
    others ask once more before they appear."""
    if move.old.endswith("/"):
        return uploads_below(move.old) | uploads_below(move.new)
    return Upload.key.in_((move.old, move.new)) & Upload.state.in_((UploadState.SEALING, UploadState.COMPLETING))


def _is_in(key: str, prefix: str) -> bool:
    return (key.rstrip("/") + "/").startswith(prefix)


def _parent(prefix: str) -> str:
    return prefix.rstrip("/").rpartition("/")[0] + "/"


def _name(prefix: str) -> str:
    return prefix.rstrip("/").rpartition("/")[2]
