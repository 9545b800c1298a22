"""Lines in open terminals: that their environment will be stopped, that it is now, or that it will not after all.

Each process tells its own terminals; what to tell is in the database, so it does not matter which process decided it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from backends.activity import TOPIC
from backends.services import Services
from storage.errors import AshoreError

log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0


@dataclass(eq=False)
class _Terminal:
    environment_id: str
    name: str
    say: Callable[[str], None]
    is_warned: bool = False


class Notices:
    """The open terminals of this process."""

    def __init__(self) -> None:
        self._terminals: set[_Terminal] = set()
        self._arrived = asyncio.Event()

    @contextmanager
    def terminal(self, environment_id: str, name: str, say: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, `say` shows one line on a terminal in that environment."""
        terminal = _Terminal(environment_id, name, say)
        self._terminals.add(terminal)
        self._arrived.set()
        try:
            yield
        finally:
            self._terminals.discard(terminal)

    async def run(self, services: Services) -> None:
        """Until cancelled."""
        with services.changes.subscribe(TOPIC) as hints:
            while True:
                # Cleared first: what comes during the look is seen by the next one.
                self._arrived.clear()
                while not hints.empty():
                    hints.get_nowait()
                try:
                    await self.look(services)
                except AshoreError as error:
                    log.warning("what people should be told is not known: %s", error.message)
                except Exception:  # the wall of this loop: warnings come late, and sessions go on
                    log.exception("what people should be told is not known")
                waits = [asyncio.create_task(hints.get()), asyncio.create_task(self._arrived.wait())]
                try:
                    await asyncio.wait(waits, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                    await asyncio.gather(*waits, return_exceptions=True)

    async def look(self, services: Services) -> None:
        """Tell every terminal what is new for it."""
        terminals = tuple(self._terminals)
        environments = sorted({terminal.environment_id for terminal in terminals})
        warnings = await services.environments.warnings(environments)
        services.environments.activity.watch(frozenset(warnings))
        # A warning ends with a sign of life, or because its time has come.
        over = [one.environment_id for one in terminals if one.is_warned and one.environment_id not in warnings]
        farewells = await services.environments.farewells(over)
        for terminal in terminals:
            warning = warnings.get(terminal.environment_id)
            if warning is not None and not terminal.is_warned:
                terminal.say(f"ashore: {warning}")
            elif warning is None and terminal.is_warned:
                withdrawn = f"{terminal.name} goes on running: the warning is withdrawn."
                terminal.say(f"ashore: {farewells.get(terminal.environment_id, withdrawn)}")
            terminal.is_warned = warning is not None
