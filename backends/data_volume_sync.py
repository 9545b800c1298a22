"""Brings the files of one version from the object store into a volume elsewhere, and goes on where it stopped.

As `data_sync` does for folders: first the listing goes into an index, then what is missing or was changed travels,
here as archives through the engine. Nothing is written to this machine's disk but the index. What the engine has taken
counts once it is safe on its disk, which is asked for now and then: that much is sent again after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tarfile
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from backends.compute.volumes import VolumeWriter
from backends.data_index import FileIndex, Missing, Totals
from backends.data_sync import PIECE, get_piece, in_thread
from storage.errors import BadInput
from storage.names import printable
from storage.objects.contract import ObjectStore

_MOST_FILES = 500
_MOST_BYTES = 64 * 1024 * 1024
"""Of one archive; a file that is larger has one of its own."""
_SAFE_FILES, _SAFE_BYTES = 20_000, 512 * 1024 * 1024
"""After so much the disk over there is flushed, which takes a second or so."""
_REMOVALS = 500


class VolumeSync:
    """One run over one version. `index` is the file that remembers what the volume holds."""

    class Unreadable(Exception):
        """The index cannot be read: nobody knows what the volume holds."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        title: str,
        prefix: str,
        index: Path,
        parallel: int,
        slots: asyncio.Semaphore,
        on_bytes: Callable[[int, int], None],
    ) -> None:
        """`slots`: each holds one piece from the request until it has been sent on."""
        self._store = store
        self._title = title
        self._prefix = prefix
        self._path = index
        self._parallel = max(1, parallel)
        self._slots = slots
        self._on_bytes = on_bytes
        self._here = self._total = 0

    async def run(
        self,
        open_volume: Callable[[], AbstractAsyncContextManager[VolumeWriter]],
        make_room: Callable[[Totals], Awaitable[None]],
    ) -> Totals:
        """Return when everything is there, and nothing else. `make_room` is asked before the volume is opened.

        Changed: the store's content changed meanwhile. BadInput: a file cannot exist there. sqlite3.Error: the
        index cannot be kept. Unavailable otherwise.
        """
        try:
            index = await in_thread(FileIndex, self._path, None)
        except sqlite3.Error as error:
            raise self.Unreadable from error
        try:
            totals = await self._list(index)
            await make_room(totals)
            self._here, self._total = totals.bytes - totals.missing, totals.bytes
            self._on_bytes(self._here, self._total)
            async with open_volume() as volume:
                await self._remove_superseded(index, volume)
                await self._send_missing(index, volume)
        finally:
            await in_thread(index.close)
        return totals

    async def _list(self, index: FileIndex) -> Totals:
        async for page in self._store.list(self._prefix):
            await in_thread(index.note, page, self._prefix, self._title)
        if name := await in_thread(index.clash):
            shown = printable(name, limit=80)
            raise BadInput(f"{self._title} has a file and a directory of one name, see '{shown}'")
        return await in_thread(index.totals)

    async def _remove_superseded(self, index: FileIndex, volume: VolumeWriter) -> None:
        """Before anything comes: where a file was, there may be a directory now."""
        while paths := await in_thread(index.superseded, _REMOVALS):
            await volume.remove(paths)
            await in_thread(index.forget, paths)

    async def _send_missing(self, index: FileIndex, volume: VolumeWriter) -> None:
        after, unsafe, size = "", list[str](), 0
        while found := await in_thread(index.missing, after, _MOST_FILES):
            files = list(_first(found))
            await volume.put(self._archive(files))
            after = files[-1].path
            unsafe += [file.path for file in files]
            size += sum(file.size for file in files)
            if len(unsafe) >= _SAFE_FILES or size >= _SAFE_BYTES:
                await volume.settle()
                await in_thread(index.arrived, unsafe)
                unsafe, size = [], 0
        await volume.settle()
        await in_thread(index.arrived, unsafe)

    async def _archive(self, files: Sequence[Missing]) -> AsyncGenerator[bytes]:
        """`files` as tar, read only, with the directories that they are in."""
        folders: set[str] = set()
        async with contextlib.aclosing(self._pieces(files)) as pieces:
            for file in files:
                for folder in _folders_of(file.path):
                    if folder not in folders:
                        folders.add(folder)
                        yield _header(folder, is_folder=True)
                if file.path.endswith("/"):
                    continue
                yield _header(file.path, file.size)
                left = file.size
                while left:
                    piece = await anext(pieces)
                    yield piece
                    left -= len(piece)
                    self._here += len(piece)
                    self._on_bytes(self._here, self._total)
                if padding := -file.size % tarfile.BLOCKSIZE:
                    yield bytes(padding)
        yield bytes(2 * tarfile.BLOCKSIZE)

    async def _pieces(self, files: Sequence[Missing]) -> AsyncGenerator[bytes]:
        """The contents of all files, one after the other; the next ones are on their way meanwhile."""
        coming = ((file, offset) for file in files for offset in range(0, file.size, PIECE))
        waiting: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                while len(waiting) < self._parallel and (next_one := next(coming, None)) is not None:
                    waiting.append(asyncio.create_task(self._piece(*next_one), name=f"piece of {self._prefix}"))
                if not waiting:
                    return
                piece = await waiting[0]
                try:
                    yield piece
                finally:
                    waiting.popleft()
                    self._slots.release()
        finally:
            for task in waiting:
                task.cancel()
            for ended in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(ended, bytes):
                    self._slots.release()

    async def _piece(self, file: Missing, offset: int) -> bytes:
        """With a slot, which whoever takes the piece gives back."""
        await self._slots.acquire()
        try:
            return await get_piece(self._store, self._prefix, file, offset, title=self._title)
        except BaseException:
            self._slots.release()
            raise


def _first(files: Sequence[Missing]) -> Iterator[Missing]:
    """As many as one archive takes, one at least."""
    size = 0
    for number, file in enumerate(files):
        size += file.size
        if number and size > _MOST_BYTES:
            return
        yield file


def _folders_of(path: str) -> Iterator[str]:
    """`a/`, `a/b/` of `a/b/c`; of a directory itself too."""
    at = path.find("/")
    while at >= 0:
        yield path[: at + 1]
        at = path.find("/", at + 1)


def _header(path: str, size: int = 0, *, is_folder: bool = False) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
    entry.size, entry.mode, entry.mtime = size, 0o755 if is_folder else 0o444, int(time.time())
    entry.uname = entry.gname = "root"
    return entry.tobuf(tarfile.PAX_FORMAT)
