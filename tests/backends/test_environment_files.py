"""Files inside environments, with OpenSSH's own sshd and sftp-server on the other side."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import asyncssh
import pytest

from backends.activity import Activity
from backends.environment_files import EnvironmentTree
from backends.environments import Environments
from backends.guest import Guests
from backends.settings import LifecycleSettings
from storage.access import Caller
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound, Unavailable
from storage.records import Environment, EnvironmentState
from storage.tree import Writer

ALICE = Caller("u1", "alice", False, "w1", "alice")
BOB = Caller("u2", "bob", False, "w2", "bob")


class Known:
    """The environments of alice: `train` runs, `idle` does not."""

    def __init__(self) -> None:
        states = {"train": EnvironmentState.RUNNING, "idle": EnvironmentState.STOPPED}
        self.activity = Activity(cast("Database", None), Changes(), LifecycleSettings())
        self._all = [
            Environment(id=name, owner_id="u1", owner_name="alice", workspace_id="w1", name=name, compute="local",
                        state=state, created=datetime.now(UTC))
            for name, state in states.items()
        ]  # fmt: skip

    async def list(self, caller: Caller) -> Sequence[Environment]:
        return [environment for environment in self._all if environment.owner_id == caller.user_id]

    async def show(self, caller: Caller, name: str) -> Environment:
        for environment in self._all:
            if environment.name == name:
                return environment
        raise NotFound(f"there is no environment '{name}'")


class Sshd:
    """One pooled connection to an `sshd -i` whose SFTP server starts in `home`."""

    def __init__(self, home: Path, room: Path) -> None:
        self._room = room
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        host = asyncssh.generate_private_key("ssh-ed25519")
        (room / "host").write_bytes(host.export_private_key())
        (room / "host").chmod(0o600)
        (room / "keys").write_bytes(self._key.export_public_key())
        (room / "config").write_text(
            f"HostKey {room}/host\nAuthorizedKeysFile {room}/keys\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nSubsystem sftp /usr/lib/openssh/sftp-server -d {home}\n"
        )

    async def connect(self, caller: Caller, environment: Environment) -> asyncssh.SSHClientConnection:
        async with self._lock:
            return await self._connect()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        if self._connection is None or self._connection.is_closed():
            ours, theirs = socket.socketpair()
            self._process = await asyncio.create_subprocess_exec(
                "/usr/sbin/sshd", "-i", "-f", str(self._room / "config"), stdin=theirs, stdout=theirs,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
            self._connection = await asyncssh.connect(
                "guest", sock=ours, username=getpass.getuser(), client_keys=[self._key], known_hosts=None,
                config=None, agent_path=None,
            )  # fmt: skip
        return self._connection

    async def cut(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            await self._connection.wait_closed()
        if self._process is not None:
            await self._process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
async def sshd(home: Path, tmp_path: Path) -> AsyncIterator[Sshd]:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        sshd = Sshd(home, Path(room))
        yield sshd
        await sshd.cut()


@pytest.fixture
async def tree(sshd: Sshd) -> AsyncIterator[EnvironmentTree]:
    tree = EnvironmentTree(cast("Environments", Known()), cast("Guests", sshd))
    yield tree
    await tree.close()


async def names(tree: EnvironmentTree, path: str) -> list[str]:
    return [node.name async for node in tree.list(ALICE, path)]


async def write(writer: Writer, content: bytes, *, start: int = 0, block: int = 100_000) -> None:
    for offset in range(start, len(content), block):
        await writer.write(offset, content[offset : offset + block])


async def test_only_running_environments_are_there(tree: EnvironmentTree) -> None:
    assert await names(tree, "/") == ["train"]
    with pytest.raises(Conflict, match="does not run"):
        await tree.stat(ALICE, "/idle/x")
    with pytest.raises(NotFound, match="there is no environment 'nothing'"):
        await tree.stat(ALICE, "/nothing")


async def test_others_do_not_get_in(tree: EnvironmentTree) -> None:
    with pytest.raises(NotFound):
        await tree.stat(BOB, "/train")
    with pytest.raises(NotFound):
        await tree.open_writer(BOB, "/train/x", truncate=True)
    with pytest.raises(NotFound):
        await anext(tree.list(BOB, "/train"))


async def test_listing(tree: EnvironmentTree, home: Path) -> None:
    (home / "b").write_text("12345")
    (home / "b").chmod(0o750)
    os.utime(home / "b", (1_600_000_000, 1_600_000_000))
    (home / "a").mkdir()
    (home / "loop").symlink_to(".")
    (home / "dangling").symlink_to("nowhere")
    (home / os.fsdecode(b"\xff")).write_text("")
    nodes = {node.name: node async for node in tree.list(ALICE, "/train")}
    assert list(nodes) == ["a", "b", "dangling", "loop", "\udcff"]
    assert (nodes["b"].size, nodes["b"].mtime, nodes["b"].mode) == (5, 1_600_000_000, 0o750)
    assert nodes["a"].is_directory
    assert nodes["loop"].is_link
    assert nodes["dangling"].is_link
    assert (await tree.stat(ALICE, "/train")).is_directory
    with pytest.raises(NotFound, match="/envs/train/missing"):
        await names(tree, "/train/missing")


async def test_reading_in_order_and_out_of_order(tree: EnvironmentTree, home: Path) -> None:
    content = os.urandom(5_000_011)
    (home / "x").write_bytes(content)
    reader = await tree.open_reader(ALICE, "/train/x")
    got, offset = [], 0
    while piece := await reader.read(offset, 32_768):
        got.append(piece)
        offset += len(piece)
    assert b"".join(got) == content
    assert await reader.read(len(content) + 5, 10) == b""
    assert await reader.read(1_000_000, 500_000) == content[1_000_000:1_500_000]
    assert await reader.read(1_500_000, 10) == content[1_500_000:1_500_010]
    assert await reader.read(4_999_999, 100) == content[4_999_999:]
    await reader.close()


async def test_a_read_that_was_given_up_shifts_nothing(tree: EnvironmentTree, home: Path) -> None:
    content = os.urandom(3_000_000)
    (home / "x").write_bytes(content)
    reader = await tree.open_reader(ALICE, "/train/x")
    await reader.read(0, 261_120)
    given_up = asyncio.create_task(reader.read(261_120, 600_000))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    for offset in (261_120, 522_240, 783_360):
        assert await reader.read(offset, 261_120) == content[offset : offset + 261_120]
    await reader.close()


async def test_a_file_that_grows_can_be_followed(tree: EnvironmentTree, home: Path) -> None:
    (home / "log").write_bytes(b"one")
    reader = await tree.open_reader(ALICE, "/train/log")
    assert await reader.read(0, 100) == b"one"
    with (home / "log").open("ab") as log:
        log.write(b"two")
    assert await reader.read(3, 100) == b"two"
    await reader.close()


async def test_what_is_no_file_is_not_opened(tree: EnvironmentTree, home: Path) -> None:
    """Opening a FIFO would hold up the environment's SFTP server for good."""
    os.mkfifo(home / "fifo")
    (home / "d").mkdir()
    for name in ("fifo", "d"):
        with pytest.raises(BadInput):
            await tree.open_reader(ALICE, f"/train/{name}")
        with pytest.raises(BadInput):
            await tree.open_writer(ALICE, f"/train/{name}", truncate=True)


