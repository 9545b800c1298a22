"""What each SFTP request means: the tree of files that people see, asked in the words of version 3.

One request at a time; errors become status replies with their sentence. No channel, no queue (`sftp`), nothing of the
wire's layout (`sftp_packets`), and no rule about who may do what.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from backends.files import Files
from gateway import sftp_packets as wire
from gateway.sftp_extras import Check, copy_data
from gateway.sftp_packets import Attributes, Code, Fields, Kind, Malformed, OpenFlag, Request
from gateway.transfers import AuditLine, Transfer
from storage.access import Caller
from storage.errors import AlreadyExists, AshoreError, BadInput, NotAllowed, NotFound
from storage.names import printable
from storage.tree import Node, Writer, normalize

log = logging.getLogger(__name__)

MOST_HANDLES = 64
_NAMES_PER_REPLY = 512
_NAME_BYTES_PER_REPLY = 48 * 1024
_MOST_HINTS = 4096
_UNKNOWN_SPACE = 1 << 50
_ON_A_FILE = (Kind.READ, Kind.WRITE, Kind.FSETSTAT, Kind.CLOSE)
"""What follows on a file that is open: the same sentence again is no news."""
_DIRECTORY, _FILE, _LINK = 0o040000, 0o100000, 0o120000
_EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fstatvfs@openssh.com", b"2"),
    (b"fsync@openssh.com", b"1"),
    (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
    (b"expand-path@openssh.com", b"1"),
    (b"copy-data", b"1"),
    (b"check-file", b"1"),
    (b"check-file-name", b"1"),
    (b"check-file-handle", b"1"),
)


class Unsupported(BadInput):
    """What this server does not offer; becomes OP_UNSUPPORTED."""

    code = "unsupported"


@dataclass
class OpenDirectory:
    """A handle on a directory; `ahead` is the entry that opening it had to read already."""

    path: str
    nodes: AsyncIterator[Node]
    ahead: Node | None
    sent: int = 0
    """Entries that the client has got."""


class SftpRequests:
    """Answers the requests of one channel. `hint` takes a line for the person, beside the replies."""

    def __init__(
        self,
        files: Files,
        caller: Caller,
        audit: AuditLine,
        hint: Callable[[bytes], None],
        *,
        is_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self._files = files
        self._caller = caller
        self._audit = audit
        self._say = hint
        self._is_lost = is_lost
        self._handles: dict[bytes, Transfer | OpenDirectory] = {}
        self._next_handle = 0
        self._hints = 0
        self._told = ""
        self._handlers: dict[int, Callable[[Request, Fields], Awaitable[bytes]]] = {
            Kind.INIT: self._init, Kind.OPEN: self._open, Kind.CLOSE: self._close, Kind.READ: self._read,
            Kind.WRITE: self._write, Kind.LSTAT: self._stat, Kind.STAT: self._stat, Kind.FSTAT: self._fstat,
            Kind.SETSTAT: self._setstat, Kind.FSETSTAT: self._fsetstat, Kind.OPENDIR: self._opendir,
            Kind.READDIR: self._readdir, Kind.REMOVE: self._remove, Kind.MKDIR: self._mkdir,
            Kind.RMDIR: self._rmdir, Kind.REALPATH: self._realpath, Kind.RENAME: self._rename,
            Kind.READLINK: self._links, Kind.SYMLINK: self._links, Kind.EXTENDED: self._extended,
        }  # fmt: skip
        self._extensions: dict[bytes, Callable[[Request, Fields], Awaitable[bytes]]] = {
            b"posix-rename@openssh.com": self._posix_rename, b"statvfs@openssh.com": self._statvfs,
            b"fstatvfs@openssh.com": self._fstatvfs, b"fsync@openssh.com": self._fsync,
            b"lsetstat@openssh.com": self._setstat, b"limits@openssh.com": self._limits,
            b"expand-path@openssh.com": self._expand_path, b"hardlink@openssh.com": self._links,
            b"copy-data": self._copy_data, b"check-file-name": self._check_name,
            b"check-file-handle": self._check_handle, b"check-file": self._check_as_paramiko,
        }  # fmt: skip

    async def answer(self, request: Request) -> bytes:
        """The reply to one request; never raises."""
        if request.kind not in _ON_A_FILE:
            self._told = ""
        handler = self._handlers.get(request.kind)
        if handler is None:
            return wire.status(request.id, Code.OP_UNSUPPORTED, "this server does not know this request")
        try:
            return await handler(request, Fields(request.body))
        except AshoreError as error:
            self._hint(error)
            return wire.status(request.id, _code(error), printable(error.message))
        except Malformed as error:
            return wire.status(request.id, Code.BAD_MESSAGE, str(error))
        except Exception:
            # The wall: one request that fails in an unforeseen way must not take the channel with it.
            log.exception("SFTP request %s of %s failed", request.kind, self._caller.name)
            return wire.status(request.id, Code.FAILURE, "an internal error, which was logged")

    def _hint(self, error: AshoreError) -> None:
        """Say it on stderr too: OpenSSH's client throws the sentence of a status away and shows stderr.

        It is known by its wish for `limits@openssh.com`. Bounded, because some clients never read stderr.
        """
        if not isinstance(error, NotFound):
            self._tell(error.message)

    def _tell(self, sentence: str) -> None:
        # OpenSSH sends 64 requests ahead: all of them fail alike, and the person shall read it once.
        if self._hints <= 0 or sentence == self._told:
            return
        self._told = sentence
        line = printable(sentence).encode() + b"\n"
        self._hints -= len(line)
        if self._hints > 0:
            self._say(line)

    async def abandon_all(self) -> None:
        """The channel is over: no file that is still open is finished."""
        for handle in list(self._handles):
            opened = self._handles.pop(handle)
            try:
                if isinstance(opened, Transfer):
                    await opened.abandon("the connection ended before the file was closed")
                else:
                    await _close_iterator(opened.nodes)
            except AshoreError as error:
                log.warning("abandoning %s: %s", opened.path, error.message)
            except Exception:
                # The wall: the other handles must be let go of as well.
                log.exception("abandoning %s failed", opened.path)

    # ---- files -----------------------------------------------------------------------------------------------
    async def _init(self, request: Request, fields: Fields) -> bytes:
        return wire.version(_EXTENSIONS)

    async def _open(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        flags, attrs = OpenFlag(fields.uint32() & 0x3F), fields.attributes()
        action = "data.write" if flags & OpenFlag.WRITE else "data.read"
        async with _Audited(self._audit, action, path):
            self._check_room()
            if flags & OpenFlag.WRITE:
                opened = Transfer(self._audit, path, writer=await self._open_writer(path, flags, attrs))
                # WinSCP tells the size of its file where it starts anew; zero is what others fill the field with.
                if attrs.size and flags & OpenFlag.TRUNCATE:
                    opened.promise(attrs.size)
            else:
                opened = Transfer(self._audit, path, reader=await self._files.open_reader(self._caller, path))
        return self._give_handle(request, opened)

    async def _open_writer(self, path: str, flags: OpenFlag, attrs: Attributes) -> Writer:
        if not flags & OpenFlag.CREATE:
            node = await self._files.stat(self._caller, path)
            if node.is_directory:
                raise BadInput(f"'{path}' is a directory")
        # APPEND is accepted, and the offsets that come with each WRITE are honoured: `reput` and curl send right ones.
        return await self._files.open_writer(
            self._caller,
            path,
            truncate=bool(flags & OpenFlag.TRUNCATE),
            exclusive=bool(flags & OpenFlag.EXCLUSIVE),
            mtime=attrs.mtime,
        )

    async def _close(self, request: Request, fields: Fields) -> bytes:
        opened = self._handles.pop(fields.string(), None)
        if opened is None:
            raise BadInput("this handle is not open")
        if isinstance(opened, OpenDirectory):
            await _close_iterator(opened.nodes)
            await self._audit.add("data.list", opened.path, entries=opened.sent)
            return wire.status_ok(request.id)
        doubtful = self._hints > 0 and opened.looks_interrupted
        node = await opened.finish(doubtful=doubtful)
        if doubtful:
            self._tell(
                f"'{opened.path}' has {node.size} bytes and ended as an interrupted upload does; if you stopped it, "
                "go on with reput, or send it again"
            )
        return wire.status_ok(request.id)

    async def _read(self, request: Request, fields: Fields) -> bytes:
        opened = self._file(fields.string())
        offset, size = fields.uint64(), fields.uint32()
        data = await opened.read(offset, min(size, wire.LONGEST_DATA))
        if not data:
            return wire.status(request.id, Code.EOF)
        return wire.data(request.id, data)

    async def _write(self, request: Request, fields: Fields) -> bytes:
        await self._file(request.body).write(request.offset, request.data)
        return wire.status_ok(request.id)

    # ---- attributes ------------------------------------------------------------------------------------------
    async def _stat(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        async with _Audited(self._audit, "data.stat", path, quiet=(NotFound,)):
            node = await self._files.stat(self._caller, path)
        return wire.reply(request.id, Kind.ATTRS, _attributes(node))

    async def _fstat(self, request: Request, fields: Fields) -> bytes:
        opened = self._handle(fields.string())
        if isinstance(opened, OpenDirectory):
            node = await self._files.stat(self._caller, opened.path)
        elif opened.reader is not None:
            node = opened.reader.node
        else:
            size = opened.writer.size if opened.writer is not None else 0
            node = Node(opened.path, is_directory=False, size=size, mtime=int(time.time()), mode=0o600)
        return wire.reply(request.id, Kind.ATTRS, _attributes(node))

    async def _setstat(self, request: Request, fields: Fields) -> bytes:
        path, attrs = _path(fields.string()), fields.attributes()
        async with _Audited(self._audit, "data.set-attributes", path):
            writer = self._writer_of(path)
            if writer is not None:
                await _apply(writer, attrs)
            elif attrs.mtime is None and attrs.size is None:
                # lftp sets the permissions of each file of a mirror, which mean nothing here.
                await self._files.check(self._caller, path)
            else:
                await self._set_attributes(path, attrs)
        return wire.status_ok(request.id)

    async def _fsetstat(self, request: Request, fields: Fields) -> bytes:
        opened = self._handle(fields.string())
        attrs = fields.attributes()
        async with _Audited(self._audit, "data.set-attributes", opened.path):
            if isinstance(opened, Transfer) and opened.writer is not None:
                if attrs.size is not None and attrs.mtime is not None:
                    # lftp, just before CLOSE and only when all of it was sent. OpenSSH's lone size is no promise:
                    # it comes from scp, and from an interrupted reput.
                    opened.promise(attrs.size)
                    attrs = replace(attrs, size=None)
                await _apply(opened.writer, attrs)
            else:
                await self._set_attributes(opened.path, attrs)
        return wire.status_ok(request.id)

    async def _set_attributes(self, path: str, attrs: Attributes) -> None:
        """Keep the time; permissions and owners are accepted and mean nothing here."""
        if attrs.size is not None or attrs.mtime is None:
            node = await self._files.stat(self._caller, path)
            if attrs.size is not None and attrs.size != node.size:
                await self._empty(path, attrs.size)
        if attrs.mtime is not None:
            await self._files.set_mtime(self._caller, path, attrs.mtime)

    async def _empty(self, path: str, size: int) -> None:
        if size:
            raise Unsupported("the size of a file cannot be changed, except to 0")
        writer = await self._files.open_writer(self._caller, path, truncate=True)
        await writer.finish()

    def _writer_of(self, path: str) -> Writer | None:
        for opened in self._handles.values():
            if isinstance(opened, Transfer) and opened.path == path and opened.writer is not None:
                return opened.writer
        return None

    # ---- directories and names -------------------------------------------------------------------------------
    async def _opendir(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        async with _Audited(self._audit, "data.list", path):
            self._check_room()
            nodes = self._files.list(self._caller, path)
            # Reading one entry now makes errors appear here, where clients expect them.
            ahead = await anext(nodes, None)
        return self._give_handle(request, OpenDirectory(path, nodes, ahead))

    async def _readdir(self, request: Request, fields: Fields) -> bytes:
        opened = self._handle(fields.string())
        if isinstance(opened, Transfer):
            raise BadInput("this handle is not a directory")
        entries: list[tuple[bytes, bytes, bytes]] = []
        size, now, owner = 0, time.time(), self._caller.name
        while opened.ahead is not None:
            entry = _entry(opened.ahead, owner, now)
            entries.append(entry)
            size += len(entry[0]) + len(entry[1]) + 32
            opened.ahead = await anext(opened.nodes, None)
            if len(entries) >= _NAMES_PER_REPLY or size >= _NAME_BYTES_PER_REPLY:
                break
        if not entries:
            return wire.status(request.id, Code.EOF)
        opened.sent += len(entries)
        return wire.names(request.id, entries)

    async def _remove(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        async with _Audited(self._audit, "data.remove", path, ok=_is_untold(path)):
            await self._files.remove(self._caller, path)
        return wire.status_ok(request.id)

    async def _mkdir(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        async with _Audited(self._audit, "data.mkdir", path, ok=_is_untold(path), quiet=(AlreadyExists,)):
            await self._files.mkdir(self._caller, path)
        return wire.status_ok(request.id)

    async def _rmdir(self, request: Request, fields: Fields) -> bytes:
        path = _path(fields.string())
        async with _Audited(self._audit, "data.rmdir", path, ok=_is_untold(path)):
            await self._files.rmdir(self._caller, path)
        return wire.status_ok(request.id)

    async def _realpath(self, request: Request, fields: Fields) -> bytes:
        return _one_name(request, _path(fields.string()))

    async def _rename(self, request: Request, fields: Fields) -> bytes:
        return await self._rename_to(request, fields, replace=False)

    async def _posix_rename(self, request: Request, fields: Fields) -> bytes:
        return await self._rename_to(request, fields, replace=True)

    async def _rename_to(self, request: Request, fields: Fields, *, replace: bool) -> bytes:
        old, new = _path(fields.string()), _path(fields.string())
        async with _Audited(self._audit, "data.rename", old, ok=_is_untold(old), to=new):
            await self._files.rename(self._caller, old, new, replace=replace)
        return wire.status_ok(request.id)

    async def _links(self, request: Request, fields: Fields) -> bytes:
        raise Unsupported("there are no links here")

    # ---- extensions ------------------------------------------------------------------------------------------
    async def _extended(self, request: Request, fields: Fields) -> bytes:
        handler = self._extensions.get(fields.string())
        if handler is None:
            raise Unsupported("this server does not know this extension")
        return await handler(request, fields)

    async def _limits(self, request: Request, fields: Fields) -> bytes:
        self._hints = _MOST_HINTS
        return wire.limits(request.id, MOST_HANDLES)

    async def _fsync(self, request: Request, fields: Fields) -> bytes:
        opened = self._file(fields.string())
        if opened.writer is not None:
            await opened.writer.flush()
        return wire.status_ok(request.id)

    async def _statvfs(self, request: Request, fields: Fields) -> bytes:
        return await self._space(request, _path(fields.string()))

    async def _fstatvfs(self, request: Request, fields: Fields) -> bytes:
        return await self._space(request, self._handle(fields.string()).path)

    async def _space(self, request: Request, path: str) -> bytes:
        space = await self._files.space(self._caller, path)
        total = space.total or space.used + _UNKNOWN_SPACE
        return wire.statvfs(request.id, total, space.used)

    async def _expand_path(self, request: Request, fields: Fields) -> bytes:
        raw = fields.string()
        head, slash, rest = raw.partition(b"/")
        if head == b"~" or head == b"~" + self._caller.name.encode():
            raw = slash + rest
        return _one_name(request, _path(raw))

    async def _copy_data(self, request: Request, fields: Fields) -> bytes:
        source = self._file(fields.string())
        offset, length = fields.uint64(), fields.uint64()
        target, to = self._file(fields.string()), fields.uint64()
        await copy_data(source, target, offset=offset, length=length, to=to, is_lost=self._is_lost)
        return wire.status_ok(request.id)

    async def _check_name(self, request: Request, fields: Fields) -> bytes:
        path, check = _path(fields.string()), Check(fields)
        async with _Audited(self._audit, "data.digest", path, ok=True, algorithm=check.algorithm):
            node = await self._files.stat(self._caller, path)
            if node.is_directory:
                raise BadInput(f"'{path}' is a directory")
            if check.is_whole(node.size):
                known = await self._files.digest(self._caller, path, check.algorithm)
                if known:
                    return wire.check_file(request.id, check.algorithm, bytes.fromhex(known))
            reader = await self._files.open_reader(self._caller, path)
            try:
                hashes = await check.hashes(reader.read, reader.node.size)
            finally:
                await reader.close()
        return wire.check_file(request.id, check.algorithm, hashes)

    async def _check_handle(self, request: Request, fields: Fields) -> bytes:
        algorithm, hashes = await self._hash_handle(fields)
        return wire.check_file(request.id, algorithm, hashes)

    async def _check_as_paramiko(self, request: Request, fields: Fields) -> bytes:
        """paramiko asks about a handle under the name of an older draft, whose answer repeats that name."""
        algorithm, hashes = await self._hash_handle(fields)
        return wire.check_file(request.id, algorithm, hashes, repeated=b"check-file")

    async def _hash_handle(self, fields: Fields) -> tuple[str, bytes]:
        opened, check = self._file(fields.string()), Check(fields)
        if opened.reader is None:
            raise NotAllowed("this file is open for writing only")
        # Read, and not looked up: the open file may have been replaced under its name since.
        return check.algorithm, await check.hashes(opened.reader.read, opened.reader.node.size)

    # ---- handles ---------------------------------------------------------------------------------------------
    def _check_room(self) -> None:
        if len(self._handles) >= MOST_HANDLES:
            raise BadInput(f"more than {MOST_HANDLES} files are open on this connection: close some first")

    def _give_handle(self, request: Request, opened: Transfer | OpenDirectory) -> bytes:
        self._next_handle = (self._next_handle + 1) & 0xFFFFFFFF
        handle = self._next_handle.to_bytes(4, "big")
        self._handles[handle] = opened
        return wire.reply(request.id, Kind.HANDLE, wire.string(handle))

    def _handle(self, handle: bytes) -> Transfer | OpenDirectory:
        opened = self._handles.get(handle)
        if opened is None:
            raise BadInput("this handle is not open")
        return opened

    def _file(self, handle: bytes) -> Transfer:
        opened = self._handles.get(handle)
        if not isinstance(opened, Transfer):
            raise BadInput("this handle is not an open file")
        return opened


class _Audited:
    """Around one operation: an event if it is refused or fails, and with `ok` one if it succeeds."""

    def __init__(
        self,
        audit: AuditLine,
        action: str,
        path: str,
        *,
        ok: bool = False,
        quiet: tuple[type[AshoreError], ...] = (),
        **detail: str,
    ) -> None:
        self._audit = audit
        self._action = action
        self._path = path
        self._ok = ok
        self._quiet = quiet
        self._detail = detail

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            if self._ok:
                await self._audit.add(self._action, self._path, **self._detail)
        elif isinstance(error, AshoreError) and not isinstance(error, self._quiet):
            await self._audit.failure(self._action, self._path, error)


async def _apply(writer: Writer, attrs: Attributes) -> None:
    """FSETSTAT on a file that is on its way; lftp sends size and time together just before CLOSE."""
    if attrs.mtime is not None:
        writer.set_mtime(attrs.mtime)
    if attrs.size is not None:
        await writer.truncate(attrs.size)


async def _close_iterator(nodes: AsyncIterator[Node]) -> None:
    if isinstance(nodes, AsyncGenerator):
        with suppress(AshoreError):
            await nodes.aclose()


def _is_untold(path: str) -> bool:
    """Whether nobody but this door writes an event about a change there: stored data has its use cases for that."""
    return path.startswith("/envs/")


def _path(raw: bytes) -> str:
    """The path that a client means; empty means the root, where everybody starts."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        shown = printable(raw.decode("utf-8", "replace"), limit=80)
        raise BadInput(f"'{shown}' is not valid UTF-8, which file names must be") from None
    if printable(text, limit=len(text)) != text:
        raise BadInput(f"'{printable(text, limit=80)}' has control characters in it")
    return normalize(text)


def _code(error: AshoreError) -> Code:
    if isinstance(error, NotFound):
        return Code.NO_SUCH_FILE
    if isinstance(error, NotAllowed):
        return Code.PERMISSION_DENIED
    if isinstance(error, Unsupported):
        return Code.OP_UNSUPPORTED
    return Code.FAILURE


def _attributes(node: Node) -> bytes:
    kind = _DIRECTORY if node.is_directory else _FILE
    return wire.attributes(node.size, kind | node.mode & 0o777, node.mtime)


def _entry(node: Node, owner: str, now: float) -> tuple[bytes, bytes, bytes]:
    # Names that came in another way (S3, a shell) may hold anything; a terminal will see them.
    name = printable(node.name)
    letter, kind = ("d", _DIRECTORY) if node.is_directory else ("-", _FILE)
    if node.is_link:
        letter, kind = "l", _LINK
    shown = wire.longname(name, letter, node.mode, node.owner, node.size, node.mtime, now)
    return name.encode(), shown.encode(), wire.attributes(node.size, kind | node.mode & 0o777, node.mtime)


def _one_name(request: Request, path: str) -> bytes:
    encoded = path.encode()
    return wire.names(request.id, [(encoded, encoded, b"\0\0\0\0")])
