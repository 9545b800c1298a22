"""Builds what people asked for, a few at once, in the order of their asking.

A build is cancelled, or too late, or its gateway ends: then the call to the builder is cancelled, and nothing of it
runs when that returns. One that a restart cut off is begun anew, as finished layers come from the cache; one that is
cut off again and again has failed. One process of a house runs this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress

from sqlalchemy import delete, select, update

from backends.build_log import STARTED_SECONDS, LogWriter
from backends.builders.contract import LABEL, Builder, Order, StepFailed
from backends.builds import LOG_TOPIC, OPEN, TOPIC, Builds
from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import Recipe, recipe
from backends.images import ImageFacts, Images
from backends.reconcilers.loop import ReconcilerLoop
from backends.registry import Registry
from backends.registry_gate import WAITS, PushGate
from backends.settings import BuildSettings
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError, TimedOut, Unavailable
from storage.records import Build, BuildState, Environment, Image

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
_STATE_SECONDS = 5.0
_HINT_SECONDS = 0.1
_MOST_ATTEMPTS = 3
_PRUNE = "prune"
"""What the loop does among the builds, once in so many seconds."""
_PRUNE_SECONDS = 86400.0
_PRUNE_MOST_SECONDS = 1800.0
"""How long builds may have to wait for it."""
_MIB = 1024 * 1024
_CUT_OFF = "the gateway was restarted while it was built, several times"


class _Ended(Exception):
    """Somebody cancelled the build while it ran."""


class BuildReconciler:
    """The loop over builds. `registry` tells what was pushed; without one, only its digest is known."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        images: Images,
        builds: Builds,
        builder: Builder,
        settings: BuildSettings,
        registry: Registry | None = None,
        clock: Clock = now,
        gate: PushGate | None = None,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._images = images
        self._builds = builds
        self._builder = builder
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._pushes = gate or PushGate()
        self._gate = asyncio.Lock()
        self._working = 0
        self._loop = ReconcilerLoop(
            "builds", TOPIC, changes=changes, look=self._waiting, act=self.act, pause=_LOOK_SECONDS,
            parallel=settings.parallel,
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled; what is being built then is stopped, and begun anew by the next process."""
        try:
            await self._builder.recover()
        except (AshoreError, OSError) as error:
            log.warning("what builds before this start have left is not cleared away: %s", error)
        try:
            await self._loop.run()
        finally:
            await self._builder.close()

    async def act(self, build_id: str) -> None:
        """Bring one build to its end, or remove old layers."""
        if build_id == _PRUNE:
            await self._prune()
            return
        row = await self._begin(build_id)
        if row is None:
            return
        async with self._gate:
            self._working += 1
        try:
            await self._make(row)
        finally:
            self._working -= 1
        await self._forget_old(row)

    async def _make(self, row: Build) -> None:
        made = await asyncio.to_thread(_recipe, row, self._images.reachable(row.reference))
        try:
            failure = await self._logged(row, made)
        except OSError as error:  # a full disk: tried again and again, it would be fuller
            failure = Unavailable(f"what the build needs on the gateway's disk cannot be written: {_words(error)}")
        if failure is not None:
            await self._fail(row, failure, made)

    async def _logged(self, row: Build, made: Recipe) -> AshoreError | None:
        most = self._settings.log_mib * _MIB
        hints = _Hints(self._changes, row.id)
        with LogWriter(self._builds.log_path(row.id), most=most, told=hints.tell) as writer:
            if row.attempts > 1:
                writer.say("the gateway was restarted: the build begins anew")
            if row.attempts > _MOST_ATTEMPTS:
                failure: AshoreError | None = TimedOut(_CUT_OFF)
            else:
                showing = asyncio.create_task(_show_started(writer), name=f"started lines of build {row.id}")
                try:
                    failure = await self._tried(row, made, writer)
                finally:
                    showing.cancel()
                    await asyncio.gather(showing, return_exceptions=True)
            if failure is not None:
                writer.say(_sentence(failure, made), colour="31")
        return failure

    async def _tried(self, row: Build, made: Recipe, writer: LogWriter) -> AshoreError | None:
        try:
            async with asyncio.timeout(self._settings.timeout_minutes * 60):
                await self._unless_ended(row, self._build(row, made, writer))
        except TimeoutError:
            return TimedOut(f"it took longer than {self._settings.timeout_minutes:g} minutes")
        except _Ended:
            writer.say("cancelled")
        except AshoreError as error:
            return error
        return None

    async def _build(self, row: Build, made: Recipe, writer: LogWriter) -> None:
        order = Order(row.id, made, self._images.reachable(row.target))
        image = await self._builder.build(order, writer.write)
        if not await self._move(row, BuildState.PUSHING):
            raise _Ended

        async def waits() -> None:
            writer.say(WAITS)

        async with self._pushes.pushing(waits):
            writer.say("pushing the image")
            digest = await self._builder.push(order, image, writer.write)
        facts = await self._facts(row, digest)
        writer.say(f"pushed as {digest}", colour="32")
        await self._succeed(row, facts)

    async def _unless_ended(self, row: Build, work: Coroutine[None, None, None]) -> None:
        """Do the work, and stop it as soon as somebody has ended the build."""
        working = asyncio.create_task(work, name=f"build {row.id}")
        watching = asyncio.create_task(self._ended(row.id), name=f"watch over build {row.id}")
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _Ended
            working.result()
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _ended(self, build_id: str) -> None:
        """Return when the build is over although it runs."""
        with self._changes.subscribe(TOPIC) as hints:
            while True:
                async with self._database.reading() as tx:
                    state = await tx.scalar(select(Build.state).where(Build.id == build_id))
                if state is None or state.is_over:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STATE_SECONDS):
                        while (await hints.get()).key not in ("", build_id):
                            pass

    # ---- rows ------------------------------------------------------------------------------------------------
    async def _waiting(self) -> list[str]:
        async with self._database.reading() as tx:
            query = select(Build.id).where(Build.state.in_(OPEN)).order_by(Build.created, Build.id)
            found = list(await tx.scalars(query))
        return [*found, _PRUNE] if self._prune_is_due() else found

    async def _begin(self, build_id: str) -> Build | None:
        async with self._database.writing() as tx:
            row: Build | None = await tx.scalar(
                update(Build)
                .where(Build.id == build_id, Build.state.in_(OPEN))
                .values(state=BuildState.BUILDING, started=self._clock(), attempts=Build.attempts + 1)
                .returning(Build)
            )
        if row is not None:
            self._changes.tell(LOG_TOPIC, build_id)
        return row

    async def _move(self, row: Build, state: BuildState) -> bool:
        """False if somebody has ended it."""
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Build).where(Build.id == row.id, Build.state.in_(OPEN)).values(state=state).returning(Build.id)
            )
            moved = changed.scalar_one_or_none() is not None
        self._changes.tell(LOG_TOPIC, row.id)
        return moved

    async def _succeed(self, row: Build, facts: ImageFacts) -> None:
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Build)
                .where(Build.id == row.id, Build.state.in_(OPEN))
                .values(state=BuildState.SUCCESS, digest=facts.digest, size=facts.size, finished=self._clock())
                .returning(Build.id)
            )
            if changed.scalar_one_or_none() is None:
                raise _Ended
            await self._images.finish(tx, row.image_id, facts)
            await self._audit.add(tx, _event(row, BuildState.SUCCESS, digest=facts.digest))
        self._told(row)

    async def _fail(self, row: Build, error: AshoreError, made: Recipe) -> None:
        step = error.step if isinstance(error, StepFailed) else 0
        line = made.lines[step - 1] if 0 < step <= len(made.lines) else 0
        reason = _sentence(error, made)
        async with self._database.writing() as tx:
            changed = await tx.execute(
                update(Build)
                .where(Build.id == row.id, Build.state.in_(OPEN))
                .values(
                    state=BuildState.FAILED, reason=reason, failed_step=step, failed_line=line, finished=self._clock()
                )
                .returning(Build.id)
            )
            if changed.scalar_one_or_none() is None:
                return
            await self._images.fail(tx, row.image_id, f"build {row.number}: {reason}")
            await self._audit.add(tx, _event(row, BuildState.FAILED, reason=reason))
        self._told(row)

    def _told(self, row: Build) -> None:
        self._images.tell(row.image_id)
        self._changes.tell(TOPIC, row.id)

    # ---- afterwards ------------------------------------------------------------------------------------------
    async def _facts(self, row: Build, digest: str) -> ImageFacts:
        if self._registry is None:
            return ImageFacts(digest)
        repository = "/".join(row.target.rpartition(":")[0].split("/")[-3:])
        manifest = (await self._registry.manifest(repository, digest)).facts
        config = json.loads(await self._registry.blob(repository, manifest["config"]["digest"]))
        return facts_of(digest, manifest, config)

    async def _forget_old(self, row: Build) -> None:
        """Keep the newest builds of a name; of older ones the log goes first, so that none is left without a row."""
        async with self._database.reading() as tx:
            query = (
                select(Build.id)
                .where(Build.workspace_id == row.workspace_id, Build.owner_id == row.owner_id, Build.name == row.name)
                .where(Build.state.not_in(OPEN))
                .order_by(Build.number.desc())
                .offset(self._settings.history)
            )
            old = list(await tx.scalars(query))
        for build_id in old:
            self._builds.log_path(build_id).unlink(missing_ok=True)
        if old:
            async with self._database.writing() as tx:
                await tx.execute(delete(Build).where(Build.id.in_(old)))

    def _prune_is_due(self) -> bool:
        """Told by a file, so that a restart does not put it off, nor does a clock that was set back."""
        try:
            age = time.time() - self._builds.pruned_path.stat().st_mtime
        except FileNotFoundError:
            return True
        return not 0 <= age < _PRUNE_SECONDS

    async def _prune(self) -> None:
        """Once a day, when nothing is built; the loop comes back until it is done."""
        async with self._gate:
            if self._working or not self._prune_is_due():
                return
            keep = await self._wanted()
            try:
                async with asyncio.timeout(_PRUNE_MOST_SECONDS):
                    removed = await self._builder.prune(days=self._settings.cache_days, keep=keep)
                log.info("%s old layers removed from the builder", removed)
            except TimeoutError:  # what it ran has ended with it; tomorrow again, as builds wait
                log.warning("the builder could not remove old layers within %g s", _PRUNE_MOST_SECONDS)
            path = self._builds.pruned_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    async def _wanted(self) -> frozenset[str]:
        """Digests of what the catalogue has, and of what environments were made from."""
        async with self._database.reading() as tx:
            found = {*await tx.scalars(select(Image.digest)), *await tx.scalars(select(Environment.image_digest))}
        return frozenset(found - {""})


def _words(error: OSError) -> str:
    """Without the path, which is nobody's business."""
    return error.strerror or type(error).__name__


def _recipe(row: Build, base: str) -> Recipe:
    """In a thread: of a large text it takes a second."""
    return recipe(parse(row.dockerfile), base, {LABEL: "1"})


def facts_of(digest: str, manifest: Mapping[str, object], config: Mapping[str, object]) -> ImageFacts:
    """What a manifest and the configuration that it names tell. CUDA images say by variables what they need."""
    layers = manifest.get("layers")
    sizes = (
        [int(layer.get("size", 0)) for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    )
    inner = config.get("config")
    lines = inner.get("Env") if isinstance(inner, dict) else None
    variables = dict(str(line).split("=", 1) for line in lines or () if "=" in str(line))
    needs = [word for word in variables.get("NVIDIA_REQUIRE_CUDA", "").split() if word.startswith("driver")]
    return ImageFacts(
        digest, sum(sizes), str(config.get("architecture", ""))[:32], variables.get("CUDA_VERSION", "")[:32],
        needs[0].removeprefix("driver")[:64] if needs else "",
    )  # fmt: skip


async def _show_started(writer: LogWriter) -> None:
    """Until cancelled. A full disk is met by whoever writes next."""
    while True:
        await asyncio.sleep(STARTED_SECONDS / 2)
        with suppress(OSError):
            writer.show_started()


class _Hints:
    """Tells of a longer log, but not of every line of it."""

    def __init__(self, changes: Changes, build_id: str) -> None:
        self._changes = changes
        self._id = build_id
        self._next = 0.0
        self._later: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        loop = asyncio.get_running_loop()
        if self._later is not None:
            return
        if loop.time() >= self._next:
            self._now()
        else:
            self._later = loop.call_at(self._next, self._now)

    def _now(self) -> None:
        self._later = None
        self._next = asyncio.get_running_loop().time() + _HINT_SECONDS
        self._changes.tell(LOG_TOPIC, self._id)


def _sentence(error: AshoreError, made: Recipe) -> str:
    if not isinstance(error, StepFailed) or not 0 < error.step <= len(made.lines):
        return error.message
    steps, line = len(made.lines), made.lines[error.step - 1]
    if line:
        return f"step {error.step} of {steps} (line {line}) failed: {error.message}"
    return f"step {error.step} of {steps} failed: {error.message}"


def _event(row: Build, state: BuildState, **detail: object) -> Event:
    outcome = "ok" if state is BuildState.SUCCESS else "failed"
    facts = {"build": row.id, "number": row.number, **detail}
    return Event(f"build.{state.value}", outcome, row.owner_name, row.title, detail=facts)
