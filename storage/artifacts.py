"""Artifacts: what environments left in /gemini/output, kept for some days when they were deleted.

    artifact = await artifacts.begin(environment, workspace)   # before the first byte; found again after a crash
    await artifacts.finish(artifact, tally, days=14)           # all of it is durable: people see it from now on
    await artifacts.give_up(environment_id)                    # its owner does not want it, or there is no room

Its objects are `artifacts/<workspace>/<name>/…`. A name has an id in it and is never used twice, so a deletion needs
no holder: whoever carries it out, as often as it takes, removes the same keys. Who copies is `backends.outputs`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update

from storage.access import Action, Caller, Owned, Visibility, may_see, require
from storage.asset_rows import below
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.deletions import end_uploads
from storage.errors import AshoreError, BadInput, NotFound
from storage.names import printable
from storage.objects.contract import ObjectStore, prefixes_of
from storage.records import Artifact, ArtifactState, Environment, FileFact, Wish, Workspace, new_id

log = logging.getLogger(__name__)
TOPIC = "artifact"
FOLDER = "artifacts"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_MOST_REMARKS = 500
_HASTE_PAGES = 1
Keys = list[str]


@dataclass
class Tally:
    """What a copy has brought so far."""

    files: int = 0
    bytes: int = 0
    remarks: list[str] = field(default_factory=list)
    unlisted: int = 0

    def remark(self, line: str) -> None:
        """Say what could not be kept as it was; bounded, what is beyond is counted."""
        if len(self.remarks) < _MOST_REMARKS:
            self.remarks.append(printable(line, limit=600))
        else:
            self.unlisted += 1


@dataclass(frozen=True)
class ArtifactView:
    """What people see of one."""

    id: str
    name: str
    workspace: str
    workspace_id: str
    owner: str
    owner_id: str
    environment: str
    visibility: Visibility
    state: ArtifactState
    files: int
    bytes: int
    created: datetime
    expires: datetime | None
    remarks: Sequence[str]
    unlisted: int
    prefix: str

    @property
    def path(self) -> str:
        """Where it is in the data tree of its workspace."""
        return f"/{FOLDER}/{self.name}"

    def owned(self) -> Owned:
        return Owned("artifact", self.name, self.owner_id, self.workspace_id, visibility=self.visibility)


class Artifacts:
    """The use cases about artifacts, and the steps of those who make and remove them."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, store: ObjectStore, clock: Clock = now
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._store = store
        self._clock = clock

    # ---- use cases -------------------------------------------------------------------------------------------
    async def list(self, caller: Caller, *, everybody: bool = False) -> Sequence[ArtifactView]:
        """Those that the caller may read, oldest first: their own, and what is shared with their workspace.

        Administrators see all of their workspace, with `everybody` of all workspaces.
        """
        require(caller, Action.ARTIFACT_LIST)
        query = select(Artifact, Workspace.name).join(Workspace, Workspace.id == Artifact.workspace_id)
        query = query.where(Artifact.state != ArtifactState.DELETING).order_by(Artifact.created, Artifact.name)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(Artifact.workspace_id == caller.workspace_id)
        async with self._database.reading() as tx:
            views = [_view(row, workspace) for row, workspace in (await tx.execute(query)).all()]
        return [view for view in views if may_see(caller, view.owned())]

    async def show(self, caller: Caller, name: str) -> ArtifactView:
        """One of the caller's workspace, or `workspace/name` for administrators. NotFound if it may not be seen."""
        async with self._database.reading() as tx:
            view = _view(*await _load(tx, caller, name))
        require(caller, Action.ARTIFACT_READ, view.owned())
        return view

    async def share(self, caller: Caller, name: str, visibility: Visibility) -> ArtifactView:
        """Who may read it from now on: its owner, or the whole workspace. BadInput: others it cannot be shown to."""
        if visibility is Visibility.PUBLIC:
            raise BadInput("an output is private or of the workspace: put it into a data set to show it to others")
        async with self._database.writing() as tx:
            row, workspace = await _load(tx, caller, name)
            require(caller, Action.ARTIFACT_SHARE, _view(row, workspace).owned())
            row.visibility = visibility
            await tx.flush()
            await self._audit.add(
                tx, Event.by(caller, Action.ARTIFACT_SHARE, thing=row.name, visibility=visibility.value)
            )
            view = _view(row, workspace)
        self._changes.tell(TOPIC, view.id)
        return view

    async def delete(self, caller: Caller, name: str) -> ArtifactView:
        """Hide it at once, and remove its objects; what the store does not take now, the loop goes on with."""
        async with self._database.writing() as tx:
            row, workspace = await _load(tx, caller, name)
            view = _view(row, workspace)
            require(caller, Action.ARTIFACT_READ, view.owned())
            require(caller, Action.ARTIFACT_DELETE, view.owned())
            if row.state is ArtifactState.COPYING:
                raise BadInput(
                    f"'{row.name}' is being copied: to do without it, use env delete {row.environment_name} "
                    "--discard-output"
                )
            row.state, row.expires = ArtifactState.DELETING, None
            facts: dict[str, Any] = {"files": row.files, "bytes": row.bytes, "owner": row.owner_name}
            await self._audit.add(tx, Event.by(caller, Action.ARTIFACT_DELETE, thing=row.name, **facts))
        try:
            await self.carry_out(view.id, pages=_HASTE_PAGES)
        except AshoreError as error:
            log.warning("the deletion of the artifact %s waits: %s", view.name, error.message)
        self._changes.tell(TOPIC, view.id)
        return view

    # ---- for whoever copies ----------------------------------------------------------------------------------
    async def of_environment(self, environment_id: str) -> Artifact | None:
        """The one that is being made of it, or was."""
        alive = (Artifact.environment_id == environment_id, Artifact.state != ArtifactState.DELETING)
        async with self._database.reading() as tx:
            return await tx.scalar(select(Artifact).where(*alive))

    async def begin(self, environment: Environment, workspace: str) -> Artifact:
        """The artifact of an environment that is being deleted; a new one unless there is one already."""
        if (found := await self.of_environment(environment.id)) is not None:
            return found
        moment, mark = self._clock(), new_id()
        name = f"{environment.name}-{moment:%Y%m%d}-{mark[:6]}"
        row = Artifact(
            id=mark, workspace_id=environment.workspace_id, owner_id=environment.owner_id,
            owner_name=environment.owner_name, environment_id=environment.id, environment_name=environment.name,
            name=name, prefix=f"{FOLDER}/{workspace}/{name}/", created=moment,
        )  # fmt: skip
        async with self._database.writing() as tx:
            tx.add(row)
        self._changes.tell(TOPIC, row.id)
        return row

    async def is_wanted(self, artifact_id: str) -> bool:
        """Whether it still is to be copied."""
        async with self._database.reading() as tx:
            row = await tx.get(Artifact, artifact_id)
        return row is not None and row.state is ArtifactState.COPYING

    async def finish(self, artifact: Artifact, tally: Tally, *, days: int) -> bool:
        """All of it is in the store: from now on it is seen, for `days`. One without files is dropped.

        False: it is not wanted any more.
        """
        async with self._database.writing() as tx:
            row = await tx.get(Artifact, artifact.id, with_for_update=True)
            if row is None or row.state is not ArtifactState.COPYING:
                return False
            row.files, row.bytes = tally.files, tally.bytes
            row.remarks, row.unlisted = tally.remarks, tally.unlisted
            row.state, row.expires = ArtifactState.READY, self._clock() + timedelta(days=days)
            if not tally.files and not tally.remarks:
                await tx.delete(row)
            else:
                detail = {
                    "environment": row.environment_name, "owner": row.owner_name, "files": row.files,
                    "bytes": row.bytes, "remarks": len(row.remarks) + row.unlisted, "days": days,
                }  # fmt: skip
                await self._audit.add(tx, Event("artifact.keep", thing=row.name, detail=detail))
        self._changes.tell(TOPIC, artifact.id)
        return True

    async def give_up(self, environment_id: str) -> None:
        """Nobody wants what was copied of this environment, or it cannot be had as a whole: it is removed."""
        mine = (Artifact.environment_id == environment_id, Artifact.state != ArtifactState.DELETING)
        async with self._database.writing() as tx:
            row = await tx.scalar(select(Artifact).where(*mine).with_for_update())
            if row is None:
                return
            row.state, row.expires = ArtifactState.DELETING, None
            detail = {"environment": row.environment_name, "owner": row.owner_name}
            await self._audit.add(tx, Event("artifact.discard", thing=row.name, detail=detail))
        self._changes.tell(TOPIC, row.id)

    # ---- for the loop ----------------------------------------------------------------------------------------
    async def pending(self) -> Sequence[str]:
        """Ids of those whose time is over, whose deletion is not finished, or whose copy nobody makes any more."""
        is_over = (Artifact.state == ArtifactState.READY) & (Artifact.expires <= self._clock())
        alive = select(Environment.id).where(Environment.wish == Wish.DELETED)
        is_left = (Artifact.state == ArtifactState.COPYING) & Artifact.environment_id.not_in(alive)
        query = select(Artifact.id).where(is_over | is_left | (Artifact.state == ArtifactState.DELETING))
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(Artifact.created))).all()

    async def expire(self, artifact_id: str) -> None:
        """Record that it is to go, if its time is over, or its environment is there to stay."""
        moment = self._clock()
        async with self._database.writing() as tx:
            row = await tx.get(Artifact, artifact_id, with_for_update=True)
            if row is None or not await _is_over(tx, row, moment):
                return
            is_kept = row.state is ArtifactState.READY
            row.state, row.expires = ArtifactState.DELETING, None
            detail = {"owner": row.owner_name, "files": row.files, "bytes": row.bytes}
            await self._audit.add(
                tx, Event("artifact.expire" if is_kept else "artifact.discard", thing=row.name, detail=detail)
            )
        self._changes.tell(TOPIC, artifact_id)

    async def carry_out(self, artifact_id: str, *, pages: int = 0) -> bool:
        """Remove up to `pages` pages of a deleted one's objects, all of them if 0; whether nothing is left.

        What the store refuses is noted and raised.
        """
        async with self._database.reading() as tx:
            row = await tx.get(Artifact, artifact_id)
        if row is None or row.state is not ArtifactState.DELETING:
            return row is None
        try:
            await end_uploads(self._database, self._store, self._changes, row.prefix)
            seen = 0
            # A listing that runs while its objects vanish may skip some, so it is begun again until it finds nothing.
            while keys := await self._first_keys(row.prefix):
                if pages and seen == pages:
                    return False
                await self._store.delete_many(keys + prefixes_of(keys, row.prefix))
                seen += 1
        except AshoreError as error:
            await self._note(artifact_id, error.message)
            raise
        async with self._database.writing() as tx:
            await tx.execute(delete(FileFact).where(below(row.prefix)))
            gone = await tx.scalar(delete(Artifact).where(Artifact.id == artifact_id).returning(Artifact.name))
            if gone is not None:
                await self._audit.add(tx, Event("artifact.gone", thing=row.name, detail={"owner": row.owner_name}))
        self._changes.tell(TOPIC, artifact_id)
        return True

    async def _first_keys(self, prefix: str) -> Keys:
        async for page in self._store.list(prefix):
            return [facts.key for facts in page]
        return []

    async def _note(self, artifact_id: str, reason: str) -> None:
        async with self._database.writing() as tx:
            text = printable(reason, limit=500)
            await tx.execute(update(Artifact).where(Artifact.id == artifact_id).values(reason=text))


