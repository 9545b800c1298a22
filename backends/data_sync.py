"""Brings the files of one version from the object store to a folder of this machine, and goes on where it stopped.

First the whole listing goes into an index; then it is known how much is to come, and that every name can exist here.
Files come in parallel, large ones in pieces, each pinned to the ETag of the listing; they appear under their names
complete, safe on the disk and read only. Memory does not grow with the number or the size of files.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from backends.data_index import FileIndex, Missing, Totals
from storage.errors import AshoreError, BadInput, Conflict, NotFound, Unavailable
from storage.names import printable
from storage.objects.contract import ObjectStore

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_LIBC = ctypes.CDLL(None, use_errno=True)
PIECE = 8 * 1024 * 1024
_SAFE = 64 * 1024 * 1024
"""A large file is made safe, and noted, after so many bytes: that much may have to be fetched again after a crash."""
_BATCH = 200
_AHEAD = 4
"""Pieces of one large file that are on their way at once."""
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class Changed(Conflict):
    """What the listing told holds no longer: list again."""


class Sync:
    """One run over one version. `root` gets the files; `scratch`, on the same disk, what is on its way."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        title: str,
        prefix: str,
        root: Path,
        scratch: Path,
        parallel: int,
        on_bytes: Callable[[int, int], None],
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        """`on_bytes` hears how many bytes are here, and of how many. Runs that share `slots` share their memory: a
        slot holds one piece from the request until it is written."""
        self._store = store
        self._title = title
        self._prefix = prefix
        self._root = root
        self._scratch = scratch
        self._parallel = max(1, parallel)
        self._slots = slots or asyncio.Semaphore(self._parallel)
        self._on_bytes = on_bytes
        self._arrived: list[str] = []
        self._here = self._total = 0

    async def run(self, make_room: Callable[[Totals], Awaitable[None]]) -> Totals:
        """Return when everything is here, and nothing else. `make_room` is asked before the first file comes.

        Changed: the store's content changed meanwhile. BadInput: a file cannot exist here. Unavailable otherwise.
        """
        try:
            index = await in_thread(self._open)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error
        try:
            totals = await self._list(index)
            await make_room(totals)
            await self._remove_superseded(index)
            await self._fetch_all(index, totals)
            await in_thread(_sync_disk, self._root)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error
        finally:
            await in_thread(index.close)
        return totals

    # ---- before the first byte -------------------------------------------------------------------------------
    def _open(self) -> FileIndex:
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o755)
        path = self._scratch / "index.sqlite"
        if path.exists():
            try:
                return FileIndex(path, self._root)
            except sqlite3.Error:
                log.warning("the index of %s cannot be read, it is copied anew", printable(self._title))
        # Without its index nobody knows which files of a former listing are there.
        _empty(self._root)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700, parents=True)
        return FileIndex(path, self._root)

    async def _list(self, index: FileIndex) -> Totals:
        async for page in self._store.list(self._prefix):
            await in_thread(index.note, page, self._prefix, self._title)
        if await in_thread(ignores_case, self._scratch) and (twins := await in_thread(index.twins)):
            shown = " and ".join(f"'{printable(name, limit=80)}'" for name in twins)
            raise BadInput(f"{self._title} holds {shown}, and this machine does not tell upper case from lower case")
        return await in_thread(index.totals)

    async def _remove_superseded(self, index: FileIndex) -> None:
        """Before anything comes: where a file was, there may be a directory now."""
        while paths := await in_thread(index.superseded, _BATCH):
            await in_thread(self._remove, paths)
            await in_thread(index.forget, paths)

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            place = self._root / path
            if not path.endswith("/"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    place.unlink()
            with contextlib.suppress(OSError):  # something else is in it
                for folder in (place, *place.parents) if path.endswith("/") else place.parents:
                    if folder == self._root:
                        break
                    folder.rmdir()

    # ---- the files -------------------------------------------------------------------------------------------
    async def _fetch_all(self, index: FileIndex, totals: Totals) -> None:
        self._here, self._total = totals.bytes - totals.missing, totals.bytes
        self._tell(0)
        queue: asyncio.Queue[Missing | None] = asyncio.Queue(2 * self._parallel)
        workers = [self._work(queue, index) for _ in range(self._parallel)]
        try:
            await all_of(f"files of {self._prefix}", self._fill(queue, index), *workers)
        finally:
            await self._note_arrived(index)

    async def _fill(self, queue: asyncio.Queue[Missing | None], index: FileIndex) -> None:
        after = ""
        while files := await in_thread(index.missing, after, 500):
            for file in files:
                await queue.put(file)
            after = files[-1].path
        for _ in range(self._parallel):
            await queue.put(None)

    async def _work(self, queue: asyncio.Queue[Missing | None], index: FileIndex) -> None:
        while (file := await queue.get()) is not None:
            try:
                if file.path.endswith("/"):
                    await in_thread(self._make_folder, self._root / file.path)
                elif file.size <= PIECE:
                    async with self._slots:
                        await in_thread(self._place, file.path, await self._get(file, 0))
                else:
                    await self._fetch_large(file, index)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                shown = printable(file.path, limit=80)
                raise BadInput(f"{self._title} has a file and a directory of one name, see '{shown}'") from error
            self._arrived.append(file.path)
            if len(self._arrived) >= _BATCH:
                await self._note_arrived(index)

    async def _note_arrived(self, index: FileIndex) -> None:
        paths, self._arrived = self._arrived, []
        await in_thread(index.arrived, paths)

    async def _fetch_large(self, file: Missing, index: FileIndex) -> None:
        draft = self._draft(file.path)
        # Not in a thread: a cancellation would lose the descriptor.
        descriptor, safe = _open_draft(draft, file.part)
        self._here -= file.part - safe
        try:
            async with contextlib.aclosing(self._pieces(file, descriptor, safe)) as pieces:
                async for done in pieces:
                    if done - safe >= _SAFE:
                        await in_thread(os.fsync, descriptor)
                        await in_thread(index.grown, file.path, done)
                        safe = done
            await in_thread(_close_draft, descriptor, file.size)
        finally:
            await in_thread(os.close, descriptor)
        await in_thread(self._put, draft, file.path)

    async def _pieces(self, file: Missing, descriptor: int, start: int) -> AsyncGenerator[int]:
        """Fetch and write from `start`; yields how far it is without a gap."""
        waiting: deque[asyncio.Task[int]] = deque()
        offset = start
        try:
            while offset < file.size or waiting:
                while offset < file.size and len(waiting) < _AHEAD:
                    name = f"piece of {self._prefix}{file.path}"
                    waiting.append(asyncio.create_task(self._piece(file, descriptor, offset), name=name))
                    offset += PIECE
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _piece(self, file: Missing, descriptor: int, offset: int) -> int:
        async with self._slots:
            content = await self._get(file, offset)
            await in_thread(_write_at, descriptor, content, offset)
        return offset + len(content)

    async def _get(self, file: Missing, offset: int) -> bytes:
        content = await get_piece(self._store, self._prefix, file, offset, title=self._title)
        self._tell(len(content))
        return content

    def _tell(self, more: int) -> None:
        self._here += more
        self._on_bytes(self._here, self._total)

    # ---- the disk, in threads --------------------------------------------------------------------------------
    def _draft(self, path: str) -> Path:
        return self._scratch / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.part"

    def _place(self, path: str, content: bytes) -> None:
        draft = self._draft(path)
        descriptor, _ = _open_draft(draft, 0)
        try:
            _write_at(descriptor, content, 0)
            _close_draft(descriptor, len(content))
        finally:
            os.close(descriptor)
        self._put(draft, path)

    def _put(self, draft: Path, path: str) -> None:
        self._make_folder((self._root / path).parent)
        draft.rename(self._root / path)

    def _make_folder(self, folder: Path) -> None:
        if folder == self._root or folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # whatever the umask is: people inside are somebody else

    def _trouble(self, error: OSError | sqlite3.Error) -> AshoreError:
        reason = error.strerror if isinstance(error, OSError) else None
        return Unavailable(f"{self._title} cannot be kept on this machine: {reason or error}")


async def get_piece(store: ObjectStore, prefix: str, file: Missing, offset: int, *, title: str) -> bytes:
    """The piece of `file` that begins at `offset`. Changed: it is another file by now. Unavailable: no way to it."""
    size = min(PIECE, file.size - offset)
    if size == 0:
        return b""
    for pause in (*_PAUSES, None):
        try:
            content = await store.get(prefix + file.path, offset=offset, size=size, etag=file.etag)
            if len(content) != size:
                raise Unavailable("the object store sent less than it has")
            return content
        except (NotFound, Conflict) as error:
            shown = printable(file.path, limit=80)
            raise Changed(f"{title} was changed while it was copied ('{shown}')") from error
        except Unavailable:
            if pause is None:
                raise
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def _empty(folder: Path) -> None:
    """The folder itself stays: environments may have it mounted."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _open_draft(path: Path, part: int) -> tuple[int, int]:
    """An open file whose first bytes are what is safe of `part`, and how many these are."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < part:
            part = 0
        os.ftruncate(descriptor, part)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, part


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _close_draft(descriptor: int, size: int) -> None:
    """Safe, whole and read only."""
    if os.fstat(descriptor).st_size != size:
        raise OSError(0, "a file did not get the size that it should have")
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)


def _sync_disk(folder: Path) -> None:
    """Everything on the disk of `folder` is safe, names and directories included."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def ignores_case(folder: Path) -> bool:
    """Whether `folder` takes `A` and `a` for one name."""
    (folder / ".Case").touch()
    return (folder / ".case").exists()


async def in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """`asyncio.to_thread` that does not come back before the thread is done, also when it is cancelled: descriptors
    and files are still in use until then."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody's error any more
        raise


async def all_of(name: str, *works: Coroutine[None, None, None]) -> None:
    """Run them side by side; the first error ends all of them, and is raised when they have ended."""
    tasks = [asyncio.create_task(work, name=name) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error
