"""The old scp protocol (`scp -O`, WinSCP's SCP mode) on the tree of files that people see.

`scp -t` takes files from the client, `scp -f` sends them. Newer clients use SFTP and never come here. A file is
finished only when all of its bytes came and the client said that it is well; names from the client are single
segments.
"""

from __future__ import annotations

import fnmatch
import logging
import posixpath
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from backends.files import Files
from gateway.byte_stream import ByteStream
from gateway.channel import Channel
from gateway.transfers import AuditLine, Transfer
from storage.access import Caller
from storage.audit import AuditTrail
from storage.errors import AshoreError, BadInput, NotFound
from storage.names import printable
from storage.tree import Node, normalize

log = logging.getLogger(__name__)
_BLOCK = 255 * 1024
_LONGEST_LINE = 4096
_DEEPEST = 64


class _Lost(Exception):
    """The client is gone, or sends what is no scp; the channel ends."""


@dataclass(frozen=True)
class Options:
    """A remote `scp` command line."""

    sends: bool
    """-f: the gateway sends; else (-t) it takes."""
    recursive: bool
    keeps_times: bool
    wants_directory: bool
    paths: Sequence[str]


async def serve(channel: Channel, files: Files, caller: Caller, audit: AuditTrail, argv: Sequence[str]) -> int:
    """Run one remote `scp`; returns its exit status. The caller sends it."""
    stream = ByteStream(channel)
    line = AuditLine(audit, caller)
    channel.attach(stream)
    try:
        options = parse(argv)
        if options.sends:
            return await _Source(stream, files, caller, line, options).run()
        return await _Sink(stream, files, caller, line, options).run()
    except AshoreError as error:
        await stream.write(b"\x02scp: " + printable(error.message).encode() + b"\n")
        return 1
    except _Lost:
        return 1
    finally:
        channel.detach(stream)
        await line.drain()


def parse(argv: Sequence[str]) -> Options:
    """`scp [-v] [-r] [-p] [-d] -t|-f [--] path…`; BadInput otherwise."""
    letters, paths = "", list[str]()
    for position, word in enumerate(argv[1:], start=1):
        if word == "--":
            paths += argv[position + 1 :]
            break
        if word.startswith("-") and len(word) > 1 and not paths:
            letters += word[1:]
        else:
            paths.append(word)
    if set(letters) - set("tfrpdvq") or ("t" in letters) == ("f" in letters):
        raise BadInput("this scp command line means nothing here")
    if "t" in letters:
        # The client passes the path as it was typed; a shell would have split it at spaces.
        paths = [" ".join(paths)] if paths else ["/"]
    return Options("f" in letters, "r" in letters, "p" in letters, "d" in letters, paths or ["/"])


class _Sink:
    """Takes files from the client."""

    def __init__(self, stream: ByteStream, files: Files, caller: Caller, audit: AuditLine, options: Options) -> None:
        self._stream = stream
        self._files = files
        self._caller = caller
        self._audit = audit
        self._options = options
        self._failed = False
        self._mtime: int | None = None

    async def run(self) -> int:
        target = normalize(_tilde(self._options.paths[0]))
        is_directory = await self._is_directory(target)
        if self._options.wants_directory and not is_directory:
            raise BadInput(f"'{target}' is not a directory")
        await self._stream.write(b"\0")
        await self._take(target, is_directory, 0)
        return 1 if self._failed or self._stream.lost else 0

    async def _take(self, target: str, into: bool, depth: int) -> None:
        """Everything up to the end of this directory. `into`: it lies in `target`; else it becomes `target`."""
        while not self._stream.is_drained:
            line = await _line(self._stream)
            kind, rest = line[:1], line[1:]
            if kind == "E" and depth:
                await self._stream.write(b"\0")
                return
            if kind in ("C", "D", "T"):
                try:
                    await self._step(kind, rest, target, into, depth)
                except AshoreError as error:
                    await self._refuse(error)
            elif kind == "\x01":
                self._failed = True
            elif kind:
                await self._stream.write(b"\x02scp: this is not the scp protocol\n")
                raise _Lost

    async def _step(self, kind: str, rest: str, target: str, into: bool, depth: int) -> None:
        if kind == "T":
            self._mtime = _number(rest.partition(" ")[0], 10)
            await self._stream.write(b"\0")
            return
        mtime, self._mtime = self._mtime, None
        mode, size, name = _header(rest)
        path = normalize(posixpath.join(target, name)) if into else target
        log.debug("scp %s %o %s", kind, mode, path)
        if kind == "C":
            await self._file(path, size, mtime)
            return
        if not self._options.recursive or depth >= _DEEPEST:
            raise BadInput(f"'{path}' is a directory that was not announced, or too deep")
        await self._directory(path)
        await self._stream.write(b"\0")
        await self._take(path, True, depth + 1)

    async def _directory(self, path: str) -> None:
        if await self._is_directory(path):
            return
        try:
            await self._files.mkdir(self._caller, path)
        except AshoreError as error:
            await self._audit.failure("data.mkdir", path, error)
            raise

    async def _file(self, path: str, size: int, mtime: int | None) -> None:
        try:
            if await self._is_directory(path):
                raise BadInput(f"'{path}' is a directory")
            writer = await self._files.open_writer(self._caller, path, truncate=True, mtime=mtime)
        except AshoreError as error:
            await self._audit.failure("data.write", path, error)
            raise
        transfer = Transfer(self._audit, path, writer=writer)
        ended = False
        try:
            await self._stream.write(b"\0")
            trouble = await self._receive(transfer, size)
            is_well = await self._stream.read(1) == b"\0"
            ended = True
            if is_well and trouble is None:
                await transfer.finish()
        finally:
            if not ended:
                await transfer.abandon("the connection ended before the file was complete")
        if not is_well:
            await transfer.abandon("the client could not send all of it")
            self._failed = True
            await _line(self._stream)
        elif trouble is not None:
            await transfer.abandon(trouble.message)
            raise trouble
        await self._stream.write(b"\0")

    async def _receive(self, transfer: Transfer, size: int) -> AshoreError | None:
        """Take `size` bytes, also when they can no longer be stored: the protocol knows no way to stop."""
        offset, trouble = 0, None
        while offset < size:
            data = await self._stream.read(min(_BLOCK, size - offset))
            if not data:
                raise _Lost
            if trouble is None:
                try:
                    await transfer.write(offset, data)
                except AshoreError as error:
                    trouble = error
            offset += len(data)
        return trouble

    async def _refuse(self, error: AshoreError) -> None:
        self._failed = True
        await self._stream.write(b"\x01scp: " + printable(error.message).encode() + b"\n")

    async def _is_directory(self, path: str) -> bool:
        try:
            return (await self._files.stat(self._caller, path)).is_directory
        except NotFound:
            return False