async def test_a_file_appears_when_it_is_complete(tree: EnvironmentTree, home: Path) -> None:
    content = os.urandom(3_000_001)
    writer = await tree.open_writer(ALICE, "/train/x", truncate=True, mtime=1_600_000_000)
    await write(writer, content)
    await writer.flush()
    assert not (home / "x").exists()
    node = await writer.finish()
    assert (node.size, node.mtime) == (3_000_001, 1_600_000_000)
    assert (home / "x").read_bytes() == content
    assert (home / "x").stat().st_mtime == 1_600_000_000
    assert os.listdir(home) == ["x"]


async def test_replacing_keeps_permissions_and_links(tree: EnvironmentTree, home: Path) -> None:
    (home / "script").write_text("old")
    (home / "script").chmod(0o755)
    (home / "link").symlink_to("script")
    writer = await tree.open_writer(ALICE, "/train/link", truncate=True)
    await write(writer, b"new")
    assert (home / "script").read_text() == "old"
    await writer.finish()
    assert (home / "link").is_symlink()
    assert (home / "script").read_text() == "new"
    assert stat.S_IMODE((home / "script").stat().st_mode) == 0o755


async def test_a_lost_connection_parks_and_the_next_goes_on(tree: EnvironmentTree, home: Path) -> None:
    content = os.urandom(1_000_000)
    writer = await tree.open_writer(ALICE, "/train/x", truncate=True)
    await write(writer, content[:600_000])
    await writer.write(800_000, content[800_000:])
    await writer.abandon()
    assert not (home / "x").exists()
    node = await tree.stat(ALICE, "/train/x")
    assert (node.size, node.unfinished) == (600_000, True)
    writer = await tree.open_writer(ALICE, "/train/x", truncate=False)
    assert writer.size == 600_000
    await write(writer, content, start=600_000)
    await writer.finish()
    assert (home / "x").read_bytes() == content
    assert os.listdir(home) == ["x"]


