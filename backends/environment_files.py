"""The files inside running environments as a tree: `/<environment>/…` is the caller's home directory in it.

An SFTP client of the environment's own SFTP server, over the connection that `guest` pools; an open file is in
`environment_transfers`. The environment's own permissions hold inside; who may come in at all is asked here.
"""

from __future__ import annotations

import asyncio
import posixpath
import stat as modes
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import asyncssh

from backends.environment_transfers import (
    Destination,
    RemoteReader,
    RemoteWriter,
    fresh,
    node_of,
    parked,
    translated,
    unfinished,
)
from backends.environments import Environments, owned
from backends.guest import Guests
from storage.access import Action, Caller, require
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound
from storage.names import printable
from storage.records import Environment, EnvironmentState, Lifecycle
from storage.tree import Node, Reader, Space, Writer

_IDLE = 60.0
_SORTED = 10_000
_SHOWN_AT = "/envs"
_REQUEST = 256
"""What one operation counts as a sign of life, bytes."""


@dataclass(eq=False)
class _Client:
    """One SFTP channel into an environment, shared by everything that one connection into it carries."""

    sftp: asyncssh.SFTPClient
    presence: ExitStack
    """Somebody is connected to the environment until it is closed."""
    users: int = 0
    farewell: asyncio.TimerHandle | None = None


@dataclass(frozen=True)
class _Place:
    """A path inside an environment, and the client that reaches it; held until `release`."""

    tree: EnvironmentTree
    connection: asyncssh.SSHClientConnection
    client: _Client
    environment_id: str
    path: bytes
    """Relative to the home directory."""
    shown: str

    @property
    def sftp(self) -> asyncssh.SFTPClient:
        return self.client.sftp

    @property
    def name(self) -> str:
        return posixpath.basename(self.shown)

    def release(self) -> None:
        self.tree.release(self)

    def count(self, size: int) -> None:
        """So many bytes were read or written."""
        self.tree.count(self.environment_id, size)


