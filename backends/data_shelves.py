"""Where copies of versions are: a folder of this machine, or a volume of an engine that does not see it.

    <entry>/files/             a folder: what environments see, read only
    <entry>/volume             a volume: its name; written before it is made, so that none is forgotten
    <entry>/scratch/           while it is on its way: the index of what has arrived

Which copies are kept, and for how long, is `data_cache`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backends.compute.contract import HostMount, Mount, Progress, VolumeMount
from backends.compute.volumes import HasVolumes
from backends.data_index import Totals
from backends.data_sync import Sync, in_thread
from backends.data_volume_sync import VolumeSync
from storage.errors import AshoreError, Unavailable
from storage.objects.contract import ObjectStore


@dataclass(frozen=True)
class Wanted:
    """A version whose files are to be there. `title` is for people: `data mnist:v1`."""

    id: str
    title: str
    prefix: str
    sealed: bool
    """Published: once it is complete, nothing changes any more."""


@dataclass(frozen=True)
class Way:
    """How files travel: how many requests at once, and who hears of it."""

    parallel: int
    slots: asyncio.Semaphore
    make_room: Callable[[Totals], Awaitable[None]]
    on_bytes: Callable[[int, int], None]
    say: Progress


class Shelf(Protocol):
    """Where the files of copies are. `entry` is a copy's own folder on this machine."""

    detail: Mapping[str, str]
    """What the audit trail tells of it besides."""

    async def has(self, entry: Path) -> bool:
        """Whether a copy that was whole is still there."""
        ...

    async def fill(self, entry: Path, wanted: Wanted, way: Way) -> Totals:
        """Bring the files. Cut off, it goes on from there the next time. See `data_sync.Sync.run` for errors."""
        ...

    async def discard(self, entry: Path) -> None:
        """Remove what is outside of `entry`, which is removed then. Conflict: it is in use after all."""
        ...

    async def tidy(self, entries: Collection[Path]) -> None:
        """Remove what a crash left of fills for these copies, none of which is being filled."""
        ...

    def mount(self, entry: Path, path: str) -> Mount:
        """Unavailable: there is none. In a thread."""
        ...

    def free(self, directory: Path) -> int | None:
        """Bytes that the disk has left, if that can be known. In a thread."""
        ...

    def no_room(self, title: str, size: str, lacking: str) -> str:
        """The sentence for people; `size` and `lacking` in GiB."""
        ...

    def cannot_keep(self, title: str, reason: str) -> str:
        """The sentence for people."""
        ...


class FolderShelf:
    """Folders of this machine."""

    detail: Mapping[str, str] = {}

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def has(self, entry: Path) -> bool:
        return True

    async def fill(self, entry: Path, wanted: Wanted, way: Way) -> Totals:
        sync = Sync(
            self._store, title=wanted.title, prefix=wanted.prefix, root=entry / "files", scratch=entry / "scratch",
            parallel=way.parallel, slots=way.slots, on_bytes=way.on_bytes,
        )  # fmt: skip
        return await sync.run(way.make_room)

    async def discard(self, entry: Path) -> None:
        return

    async def tidy(self, entries: Collection[Path]) -> None:
        return

    def mount(self, entry: Path, path: str) -> Mount:
        return HostMount(entry / "files", path)

    def free(self, directory: Path) -> int | None:
        return shutil.disk_usage(directory).free

    def no_room(self, title: str, size: str, lacking: str) -> str:
        return (
            f"there is no room for {title} on this machine: it has {size} GiB, {lacking} GiB too much;"
            " delete environments that hold other data, or ask the operator"
        )

    def cannot_keep(self, title: str, reason: str) -> str:
        return f"{title} cannot be kept on this machine: {reason}"


class VolumeShelf:
    """Volumes of an engine on another machine. What has arrived is noted here; the volume itself cannot be asked."""

    def __init__(self, store: ObjectStore, engine: HasVolumes, host: str) -> None:
        self._store = store
        self._engine = engine
        self._host = host
        self.detail: Mapping[str, str] = {"host": host}

    async def has(self, entry: Path) -> bool:
        name = await in_thread(_name_of, entry)
        return bool(name) and await self._engine.has_volume(name)

    async def fill(self, entry: Path, wanted: Wanted, way: Way) -> Totals:
        scratch = entry / "scratch"
        name = await in_thread(_name_of, entry)
        if not name or not (scratch / "index.sqlite").exists() or not await self._engine.has_volume(name):
            name = await self._begin_anew(entry, name)
        sync = VolumeSync(
            self._store, title=wanted.title, prefix=wanted.prefix, index=scratch / "index.sqlite",
            parallel=way.parallel, slots=way.slots, on_bytes=way.on_bytes,
        )  # fmt: skip
        try:
            return await sync.run(lambda: self._engine.volume_writer(name, way.say), way.make_room)
        except sync.Unreadable as error:
            await in_thread(shutil.rmtree, scratch, True)
            raise Unavailable(self.cannot_keep(wanted.title, "what is noted about it cannot be read")) from error
        except sqlite3.Error as error:
            raise Unavailable(self.cannot_keep(wanted.title, str(error))) from error

    async def discard(self, entry: Path) -> None:
        if name := await in_thread(_name_of, entry):
            await self._engine.delete_volume(name)

    async def tidy(self, entries: Collection[Path]) -> None:
        names = [await in_thread(_name_of, entry) for entry in entries]
        await self._engine.clear_helpers([*filter(None, names), "look"])

    def mount(self, entry: Path, path: str) -> Mount:
        if not (name := _name_of(entry)):
            raise Unavailable("the data that are mounted are not there")
        return VolumeMount(name, path)

    def free(self, directory: Path) -> int | None:
        return None

    def no_room(self, title: str, size: str, lacking: str) -> str:
        return (
            f"there is no room for {title} on the host {self._host}: it has {size} GiB, {lacking} GiB too much;"
            " delete environments that hold other data, or ask the operator"
        )

    def cannot_keep(self, title: str, reason: str) -> str:
        return f"{title} cannot be kept on the host {self._host}: {reason}"

    async def _begin_anew(self, entry: Path, former: str) -> str:
        """A volume with another name: nobody knows what the former one holds, and environments may have it mounted."""
        if former:
            # Best effort: whoever has it mounted goes on with it, and an operator finds it by its label.
            with contextlib.suppress(AshoreError):
                await self._engine.delete_volume(former)
        name = f"ashore-data-{entry.name}-{secrets.token_hex(3)}"
        await in_thread(_note_name, entry, name)
        return name


def make_folder(folder: Path) -> None:
    """With its parent, and for nobody else: each environment gets its part bound into it."""
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)


def _name_of(entry: Path) -> str:
    try:
        return (entry / "volume").read_text().strip()
    except OSError:
        return ""


def _note_name(entry: Path, name: str) -> None:
    shutil.rmtree(entry / "scratch", ignore_errors=True)
    make_folder(entry / "scratch")
    draft = entry / ".volume.draft"
    draft.write_text(name)
    draft.rename(entry / "volume")
