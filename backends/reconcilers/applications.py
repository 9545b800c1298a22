"""Sees to it that the applications of running environments run, and writes down how they are.

It only looks and starts: a supervisor inside each environment keeps its programs running, so nothing of them depends
on this loop being there. What is said to the environment is `backends.application_script`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import delete, select

from backends.application_script import SHELL, Seen, Wanted, parse, script
from backends.applications import Applications, ended_words, missing_words
from backends.guest import Guests
from backends.reconcilers.loop import ReconcilerLoop
from storage.accounts import Accounts
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import Conflict, NotFound
from storage.records import Application, ApplicationState, Environment, EnvironmentState, Wish

_GLANCES, _GLANCE_SECONDS = 20, 1.0
"""How often, and how far apart, one that starts is looked at before the next round."""
_ALIVE = (Environment.state == EnvironmentState.RUNNING, Environment.wish == Wish.RUNNING)


class ApplicationReconciler:
    """The loop over environments with applications. One process of a house runs it."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        accounts: Accounts,
        guests: Guests,
        applications: Applications,
        pause: float,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._changes = changes
        self._accounts = accounts
        self._guests = guests
        self._applications = applications
        self._clock = clock
        self._loop = ReconcilerLoop(
            "application", "environment", changes=changes, look=self.look, act=self.act, pause=pause, parallel=64
        )

    async def run(self) -> None:
        """Until cancelled; the programs go on."""
        await self._loop.run()

    async def look(self) -> Sequence[str]:
        """Ids of the running environments that have applications."""
        query = select(Environment.id).join(Application, Application.environment_id == Environment.id)
        async with self._database.reading() as tx:
            return (await tx.scalars(query.where(*_ALIVE).distinct())).all()

    async def act(self, environment_id: str) -> None:
        """Start what does not run, and look until it does, for a while. Unavailable: it does not answer."""
        for _ in range(_GLANCES):
            environment = await self._running(environment_id)
            if environment is None:
                return
            wanted = await self._applications.wanted(environment_id)
            unwanted = await self._applications.unwanted(environment_id)
            if not wanted and not unwanted:
                return
            moment = self._clock()
            try:
                seen = await self._ask(environment, script(wanted, unwanted))
            except (Conflict, NotFound):
                return  # it is being stopped, or is gone, or nobody may be in it any more
            await self._write(environment, wanted, seen, moment)
            await self._forget(environment, seen)
            if not any(one.state is ApplicationState.STARTING for one in seen.values()):
                return
            await asyncio.sleep(_GLANCE_SECONDS)

    async def _running(self, environment_id: str) -> Environment | None:
        async with self._database.reading() as tx:
            return await tx.scalar(select(Environment).where(Environment.id == environment_id, *_ALIVE))

    async def _ask(self, environment: Environment, words: str) -> Mapping[str, Seen]:
        owner = await self._accounts.caller_for(environment.owner_name, connection=f"apps-{environment.id}"[:16])
        return parse(await self._guests.tell_shell(owner, environment, SHELL, words))

    async def _write(
        self, environment: Environment, wanted: Sequence[Wanted], seen: Mapping[str, Seen], moment: datetime
    ) -> None:
        """Only what has changed: everybody who watches environments is told of it."""
        changed = False
        async with self._database.writing() as tx:
            for one in wanted:
                found = seen.get(one.name, Seen(ApplicationState.STARTING))
                row = await tx.get(Application, (environment.id, one.name))
                if row is None or row.state is ApplicationState.ENDING:
                    continue
                reason = _reason(one, found)
                is_news = (row.state, row.reason) != (found.state, reason)
                is_first = row.seen is None or (environment.started is not None and row.seen < environment.started)
                if not (is_news or is_first):
                    continue
                row.state, row.reason, row.seen = found.state, reason, moment
                changed = True
        if changed:
            self._changes.tell("environment", environment.id)

    async def _forget(self, environment: Environment, seen: Mapping[str, Seen]) -> None:
        """Those that have been ended, unless they are wanted again by now."""
        gone = [name for name, one in seen.items() if one.state is ApplicationState.ENDING]
        if not gone:
            return
        ended = (Application.environment_id == environment.id, Application.state == ApplicationState.ENDING)
        async with self._database.writing() as tx:
            await tx.execute(delete(Application).where(*ended, Application.name.in_(gone)))


def _reason(one: Wanted, seen: Seen) -> str:
    if seen.state is ApplicationState.MISSING:
        return missing_words(one)
    if seen.state is ApplicationState.FAILED:
        return ended_words(one, seen.exit_status)
    return ""
