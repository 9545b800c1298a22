"""One open file inside an environment: reads run ahead, writes are under way together.

A new file is written under a name of its own beside its place and moved there at the end, so what is half written is
never taken for the file. What a lost connection left is kept as `.<name>.ashore-part` and can be gone on with.
"""

from __future__ import annotations

import asyncio
import heapq
import posixpath
import stat as modes
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from secrets import token_hex

import asyncssh

from storage.errors import AlreadyExists, AshoreError, BadInput, Conflict, NotAllowed, NotFound, Unavailable
from storage.names import printable
from storage.tree import Node

BLOCK = 255 * 1024
"""Bytes of one request: the most that OpenSSH's SFTP server takes; asyncssh splits what is longer."""
_AHEAD = 8
_UNDER_WAY = 16
_WINDOW = 64 * 1024 * 1024
_PART = ".ashore-part"


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Foreign errors about `path` (as people see it) as `storage.errors`."""
    try:
        yield
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
        raise NotFound(f"there is no '{path}'") from error
    except asyncssh.SFTPPermissionDenied as error:
        raise NotAllowed(f"the environment does not let you touch '{path}'") from error
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
        raise Unavailable("the connection into the environment was lost") from error
    except asyncssh.SFTPError as error:
        reason = printable(error.reason, limit=200)
        raise Conflict(f"the environment refused '{path}': {reason or 'no reason given'}") from error
    except (asyncssh.Error, OSError, ValueError) as error:
        # asyncssh raises ValueError for a file whose session has ended.
        raise Unavailable("the connection into the environment was lost") from error


def node_of(name: str, attrs: asyncssh.SFTPAttrs) -> Node:
    permissions = attrs.permissions or 0
    directory = modes.S_ISDIR(permissions)
    return Node(
        name,
        is_directory=directory,
        size=0 if directory else attrs.size or 0,
        mtime=int(attrs.mtime or 0),
        mode=permissions & 0o777,
        owner=_owner(attrs),
    )


def _owner(attrs: asyncssh.SFTPAttrs) -> str:
    return str(attrs.uid) if attrs.uid is not None else "?"


def parked(path: bytes) -> bytes:
    """Where the beginning of `path` lies that a lost connection left."""
    return posixpath.join(posixpath.dirname(path), b"." + posixpath.basename(path) + _PART.encode())


def fresh(path: bytes) -> bytes:
    """A name beside `path` that no other writer has."""
    mark = f".{token_hex(4)}{_PART}".encode()
    return posixpath.join(posixpath.dirname(path), b"." + posixpath.basename(path) + mark)


@dataclass(frozen=True)
class Destination:
    """Where a file goes, as the environment names it, and as people do."""

    client: asyncssh.SFTPClient
    path: bytes
    shown: str
    exclusive: bool = False
    mode: int | None = None
    """Permissions of the file that is replaced."""


class RemoteReader:
    """An open file of an environment; a `storage.tree.Reader`."""

    def __init__(
        self,
        file: asyncssh.SFTPClientFile,
        node: Node,
        shown: str,
        release: Callable[[], None],
        count: Callable[[int], None],
    ) -> None:
        """`count` is told how many bytes pass."""
        self.node = node
        self._count = count
        self._file = file
        self._shown = shown
        self._release = release
        self._next = 0
        self._ahead: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        self._rest = b""

    async def read(self, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        if offset != self._next:
            await self._drop()
            self._next = offset + size
            data = await self._fetch(offset, size)
            self._next = offset + len(data)
            return data
        pieces, missing = [], size
        while missing > 0:
            block = self._rest or await self._block()
            if not block:
                break
            pieces.append(block[:missing])
            self._rest = block[missing:]
            missing -= len(pieces[-1])
            self._next += len(pieces[-1])
        if missing:
            # At the end: what was asked for beyond may be there by the next read, if somebody writes the file.
            await self._drop()
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    async def close(self) -> None:
        try:
            await self._drop()
            with translated(self._shown):
                await self._file.close()
        finally:
            self._release()

    async def _block(self) -> bytes:
        """The next block in order; keeps the requests behind it under way."""
        if self._ahead and self._ahead[0][0] != self._next:
            # A read failed or was given up: what is under way is no longer what comes next.
            await self._drop()
        start = self._ahead[-1][0] + BLOCK if self._ahead else self._next
        while len(self._ahead) < _AHEAD and (start < self.node.size or not self._ahead):
            task = asyncio.create_task(self._fetch(start, BLOCK), name="read ahead")
            self._ahead.append((start, task))
            start += BLOCK
        _, first = self._ahead.popleft()
        return await first

    async def _fetch(self, offset: int, size: int) -> bytes:
        with translated(self._shown):
            data: bytes = await self._file.read(size, offset)
        self._count(len(data))
        return data

    async def _drop(self) -> None:
        self._rest = b""
        tasks = [task for _, task in self._ahead]
        self._ahead.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class RemoteWriter:
    """A file on its way into an environment; a `storage.tree.Writer`.

    `temporary` is the name it has until `finish`; None when it is written in place (something is added to a file).
    """

    hashes = False

    def __init__(
        self,
        file: asyncssh.SFTPClientFile,
        to: Destination,
        release: Callable[[], None],
        count: Callable[[int], None],
        *,
        temporary: bytes | None,
        size: int,
        mtime: int | None,
    ) -> None:
        self._file = file
        self._to = to
        self._release = release
        self._count = count
        self._temporary = temporary
        self._size = size
        self._mtime = mtime
        self._stored = size
        self._islands: list[tuple[int, int]] = []
        self._pending: set[asyncio.Task[None]] = set()
        self._error: AshoreError | None = None
        self._expected = 0

    @property
    def size(self) -> int:
        return self._size

    async def write(self, offset: int, data: bytes) -> None:
        if offset > self._size + _WINDOW:
            raise BadInput(f"'{self._to.shown}' has {self._size} bytes: nothing can be written at {offset}")
        while len(self._pending) >= _UNDER_WAY:
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        self._check()
        task = asyncio.create_task(self._send(offset, data), name="write into an environment")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        self._size = max(self._size, offset + len(data))
        self._count(len(data))

    async def flush(self) -> None:
        await self._settle()
        self._check()
        with translated(self._to.shown), suppress(asyncssh.SFTPOpUnsupported):
            await self._file.fsync()

    def set_mtime(self, seconds: int) -> None:
        self._mtime = seconds

    def expect_size(self, size: int) -> None:
        self._expected = size

    def doubt(self) -> None:
        """Nobody keeps records of the files in an environment."""

    async def truncate(self, size: int) -> None:
        await self._settle()
        if size == self._size:
            return
        if size != 0 or self._size != 0:
            raise BadInput(f"'{self._to.shown}' has {self._size} bytes: it cannot be cut to {size}")

    async def finish(self) -> Node:
        try:
            await self._settle()
            self._check()
            if self._stored != self._size:
                raise BadInput(f"'{self._to.shown}' has a gap at {self._stored}")
            if self._size < self._expected:
                raise Conflict(f"{self._size} of {self._expected} bytes of '{self._to.shown}' came; go on with: reput")
            with translated(self._to.shown):
                return await self._move()
        except AshoreError:
            await self._park()
            raise
        finally:
            self._release()

    async def abandon(self) -> None:
        try:
            await self._settle()
            await self._park()
        finally:
            self._release()

    async def _send(self, offset: int, data: bytes) -> None:
        try:
            with translated(self._to.shown):
                await self._file.write(data, offset)
        except AshoreError as error:
            self._error = self._error or error
            return
        self._arrived(offset, offset + len(data))

    def _arrived(self, start: int, end: int) -> None:
        heapq.heappush(self._islands, (start, end))
        while self._islands and self._islands[0][0] <= self._stored:
            self._stored = max(self._stored, heapq.heappop(self._islands)[1])

    async def _settle(self) -> None:
        while self._pending:
            await asyncio.wait(self._pending)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _move(self) -> Node:
        client, path = self._to.client, self._to.path
        if self._mtime is not None:
            await self._file.utime((self._mtime, self._mtime))
        if self._temporary is not None and self._to.mode is not None:
            await self._file.chmod(self._to.mode)
        await self._file.close()
        if self._temporary is not None:
            if self._to.exclusive:
                await self._rename_exclusively(self._temporary)
            else:
                await client.posix_rename(self._temporary, path)
            self._temporary = None
        name = posixpath.basename(self._to.shown)
        mtime = self._mtime if self._mtime is not None else int(time.time())
        return Node(name, is_directory=False, size=self._size, mtime=mtime)

    async def _rename_exclusively(self, temporary: bytes) -> None:
        try:
            await self._to.client.rename(temporary, self._to.path)
        except asyncssh.SFTPFailure as error:
            raise AlreadyExists(f"'{self._to.shown}' exists by now") from error

    async def _park(self) -> None:
        """Keep what is there without a gap, for whoever goes on; nothing can be done if the environment is gone."""
        with suppress(asyncssh.Error, OSError, ValueError):
            if self._temporary is not None and self._size > self._stored:
                await self._file.truncate(self._stored)
            await self._file.close()
        if self._temporary is None:
            return
        with suppress(asyncssh.Error, OSError, ValueError):
            if self._stored:
                await self._to.client.posix_rename(self._temporary, parked(self._to.path))
            else:
                await self._to.client.remove(self._temporary)


def unfinished(node: Node, name: str) -> Node:
    """A parked beginning, as its owner sees it."""
    return node._replace(name=name, unfinished=True, mode=0o600)
