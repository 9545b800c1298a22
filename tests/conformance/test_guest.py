"""Everything that SSH can do, through the guest, on every compute that has one."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from backends.compute.contract import WorkloadSpec
from backends.guest import Guests
from storage.access import Caller
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.records import Environment, EnvironmentState
from storage.vault import Vault
from tests.conformance.conftest import Kit, make_kit, run


class Link:
    """A connection as the gateway uses it: commands are asked for as `Guests.command` says."""

    def __init__(self, guests: Guests, environment: Environment, connection: asyncssh.SSHClientConnection) -> None:
        self._command = partial(guests.command, environment)
        self.connection = connection

    async def run(self, command: str, **more: Any) -> asyncssh.SSHCompletedProcess:
        return await self.connection.run(self._command(command), **more)

    async def create_process(self, command: str | None = None, **more: Any) -> asyncssh.SSHClientProcess[str]:
        return await self.connection.create_process(self._command(command), **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


@pytest.fixture(params=["local", "docker", "docker-ssh", "podman", "ssh"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, guest: Path) -> AsyncIterator[Kit]:
    kit = make_kit(request, tmp_path, guest, [])
    yield kit
    await kit.compute.close()
    kit.end()


@pytest.fixture
async def guests(place: Kit, database: Database, data_dir: Path, changes: Changes) -> AsyncIterator[Guests]:
    guests = Guests(database, Vault.in_directory(data_dir), {place.name: place.compute}, changes)
    yield guests
    await guests.close()


@pytest.fixture
async def train(place: Kit, guests: Guests, database: Database, alice: Caller) -> AsyncIterator[Environment]:
    """A running environment of alice's."""
    record = Environment(
        owner_id=alice.user_id, owner_name=alice.name, workspace_id=alice.workspace_id, name="train",
        compute=place.name, created=now(), variables={"COLOUR": "deep blue"},
    )  # fmt: skip
    async with database.writing() as tx:
        tx.add(record)
    files = await guests.prepare(record)
    spec = place.spec(id=record.id, guest_files=files)
    handle = await place.compute.create(spec, print)
    try:
        await place.compute.start(handle, spec, print)
        async with database.writing() as tx:
            record = await tx.get_one(Environment, record.id)
            record.handle, record.state = handle, EnvironmentState.RUNNING
        yield record
    finally:
        await place.compute.delete(handle)


@pytest.fixture
async def link(guests: Guests, alice: Caller, train: Environment) -> Link:
    return Link(guests, train, await guests.connect(alice, train))


@pytest.mark.parametrize("status", [0, 1, 42, 255])
async def test_exit_status(link: Link, status: int) -> None:
    assert (await link.run(f"exit {status}")).exit_status == status


