"""Environments: plan, create, start, stop, restart, delete, open, show, logs. Every door asks here.

Writes what the owner wishes; `reconcilers.environments` brings it about. No network call here but `logs`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from backends import machines
from backends.activity import Activity
from backends.compute.contract import Compute
from backends.compute.dial import HasNamespace, dial
from backends.compute.places import place_of
from backends.cuda import cuda_warnings
from backends.images import Images
from backends.lifecycle import Due, LifecycleChoice, Step, check_keep_days, due, farewell, keep_days, warning
from backends.mounts import begin_mounts, mount_variables
from backends.planning import Plan, Planner, Request, amounts
from backends.port_rows import begin_ports
from backends.settings import BackendSettings
from storage.access import Action, Caller, Destination, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AlreadyExists, BadInput, Conflict, Failed, NotFound, OverQuota, TimedOut, Unavailable
from storage.names import check_resource, check_user, printable
from storage.quota_limits import RUNNING, QuotaLine, holds
from storage.quotas import Owner, Quotas, refusals_of
from storage.records import Application, Environment, EnvironmentState, Lifecycle, LostEnvironment, User, Wish
from storage.uses import Mounted, Uses, mounted

_MOST_LOG_LINES = 10_000
_TOLD_FOR = timedelta(days=14)
"""For how long owners are told that an environment was given up with its host."""
_SETTLED = (EnvironmentState.RUNNING, EnvironmentState.STOPPED, EnvironmentState.FAILED)


class Environments:
    """The use cases about environments."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        computes: Mapping[str, Compute],
        settings: BackendSettings,
        clock: Clock = now,
        *,
        quotas: Quotas | None = None,
        images: Images | None = None,
    ) -> None:
        self._images = images or Images(database, audit, changes, settings.registry, settings.images, clock)
        self._database = database
        self._audit = audit
        self._changes = changes
        self._computes = computes
        self._quotas = quotas or Quotas(
            database, audit, changes, environments=settings.environments.limit_per_user, clock=clock
        )
        self.planner = Planner(computes, settings, self._quotas, self._images)
        """What may be asked for, and where."""
        self._settings = settings
        self._clock = clock
        self._uses = Uses(database, clock)
        self.lifecycle = settings.lifecycle
        """What life cycles go by where nothing else was chosen."""
        self.activity = Activity(database, changes, settings.lifecycle, clock)
        """Where doors tell signs of life."""

    async def list(self, caller: Caller, *, everybody: bool = False) -> Sequence[Environment]:
        """The caller's environments by name; everybody's for administrators."""
        require(caller, Action.ENVIRONMENT_LIST)
        query = select(Environment).order_by(Environment.owner_name, Environment.name)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(Environment.owner_id == caller.user_id)
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def show(self, caller: Caller, name: str) -> Environment:
        """One environment: `name`, or `name.owner` for administrators. NotFound if it may not be seen."""
        return await self._load(caller, Action.ENVIRONMENT_SHOW, name)

    async def lost(self, caller: Caller) -> Sequence[LostEnvironment]:
        """Those of the caller that were given up with their hosts of late, the newest first."""
        require(caller, Action.ENVIRONMENT_LIST)
        query = select(LostEnvironment).where(
            LostEnvironment.owner_id == caller.user_id, LostEnvironment.lost > self._clock() - _TOLD_FOR
        )
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(LostEnvironment.lost.desc(), LostEnvironment.name))).all()

    async def quotas(self, caller: Caller) -> Sequence[QuotaLine]:
        """What the caller's and the workspace's environments use and may use."""
        require(caller, Action.ENVIRONMENT_LIST)
        async with self._database.reading() as tx:
            return await self._quotas.lines_of(tx, Owner.of(caller), RUNNING)

    async def mounts(self, caller: Caller, environments: Sequence[Environment]) -> Mapping[str, Sequence[Mounted]]:
        """The data sets and models inside environments that are known already, by the environments' ids."""
        for environment in environments:
            require(caller, Action.ENVIRONMENT_SHOW, owned(environment))
        async with self._database.reading() as tx:
            return await mounted(tx, [environment.id for environment in environments])

    async def plan(self, caller: Caller, request: Request) -> Plan:
        """What `create` would do, and what speaks against it."""
        require(caller, Action.ENVIRONMENT_CREATE)
        async with self._database.reading() as tx:
            plan = await self.planner.plan(tx, caller, request)
        if not plan.cards or plan.refusals:
            return plan
        place = place_of(plan.compute, plan.host)
        return replace(plan, warnings=await cuda_warnings(self._computes, place, plan.reference))

    async def create(self, caller: Caller, request: Request) -> Environment:
        """Record the wish for a new environment; the reconciler makes it."""
        require(caller, Action.ENVIRONMENT_CREATE)
        check_keep_days(request.keep_output_days)
        async with self._refusing(caller, Action.ENVIRONMENT_CREATE, request.name):
            environment = await self._create(caller, request)
        self._changes.tell("environment", environment.id)
        return environment

    async def _create(self, caller: Caller, request: Request) -> Environment:
        async with self._database.writing() as tx:
            await self.planner.hold(tx, caller, request)
            plan = await self.planner.plan(tx, caller, request)
            _refuse(plan)
            request = plan.request
            if plan.image_id:
                await self._images.hold(tx, plan.image_id, plan.image_digest)
            environment = Environment(
                owner_id=caller.user_id, owner_name=caller.name, workspace_id=caller.workspace_id,
                name=request.name, compute=plan.compute, image=plan.image, cpus=request.cpus,
                image_id=plan.image_id, image_digest=plan.image_digest, memory=request.memory,
                variables={**request.variables, **mount_variables(plan.mounts)},
                host=plan.host, reserves=bool(plan.host), created=self._clock(), lifecycle_from=self._clock(),
                gpus=plan.gpus.count, gpu_mode=plan.gpus.mode, gpu_model=plan.gpus.model, cards=dict(plan.cards),
            )  # fmt: skip
            request.lifecycle.apply_to(environment)
            environment.keep_output_days = request.keep_output_days
            tx.add(environment)
            facts: dict[str, Any] = {"compute": plan.compute, "image": plan.image}
            facts |= {"image_digest": plan.image_digest} if plan.image_digest else {}
            facts |= {"host": plan.host} if plan.host else {}
            facts |= {"cpus": request.cpus, "memory": request.memory, "lifecycle": environment.lifecycle.value}
            facts |= {"applications": list(request.applications)} if request.applications else {}
            facts |= {"gpus": list(plan.cards), "gpu_mode": plan.gpus.mode.value} if plan.cards else {}
            await self._audit.add(tx, Event.by(caller, Action.ENVIRONMENT_CREATE, thing=request.name, **facts))
            await tx.flush()
            await begin_mounts(tx, self._audit, caller, environment, plan.mounts, self._uses)
            tx.add_all(Application(environment_id=environment.id, name=name) for name in request.applications)
            await begin_ports(tx, self._audit, self._settings.ports, caller, environment, request.ports, self._clock)
        return environment

    async def start(self, caller: Caller, name: str) -> Environment:
        """Wish it running; also the way out of `failed`."""
        return await self._wish(caller, Action.ENVIRONMENT_START, name, Wish.RUNNING)

    async def stop(self, caller: Caller, name: str) -> Environment:
        """Wish it stopped; its files stay."""
        return await self._wish(caller, Action.ENVIRONMENT_STOP, name, Wish.STOPPED)

    async def restart(self, caller: Caller, name: str) -> Environment:
        """Wish it stopped and running again."""
        return await self._wish(caller, Action.ENVIRONMENT_START, name, Wish.RUNNING, restart=True)

    async def delete(self, caller: Caller, name: str, *, keep_output_days: int | None = None) -> Environment:
        """Wish it gone with everything in it, but for its output, if that is to be kept.

        `keep_output_days` decides that anew, also for one that is being deleted already; None: as it was chosen.
        """
        check_keep_days(keep_output_days)
        return await self._wish(
            caller, Action.ENVIRONMENT_DELETE, name, Wish.DELETED, keep_output_days=keep_output_days
        )

    def keep_days(self, environment: Environment) -> int:
        """For how many days its output is kept when it is deleted; 0: not at all."""
        return keep_days(environment, self.lifecycle)

    async def set_lifecycle(self, caller: Caller, name: str, choice: LifecycleChoice) -> Environment:
        """Choose another life cycle; its times count from now. BadInput: it is not possible, and why."""
        seen = await self._load(caller, Action.ENVIRONMENT_CHANGE, name)
        if refusals := choice.refusals():
            raise BadInput("; ".join(refusals))
        async with self._database.writing() as tx:
            environment = await tx.get(Environment, seen.id, with_for_update=True)
            if environment is None:
                raise NotFound(f"there is no environment '{seen.name}'")
            if environment.wish is Wish.DELETED:
                raise Conflict(f"'{seen.name}' is being deleted")
            choice.apply_to(environment)
            environment.lifecycle_from, environment.warned, environment.wish_reason = self._clock(), None, ""
            environment.version += 1
            facts = {"lifecycle": choice.lifecycle.value, "owner": environment.owner_name}
            await self._audit.add(tx, Event.by(caller, Action.ENVIRONMENT_CHANGE, thing=environment.name, **facts))
        for topic in ("environment", "lifecycle"):
            self._changes.tell(topic, environment.id)
        return environment

    async def set_keep_output(self, caller: Caller, name: str, days: int | None) -> Environment:
        """Choose for how many days its output is kept when it is deleted; 0: not at all; None: as the settings say."""
        check_keep_days(days)
        seen = await self._load(caller, Action.ENVIRONMENT_CHANGE, name)
        async with self._database.writing() as tx:
            environment = await tx.get(Environment, seen.id, with_for_update=True)
            if environment is None:
                raise NotFound(f"there is no environment '{seen.name}'")
            if environment.wish is Wish.DELETED:
                raise Conflict(f"'{seen.name}' is being deleted")
            environment.keep_output_days = days
            environment.version += 1
            facts: dict[str, Any] = {"keep_output_days": days, "owner": environment.owner_name}
            await self._audit.add(tx, Event.by(caller, Action.ENVIRONMENT_CHANGE, thing=environment.name, **facts))
        self._changes.tell("environment", environment.id)
        return environment

    def due(self, environment: Environment) -> Due | None:
        """What its life cycle does next, and when, as things stand."""
        return due(environment, self.lifecycle, self._clock())

    async def warnings(self, environment_ids: Sequence[str]) -> Mapping[str, str]:
        """What people in those environments must be told, by ids; for whoever shows them their terminals."""
        if not environment_ids:
            return {}
        warned = (Environment.id.in_(environment_ids), Environment.warned.is_not(None))
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(Environment).where(*warned))).all()
        moment, settings = self._clock(), self.lifecycle
        found = {row.id: (row, due(row, settings, moment)) for row in rows}
        # Where a sign of life came after the warning, it is about to be withdrawn. Nothing is deleted below a terminal.
        return {
            key: warning(row, settings, coming, moment)
            for key, (row, coming) in found.items()
            if coming is not None and moment >= coming.at - coming.notice and coming.step is not Step.DELETE
        }

    async def farewells(self, environment_ids: Sequence[str]) -> Mapping[str, str]:
        """What people in those environments that are to run no longer must be told, by ids."""
        if not environment_ids:
            return {}
        ending = (Environment.id.in_(environment_ids), Environment.wish != Wish.RUNNING)
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(Environment).where(*ending))).all()
        return {row.id: farewell(row) for row in rows}

    async def open(
        self, caller: Caller, action: Action, name: str, on_progress: Callable[[str], None] | None = None
    ) -> Environment:
        """The environment, running, for `action` (shell, exec, sftp, jump …); woken and waited for if it sleeps.

        `on_progress` gets a line at once and with each step, so that an editor sees life within a second.
        """
        environment = await self._load(caller, action, name)
        if environment.lifecycle is Lifecycle.EPHEMERAL:
            await self.keep(environment)
        if environment.state is EnvironmentState.RUNNING and environment.wish is Wish.RUNNING:
            return environment
        if environment.wish is Wish.DELETED:
            raise Conflict(f"'{environment.name}' is being deleted")
        if environment.wish is not Wish.RUNNING or environment.state is EnvironmentState.FAILED:
            environment = await self._wish(caller, Action.ENVIRONMENT_START, name, Wish.RUNNING)
        if on_progress is not None:
            on_progress(f"{environment.name}: starting")
        with self.activity.presence(environment.id):
            return await self.wait(caller, name, on_progress=on_progress)

    async def keep(self, environment: Environment) -> None:
        """Before somebody goes into an ephemeral one: from here on nothing deletes it below them.

        Conflict: it is too late.
        """
        alive = (Environment.id == environment.id, Environment.wish != Wish.DELETED)
        async with self._database.writing() as tx:
            kept = await tx.scalar(
                update(Environment).where(*alive).values(last_used=self._clock()).returning(Environment.id)
            )
        if kept is None:
            raise Conflict(f"'{environment.name}' is being deleted")

    async def wait(self, caller: Caller, name: str, on_progress: Callable[[str], None] | None = None) -> Environment:
        """Wait until it is what its owner wished. Failed: and why; TimedOut; NotFound: gone.

        While its image or its data are on their way, time does not count: every new line of progress begins it anew.
        """
        settings = self._settings.environments
        patience = timedelta(seconds=max(settings.ready_seconds, settings.pull_stall_minutes * 60) + 30)
        deadline = self._clock() + patience
        said = ""
        with self._changes.subscribe("environment") as queue:
            while self._clock() < deadline:
                environment = await self._load(caller, Action.ENVIRONMENT_SHOW, name)
                if settled(environment):
                    return environment
                # One that failed can still be stopped or deleted.
                if environment.state is EnvironmentState.FAILED and environment.wish is Wish.RUNNING:
                    raise Failed(f"'{environment.name}' failed: {environment.reason}")
                line = f"{environment.name}: {environment.progress or environment.state.value}"
                if line != said:
                    said, deadline = line, self._clock() + patience
                    if on_progress is not None:
                        on_progress(line)
                try:
                    async with asyncio.timeout(1.0):
                        await queue.get()
                except TimeoutError:
                    continue
        raise TimedOut(f"'{printable(name, limit=60)}' did not come up in time")

    async def dial(self, caller: Caller, environment: Environment, host: str, port: int) -> socket.socket | None:
        """A connection to `host`:`port` inside a running environment, or None when only its guest can make one.

        OSError: nothing listens there.
        """
        require(caller, Action.FORWARD_TCP, Destination(owned(environment), host, port))
        compute = self._computes.get(place_of(environment.compute, environment.host))
        if not isinstance(compute, HasNamespace):
            return None
        namespace = await compute.network_namespace(environment.handle)
        if namespace is None:
            return None
        try:
            return await dial(namespace, host, port)
        except Unavailable:
            return None

    async def logs(self, caller: Caller, name: str, *, tail: int = 200) -> AsyncIterator[bytes]:
        """The last lines of its main program."""
        environment = await self._load(caller, Action.ENVIRONMENT_LOGS, name)
        place = place_of(environment.compute, environment.host)
        compute = self._computes.get(place)
        if compute is None:
            raise Unavailable(f"the compute '{place}' is not there now")
        if not environment.handle:
            return
        async for piece in compute.logs(environment.handle, tail=min(max(tail, 0), _MOST_LOG_LINES)):
            yield piece

    # ---- inside ----------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _refusing(self, caller: Caller, action: Action, name: str) -> AsyncIterator[None]:
        """Around what takes something: a refusal for the sake of a quota is in the trail as well."""
        try:
            yield
        except OverQuota as error:
            reason = printable(error.message, limit=500)
            await self._audit.record(
                Event.by(caller, action, thing=printable(name, limit=80), outcome="refused", reason=reason)
            )
            raise

    async def take(self, tx: Transaction, caller: Caller, environment: Environment) -> None:
        """What it needs while it runs, of its owner's quota and of a host. Nobody else takes anything until `tx` ends.

        OverQuota: the quota does not allow it. Unavailable: its host has no room now. NotAllowed: the caller may not
        use its machine, or no longer.
        """
        machine = self._settings.machines.get(environment.compute)
        if machine is not None:
            require(caller, Action.MACHINE_USE, machines.shared(environment.compute, machine))
        await self._take_of_quota(tx, caller, environment)
        await self.planner.reserve(tx, environment)

    async def _take_of_quota(self, tx: Transaction, caller: Caller, environment: Environment) -> None:
        owner = Owner(environment.owner_id, environment.owner_name, environment.workspace_id)
        await self._quotas.hold(tx, owner)
        held = holds(environment)
        if held and environment.wish is Wish.RUNNING:
            return
        more = amounts(environment.cpus, environment.memory, environment.gpus, is_new=False)
        lines = await self._quotas.lines_of(tx, owner, list(more))
        if held:
            # It counts although it may hold nothing any more, as one that failed and is being stopped.
            lines = [replace(line, used=line.used - more[line.resource]) for line in lines]
        if refusals := refusals_of(caller, lines, more):
            raise OverQuota("; ".join(refusals))

    async def _wish(
        self,
        caller: Caller,
        action: Action,
        name: str,
        wish: Wish,
        *,
        restart: bool = False,
        keep_output_days: int | None = None,
    ) -> Environment:
        seen = await self._load(caller, action, name)
        async with self._refusing(caller, action, seen.name), self._database.writing() as tx:
            environment = await tx.get(Environment, seen.id, with_for_update=True)
            if environment is None:
                raise NotFound(f"there is no environment '{seen.name}'")
            if environment.wish is Wish.DELETED and wish is not Wish.DELETED:
                raise Conflict(f"'{seen.name}' is being deleted")
            if wish is Wish.RUNNING:
                await self.take(tx, caller, environment)
            environment.wish, environment.wish_reason = wish, ""
            environment.lifecycle_from, environment.warned = self._clock(), None
            if environment.state is EnvironmentState.FAILED and wish is Wish.RUNNING:
                environment.state, environment.reason = EnvironmentState.REQUESTED, ""
            if restart:
                environment.restarts += 1
            if keep_output_days is not None:
                environment.keep_output_days = keep_output_days
            environment.version += 1
            verb = "environment.restart" if restart else action
            facts: dict[str, Any] = {"owner": environment.owner_name}
            facts |= {"gpus": list(environment.cards)} if wish is Wish.RUNNING and environment.cards else {}
            facts |= {"keep_output_days": self.keep_days(environment)} if wish is Wish.DELETED else {}
            await self._audit.add(tx, Event.by(caller, verb, thing=environment.name, **facts))
        self._changes.tell("environment", environment.id)
        return environment

    async def _load(self, caller: Caller, action: Action, name: str) -> Environment:
        short, owner_id = await self._resolve(caller, name)
        async with self._database.reading() as tx:
            environment = await tx.scalar(
                select(Environment).where(Environment.owner_id == owner_id, Environment.name == short)
            )
        missing = NotFound(f"there is no environment '{printable(name, limit=80)}'")
        if environment is None:
            raise missing
        try:
            require(caller, action, owned(environment))
        except NotFound:
            # Word for word the same, or `train.bob` would tell whether bob has a `train`.
            raise missing from None
        return environment

    async def _resolve(self, caller: Caller, name: str) -> tuple[str, str]:
        """`train` → mine; `train.bob` → bob's, unless I have one that is called just so."""
        check_resource(name.replace(".", "-") if "." in name else name, kind="environment")
        short, dot, owner = name.rpartition(".")
        async with self._database.reading() as tx:
            mine = await tx.scalar(
                select(Environment.id).where(Environment.owner_id == caller.user_id, Environment.name == name)
            )
            if mine or not dot or not short:
                return name, caller.user_id
            try:
                check_user(owner)
            except BadInput:
                return name, caller.user_id
            owner_id = await tx.scalar(select(User.id).where(User.name == owner))
        return short, owner_id or ""


def owned(environment: Environment) -> Owned:
    """The environment as `decide()` sees it."""
    return Owned("environment", environment.name, environment.owner_id, environment.workspace_id)


def settled(environment: Environment) -> bool:
    """Whether it is what its owner wished, a wanted restart included."""
    if environment.restarted != environment.restarts:
        return False
    return environment.state.value == environment.wish.value


def _refuse(plan: Plan) -> None:
    if not plan.refusals:
        return
    sentence = "; ".join(plan.refusals)
    if "already" in plan.refusals[0]:
        raise AlreadyExists(sentence)
    if set(plan.refusals) <= set(plan.over_quota):
        raise OverQuota(sentence)
    if set(plan.refusals) <= set(plan.no_room):
        raise Unavailable(sentence)
    if set(plan.refusals) <= set(plan.missing):
        raise NotFound(sentence)
    raise BadInput(sentence)
