"""Brings environments to what their owners wish: load → act → apply, each apply guarded by the record's version.

Every step may be cut off by a crash and is done again by the next look, so drivers are asked for things that they may
have done already. Who may wish what is `backends.environments`' business; how an engine does it, its driver's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from backends.compute.contract import Compute, Found, HasPulls, Mount, Progress, RegistryAway, State, WorkloadSpec
from backends.compute.places import place_of
from backends.environments import settled
from backends.gpus import lost, lost_words
from backends.image_loads import ImageLoads
from backends.images import Source
from backends.outputs import Outputs
from backends.reconcilers.fetches import Fetches
from backends.reconcilers.loop import ReconcilerLoop
from backends.reconcilers.pulls import again, bring_image
from backends.reconcilers.rows import TOPIC, EnvironmentRows
from backends.reservations import Reservations
from backends.settings import BackendSettings
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, Conflict, OverQuota, Unavailable
from storage.names import printable
from storage.records import Environment, EnvironmentState, Wish

log = logging.getLogger(__name__)

AWAY = "the engine does not answer"
_REMOVED = "its container was removed"
_ENDED = "its main program ended"
_GLANCE_SECONDS = 0.5
"""While an environment is being made: pause between two looks at its owner's wish, and between progress lines."""
_FOUND_SECONDS = 30
_PATIENCE_SECONDS = 5
"""How long one look waits for engines; those that are slower are heard at a later one."""
_PER_PLACE = 8
"""Actions at once on one engine: one that hangs takes no slot from the others."""
_AT_ONCE = 1024


class Guests(Protocol):
    """What an environment needs for its guest. `backends.guest.Guests` is the real one."""

    async def prepare(self, environment: Environment) -> Mapping[str, bytes]:
        """Guest files for a start."""
        ...

    async def drop(self, environment_id: str) -> None:
        """Close what is connected to it."""
        ...


class Data(Protocol):
    """Where the data sets and models come from. `backends.mounts.EnvironmentData` is the real one."""

    async def needs(self, environment: Environment) -> bool:
        """Whether `fetch` has anything to do."""
        ...

    async def fetch(self, environment: Environment, progress: Progress) -> None:
        """Bring what it has mounted to its machine."""
        ...

    async def points(self, environment: Environment) -> Sequence[Mount]:
        """Where that is, once it is there."""
        ...


class Sources(Protocol):
    """Where images come from. `backends.images.Images` is the real one."""

    async def source(self, environment: Environment) -> Source:
        """What its engine pulls, and with which login."""
        ...


def _is_to_run(row: Environment) -> bool:
    return row.wish is Wish.RUNNING


class _EngineAway(Unavailable):
    """A fetch broke off, and the engine did not answer at that moment."""


async def _blame_engine(compute: Compute, error: Unavailable) -> None:
    """_EngineAway if it is away now: whoever looks at `error` may come when it is back."""
    try:
        await compute.check()
    except Unavailable as away:
        raise _EngineAway(away.message) from error


