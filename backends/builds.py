"""Builds as people ask for them: check, request, show, list, cancel, follow. The work is the reconciler's.

A request says at once whatever is wrong with the text, the names and the rights. The image is announced with it, so
that it is in the list from then on; what became of it comes later, in the state of the build.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Select, func, select, update

from backends.build_log import is_written, read_log, start_of_end
from backends.dockerfiles.reading import parse
from backends.dockerfiles.rules import check
from backends.dockerfiles.source import Problem
from backends.image_names import LATEST, ImageName, parse_image
from backends.images import NO_REGISTRY, Images
from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import BadInput, Conflict, NotFound, OverQuota, Unavailable
from storage.names import printable
from storage.quota_limits import QuotaLine, Resource
from storage.quotas import Owner, Quotas, full, refusals_of
from storage.records import Build, BuildState, ImageKind, Workspace

TOPIC = "build"
"""A build was asked for, or its state is another one."""
LOG_TOPIC = "build-log"
"""A log has got longer."""
OPEN = (BuildState.QUEUED, BuildState.BUILDING, BuildState.PUSHING)
_LOOK_SECONDS = 1.0
"""How late a line is at most when a hint was lost."""


class DockerfileRefused(BadInput):
    """What was written cannot be built here; every reason has its place."""

    code = "dockerfile"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class BuildView:
    """A build as people see it."""

    id: str
    owner: str
    name: str
    tag: str
    number: int
    base: str
    dockerfile: str
    state: BuildState
    reason: str
    failed_step: int
    failed_line: int
    digest: str
    size: int
    created: datetime
    started: datetime | None
    finished: datetime | None

    @property
    def title(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def seconds(self) -> int | None:
        """How long it took; None while it is not over."""
        if self.started is None or self.finished is None:
            return None
        return max(0, int((self.finished - self.started).total_seconds()))


@dataclass(frozen=True)
class BuildRoom:
    """How many builds are open, of how many that may be; the caller's line first, then that of the workspace."""

    quotas: Sequence[QuotaLine]
    refusals: Sequence[str]
    """Why none more fits now; empty if one does."""


@dataclass(frozen=True)
class LogPiece:
    """Whole lines of a log, or the beginning of one that takes long; and the offset behind, from which to go on."""

    data: bytes
    offset: int