class EnvironmentTree:
    """Home directories of running environments; a `storage.tree.Tree`."""

    def __init__(self, environments: Environments, guests: Guests) -> None:
        self._environments = environments
        self._guests = guests
        self._clients: dict[asyncssh.SSHClientConnection, _Client] = {}
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """End all SFTP channels."""
        for connection, client in list(self._clients.items()):
            self._forget(connection)
            await _end(client)

    async def stat(self, caller: Caller, path: str) -> Node:
        if path == "/":
            return Node("envs", is_directory=True, mode=0o555)
        async with self._at(caller, path) as place:
            return await _stat(place)

    async def check(self, caller: Caller, path: str) -> None:
        await self.stat(caller, path)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        if path == "/":
            for environment in await self._environments.list(caller):
                if environment.state is EnvironmentState.RUNNING:
                    mtime = int(environment.created.timestamp())
                    yield Node(environment.name, is_directory=True, mtime=mtime, mode=0o755, owner=caller.name)
            return
        async with self._at(caller, path) as place:
            async for node in _entries(place):
                yield node

    async def open_reader(self, caller: Caller, path: str) -> Reader:
        place = await self.enter(caller, path)
        try:
            with translated(place.shown):
                # Parked beginnings cannot be read, and a FIFO would hold up the environment's server for good.
                node = await _regular(place)
                if node is None:
                    raise NotFound(f"there is no file '{place.shown}'")
                file = await place.sftp.open(place.path, asyncssh.FXF_READ, encoding=None)
        except BaseException:
            place.release()
            raise
        return RemoteReader(file, node, place.shown, place.release, place.count)

    async def open_writer(
        self,
        caller: Caller,
        path: str,
        *,
        truncate: bool,
        exclusive: bool = False,
        mtime: int | None = None,
    ) -> Writer:
        place = await self.enter(caller, path)
        try:
            with translated(place.shown):
                return await _open_writer(place, truncate=truncate, exclusive=exclusive, mtime=mtime)
        except BaseException:
            place.release()
            raise

    async def mkdir(self, caller: Caller, path: str) -> None:
        async with self._at(caller, path, inside=True) as place:
            if await _exists(place.sftp, place.path):
                raise AlreadyExists(f"'{place.shown}' exists already")
            await place.sftp.mkdir(place.path)

    async def rmdir(self, caller: Caller, path: str) -> None:
        async with self._at(caller, path, inside=True) as place:
            try:
                await place.sftp.rmdir(place.path)
            except asyncssh.SFTPFailure as error:
                raise Conflict(f"'{place.shown}' is not empty, or no directory") from error

    async def remove(self, caller: Caller, path: str) -> None:
        async with self._at(caller, path, inside=True) as place:
            try:
                await place.sftp.remove(place.path)
            except asyncssh.SFTPNoSuchFile:
                await place.sftp.remove(parked(place.path))

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        name, inner = _split(old)
        other, target = _split(new)
        if name != other:
            raise BadInput("files cannot be renamed from one environment to another: copy them")
        if not inner or not target:
            raise NotAllowed(f"'{_SHOWN_AT}{old if not inner else new}' cannot be renamed")
        async with self._at(caller, old) as place:
            if replace:
                await place.sftp.posix_rename(place.path, target)
            elif await _exists(place.sftp, target):
                raise AlreadyExists(f"'{_SHOWN_AT}{new}' exists already")
            else:
                await place.sftp.rename(place.path, target)

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        async with self._at(caller, path, inside=True) as place:
            await place.sftp.utime(place.path, (seconds, seconds))

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        """Nothing is known of files that programs change."""
        return ""

    async def space(self, caller: Caller, path: str) -> Space:
        if path == "/":
            return Space(0, 0)
        async with self._at(caller, path) as place:
            try:
                found = await place.sftp.statvfs(place.path or b".")
            except asyncssh.SFTPOpUnsupported:
                return Space(0, 0)
        return Space(found.blocks * found.frsize, (found.blocks - found.bfree) * found.frsize)

    # ---- inside ----------------------------------------------------------------------------------------------
    def release(self, place: _Place) -> None:
        """The counterpart of entering; a channel that nobody uses for a minute ends."""
        client = place.client
        client.users -= 1
        if client.users == 0:
            loop = asyncio.get_running_loop()
            client.farewell = loop.call_later(_IDLE, self._retire, place.connection, client)

    def _retire(self, connection: asyncssh.SSHClientConnection, client: _Client) -> None:
        if client.users == 0 and self._clients.get(connection) is client:
            self._forget(connection)
            with suppress(OSError, asyncssh.Error):
                client.sftp.exit()

    def _at(self, caller: Caller, path: str, *, inside: bool = False) -> _Entered:
        return _Entered(self, caller, path, inside)

    async def enter(self, caller: Caller, path: str) -> _Place:
        """Ask whether `caller` may, and reach the environment; whoever calls this must release the place."""
        name, inner = _split(path)
        shown = printable(f"{_SHOWN_AT}{path}")
        environment = await self._environments.show(caller, name)
        require(caller, Action.SFTP, owned(environment))
        if environment.state is not EnvironmentState.RUNNING:
            raise Conflict(f"'{environment.name}' does not run: start it first")
        with translated(shown):
            connection = await self._guests.connect(caller, environment)
            client = await self._client(connection, environment)
        self.count(environment.id, _REQUEST)
        client.users += 1
        if client.farewell is not None:
            client.farewell.cancel()
            client.farewell = None
        return _Place(self, connection, client, environment.id, inner, shown)

    def count(self, environment_id: str, size: int) -> None:
        self._environments.activity.traffic(environment_id, size)

    async def _client(self, connection: asyncssh.SSHClientConnection, environment: Environment) -> _Client:
        async with self._starting:
            for old in [known for known in self._clients if known.is_closed()]:
                self._forget(old)
            client = self._clients.get(connection)
            if client is None:
                if environment.lifecycle is Lifecycle.EPHEMERAL:
                    await self._environments.keep(environment)
                sftp = await connection.start_sftp_client(path_encoding=None)
                client = self._clients[connection] = _Client(sftp, ExitStack())
                client.presence.enter_context(self._environments.activity.presence(environment.id))
            return client

    def _forget(self, connection: asyncssh.SSHClientConnection) -> None:
        self._clients.pop(connection).presence.close()


class _Entered:
    """`async with`: a place, foreign errors translated, and released at the end."""

    def __init__(self, tree: EnvironmentTree, caller: Caller, path: str, inside: bool) -> None:
        self._tree = tree
        self._caller = caller
        self._path = path
        self._inside = inside
        self._place: _Place | None = None

    async def __aenter__(self) -> _Place:
        if self._inside and not _split(self._path)[1]:
            raise NotAllowed(f"'{printable(_SHOWN_AT + self._path)}' is an environment and cannot be changed here")
        self._place = await self._tree.enter(self._caller, self._path)
        return self._place

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._place is None:
            return
        self._place.release()
        if isinstance(error, Exception):
            with translated(self._place.shown):
                raise error


