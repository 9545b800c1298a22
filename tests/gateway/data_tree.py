"""A tree in memory, and an SSH server that serves the doors of the data tree on it; for tests with real clients."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncssh

from backends.files import Files
from gateway import digests, scp, tuning
from gateway.channel import Consumer, Terminal
from gateway.sftp import SftpDoor
from storage.access import Caller
from storage.audit import AuditTrail
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound
from storage.tree import Node, Space

ALICE = Caller("u1", "alice", False, "w1", "alice")


class MemoryReader:
    def __init__(self, node: Node, content: bytes) -> None:
        self.node = node
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def close(self) -> None:
        pass


class ZeroReader(MemoryReader):
    """Zeros without end, nearly."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(Node(name, is_directory=False, size=size), bytes(1 << 20))

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[: max(0, min(size, self.node.size - offset))]


class MemoryWriter:
    hashes = False

    def __init__(self, tree: MemoryTree, path: str, begin: bytes, mtime: int | None) -> None:
        self._tree = tree
        self._path = path
        self._content = bytearray(begin)
        self._mtime = mtime

    @property
    def size(self) -> int:
        return len(self._content)

    async def write(self, offset: int, data: bytes) -> None:
        # Not the first WRITE: OpenSSH sends no second one before it has the answer.
        if offset:
            await self._tree.gate.wait()
        if offset + len(data) > self._tree.limit:
            raise Conflict("the store is full")
        if offset > len(self._content):
            raise BadInput(f"nothing can be written at {offset}")
        self._content[offset : offset + len(data)] = data

    async def flush(self) -> None:
        self._tree.flushes += 1

    def set_mtime(self, seconds: int) -> None:
        self._mtime = seconds

    def expect_size(self, size: int) -> None:
        self._tree.expected[self._path] = size

    def doubt(self) -> None:
        self._tree.doubted.append(self._path)

    async def truncate(self, size: int) -> None:
        if size not in (self.size, 0) or (size == 0 and self.size):
            raise BadInput("the size cannot be changed")

    async def finish(self) -> Node:
        self._tree.parked.pop(self._path, None)
        self._tree.put(self._path, bytes(self._content), self._mtime or 1_700_000_000)
        return await self._tree.stat(ALICE, self._path)

    async def abandon(self) -> None:
        if self._content:
            self._tree.parked[self._path] = bytes(self._content)


class NullWriter(MemoryWriter):
    """Takes everything and keeps nothing."""

    def __init__(self, tree: MemoryTree, path: str) -> None:
        super().__init__(tree, path, b"", None)
        self._end = 0

    @property
    def size(self) -> int:
        return self._end

    async def write(self, offset: int, data: bytes) -> None:
        self._end = max(self._end, offset + len(data))


