"""Data sets and models inside environments: what may be mounted, where it appears, and what a start needs of it.

A choice becomes a version when an environment is made, and stays that version. The rows of `storage.uses` are the
mounts: they keep the version from being deleted until the environment is gone. Its files come from `data_sites`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.compute.contract import Mount as MountPoint
from backends.compute.contract import Progress
from backends.data_shelves import Wanted
from backends.data_sites import Sites
from storage.access import Caller, require
from storage.accounts import Accounts
from storage.asset_rows import load
from storage.asset_views import AssetView, VersionView, parse_reference
from storage.assets import readable
from storage.audit import AuditTrail, Event
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AshoreError, BadInput, Conflict, NotFound
from storage.records import AssetKind, Environment, VersionState
from storage.uses import Mount, Mounted, Uses, mounted

MOST = 16
"""Data sets and models that one environment may have."""
VARIABLE = "ASHORE_DATA"
"""Tells programs inside what is where: `/gemini/data-1=mnist:v1 /gemini/pretrain1=resnet:v2`."""
_PLACES = {AssetKind.DATASET: "/gemini/data-{}", AssetKind.MODEL: "/gemini/pretrain{}"}


@dataclass(frozen=True)
class Choice:
    """What somebody wants to see inside: `mnist`, `mnist:v1`, `other/resnet:v2`; without a version, the default one."""

    kind: AssetKind
    reference: str


@dataclass(frozen=True)
class PlannedMount:
    """A version that would be mounted, as the caller names it, and where."""

    kind: AssetKind
    reference: str
    path: str
    version_id: str
    bytes: int
    """As far as it is known without counting."""


async def plan_mounts(
    tx: Transaction, caller: Caller, choices: Sequence[Choice]
) -> tuple[Sequence[PlannedMount], Sequence[str]]:
    """What `choices` would become, and what speaks against them."""
    planned: list[PlannedMount] = []
    refusals: list[str] = []
    if len(choices) > MOST:
        return [], [f"an environment takes {MOST} data sets and models at most"]
    for choice in choices:
        path = _PLACES[choice.kind].format(1 + sum(one.kind is choice.kind for one in planned))
        try:
            one = await _planned(tx, caller, choice, path)
            if any(one.version_id == other.version_id for other in planned):
                raise BadInput(f"'{one.reference}' was chosen twice")
        except AshoreError as error:
            refusals.append(error.message)
        else:
            planned.append(one)
    return planned, refusals


async def _planned(tx: Transaction, caller: Caller, choice: Choice, path: str) -> PlannedMount:
    wanted = parse_reference(choice.reference, choice.kind)
    view = await load(tx, caller, choice.kind, wanted.asset, shares=True)
    require(caller, choice.kind.action("read"), view.owned())
    version = readable(view, wanted.version)
    reference = view.reference(caller, version.name)
    _check_state(caller, view, version)
    return PlannedMount(choice.kind, reference, path, version.id, version.bytes)


def _check_state(caller: Caller, view: AssetView, version: VersionView) -> None:
    reference = view.reference(caller, version.name)
    if version.state is VersionState.ERROR:
        raise Conflict(f"'{reference}' is broken and cannot be mounted")
    # Work in progress is the business of its own workspace, whose members see its files anyway: they try out what is
    # not published yet. To others only what its owner has published is given, because it stays as it is.
    if not version.sealed and view.workspace_id != caller.workspace_id:
        raise Conflict(f"'{reference}' is not published yet: only its own workspace may mount it")


async def begin_mounts(
    tx: Transaction,
    audit: AuditTrail,
    caller: Caller,
    environment: Environment,
    mounts: Sequence[PlannedMount],
    uses: Uses,
) -> None:
    """Note them in the transaction that makes `environment`, which is flushed; from then on they are in use."""
    for one in mounts:
        await uses.begin(tx, caller, one.version_id, Mount(environment.id, environment.name, one.path))
        event = Event.by(
            caller, f"{one.kind.value}.mount", thing=one.reference, environment=environment.name, path=one.path
        )
        await audit.add(tx, event)


def mount_variables(mounts: Sequence[PlannedMount]) -> Mapping[str, str]:
    """The environment variable that lists them; none without mounts."""
    return {VARIABLE: " ".join(f"{one.path}={one.reference}" for one in mounts)} if mounts else {}


class EnvironmentData:
    """What the reconciler asks before it starts an environment. `sites` are the machines that run environments."""

    def __init__(self, database: Database, accounts: Accounts, sites: Sites) -> None:
        self._database = database
        self._accounts = accounts
        self._sites = sites

    async def needs(self, environment: Environment) -> bool:
        """Whether something is to be fetched, or at least looked at, before it starts."""
        return bool(await self._mounted(environment))

    async def fetch(self, environment: Environment, progress: Progress) -> None:
        """Bring everything to its machine that it has mounted, if its owner may still read it.

        NotFound, Conflict: the owner may not any more. BadInput: its files cannot exist there. OverQuota: no room.
        Unavailable: the store is away, or does not show itself where it should be mounted already.
        """
        owner = await self._accounts.caller_for(environment.owner_name, connection=f"start-{environment.id}"[:16])
        mounts = await self._mounted(environment)
        await self._check(owner, mounts)
        site = self._sites.of(environment)
        for one in mounts:
            word = "data" if one.kind is AssetKind.DATASET else "model"
            title = f"{word} {one.reference(owner.workspace)}"
            await site.bring(Wanted(one.source_id, title, one.prefix, one.sealed), progress)

    async def points(self, environment: Environment) -> Sequence[MountPoint]:
        """The folders or volumes for `WorkloadSpec.mounts`."""
        site, mounts = self._sites.of(environment), await self._mounted(environment)
        return [await site.point(one.source_id, one.prefix, one.path) for one in mounts]

    async def _mounted(self, environment: Environment) -> Sequence[Mounted]:
        async with self._database.reading() as tx:
            return (await mounted(tx, [environment.id])).get(environment.id, ())

    async def _check(self, owner: Caller, mounts: Sequence[Mounted]) -> None:
        """Rights are asked at every start: a data set may be shared no more, or be private by now."""
        async with self._database.reading() as tx:
            for one in mounts:
                try:
                    view = await load(tx, owner, one.kind, one.asset, shares=True)
                    require(owner, one.kind.action("read"), view.owned())
                    _check_state(owner, view, readable(view, one.version))
                except NotFound as error:
                    reference = one.reference(owner.workspace)
                    raise NotFound(f"'{reference}' cannot be read by '{owner.name}' any more") from error