def _split(path: str) -> tuple[str, bytes]:
    """`/train/a/b` → the environment and the path in its home directory; surrogates stand for odd bytes."""
    name, _, inner = path.lstrip("/").partition("/")
    return name, inner.encode("utf-8", "surrogateescape")


async def _stat(place: _Place) -> Node:
    with translated(place.shown):
        try:
            return node_of(place.name, await place.sftp.stat(place.path or b"."))
        except asyncssh.SFTPNoSuchFile:
            rest = await place.sftp.stat(parked(place.path))
            return unfinished(node_of(place.name, rest), place.name)


async def _entries(place: _Place) -> AsyncIterator[Node]:
    """By name as long as there are not too many of them to wait for all."""
    batch: list[Node] = []
    async for entry in place.sftp.scandir(place.path or b"."):
        raw = entry.filename if isinstance(entry.filename, bytes) else entry.filename.encode()
        if raw in (b".", b".."):
            continue
        batch.append(await _entry(place, raw, entry.attrs))
        if len(batch) >= _SORTED:
            for node in sorted(batch, key=_by_name):
                yield node
            batch.clear()
    for node in sorted(batch, key=_by_name):
        yield node


def _by_name(node: Node) -> str:
    return node.name


async def _entry(place: _Place, raw: bytes, attrs: asyncssh.SFTPAttrs) -> Node:
    name = raw.decode("utf-8", "surrogateescape")
    if not modes.S_ISLNK(attrs.permissions or 0):
        return node_of(name, attrs)
    with suppress(asyncssh.SFTPError):
        attrs = await place.sftp.stat(posixpath.join(place.path, raw))
    return node_of(name, attrs)._replace(is_link=True)


async def _exists(sftp: asyncssh.SFTPClient, path: bytes) -> bool:
    try:
        await sftp.lstat(path)
    except asyncssh.SFTPNoSuchFile:
        return False
    return True


async def _regular(place: _Place) -> Node | None:
    """The regular file there, None if there is nothing; BadInput for directories, devices and pipes."""
    try:
        attrs = await place.sftp.stat(place.path or b".")
    except asyncssh.SFTPNoSuchFile:
        return None
    if not modes.S_ISREG(attrs.permissions or modes.S_IFREG):
        kind = "a directory" if modes.S_ISDIR(attrs.permissions or 0) else "no regular file"
        raise BadInput(f"'{place.shown}' is {kind}")
    return node_of(place.name, attrs)


async def _open_writer(place: _Place, *, truncate: bool, exclusive: bool, mtime: int | None) -> RemoteWriter:
    present = await _regular(place)
    if present is not None and exclusive:
        raise AlreadyExists(f"'{place.shown}' exists already")
    if present is not None and not truncate:
        file = await place.sftp.open(place.path, asyncssh.FXF_WRITE, encoding=None)
        to = Destination(place.sftp, place.path, place.shown)
        return RemoteWriter(file, to, place.release, place.count, temporary=None, size=present.size, mtime=mtime)
    # Written to where a symbolic link leads, so that the link stays one.
    path = place.path if present is None else await _resolved(place)
    to = Destination(place.sftp, path, place.shown, exclusive, None if present is None else present.mode)
    temporary = fresh(path)
    size = 0 if truncate else await _take_over(place, path, temporary)
    flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (0 if size else asyncssh.FXF_TRUNC)
    file = await place.sftp.open(temporary, flags, encoding=None)
    return RemoteWriter(file, to, place.release, place.count, temporary=temporary, size=size, mtime=mtime)


async def _resolved(place: _Place) -> bytes:
    found = await place.sftp.realpath(place.path)
    return found if isinstance(found, bytes) else str(found).encode()


async def _take_over(place: _Place, path: bytes, temporary: bytes) -> int:
    """Go on with a parked beginning: it gets `temporary` as its name; returns its size, 0 if there is none."""
    try:
        await place.sftp.rename(parked(path), temporary)
    except asyncssh.SFTPError:
        return 0
    attrs = await place.sftp.stat(temporary)
    return attrs.size or 0


async def _end(client: _Client) -> None:
    if client.farewell is not None:
        client.farewell.cancel()
    with suppress(OSError, asyncssh.Error):
        client.sftp.exit()