async def test_output_and_complaints_stay_apart(link: Link) -> None:
    done = await link.run("echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


async def test_who_one_is_and_where(link: Link, place: Kit, train: Environment) -> None:
    home = place.home_at(train.id)
    done = await link.run('id -un; id -u; pwd; hostname; echo "$COLOUR"; touch file; ls -d ~')
    assert done.stdout == f"{place.account}\n1000\n{home}\n{place.hostname}\ndeep blue\n{home}\n"


async def test_the_marks_of_the_driver_do_not_show(link: Link) -> None:
    done = await link.run("env")
    assert "ASHORE" not in str(done.stdout)


async def test_the_guests_secrets_are_out_of_reach(link: Link, place: Kit) -> None:
    done = await link.run("cat /opt/ashore/run/ssh_host_ed25519_key; touch /opt/ashore/guest/x")
    if place.image:  # elsewhere the account that logs in is the one that the guest's files belong to
        assert "Permission denied" in str(done.stderr)
        assert done.stdout == ""
    assert done.exit_status != 0  # nobody writes to the guest's tree


async def test_a_terminal_with_its_size(link: Link) -> None:
    process = await link.create_process(
        "stty size; echo $TERM; read x; stty size", term_type="xterm-256color", term_size=(100, 30)
    )
    assert (await process.stdout.readline()).strip() == "30 100"
    assert (await process.stdout.readline()).strip() == "xterm-256color"
    process.change_terminal_size(90, 20)
    process.stdin.write("\n")
    assert "20 90" in await process.stdout.read()


async def test_a_login_shell(link: Link) -> None:
    process = await link.create_process(term_type="xterm", term_size=(80, 24))
    # The program says itself that it is there: a Ctrl-C before bash has handed it the terminal would be lost.
    process.stdin.write("sh -c 'echo $((6*7)); exec sleep 100'\n")
    await process.stdout.readuntil("42\r\n")
    process.stdin.write("\x03")
    process.stdin.write("exit 5\n")
    assert (await process.wait()).exit_status == 5


async def test_half_close(link: Link) -> None:
    data = os.urandom(3_000_000)
    done = await link.run("sha256sum; sleep 0.2; echo late; exit 7", input=data, encoding=None)
    assert done.stdout == f"{hashlib.sha256(data).hexdigest()}  -\nlate\n".encode()
    assert done.exit_status == 7


async def test_big_output_is_whole(link: Link) -> None:
    script = "head -c 50000000 /dev/urandom | tee big; sha256sum < big"
    done = await link.run(script, encoding=None)
    assert isinstance(done.stdout, bytes)
    body, line = done.stdout[:50_000_000], done.stdout[50_000_000:]
    assert hashlib.sha256(body).hexdigest().encode() == line.split()[0]


async def test_signals(link: Link) -> None:
    process = await link.create_process('trap "echo got it; exit 3" USR1; echo ready; while :; do sleep 0.05; done')
    assert await process.stdout.readline() == "ready\n"
    process.send_signal("USR1")
    assert await process.stdout.readline() == "got it\n"
    assert (await process.wait()).exit_status == 3
    process = await link.create_process("echo ready; exec sleep 100")
    assert await process.stdout.readline() == "ready\n"  # until its program runs, sshd's own handler takes the signal
    process.terminate()
    assert (await process.wait()).exit_signal is not None


_SERVER = (
    "use IO::Socket; $|=1; $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8000, Listen => 5,"
    " ReuseAddr => 1) or die; print qq(up\\n); $c = $s->accept; $t .= $_ while <$c>; print $c uc $t; close $c;"
)
_LOCAL_SERVER = (
    "use IO::Socket::UNIX; $|=1; $s = IO::Socket::UNIX->new(Local => 'sock', Listen => 5) or die; print qq(up\\n);"
    " $c = $s->accept; $t .= $_ while <$c>; print $c uc $t; close $c;"
)


async def test_forward_to_a_port(link: Link) -> None:
    server = await link.create_process(f'perl -e "{_SERVER}"'.replace("$", "\\$"))
    assert await server.stdout.readline() == "up\n"
    reader, writer = await link.open_connection("127.0.0.1", 8000)
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"HELLO"


async def test_forward_to_a_socket(link: Link, place: Kit, train: Environment) -> None:
    server = await link.create_process(f'perl -e "{_LOCAL_SERVER}"'.replace("$", "\\$"))
    assert await server.stdout.readline() == "up\n"
    reader, writer = await link.open_unix_connection(f"{place.home_at(train.id)}/sock")
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"HELLO"


async def test_forwards_end_at_the_loopback(link: Link) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await link.open_connection("192.0.2.1", 22)
    with pytest.raises(asyncssh.ChannelOpenError):
        await link.open_connection("127.0.0.1", 9)  # nobody listens


async def test_sftp(link: Link, place: Kit, train: Environment, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "there").write_bytes(data)
    async with link.start_sftp_client() as sftp:
        await sftp.put(tmp_path / "there", "data.bin")
        await sftp.get("data.bin", tmp_path / "back")
        assert await sftp.getcwd() == place.home_at(train.id)
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat("missing")
    assert (tmp_path / "back").read_bytes() == data
    done = await link.run("sha256sum < data.bin; stat -c %U data.bin")
    assert str(done.stdout).split() == [hashlib.sha256(data).hexdigest(), "-", place.account]


async def test_a_hundred_and_fifty_channels_on_three_connections(
    guests: Guests, alice: Caller, train: Environment
) -> None:
    people = [replace(alice, user_id=f"person{number}") for number in range(3)]
    links = [Link(guests, train, await guests.connect(one, train)) for one in people]
    assert len({id(link.connection) for link in links}) == 3

    async def one(number: int) -> None:
        done = await links[number % 3].run(f"cat; exit {number}", input="x" * 1000)
        assert (done.stdout, done.exit_status) == ("x" * 1000, number)

    await asyncio.gather(*(one(number) for number in range(150)))


async def test_nothing_stays_after_a_terminal_is_cut_off(
    link: Link, guests: Guests, place: Kit, train: Environment
) -> None:
    process = await link.create_process(term_type="xterm", term_size=(80, 24))
    process.stdin.write("sleep 4711 & sleep 4712 || echo; sleep 4713\n")
    await process.stdout.readuntil("\r\n")
    await asyncio.sleep(0.3)
    link.abort()
    await guests.drop(train.id)
    script = f"""
    exec 2>/dev/null
    for i in $(seq 100); do
      f=; for p in /proc/[0-9]*; do
        read -r name < $p/comm && case $name in {place.programs}) f=$p;; esac
        case $(tr '\\0' ' ' < $p/cmdline) in 'sleep 471'*|/opt/*@pts*) f=$p;; esac
      done
      [ -n "$f" ] || exit 0
      sleep 0.1
    done
    tr '\\0' ' ' < $f/cmdline; exit 1
    """
    assert await run(place.compute, train.handle, script) == (0, b"")


async def test_a_restart_brings_new_keys(
    guests: Guests, alice: Caller, place: Kit, train: Environment, database: Database
) -> None:
    before = await guests.public_key(alice.user_id, "train")
    spec: WorkloadSpec = place.spec(id=train.id, guest_files=await guests.prepare(train))
    await place.compute.stop(train.handle, grace=1)
    await place.compute.start(train.handle, spec, print)
    again = await guests.connect(alice, train)
    assert (await again.run("echo back")).stdout == "back\n"
    assert await guests.public_key(alice.user_id, "train") == before