async def _is_over(tx: Transaction, row: Artifact, moment: datetime) -> bool:
    if row.state is ArtifactState.READY:
        return row.expires is not None and row.expires <= moment
    if row.state is ArtifactState.COPYING:
        environment = await tx.get(Environment, row.environment_id)
        return environment is None or environment.wish is not Wish.DELETED
    return False


async def _load(tx: Transaction, caller: Caller, name: str) -> tuple[Artifact, str]:
    workspace, _, short = name.rpartition("/")
    missing = NotFound(f"there is no artifact '{printable(name, limit=100)}'")
    if not _NAME.fullmatch(short):
        raise missing
    query = select(Artifact, Workspace.name).join(Workspace, Workspace.id == Artifact.workspace_id)
    query = query.where(Artifact.name == short, Artifact.state != ArtifactState.DELETING)
    found = (await tx.execute(query.where(Workspace.name == (workspace or caller.workspace)))).one_or_none()
    if found is None or (found[0].workspace_id != caller.workspace_id and not caller.is_admin):
        raise missing
    if not may_see(caller, _view(*found).owned()):
        raise missing  # word for word the same
    return found[0], found[1]


def _view(row: Artifact, workspace: str) -> ArtifactView:
    return ArtifactView(
        row.id, row.name, workspace, row.workspace_id, row.owner_name, row.owner_id, row.environment_name,
        row.visibility, row.state, row.files, row.bytes, row.created, row.expires, tuple(row.remarks), row.unlisted,
        row.prefix,
    )  # fmt: skip