async def test_nothing_is_padded(tree: EnvironmentTree, home: Path) -> None:
    writer = await tree.open_writer(ALICE, "/train/x", truncate=True)
    await writer.write(0, b"abc")
    await writer.write(10, b"def")
    with pytest.raises(BadInput, match="gap at 3"):
        await writer.finish()
    assert not (home / "x").exists()
    writer = await tree.open_writer(ALICE, "/train/y", truncate=True)
    with pytest.raises(BadInput):
        await writer.write(1 << 40, b"x")
    await writer.abandon()
    await tree.remove(ALICE, "/train/x")
    assert os.listdir(home) == []


async def test_adding_to_a_file(tree: EnvironmentTree, home: Path) -> None:
    (home / "x").write_text("abc")
    writer = await tree.open_writer(ALICE, "/train/x", truncate=False)
    await writer.write(3, b"def")
    await writer.finish()
    assert (home / "x").read_text() == "abcdef"


async def test_exclusive(tree: EnvironmentTree, home: Path) -> None:
    writer = await tree.open_writer(ALICE, "/train/x", truncate=True, exclusive=True)
    await writer.write(0, b"mine")
    (home / "x").write_text("faster")
    with pytest.raises(AlreadyExists):
        await writer.finish()
    assert (home / "x").read_text() == "faster"
    with pytest.raises(AlreadyExists):
        await tree.open_writer(ALICE, "/train/x", truncate=True, exclusive=True)


async def test_names(tree: EnvironmentTree, home: Path) -> None:
    await tree.mkdir(ALICE, "/train/d")
    with pytest.raises(AlreadyExists):
        await tree.mkdir(ALICE, "/train/d")
    (home / "d" / "x").write_text("x")
    (home / "y").write_text("y")
    with pytest.raises(Conflict, match="not empty"):
        await tree.rmdir(ALICE, "/train/d")
    with pytest.raises(AlreadyExists):
        await tree.rename(ALICE, "/train/y", "/train/d/x", replace=False)
    await tree.rename(ALICE, "/train/y", "/train/d/x", replace=True)
    assert (home / "d" / "x").read_text() == "y"
    await tree.set_mtime(ALICE, "/train/d/x", 1_500_000_000)
    assert (home / "d" / "x").stat().st_mtime == 1_500_000_000
    await tree.remove(ALICE, "/train/d/x")
    await tree.rmdir(ALICE, "/train/d")
    with pytest.raises(NotFound):
        await tree.remove(ALICE, "/train/d/x")
    with pytest.raises(BadInput):
        await tree.rename(ALICE, "/train/a", "/other/a", replace=False)
    for change in (tree.remove(ALICE, "/train"), tree.rmdir(ALICE, "/train"), tree.mkdir(ALICE, "/train")):
        with pytest.raises(NotAllowed):
            await change
    assert (await tree.space(ALICE, "/train")).total > 0


async def test_a_lost_environment_is_said_and_comes_back(tree: EnvironmentTree, home: Path, sshd: Sshd) -> None:
    (home / "x").write_bytes(bytes(10_000_000))
    reader = await tree.open_reader(ALICE, "/train/x")
    writer = await tree.open_writer(ALICE, "/train/y", truncate=True)
    await reader.read(0, 10)
    await sshd.cut()
    with pytest.raises(Unavailable):
        await reader.read(9_000_000, 10)
    await reader.close()
    await writer.write(0, b"x")
    with pytest.raises(Unavailable):
        await writer.finish()
    assert await names(tree, "/train")


async def test_many_readers_share_one_channel(tree: EnvironmentTree, home: Path) -> None:
    for number in range(20):
        (home / str(number)).write_text(str(number))

    async def read(number: int) -> bytes:
        reader = await tree.open_reader(ALICE, f"/train/{number}")
        try:
            return await reader.read(0, 100)
        finally:
            await reader.close()

    got = await asyncio.gather(*(read(number) for number in range(20)))
    assert got == [str(number).encode() for number in range(20)]
