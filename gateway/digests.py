"""`md5sum`, `sha1sum`, `sha256sum`, `df` and `echo` on paths of the data tree: what rclone and lftp ask a shell for.

Enough of each program for its usual callers, and nothing more: no shell is here. Hashes that are known since the
upload are answered from the records; other files are read. Every hash that was asked for is in the audit trail.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence

from backends.files import Files
from gateway.byte_stream import ByteStream
from gateway.channel import Channel
from gateway.transfers import AuditLine
from storage.access import Caller
from storage.audit import AuditTrail
from storage.errors import AshoreError
from storage.names import printable
from storage.tree import Space, normalize

_ALGORITHMS = {"md5sum": "md5", "sha1sum": "sha1", "sha256sum": "sha256"}
_BLOCK = 1024 * 1024
_VARIABLE = re.compile(r"\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")
_UNKNOWN_SPACE = 1 << 50


async def run(channel: Channel, files: Files, caller: Caller, audit: AuditTrail, argv: Sequence[str]) -> int | None:
    """Run one command line and return its exit status, which the caller sends; None if it is none of ours."""
    if not argv:
        return None
    program, arguments = argv[0], list(argv[1:])
    if program == "echo":
        # rclone asks `echo ${ShellId}%ComSpec%` to learn which shell it talks to: variables are empty here.
        channel.write(" ".join(_VARIABLE.sub("", word) for word in arguments).encode() + b"\n")
        return 0
    if program == "df":
        return await _df(channel, files, caller, arguments)
    if program in _ALGORITHMS:
        line = AuditLine(audit, caller)
        try:
            return await _digest(channel, files, caller, line, program, arguments)
        finally:
            await line.drain()
    return None


async def _digest(
    channel: Channel, files: Files, caller: Caller, audit: AuditLine, program: str, arguments: list[str]
) -> int:
    paths = _operands(arguments, allowed="bt")
    if paths is None:
        return _complain(channel, program, "only -b and -t are possible here", status=2)
    stream = ByteStream(channel)
    channel.attach(stream)
    try:
        failed = False
        for path in paths or ["-"]:
            if stream.lost:
                return 1
            try:
                digest = await _audited(stream, files, caller, audit, _ALGORITHMS[program], path)
            except AshoreError as error:
                _complain(channel, program, error.message)
                failed = True
            else:
                await stream.write(_line(digest, path))
        return 1 if failed else 0
    finally:
        channel.detach(stream)


async def _audited(
    stream: ByteStream, files: Files, caller: Caller, audit: AuditLine, algorithm: str, path: str
) -> str:
    """The hash of a file, or of standard input for `-`, which is no event."""
    if path == "-":
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while data := await stream.read(_BLOCK):
            await asyncio.to_thread(digest.update, data)
        return digest.hexdigest()
    clean = normalize(path)
    try:
        known = await files.digest(caller, clean, algorithm)
        result = known or await _hash_of(stream, files, caller, algorithm, clean)
    except AshoreError as error:
        await audit.failure("data.digest", clean, error)
        raise
    outcome = "failed" if stream.lost else "ok"
    await audit.add("data.digest", clean, outcome, algorithm=algorithm, source="records" if known else "file")
    return result


async def _hash_of(stream: ByteStream, files: Files, caller: Caller, algorithm: str, path: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    reader = await files.open_reader(caller, path)
    try:
        offset = 0
        while not stream.lost and (data := await reader.read(offset, _BLOCK)):
            await asyncio.to_thread(digest.update, data)
            offset += len(data)
    finally:
        await reader.close()
    return digest.hexdigest()


def _line(digest: str, path: str) -> bytes:
    """As coreutils write it: a name with a backslash is escaped and the line marked."""
    name = printable(path)
    mark = "\\" if "\\" in name else ""
    escaped = name.replace("\\", "\\\\")
    return f"{mark}{digest}  {escaped}\n".encode()


async def _df(channel: Channel, files: Files, caller: Caller, arguments: list[str]) -> int:
    paths = _operands(arguments, allowed="kP")
    if paths is None:
        return _complain(channel, "df", "only -k and -P are possible here", status=2)
    header = "Filesystem 1024-blocks Used Available Capacity Mounted on"
    try:
        lines = [_usage(await files.space(caller, normalize(path))) for path in paths or ["/"]]
    except AshoreError as error:
        return _complain(channel, "df", error.message)
    channel.write("\n".join([header, *lines]).encode() + b"\n")
    return 0


def _usage(space: Space) -> str:
    total = (space.total or space.used + _UNKNOWN_SPACE) // 1024
    used = space.used // 1024
    percent = -(-100 * used // total) if total else 0
    return f"ashore {total} {used} {max(total - used, 0)} {percent}% /"


def _operands(arguments: list[str], *, allowed: str) -> list[str] | None:
    """What is no option; None if there is an option that is not `allowed`."""
    operands: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return operands + arguments[position + 1 :]
        if word.startswith("-") and word != "-":
            if set(word[1:]) - set(allowed):
                return None
        else:
            operands.append(word)
    return operands


def _complain(channel: Channel, program: str, sentence: str, *, status: int = 1) -> int:
    channel.write_stderr(f"{program}: {printable(sentence)}\n".encode())
    return status
