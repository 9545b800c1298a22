"""Copies of versions on one machine, for environments that have them mounted: one for all of them, kept while there
is room.

    <directory>/<version id>/            what its shelf needs: the files themselves, or notes about a volume elsewhere
    <directory>/<version id>/scratch/    while it is not complete
    <directory>/<version id>/state.json  what it is and whether it is complete; touched at each use

A copy of a published version is complete for good; anything else is compared with the store at each start. What no
live environment uses may go, least recently used first. Belongs to the one process that runs the reconcilers. Where
the files are, and how they get there, is `data_shelves`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.compute.contract import Mount, Progress
from backends.data_index import Totals
from backends.data_shelves import Shelf, Wanted, Way, make_folder
from backends.data_sync import Changed, in_thread
from backends.settings import CacheSettings
from storage.audit import AuditTrail, Event
from storage.errors import Conflict, OverQuota, Unavailable
from storage.names import printable

log = logging.getLogger(__name__)
GIB = 1024**3
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PASSES = 3


@dataclass(frozen=True)
class Copy:
    """What `state.json` tells."""

    title: str
    files: int = 0
    bytes: int = 0
    complete: bool = False


@dataclass(frozen=True)
class CacheUse:
    """What all copies of one machine take together."""

    copies: int = 0
    bytes: int = 0
    limit: int = 0
    """Bytes; 0: none."""


def measure(directory: Path, gib: int) -> CacheUse:
    """What the copies below `directory` take; any process may ask, in a thread."""
    names = [path for path in directory.iterdir() if _ID.fullmatch(path.name)] if directory.is_dir() else []
    copies = [copy for path in names if (copy := _read(path)) is not None]
    return CacheUse(len(copies), sum(copy.bytes for copy in copies), gib * GIB)


class DataCache:
    """The copies on `shelf`, with notes below `directory`. `in_use` names the versions that may not go."""

    def __init__(
        self,
        directory: Path,
        shelf: Shelf,
        audit: AuditTrail,
        settings: CacheSettings,
        in_use: Callable[[], Awaitable[Collection[str]]],
    ) -> None:
        self._directory = directory.resolve()
        self._shelf = shelf
        self._audit = audit
        self._settings = settings
        self._in_use = in_use
        self._locks: dict[str, asyncio.Lock] = {}
        self._listeners: dict[str, list[Progress]] = {}
        self._coming: dict[str, int] = {}
        """Copies that are being made → bytes that they may still need."""
        self._room = asyncio.Lock()
        self._slots = asyncio.Semaphore(max(1, settings.parallel))

    async def mount(self, version_id: str, path: str) -> Mount:
        """What an environment sees of a version at `path`."""
        return await in_thread(self._shelf.mount, self._entry(version_id), path)

    async def fetch(self, wanted: Wanted, progress: Progress) -> None:
        """Return when the version is here as the store has it. Cut off, it goes on from there the next time.

        OverQuota: there is no room. BadInput: a file of it cannot exist here. Conflict: it does not keep still.
        Unavailable: the store or the disk fails.
        """
        entry = self._entry(wanted.id)
        async with self._busy(wanted.id, progress):
            known = await in_thread(_read, entry)
            is_whole = known is not None and known.complete and wanted.sealed
            if is_whole and await self._shelf.has(entry):
                await in_thread(os.utime, entry / "state.json")
                return
            self._say(wanted.id, f"{wanted.title}: looking at what is there")
            for attempt in range(1, _PASSES + 1):
                try:
                    await self._sync(entry, wanted)
                    return
                except OSError as error:
                    raise Unavailable(self._shelf.cannot_keep(wanted.title, error.strerror or str(error))) from error
                except Changed:
                    # Somebody is at work on it. A published version does not change, so that is not waited for.
                    if wanted.sealed or attempt == _PASSES:
                        raise
                finally:
                    self._coming.pop(wanted.id, None)

    async def sweep(self, still_there: Callable[[Collection[str]], Awaitable[Collection[str]]]) -> None:
        """Remove copies of versions that are gone, remains of removals, and what is above the limit."""
        names = await in_thread(self._names)
        known = await still_there(names)
        used = await self._in_use()
        for name in names:
            if name not in known and name not in used and name not in self._listeners:
                await self._evict(name, "it was deleted")
        async with self._room:
            with contextlib.suppress(OverQuota):
                await self._free("", Totals(0, 0, 0), "")
        await self._shelf.tidy([self._entry(name) for name in names if name not in self._listeners])

    # ---- making ----------------------------------------------------------------------------------------------
    async def _sync(self, entry: Path, wanted: Wanted) -> None:
        began = time.monotonic()

        async def make_room(totals: Totals) -> None:
            async with self._room:
                await self._free(wanted.id, totals, wanted.title)
                self._coming[wanted.id] = totals.missing
            await in_thread(_write, entry, Copy(wanted.title, totals.files, totals.bytes))

        for folder in (self._directory, entry):
            await in_thread(make_folder, folder)
        way = Way(
            parallel=self._settings.parallel, slots=self._slots, make_room=make_room,
            on_bytes=lambda here, total: self._tell(wanted, here, total), say=lambda line: self._say(wanted.id, line),
        )  # fmt: skip
        totals = await self._shelf.fill(entry, wanted, way)
        if wanted.sealed:
            await in_thread(_write, entry, Copy(wanted.title, totals.files, totals.bytes, complete=True))
            await in_thread(shutil.rmtree, entry / "scratch", True)
        detail: dict[str, object] = {"files": totals.files, "bytes": totals.bytes, "fetched": totals.missing}
        detail |= {"seconds": round(time.monotonic() - began), **self._shelf.detail}
        await self._audit.record(Event("cache.fill", thing=wanted.title, detail=detail))

    def _tell(self, wanted: Wanted, here: int, total: int) -> None:
        self._say(wanted.id, f"{wanted.title} {100 * here // total if total else 100} %")

    def _say(self, version_id: str, line: str) -> None:
        for progress in self._listeners.get(version_id, ()):
            progress(line)

    @contextlib.asynccontextmanager
    async def _busy(self, version_id: str, progress: Progress) -> AsyncIterator[None]:
        """One at a time makes a copy; whoever waits hears how far it is."""
        listeners = self._listeners.setdefault(version_id, [])
        listeners.append(progress)
        try:
            async with self._locks.setdefault(version_id, asyncio.Lock()):
                yield
        finally:
            listeners.remove(progress)
            if not listeners:
                del self._listeners[version_id]
                self._locks.pop(version_id, None)

    # ---- room ------------------------------------------------------------------------------------------------
    async def _free(self, version_id: str, totals: Totals, title: str) -> None:
        """Evict until `totals` fits; OverQuota, and nothing is evicted, if it cannot."""
        copies = await in_thread(self._copies)
        others = {name: copy for name, copy in copies.items() if name != version_id}
        free = await in_thread(self._shelf.free, self._directory)
        short = 0
        if free is not None:
            promised = sum(size for name, size in self._coming.items() if name != version_id)
            short = totals.missing + promised + self._settings.spare_gib * GIB - free
        if self._settings.gib:
            held = sum(copy.bytes for copy in others.values())
            short = max(short, held + totals.bytes - self._settings.gib * GIB)
        if short <= 0:
            return
        used = await self._in_use()
        idle = [name for name in others if name not in used and name not in self._listeners]
        victims: list[str] = []
        for name in idle:  # in the order of their last use
            if sum(others[one].bytes for one in victims) >= short:
                break
            victims.append(name)
        lacking = short - sum(others[one].bytes for one in victims)
        if lacking > 0 and title:
            raise OverQuota(self._shelf.no_room(title, _gib(totals.bytes), _gib(lacking)))
        for name in victims:
            await self._evict(name, "room was needed")

    async def _evict(self, name: str, reason: str) -> None:
        """Unless somebody has begun to use it since it was chosen."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        if lock.locked():
            return
        try:
            async with lock:
                if name not in await self._in_use():
                    await self._remove(name, reason)
        finally:
            if name not in self._listeners:
                self._locks.pop(name, None)

    async def _remove(self, name: str, reason: str) -> None:
        entry = self._directory / name
        copy = await in_thread(_read, entry) or Copy(name)
        gone = self._directory / f".gone-{name}-{time.time_ns()}"
        try:
            await self._shelf.discard(entry)
            await in_thread(entry.rename, gone)  # at once, so that half of it is never taken for a copy
            await in_thread(shutil.rmtree, gone)
        except OSError as error:
            log.warning("the copy of %s cannot be removed: %s", printable(copy.title), error.strerror)
            return
        except Conflict as error:  # an environment over there that no record here speaks of
            log.warning("the copy of %s cannot be removed: %s", printable(copy.title), error.message)
            return
        detail = {"bytes": copy.bytes, "reason": reason, **self._shelf.detail}
        await self._audit.record(Event("cache.evict", thing=copy.title, detail=detail))

    def _names(self) -> list[str]:
        """Every copy, also an incomplete one. Removes what a crash left of removals."""
        if not self._directory.is_dir():
            return []
        for path in self._directory.glob(".gone-*"):
            shutil.rmtree(path, ignore_errors=True)
        return sorted(path.name for path in self._directory.iterdir() if _ID.fullmatch(path.name))

    def _copies(self) -> dict[str, Copy]:
        """Every copy by name, the least recently used first."""
        make_folder(self._directory)
        found: list[tuple[float, str, Copy]] = []
        for name in self._names():
            if (copy := _read(self._directory / name)) is not None:
                with contextlib.suppress(FileNotFoundError):
                    found.append(((self._directory / name / "state.json").stat().st_mtime, name, copy))
        return {name: copy for _, name, copy in sorted(found, key=lambda one: one[:2])}

    def _entry(self, version_id: str) -> Path:
        if not _ID.fullmatch(version_id):
            raise Unavailable("the version that is mounted leads nowhere")
        return self._directory / version_id


def _read(entry: Path) -> Copy | None:
    """None if there is no copy, or one of which nothing is known: it is made anew."""
    try:
        return Copy(**json.loads((entry / "state.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(entry: Path, copy: Copy) -> None:
    draft = entry / ".state.draft"
    with draft.open("w") as file:
        json.dump(asdict(copy), file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(entry / "state.json")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