class EnvironmentReconciler:
    """The loop over environments. One process of a house runs it."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        computes: Mapping[str, Compute],
        guests: Guests,
        settings: BackendSettings,
        clock: Clock = now,
        data: Data | None = None,
        outputs: Outputs | None = None,
        images: Sources | None = None,
        loads: ImageLoads | None = None,
    ) -> None:
        self._loads = loads or ImageLoads(None)
        self._data = data
        self._outputs = outputs
        self._images = images
        self._rows = EnvironmentRows(database, audit, changes, Reservations(settings), clock)
        self._computes = computes
        self._guests = guests
        self._settings = settings.environments
        self._clock = clock
        self._began: dict[str, float] = {}
        self._orphans: set[str] = set()
        self._asked: dict[str, asyncio.Task[Sequence[Found]]] = {}
        self._late: set[str] = set()
        """Places whose engine was too slow at the last look."""
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_PER_PLACE))
        self._loop = ReconcilerLoop(
            "environment", TOPIC, changes=changes, look=self.look, act=self.act,
            pause=self._settings.reconcile_seconds, parallel=_AT_ONCE,
        )  # fmt: skip
        self._fetches = Fetches(self._fetch, self._loop.wake)
        self._copies = Fetches(self._copy_output, self._loop.wake)

    async def run(self) -> None:
        """Until cancelled; images and data that are on their way then are gone on with by the next process."""
        try:
            await self._loop.run()
        finally:
            await self._fetches.close()
            await self._copies.close()
            for task in self._asked.values():
                task.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    # ---- load ------------------------------------------------------------------------------------------------
    async def look(self) -> Sequence[str]:
        """Ids of the environments that are not as they should be, by the records or by their engines."""
        answers = await self._ask_all()
        rows = await self._rows.all()
        present = await self._rows.present_gpus()
        states: dict[tuple[str, str], State] = {}
        for place, found in answers.items():
            await self._report_orphans(place, found, rows)
            # Only its own host is asked about an environment: two of them may show the same engine.
            states |= {(place, item.environment_id): item.state for item in found}
        return [row.id for row in rows if _needs_care(row, states.get((_place(row), row.id), State.GONE),
                                                      _place(row) not in answers, present)]  # fmt: skip

    async def _ask_all(self) -> Mapping[str, Sequence[Found]]:
        """What each engine has; those that do not answer, or not yet, are missing."""
        for place, compute in tuple(self._computes.items()):
            if place not in self._asked:
                self._asked[place] = asyncio.create_task(_ask(compute), name=f"what {place} has")
        # An engine that hangs is waited for once; the others, and the hints, must not wait for it at every look.
        if prompt := [task for place, task in self._asked.items() if place not in self._late]:
            await asyncio.wait(prompt, timeout=_PATIENCE_SECONDS)
        answers: dict[str, Sequence[Found]] = {}
        for place, task in tuple(self._asked.items()):
            if not task.done():
                self._late.add(place)
                continue
            del self._asked[place]
            with contextlib.suppress(AshoreError, TimeoutError):
                answers[place] = task.result()
                self._late.discard(place)
        return answers

    async def _report_orphans(self, compute: str, found: Sequence[Found], rows: Sequence[Environment]) -> None:
        """Say which workloads have no record. They may belong to another house on the same engine: touch nothing."""
        known = {row.id for row in rows} | self._orphans
        orphans = [item for item in found if item.environment_id not in known]
        lost = await self._rows.lost() if orphans else {}
        for item in orphans:
            was, handle = lost.get(item.environment_id), printable(item.handle, limit=80)
            if was is None:
                log.warning("%s runs %s, which no record here speaks of", compute, handle)
            else:
                facts = (compute, handle, was.name, was.owner_name, was.host)
                log.warning("%s has %s: it was '%s' of %s, given up with the host %s; remove it there", *facts)
            self._orphans.add(item.environment_id)

    # ---- act -------------------------------------------------------------------------------------------------
    async def act(self, environment_id: str) -> None:
        """One step, or none, towards what its owner wishes. Unavailable: its engine is away, try again later."""
        environment = await self._rows.load(environment_id)
        if environment is None:
            self._began.pop(environment_id, None)
            await self._fetches.drop(environment_id)
            await self._copies.drop(environment_id)
            await self._guests.drop(environment_id)
            return
        place = _place(environment)
        compute = self._computes.get(place)
        if compute is None:
            await self._note(environment, f"the compute '{place}' is not there now")
            return
        async with self._slots[place]:
            try:
                await self._step(environment, compute)
            except Unavailable:
                await self._note(environment, away(environment))
                raise

    async def _step(self, environment: Environment, compute: Compute) -> None:
        if environment.wish is not Wish.RUNNING:
            await self._fetches.drop(environment.id)
        if environment.wish is Wish.DELETED:
            await self._remove(environment, compute)
        elif settled(environment):
            await self._compare(environment, compute)
        elif environment.wish is Wish.STOPPED:
            await self._bring_down(environment, compute)
        elif environment.state is EnvironmentState.RUNNING:
            stopped = await self._bring_down(environment, compute)  # its owner asked for a restart
            if stopped is not None and stopped.state is EnvironmentState.STOPPED:
                await self._bring_up(stopped, compute)
        elif environment.state is EnvironmentState.FAILED:
            await self._give_back(environment, compute)  # its engine was away when it failed
            await self._rows.give_room_back(environment)
        else:
            await self._bring_up(environment, compute)

    async def _compare(self, environment: Environment, compute: Compute) -> None:
        """It should be as it is: does its engine agree?"""
        status = await compute.inspect(environment.handle)
        running = environment.state is EnvironmentState.RUNNING
        if status.state is State.UNKNOWN:
            await self._note(environment, away(environment))
        elif status.state is State.RUNNING and not running:
            log.warning("environment %s was started by somebody else; stopping it", environment.id)
            await compute.stop(environment.handle, grace=self._settings.stop_grace_seconds)
        elif status.state is State.GONE and not running:
            await self._note(environment, _REMOVED if environment.handle else "")
        elif status.state in (State.STOPPED, State.GONE) and running:
            otherwise = _REMOVED if status.state is State.GONE else _ENDED
            await self._guests.drop(environment.id)
            reason = printable(status.reason, limit=300) or otherwise
            await self._rows.move(environment, EnvironmentState.FAILED, reason=reason, is_at_rest=True)
        else:
            missing = lost(environment.cards, await self._rows.present_gpus()) if running and environment.cards else ()
            await self._note(environment, lost_words(missing))

    async def _bring_up(self, environment: Environment, compute: Compute) -> None:
        seen = await self._enter(environment, EnvironmentState.CREATING)
        if seen is None:
            return
        if not await self._is_brought(seen, compute):
            return
        deadline = self._deadline(seen)
        lines = _LastLine("starting")
        try:
            async with asyncio.timeout_at(deadline):
                overtaken = await self._while_wished(seen, self._make(seen, compute, lines), lines)
        except TimeoutError:
            last = seen.reason or lines.text
            await self._fail(seen, compute, f"it was not ready within {self._settings.ready_seconds} s ({last})")
            return
        except AshoreError as error:
            if isinstance(error, Unavailable) and _time() < deadline:
                await compute.check()  # raises if the engine is away; else the complaint was about this environment
            await self._fail(seen, compute, printable(error.message, limit=500))
            return
        if not overtaken:
            self._began.pop(seen.id, None)
            await self._rows.move(seen, EnvironmentState.RUNNING, restarted=seen.restarts, started=self._clock())

    async def _is_brought(self, seen: Environment, compute: Compute) -> bool:
        """Whether its data and its image have reached its machine; False: we are woken when they have, or it failed."""
        has_data = self._data is not None and await self._data.needs(seen)
        if not has_data and not isinstance(compute, HasPulls):
            return True
        try:
            return self._fetches.is_done(seen)
        except _EngineAway:
            await compute.check()  # raises while it is away; hours of transfer are not given up for a cable
            return self._fetches.is_done(seen)
        except AshoreError as error:
            if isinstance(error, Unavailable) and (has_data or _time() < self._deadline(seen)):
                await compute.check()  # raises if the engine is away: they go on when it is back
            await self._fail(seen, compute, printable(error.message, limit=500))
            return False

    def _deadline(self, seen: Environment) -> float:
        """Until when it must be up; the time counts from the first call."""
        return self._began.setdefault(seen.id, _time()) + self._settings.ready_seconds

    async def _fetch(self, seen: Environment) -> bool:
        """Bring its data and its image; False: it was given up, because its owner changed their mind."""
        lines = _LastLine("starting")
        return not await self._while_wished(seen, self._bring(seen, self._computes[_place(seen)], lines), lines)

    async def _bring(self, seen: Environment, compute: Compute, lines: _LastLine) -> None:
        if self._data is not None and await self._data.needs(seen):
            lines.set("looking at its data")
            try:
                await self._data.fetch(seen, lines.set)
            except Unavailable as error:
                await _blame_engine(compute, error)
                raise
        if not isinstance(compute, HasPulls):
            return
        stall, retry = self._settings.pull_stall_minutes, self._settings.pull_retry_minutes
        reference = (await self._source(seen)).reference
        is_new = await again(lambda hear: self._load(seen, compute, reference, hear), lines.set, retry_minutes=retry)
        spec = await self._spec(seen, {})
        if await compute.lacks_image(spec):
            await bring_image(compute, spec, lines.set, stall_minutes=stall, retry_minutes=retry)
            is_new = True
        if is_new:
            self._began.pop(seen.id, None)  # its engine may have been away before

    async def _load(self, seen: Environment, compute: Compute, reference: str, progress: Progress) -> bool:
        """Bring an image that the engine cannot pull; whether it was missing. RegistryAway: it may come later."""
        try:
            return await self._loads.bring(compute, reference, seen.image, progress)
        except Unavailable as error:
            await compute.check()  # raises if it is the engine that is away
            raise RegistryAway(error.message) from error

    async def _make(self, environment: Environment, compute: Compute, lines: _LastLine) -> None:
        spec = await self._spec(environment, await self._guests.prepare(environment))
        handle = await compute.create(spec, lines.set)
        await self._rows.keep_handle(environment.id, handle)
        await compute.start(handle, spec, lines.set)

    async def _source(self, environment: Environment) -> Source:
        return await self._images.source(environment) if self._images else Source(environment.image)

    async def _spec(self, environment: Environment, files: Mapping[str, bytes]) -> WorkloadSpec:
        source = await self._source(environment)
        compute = self._computes[_place(environment)]
        return WorkloadSpec(
            id=environment.id, name=environment.name, owner=environment.owner_name,
            workspace=await self._rows.workspace_name(environment.workspace_id),
            image=self._loads.name_there(compute, source.reference),
            image_title=environment.image,
            image_auth=self._loads.login_there(compute, source.reference, source.auth),
            cpus=environment.cpus, memory=environment.memory,
            variables={name: str(value) for name, value in environment.variables.items()}, guest_files=files,
            gpus=tuple(environment.cards),
            mounts=await self._data.points(environment) if self._data is not None else (),
        )  # fmt: skip

    async def _while_wished(
        self,
        seen: Environment,
        work: Coroutine[None, None, None],
        lines: _LastLine,
        is_wished: Callable[[Environment], bool] = _is_to_run,
    ) -> bool:
        """Do `work` and show its progress. True: it was given up, because its owner changed their mind."""
        task = asyncio.create_task(work, name=f"work for environment {seen.id}")
        shown = ""
        try:
            while not (await asyncio.wait([task], timeout=_GLANCE_SECONDS))[0]:
                row = await self._rows.load(seen.id)
                if row is None or not is_wished(row):
                    return True
                if lines.text != shown:
                    shown = lines.text
                    await self._rows.note(seen.id, progress=shown)
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return False

    async def _bring_down(self, environment: Environment, compute: Compute) -> Environment | None:
        seen = await self._enter(environment, EnvironmentState.STOPPING)
        if seen is None:
            return None
        self._began.pop(seen.id, None)
        await self._guests.drop(seen.id)
        if handle := await _handle(seen, compute):
            await compute.stop(handle, grace=self._settings.stop_grace_seconds)
        return await self._rows.move(seen, EnvironmentState.STOPPED, is_at_rest=True)

    async def _remove(self, environment: Environment, compute: Compute) -> None:
        seen = await self._enter(environment, EnvironmentState.DELETING)
        if seen is None:
            return
        self._began.pop(seen.id, None)
        await self._guests.drop(seen.id)
        if handle := await _handle(seen, compute):
            kept = await self._keep_output(seen, compute, handle)
            if kept is None:
                return
            seen = kept
            await compute.delete(handle)
        await self._rows.remove(seen)

    async def _keep_output(self, seen: Environment, compute: Compute, handle: str) -> Environment | None:
        """The environment, once nothing of it is needed any more; None: its output is on its way, or cannot be kept."""
        if self._outputs is None:
            return seen
        if not self._outputs.days(seen):
            await self._copies.drop(seen.id)
            await self._outputs.discard(seen.id)
            return seen
        if await self._outputs.is_kept(seen.id):
            return seen
        if seen.reserves:  # a copy may take hours, or wait for days: others can have its host's room meanwhile
            await compute.stop(handle, grace=self._settings.stop_grace_seconds)
            at_rest = await self._rows.move(seen, EnvironmentState.DELETING, is_at_rest=True)
            if at_rest is None:
                return None
            seen = at_rest
        try:
            return seen if self._copies.is_done(seen) else None
        except (OverQuota, Conflict, BadInput) as error:
            await self._outputs.discard(seen.id)
            reason = printable(error.message, limit=400)
            await self._rows.call_off(seen, f"it was not deleted: {reason}; make room, or use --discard-output")
            return None
        except AshoreError as error:
            reason = f"its output waits: {printable(error.message, limit=400)}"
            await self._note(seen, reason)
            raise Conflict(reason) from error  # no Unavailable, which means that the engine is away

    async def _copy_output(self, seen: Environment) -> bool:
        """Bring its output to the store; False: it was given up, because its owner does without it."""
        outputs, compute = self._outputs, self._computes[_place(seen)]
        assert outputs is not None
        handle = await _handle(seen, compute)
        await compute.stop(handle, grace=self._settings.stop_grace_seconds)
        await self._note(await self._rows.load(seen.id) or seen, "")
        lines = _LastLine("keeping its output")
        workspace = await self._rows.workspace_name(seen.workspace_id)
        work = outputs.keep(seen, workspace, compute, handle, lines.set)
        return not await self._while_wished(seen, work, lines, lambda row: bool(outputs.days(row)))

    async def _fail(self, seen: Environment, compute: Compute, reason: str) -> None:
        self._began.pop(seen.id, None)
        await self._guests.drop(seen.id)
        is_at_rest = True
        try:
            await self._give_back(await self._rows.load(seen.id) or seen, compute)
        except AshoreError as error:
            is_at_rest = False  # it keeps its room until its engine can be asked
            log.warning("environment %s failed, and could not be cleared yet: %s", seen.id, error.message)
        await self._rows.move(seen, EnvironmentState.FAILED, reason=reason, is_at_rest=is_at_rest)

    async def _give_back(self, environment: Environment, compute: Compute) -> None:
        """Free what a failed start holds. What its owner stored in earlier runs stays."""
        handle = await _handle(environment, compute)
        if not handle:
            return
        await compute.stop(handle, grace=0)
        if environment.started is None:
            await compute.delete(handle)
            await self._rows.keep_handle(environment.id, "")

    async def _enter(self, environment: Environment, state: EnvironmentState) -> Environment | None:
        # Nothing is written when a step is tried again: a write is a hint, and would wake us before the pause is over.
        return environment if environment.state is state else await self._rows.move(environment, state)

    async def _note(self, environment: Environment, reason: str) -> None:
        if environment.reason != reason:
            await self._rows.note(environment.id, reason=reason)


class _LastLine:
    """The newest progress line; drivers may set it at any rate."""

    def __init__(self, text: str) -> None:
        self.text = text

    def set(self, text: str) -> None:
        self.text = printable(text, limit=200)


def _needs_care(row: Environment, state: State, is_silent: bool, present: frozenset[str]) -> bool:
    """Whether record and engine differ, or the record's reason may be out of date."""
    if row.state is EnvironmentState.FAILED and row.wish is Wish.RUNNING:
        is_left = state is State.RUNNING or (row.started is None and state is State.STOPPED) or row.reserves
        return not is_silent and is_left
    if not settled(row):
        return True
    if row.state is EnvironmentState.RUNNING:
        if is_silent:
            return not row.reason
        return row.reason != lost_words(lost(row.cards, present)) or state is not State.RUNNING
    if is_silent or state is State.STOPPED:
        return False
    return state is State.RUNNING or (bool(row.handle) and row.reason != _REMOVED)


async def _handle(environment: Environment, compute: Compute) -> str:
    """Its handle, also when we were cut off before it could be written down; empty if there is no workload."""
    if environment.handle:
        return environment.handle
    found = await compute.found()
    return next((item.handle for item in found if item.environment_id == environment.id), "")


async def _ask(compute: Compute) -> Sequence[Found]:
    async with asyncio.timeout(_FOUND_SECONDS):
        return await compute.found()


def _place(environment: Environment) -> str:
    return place_of(environment.compute, environment.host)


def away(environment: Environment) -> str:
    """What is said of an environment whose engine cannot be asked."""
    return f"its host {environment.host} does not answer" if environment.host else AWAY


def _time() -> float:
    return asyncio.get_running_loop().time()
