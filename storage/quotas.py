"""Quotas: what each person and each workspace may use, who made exceptions, and what they use now.

    lines = await quotas.lines_of(tx, owner, RUNNING)                                # in the transaction that takes it
    refusals = refusals_of(caller, lines, {Resource.MEMORY: more})
    lines = await quotas.show(caller)                                                # mine, and my workspace's
    await quotas.set(caller, Holder.USER, "bob", {Resource.MEMORY: 64 * GIB})        # administrators

Whatever takes something calls `hold` and `lines_of` in its own writing transaction, so two at once never exceed a
quota. Uploads are asked for room again and again while they go on, so they read exceptions that may be `_FRESH` seconds
old. The rules themselves are `quota_limits`, the counting is `quota_usage`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select

from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import BadInput, NotFound
from storage.names import printable
from storage.quota_limits import OF, Amounts, QuotaLine, Resource, Subject, allowed_by, checked, defaults
from storage.quota_usage import used_by
from storage.records import Holder, Quota, User, Workspace
from storage.settings import ObjectSettings, QuotaSettings

TOPIC = "quota"
_FRESH = 2.0
_ENVIRONMENTS = 20
_BUILDS = 4


@dataclass(frozen=True)
class Owner:
    """Who something counts for: a person, and the workspace that it belongs to."""

    user_id: str
    user_name: str
    workspace_id: str

    @classmethod
    def of(cls, caller: Caller) -> Owner:
        return cls(caller.user_id, caller.name, caller.workspace_id)


class Quotas:
    """The use cases about quotas, and what other use cases ask before they take something."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        settings: QuotaSettings | None = None,
        objects: ObjectSettings | None = None,
        *,
        environments: int = _ENVIRONMENTS,
        builds: int = _BUILDS,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._clock = clock
        self._defaults = defaults(
            settings or QuotaSettings(), objects or ObjectSettings(), environments=environments, builds=builds
        )
        self._known: dict[tuple[Holder, str], Quota] = {}
        self._known_at = 0.0

    # ---- looking ---------------------------------------------------------------------------------------------
    async def show(self, caller: Caller, *, user: str = "", workspace: str = "") -> Sequence[QuotaLine]:
        """Every resource of a person or a workspace; of the caller and the caller's workspace when neither is named."""
        if user and workspace:
            raise BadInput("name a user or a workspace, not both")
        async with self._database.reading() as tx:
            if user or workspace:
                subject = await self._seen(tx, caller, Holder.USER if user else Holder.WORKSPACE, user or workspace)
                return await self.lines(tx, subject)
            mine = Subject(Holder.USER, caller.user_id, caller.name)
            ours = Subject(Holder.WORKSPACE, caller.workspace_id, caller.workspace)
            return [*await self.lines(tx, mine), *await self.lines(tx, ours)]

    async def exceptions(self, caller: Caller) -> Sequence[QuotaLine]:
        """Everything that administrators have set, for administrators."""
        require(caller, Action.QUOTA_SET)
        return await self.all_exceptions()

    async def all_exceptions(self) -> Sequence[QuotaLine]:
        """For the operator, who owns the data directory."""
        async with self._database.reading() as tx:
            found: list[QuotaLine] = []
            for row in (await tx.scalars(select(Quota).order_by(Quota.holder, Quota.holder_id))).all():
                if name := await _name(tx, row.holder, row.holder_id):
                    found += await self.lines(tx, Subject(row.holder, row.holder_id, name))
        return [line for line in found if line.by]

    async def of(self, holder: Holder, name: str) -> Sequence[QuotaLine]:
        """Every resource of one subject, for the operator."""
        async with self._database.reading() as tx:
            return await self.lines(tx, await _subject(tx, holder, name))

    async def everybody(self) -> Sequence[QuotaLine]:
        """What is limited, of everybody who has a limit: for the watch over thresholds."""
        async with self._database.reading() as tx:
            people = (await tx.execute(select(User.id, User.name))).all()
            teams = (await tx.execute(select(Workspace.id, Workspace.name))).all()
            subjects = [Subject(Holder.USER, *row) for row in people] + [
                Subject(Holder.WORKSPACE, *row) for row in teams
            ]
            found = [line for one in subjects for line in await self.lines(tx, one, limited=True)]
        return found

    # ---- changing --------------------------------------------------------------------------------------------
    async def set(
        self, caller: Caller, holder: Holder, name: str, amounts: Mapping[Resource, float | None]
    ) -> Sequence[QuotaLine]:
        """Make exceptions: an amount, `math.inf` for no limit, None for what the settings say. Others stay."""
        require(caller, Action.QUOTA_SET)
        return await self._set(Event.by(caller, "quota.set"), holder, name, amounts)

    async def set_by_operator(
        self, holder: Holder, name: str, amounts: Mapping[Resource, float | None]
    ) -> Sequence[QuotaLine]:
        """The same for the operator, who owns the data directory."""
        return await self._set(Event("quota.set", actor="operator"), holder, name, amounts)

    async def clear(self, caller: Caller, holder: Holder, name: str) -> Sequence[QuotaLine]:
        """Back to the settings, for every resource."""
        require(caller, Action.QUOTA_SET)
        return await self._clear(Event.by(caller, "quota.clear"), holder, name)

    async def clear_by_operator(self, holder: Holder, name: str) -> Sequence[QuotaLine]:
        return await self._clear(Event("quota.clear", actor="operator"), holder, name)

    async def _set(
        self, event: Event, holder: Holder, name: str, amounts: Mapping[Resource, float | None]
    ) -> Sequence[QuotaLine]:
        values = {resource: checked(resource, amount, holder) for resource, amount in amounts.items()}
        if not values:
            raise BadInput("say what to set: environments, cpus, memory, gpus, storage, uploads, parked or builds")
        async with self._database.writing() as tx:
            subject = await _subject(tx, holder, name)
            row = await tx.get(Quota, (holder, subject.id))
            if row is None:
                row = Quota(holder=holder, holder_id=subject.id)
                tx.add(row)
            for resource, value in values.items():
                setattr(row, resource.value, value)
            row.by, row.changed = event.actor, self._clock()
            await tx.flush()
            await self._audit.add(tx, _about(event, subject, {key.value: value for key, value in values.items()}))
            lines = await self.lines(tx, subject)
        self._told(subject)
        return lines

    async def _clear(self, event: Event, holder: Holder, name: str) -> Sequence[QuotaLine]:
        async with self._database.writing() as tx:
            subject = await _subject(tx, holder, name)
            await tx.execute(delete(Quota).where(Quota.holder == holder, Quota.holder_id == subject.id))
            await self._audit.add(tx, _about(event, subject, {}))
            lines = await self.lines(tx, subject)
        self._told(subject)
        return lines

    def _told(self, subject: Subject) -> None:
        self._known_at = 0.0
        self._changes.tell(TOPIC, subject.id)

    # ---- for those who take something, in their transaction ---------------------------------------------------
    async def hold(self, tx: Transaction, owner: Owner) -> None:
        """Let nobody else take anything of this owner's, until `tx` ends.

        On SQLite there is one writer anyway. `key_share`: records that only refer to these rows need not wait.
        """
        for table, key in ((Workspace, owner.workspace_id), (User, owner.user_id)):
            await tx.execute(select(table.id).where(table.id == key).with_for_update(key_share=True))

    async def lines_of(self, tx: Transaction, owner: Owner, resources: Collection[Resource]) -> Sequence[QuotaLine]:
        """The lines that count for something of this owner's, the person's first."""
        workspace = await _name(tx, Holder.WORKSPACE, owner.workspace_id)
        mine = Subject(Holder.USER, owner.user_id, owner.user_name)
        ours = Subject(Holder.WORKSPACE, owner.workspace_id, workspace)
        return [line for one in (mine, ours) for line in await self.lines(tx, one, resources)]

    async def lines(
        self, tx: Transaction, subject: Subject, resources: Collection[Resource] = (), *, limited: bool = False
    ) -> Sequence[QuotaLine]:
        """`resources` of one subject (empty: all that it has), with `limited` those that have a limit."""
        row = await tx.get(Quota, (subject.holder, subject.id))
        wanted = [resource for resource in OF[subject.holder] if not resources or resource in resources]
        limits = {resource: allowed_by(row, self._defaults[subject.holder], resource) for resource in wanted}
        if limited:
            limits = {resource: limit for resource, limit in limits.items() if limit[0] is not None}
        used = await used_by(tx, subject, list(limits))
        by = row.by if row is not None else ""
        return [
            QuotaLine(subject, resource, used[resource], allowed, by if is_exception else "")
            for resource, (allowed, is_exception) in limits.items()
        ]

    # ---- for uploads -----------------------------------------------------------------------------------------
    async def allowed(self, holder: Holder, holder_id: str, resource: Resource) -> float | None:
        """The limit alone, without a query most of the time; None: there is none. Exceptions may be 2 s old."""
        if not self._known_at or time.monotonic() - self._known_at > _FRESH:
            async with self._database.reading() as tx:
                rows = (await tx.scalars(select(Quota))).all()
            self._known = {(row.holder, row.holder_id): row for row in rows}
            self._known_at = time.monotonic()
        return allowed_by(self._known.get((holder, holder_id)), self._defaults[holder], resource)[0]

    async def _seen(self, tx: Transaction, caller: Caller, holder: Holder, name: str) -> Subject:
        subject = await _subject(tx, holder, name)
        owner = subject.id if holder is Holder.USER else ""
        workspace = subject.id if holder is Holder.WORKSPACE else ""
        require(caller, Action.QUOTA_SHOW, Owned(holder.value, name, owner, workspace))
        return subject