class _Source:
    """Sends files to the client."""

    def __init__(self, stream: ByteStream, files: Files, caller: Caller, audit: AuditLine, options: Options) -> None:
        self._stream = stream
        self._files = files
        self._caller = caller
        self._audit = audit
        self._options = options
        self._failed = False

    async def run(self) -> int:
        await self._agreed()
        for pattern in self._options.paths:
            async for path in self._matching(pattern):
                await self._guarded(path)
        return 1 if self._failed or self._stream.lost else 0

    async def _guarded(self, path: str) -> None:
        try:
            node = await self._files.stat(self._caller, path)
            if node.is_directory:
                await self._directory(path, node)
            else:
                await self._file(path)
        except AshoreError as error:
            self._failed = True
            await self._audit.failure("data.read", path, error)
            await self._stream.write(b"\x01scp: " + printable(error.message).encode() + b"\n")

    async def _directory(self, path: str, node: Node) -> None:
        if not self._options.recursive:
            raise BadInput(f"'{path}' is a directory: use -r")
        if not await self._announce(node, f"D{node.mode:04o} 0 {_name(path)}"):
            return
        async for child in self._files.list(self._caller, path):
            if not (child.is_link and child.is_directory):
                await self._guarded(posixpath.join(path, child.name))
        await self._stream.write(b"E\n")
        await self._agreed()

    async def _file(self, path: str) -> None:
        reader = await self._files.open_reader(self._caller, path)
        transfer = Transfer(self._audit, path, reader=reader)
        complete = False
        try:
            node = reader.node
            if await self._announce(node, f"C{node.mode:04o} {node.size} {_name(path)}"):
                await self._send(transfer, node.size)
                await self._stream.write(b"\0")
                await self._agreed()
            complete = True
        finally:
            if not complete:
                await transfer.abandon("the transfer broke off")
        await transfer.finish()

    async def _send(self, transfer: Transfer, size: int) -> None:
        offset = 0
        while offset < size:
            data = await transfer.read(offset, min(_BLOCK, size - offset))
            if not data or self._stream.lost:
                # The size was promised, and the protocol has no way to take it back.
                raise _Lost
            await self._stream.write(data)
            offset += len(data)

    async def _announce(self, node: Node, header: str) -> bool:
        """Whether the client wants it."""
        if self._options.keeps_times:
            await self._stream.write(f"T{node.mtime} 0 {node.mtime} 0\n".encode())
            if not await self._agreed():
                return False
        await self._stream.write(header.encode() + b"\n")
        return await self._agreed()

    async def _agreed(self) -> bool:
        """The client's answer to the last step. _Lost: it ends here."""
        answer = await self._stream.read(1)
        if answer == b"\0":
            return True
        if answer == b"\x01":
            self._failed = True
            await _line(self._stream)
            return False
        raise _Lost

    async def _matching(self, pattern: str) -> AsyncIterator[str]:
        """The paths that a shell would have made of `pattern`; itself if nothing matches."""
        path = normalize(_tilde(pattern))
        directory, last = posixpath.split(path)
        if not any(letter in path for letter in "*?["):
            yield path
            return
        if any(letter in directory for letter in "*?["):
            raise BadInput("wildcards are possible in the last part of a path only")
        found = False
        async for node in self._files.list(self._caller, directory):
            if fnmatch.fnmatchcase(node.name, last) and (not node.name.startswith(".") or last.startswith(".")):
                found = True
                yield posixpath.join(directory, node.name)
        if not found:
            yield path


async def _line(stream: ByteStream) -> str:
    """One control line; bytes that are no UTF-8 become surrogates, which no name may have."""
    try:
        line = (await stream.read_line(_LONGEST_LINE)).decode("utf-8", "surrogateescape")
    except ValueError:
        raise _Lost from None
    if stream.lost:
        raise _Lost
    return line


def _header(rest: str) -> tuple[int, int, str]:
    """`0644 123 name` of a C or D line; BadInput for anything that is not one segment."""
    mode, _, tail = rest.partition(" ")
    size, _, name = tail.partition(" ")
    if not name or name in (".", "..") or "/" in name or printable(name, limit=len(name)) != name:
        raise BadInput(f"'{printable(name, limit=80)}' cannot be the name of a file")
    return _number(mode, 8), _number(size, 10), name


def _number(text: str, base: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BadInput("this is not the scp protocol")
    try:
        return int(text, base)
    except ValueError:
        raise BadInput("this is not the scp protocol") from None


def _tilde(path: str) -> str:
    """Everybody's home is the root of the tree."""
    return path[1:] if path == "~" or path.startswith("~/") else path


def _name(path: str) -> str:
    return printable(posixpath.basename(path)) or "ashore"