class Builds:
    """The builds of all workspaces. Their logs are files of `directory`. `why_not`: nothing can be built, and why."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        images: Images,
        quotas: Quotas,
        directory: Path,
        *,
        why_not: str = "",
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._images = images
        self._quotas = quotas
        self._directory = directory
        self._why_not = why_not
        self._clock = clock

    async def check(self, caller: Caller, text: str) -> Sequence[Problem]:
        """The reasons why this cannot be built, with their places; nothing is kept."""
        require(caller, Action.BUILD_CHECK)
        return await asyncio.to_thread(_problems, text)

    async def room(self, caller: Caller) -> BuildRoom:
        """What a request would be told about quotas, before anything is written."""
        require(caller, Action.BUILD_CHECK)
        async with self._database.reading() as tx:
            return await self._room(tx, caller)

    async def request(self, caller: Caller, name: str, tag: str, *, base: str, text: str) -> BuildView:
        """Queue a build of `name:tag`. DockerfileRefused, BadInput, InUse, OverQuota, Conflict with the reason."""
        require(caller, Action.BUILD_REQUEST)
        self._require_builder()
        if problems := await asyncio.to_thread(_problems, text):
            raise DockerfileRefused(problems)
        try:
            row = await self._queue(caller, name, tag or LATEST, base, text)
        except OverQuota as error:
            thing, reason = printable(f"{name}:{tag or LATEST}", limit=80), printable(error.message, limit=500)
            refused = Event.by(caller, Action.BUILD_REQUEST, thing=thing, outcome="refused", reason=reason)
            await self._audit.record(refused)
            raise
        self._images.tell(row.image_id)
        self._changes.tell(TOPIC, row.id)
        return view_of(row)

    async def _queue(self, caller: Caller, name: str, tag: str, base: str, text: str) -> Build:
        async with self._database.writing() as tx:
            await self._hold(tx, caller)
            chosen = await self._images.resolve(tx, caller, base)
            image = await self._images.begin(tx, caller, name, tag, kind=ImageKind.CUSTOM, base=base)
            row = Build(
                image_id=image.id, owner_id=caller.user_id, owner_name=caller.name, workspace_id=caller.workspace_id,
                name=image.name, tag=image.tag, number=await self._next_number(tx, caller, name), base=base,
                reference=self._images.kept(chosen.reference),
                target=self._images.kept(f"{self._images.repository(image)}:{image.tag}"), dockerfile=text,
                created=self._clock(),
            )  # fmt: skip
            tx.add(row)
            await tx.flush()
            event = Event.by(
                caller, Action.BUILD_REQUEST, thing=row.title, build=row.id, number=row.number, base=chosen.reference
            )
            await self._audit.add(tx, event)
        return row

    async def list(self, caller: Caller, name: str = "") -> Sequence[BuildView]:
        """The caller's builds, newest first; of one image's name if it is given. NotFound: there is none of it."""
        require(caller, Action.BUILD_LIST)
        query = _mine(caller).order_by(Build.created.desc(), Build.number.desc()).limit(500)
        if name:
            query = query.where(Build.name == name)
        async with self._database.reading() as tx:
            rows = (await tx.scalars(query)).all()
        if name and not rows:
            raise NotFound(f"there is no build of '{printable(name, limit=60)}'")
        return [view_of(row) for row in rows]

    async def show(self, caller: Caller, written: str, number: int | None = None) -> BuildView:
        """The build `number` of NAME[:TAG], or the newest one; of OWNER/NAME for administrators."""
        return view_of(await self._find(caller, Action.BUILD_SHOW, written, number))

    async def cancel(self, caller: Caller, written: str) -> BuildView:
        """End the build of NAME[:TAG] that waits or runs; what it has started is stopped soon after.

        Administrators write OWNER/NAME[:TAG] for somebody else's.
        """
        row = await self._find(caller, Action.BUILD_CANCEL, written, None)
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Build)
                .where(Build.id == row.id, Build.state.in_(OPEN))
                .values(state=BuildState.CANCELLED, finished=self._clock())
                .returning(Build.id)
            )
            if changed.scalar_one_or_none() is None:
                raise Conflict(f"the build of '{row.title}' is over: {row.state.value}")
            await self._images.fail(tx, row.image_id, f"build {row.number} was cancelled")
            await self._audit.add(tx, Event.by(caller, Action.BUILD_CANCEL, thing=row.title, build=row.id))
        self._images.tell(row.image_id)
        self._changes.tell(TOPIC, row.id)
        return await self.show(caller, written, row.number)

    async def give_up(self) -> None:
        """Nothing builds here any more: what waits, or was cut off, has failed."""
        reason = self._why_not or NO_REGISTRY
        async with self._database.writing() as tx:
            rows = (await tx.scalars(select(Build).where(Build.state.in_(OPEN)).with_for_update())).all()
            for row in rows:
                row.state, row.reason, row.finished = BuildState.FAILED, reason, self._clock()
                await self._images.fail(tx, row.image_id, f"build {row.number}: {reason}")
                facts = {"build": row.id, "number": row.number, "reason": reason}
                await self._audit.add(tx, Event("build.failed", "failed", row.owner_name, row.title, detail=facts))
        for row in rows:
            self._images.tell(row.image_id)
            self._changes.tell(TOPIC, row.id)

    async def follow(
        self,
        caller: Caller,
        written: str,
        number: int | None = None,
        *,
        offset: int = 0,
        last: int | None = None,
        wait: bool = True,
    ) -> AsyncIterator[LogPiece]:
        """The log from `offset` on; with `wait` until the build is over, else what there is now.

        `last`: leave out more at the beginning if there are more than so many bytes. A reader that is slow is behind,
        and nobody waits for it.
        """
        row = await self._find(caller, Action.BUILD_SHOW, written, number)
        path = self.log_path(row.id)
        offset = offset if last is None else max(offset, start_of_end(path, last))
        with self._changes.subscribe(TOPIC, LOG_TOPIC) as hints:
            while True:
                # Asked before reading, so that everything is read. One that was cancelled writes for a moment more.
                is_over = not wait or (await self._is_over(row.id) and not is_written(path))
                for data in read_log(path, offset):
                    offset += len(data)
                    yield LogPiece(data, offset)
                if is_over:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        while (await hints.get()).key not in ("", row.id):
                            pass
                while not hints.empty():
                    hints.get_nowait()

    def log_path(self, build_id: str) -> Path:
        return self._directory / "logs" / f"{build_id}.log"

    @property
    def pruned_path(self) -> Path:
        """A file as old as the last time that old layers were removed."""
        return self._directory / "pruned"

    # ---- steps -----------------------------------------------------------------------------------------------
    def _require_builder(self) -> None:
        if self._why_not:
            raise Unavailable(self._why_not)

    async def _hold(self, tx: Transaction, caller: Caller) -> None:
        """OverQuota if the caller, or the caller's workspace, has too many builds open, or no storage left.

        How large an image becomes is known when it is made: one that ends beyond the quota stays, and is the last.
        """
        await self._quotas.hold(tx, Owner.of(caller))
        room = await self._room(tx, caller)
        if room.refusals:
            raise OverQuota("; ".join(room.refusals))

    async def _room(self, tx: Transaction, caller: Caller) -> BuildRoom:
        owner = Owner.of(caller)
        lines = await self._quotas.lines_of(tx, owner, (Resource.BUILDS,))
        storage = await self._quotas.lines_of(tx, owner, (Resource.STORAGE,))
        return BuildRoom(lines, [*refusals_of(caller, lines, {Resource.BUILDS: 1}), *full(caller, storage)])

    async def _next_number(self, tx: Transaction, caller: Caller, name: str) -> int:
        query = select(func.max(Build.number)).where(
            Build.workspace_id == caller.workspace_id, Build.owner_id == caller.user_id, Build.name == name
        )
        return (await tx.scalar(query) or 0) + 1

    async def _find(self, caller: Caller, action: Action, written: str, number: int | None) -> Build:
        missing = NotFound(
            f"there is no build of '{printable(written, limit=60)}'" if number is None
            else f"there is no build {number} of '{printable(written, limit=60)}'"
        )  # fmt: skip
        name = parse_image(written)
        if name is None:
            raise missing
        query = _of_others(caller, name) if name.owner else _mine(caller)
        query = query.where(Build.name == name.name).order_by(Build.number.desc()).limit(1)
        if name.tag:
            query = query.where(Build.tag == name.tag)
        if number is not None:
            query = query.where(Build.number == number)
        async with self._database.reading() as tx:
            row = await tx.scalar(query)
        if row is None:
            raise missing
        try:
            require(caller, action, Owned("build", row.title, row.owner_id, row.workspace_id))
        except NotFound:
            raise missing from None  # word for word the same
        return row

    async def _is_over(self, build_id: str) -> bool:
        async with self._database.reading() as tx:
            state = await tx.scalar(select(Build.state).where(Build.id == build_id))
        return state is None or state.is_over


def _problems(text: str) -> Sequence[Problem]:
    """In a thread: of a large text it takes a second."""
    return check(parse(text))


def _mine(caller: Caller) -> Select[Build]:
    return select(Build).where(Build.workspace_id == caller.workspace_id, Build.owner_id == caller.user_id)


def _of_others(caller: Caller, name: ImageName) -> Select[Build]:
    workspace = name.workspace or caller.workspace
    query = select(Build).join(Workspace, Workspace.id == Build.workspace_id)
    return query.where(Workspace.name == workspace, Build.owner_name == name.owner)


def view_of(row: Build) -> BuildView:
    return BuildView(
        row.id, row.owner_name, row.name, row.tag, row.number, row.base, row.dockerfile, row.state, row.reason,
        row.failed_step, row.failed_line, row.digest, row.size, row.created, row.started, row.finished,
    )  # fmt: skip