def refusals_of(caller: Caller, lines: Sequence[QuotaLine], more: Amounts) -> list[str]:
    """The sentences of the lines that `more` does not fit into."""
    found = [line.refusal(more.get(line.resource, 0), whose=_whose(caller, line.subject)) for line in lines]
    return [sentence for sentence in found if sentence]


def full(caller: Caller, lines: Sequence[QuotaLine]) -> list[str]:
    """Sentences of the lines in which nothing is left, for work of which nobody knows beforehand what it takes."""
    return [
        f"{_whose(caller, line.subject)} quota of {line.resource.noun} is full ({line.resource.words(line.used)} of "
        f"{line.resource.words(line.allowed)}): delete images or data sets, or ask an administrator to raise it"
        for line in lines
        if line.allowed is not None and line.used >= line.allowed
    ]


def _whose(caller: Caller, subject: Subject) -> str:
    if subject.holder is Holder.WORKSPACE:
        return f"the workspace {subject.name}'s"
    return "your" if subject.id == caller.user_id else f"{subject.name}'s"


async def _subject(tx: Transaction, holder: Holder, name: str) -> Subject:
    table = User if holder is Holder.USER else Workspace
    found = await tx.scalar(select(table.id).where(table.name == name))
    if found is None:
        raise NotFound(f"there is no {holder.value} '{printable(name, limit=48)}'")
    return Subject(holder, found, name)


async def _name(tx: Transaction, holder: Holder, holder_id: str) -> str:
    table = User if holder is Holder.USER else Workspace
    return await tx.scalar(select(table.name).where(table.id == holder_id)) or ""


def _about(event: Event, subject: Subject, values: Mapping[str, float | None]) -> Event:
    detail = {"of": subject.holder.value, **values}
    return Event(event.action, event.outcome, event.actor, subject.name, event.address, event.connection, detail)