class MemoryTree:
    """`storage.tree.Tree` in a dictionary.

    `/sealed` refuses writes, `/null` swallows them, `/zeros-N` reads as N zeros.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self.directories = {"/": 0, "/d": 1, "/sealed": 1, "/null": 1}
        self.parked: dict[str, bytes] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.limit = 1 << 40
        self.flushes = 0
        self.checks = 0
        self.expected: dict[str, int] = {}
        self.doubted: list[str] = []
        self.digests: dict[tuple[str, str], str] = {}

    def put(self, path: str, content: bytes, mtime: int = 1_700_000_000) -> None:
        self.files[path] = content, mtime

    async def stat(self, caller: Caller, path: str) -> Node:
        name = path.rpartition("/")[2]
        if path.startswith("/zeros-"):
            return ZeroReader(name, int(path[7:])).node
        if path in self.directories:
            return Node(name, is_directory=True, mode=0o755)
        if path in self.files:
            content, mtime = self.files[path]
            return Node(name, is_directory=False, size=len(content), mtime=mtime)
        if path in self.parked:
            return Node(name, is_directory=False, size=len(self.parked[path]), mode=0o600, unfinished=True)
        raise NotFound(f"there is no '{path}'")

    async def check(self, caller: Caller, path: str) -> None:
        self.checks += 1
        await self.stat(caller, path)

    async def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        if not (await self.stat(caller, path)).is_directory:
            raise BadInput(f"'{path}' is not a directory")
        top = path.rstrip("/") + "/"
        for child in sorted({*self.directories, *self.files, *self.parked}):
            if child.startswith(top) and child != top and "/" not in child[len(top) :]:
                yield await self.stat(caller, child)

    async def open_reader(self, caller: Caller, path: str) -> MemoryReader:
        node = await self.stat(caller, path)
        if node.is_directory:
            raise BadInput(f"'{path}' is a directory")
        if path.startswith("/zeros-"):
            return ZeroReader(node.name, node.size)
        return MemoryReader(node, self.files[path][0])

    async def open_writer(
        self,
        caller: Caller,
        path: str,
        *,
        truncate: bool,
        exclusive: bool = False,
        mtime: int | None = None,
    ) -> MemoryWriter:
        if path.startswith("/sealed"):
            raise NotAllowed("'v1' is published and cannot be changed")
        if path.startswith("/null"):
            return NullWriter(self, path)
        if path.rpartition("/")[0] not in {"", *self.directories}:
            raise NotFound(f"there is no directory for '{path}'")
        if exclusive and path in self.files:
            raise AlreadyExists(f"'{path}' exists already")
        begin = b"" if truncate else self.parked.get(path, self.files.get(path, (b"", 0))[0])
        if truncate:
            self.parked.pop(path, None)
        return MemoryWriter(self, path, begin, mtime)

    async def mkdir(self, caller: Caller, path: str) -> None:
        if path.startswith("/sealed"):
            raise NotAllowed("'v1' is published and cannot be changed")
        if path in self.directories or path in self.files:
            raise AlreadyExists(f"'{path}' exists already")
        self.directories[path] = 1

    async def rmdir(self, caller: Caller, path: str) -> None:
        async for _ in self.list(caller, path):
            raise Conflict(f"'{path}' is not empty")
        del self.directories[path]

    async def remove(self, caller: Caller, path: str) -> None:
        if path not in self.files and path not in self.parked:
            raise NotFound(f"there is no '{path}'")
        self.files.pop(path, None)
        self.parked.pop(path, None)

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        if old == "/broken":
            raise RuntimeError("a mistake of ours")
        await self.stat(caller, old)
        if new in self.files and not replace:
            raise AlreadyExists(f"'{new}' exists already")
        self.files[new] = self.files.pop(old)

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        if path in self.files:  # directories have no time
            self.put(path, self.files[path][0], seconds)
        else:
            await self.stat(caller, path)

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        return self.digests.get((path, algorithm), "")

    async def space(self, caller: Caller, path: str) -> Space:
        return Space(1 << 30, 1 << 20)


class Session(asyncssh.SSHServerSession[bytes]):
    """A session channel as a `gateway.channel.Channel` that leads to the data doors."""

    terminal: Terminal | None = None
    variables: Mapping[str, str] = {}
    is_closed = False

    def __init__(self, house: House) -> None:
        self._house = house
        self._consumer: Consumer | None = None
        self._chan: Any = None
        self._ask = ""
        self._kept: list[Callable[[Consumer], None]] = []

    def connection_made(self, chan: Any) -> None:
        self._chan = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def exec_requested(self, command: str) -> bool:
        self._ask = command
        return True

    def session_started(self) -> None:
        self._house.tasks.append(asyncio.create_task(self._serve()))

    async def _serve(self) -> None:
        house, files, words = self._house, cast("Files", self._house.tree), shlex.split(self._ask)
        if not words:
            status: int | None = await SftpDoor(self, files, ALICE, house.audit).run()
        elif words[0] == "scp":
            status = await scp.serve(self, files, ALICE, house.audit, words)
        else:
            status = await digests.run(self, files, ALICE, house.audit, words)
        self._chan.exit(127 if status is None else status)

    def data_received(self, data: bytes, datatype: object) -> None:
        self._tell(lambda consumer: consumer.data_received(data))

    def eof_received(self) -> bool:
        self._tell(lambda consumer: consumer.eof_received())
        return True

    def pause_writing(self) -> None:
        self._tell(lambda consumer: consumer.pause_writing())

    def resume_writing(self) -> None:
        self._tell(lambda consumer: consumer.resume_writing())

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._tell(lambda consumer: consumer.closed())

    def _tell(self, news: Callable[[Consumer], None]) -> None:
        if self._consumer is None:
            self._kept.append(news)
        else:
            news(self._consumer)

    def attach(self, consumer: Consumer) -> None:
        self._consumer = consumer
        for news in self._kept:
            news(consumer)
        self._kept.clear()

    def detach(self, consumer: Consumer) -> None:
        self._consumer = None

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self._chan.write(data)

    def write_stderr(self, data: bytes) -> None:
        if not self.is_closed:
            self._chan.write_stderr(data)

    def write_eof(self) -> None:
        self._chan.write_eof()

    def pause_reading(self) -> None:
        self._house.pauses += 1
        self._chan.pause_reading()

    def resume_reading(self) -> None:
        self._chan.resume_reading()

    def exit(self, status: int) -> None:
        self._chan.exit(status)

    def exit_with_signal(self, signal: str, core_dumped: bool, message: str) -> None:
        self._chan.exit_with_signal(signal, core_dumped, message)

    def backlog(self) -> int:
        if self.is_closed:
            return 0
        return int(self._chan.get_write_buffer_size())


class House:
    """A served tree, and how to reach it."""

    def __init__(self, tree: MemoryTree, audit: AuditTrail, directory: Path) -> None:
        self.tree = tree
        self.audit = audit
        self.directory = directory
        self.port = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.pauses = 0

    @property
    def options(self) -> list[str]:
        given = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={self.directory}/known"]
        return [*given, "-o", "LogLevel=ERROR", "-o", "PasswordAuthentication=no"]

    async def sftp(self, *lines: str, check: bool = True) -> str:
        """`sftp -b -` with these commands; what it printed on both streams."""
        batch = "\n".join(lines).encode() + b"\n"
        arguments = ["sftp", *self.options, "-P", str(self.port), "-b", "-", "alice@127.0.0.1"]
        return await run(*arguments, input=batch, check=check)

    async def scp(self, *words: str | Path, check: bool = True) -> str:
        """`scp -O`; a leading `:` stands for the server."""
        target = [f"alice@127.0.0.1{word}" if str(word).startswith(":") else str(word) for word in words]
        return await run("scp", "-O", *self.options, "-P", str(self.port), *target, check=check)

    async def ssh(self, command: str, *, input: bytes = b"", check: bool = True) -> str:
        return await run(
            "ssh", *self.options, "-p", str(self.port), "alice@127.0.0.1", command, input=input, check=check
        )

    async def lftp(self, *commands: str) -> str:
        program = " ".join(["ssh", "-a", "-x", *self.options])
        script = "; ".join([f"set sftp:connect-program '{program}'; set net:max-retries 1; set cmd:fail-exit yes"])
        script += f"; open -u alice, -p {self.port} sftp://127.0.0.1; " + "; ".join([*commands, "bye"])
        return await run("env", f"HOME={self.directory}", "LANG=C.UTF-8", "lftp", "--norc", "-c", script)

    async def events(self) -> list[Any]:
        await asyncio.gather(*self.tasks)
        admin = Caller("u0", "root-admin", True, "w0", "root-admin")
        return [event for event in await self.audit.search(admin) if event.action.startswith("data.")]

    async def writes(self) -> int:
        """How many files were written."""
        return sum(event.action == "data.write" for event in await self.events())


async def run(*arguments: str | Path, input: bytes = b"", check: bool = True, timeout: float = 50) -> str:
    """Run a program; its output, errors included."""
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(input), timeout)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if check and process.returncode:
        raise AssertionError(f"{arguments} ended with {process.returncode}: {output.decode(errors='replace')}")
    return output.decode(errors="replace")


@asynccontextmanager
async def served(tree: MemoryTree, audit: AuditTrail, directory: Path) -> AsyncIterator[House]:
    house = House(tree, audit, directory)

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        def session_requested(self) -> Session:
            return Session(house)

    tuning.install()
    server = await asyncssh.create_server(
        Server,
        "127.0.0.1",
        0,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        encoding=None,
        encryption_algs=tuning.CIPHERS,
        allow_scp=False,
    )
    house.port = server.sockets[0].getsockname()[1]
    try:
        yield house
    finally:
        server.close()
        tree.gate.set()
        if house.tasks:
            await asyncio.wait(house.tasks, timeout=5)
        for task in house.tasks:
            task.cancel()
        await asyncio.gather(*house.tasks, return_exceptions=True)
