"""The guest over its pipe, as the doors use it: everything that SSH can do, in a sandbox of `local`."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import asyncssh
import pytest

from backends.compute.local import LocalCompute
from backends.guest import IDLE, Guests
from storage.access import Caller
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, Conflict, NotFound, Unavailable
from storage.records import Environment, EnvironmentState
from storage.vault import Vault
from tests.backends.conftest import Bench


@pytest.fixture
async def link(guests: Guests, alice: Caller, train: Environment) -> asyncssh.SSHClientConnection:
    return await guests.connect(alice, train)


async def test_a_command_gives_its_output_and_exit_status(link: asyncssh.SSHClientConnection) -> None:
    done = await link.run("echo out; echo err >&2; exit 42")
    assert (done.stdout, done.stderr, done.exit_status) == ("out\n", "err\n", 42)
    assert (await link.run("id -un; pwd; hostname")).stdout == "developer\n/home/developer\ntrain\n"


async def test_a_terminal_has_the_size_and_kind_that_were_asked_for(link: asyncssh.SSHClientConnection) -> None:
    process = await link.create_process("stty size; echo $TERM; tty; read x; stty size", term_type="xterm-256color",
                                        term_size=(100, 30))  # fmt: skip
    assert (await process.stdout.readline()).strip() == "30 100"
    assert (await process.stdout.readline()).strip() == "xterm-256color"
    assert (await process.stdout.readline()).startswith("/dev/pts/")
    process.change_terminal_size(90, 20)
    process.stdin.write("\n")
    assert "20 90" in await process.stdout.read()


async def test_a_login_shell_is_interactive(link: asyncssh.SSHClientConnection) -> None:
    process = await link.create_process(term_type="xterm", term_size=(80, 24))
    await process.stdout.readuntil("$ ")
    process.stdin.write("sh -c 'echo $((6*7)); exec sleep 100'\n")
    await process.stdout.readuntil("42\r\n")
    process.stdin.write("\x03")
    await process.stdout.readuntil("$ ")
    process.stdin.write("exit 5\n")
    assert (await process.wait()).exit_status == 5


async def test_output_that_follows_the_end_of_input_arrives(link: asyncssh.SSHClientConnection) -> None:
    content = os.urandom(3_000_000)
    done = await link.run("sha256sum; sleep 0.2; echo late; exit 7", input=content, encoding=None)
    assert done.stdout == f"{hashlib.sha256(content).hexdigest()}  -\nlate\n".encode()
    assert done.exit_status == 7


async def test_a_signal_reaches_the_program(link: asyncssh.SSHClientConnection) -> None:
    process = await link.create_process('trap "echo got it; exit 3" USR1; echo ready; while :; do sleep 0.05; done')
    assert await process.stdout.readline() == "ready\n"
    process.send_signal("USR1")
    assert await process.stdout.readline() == "got it\n"
    assert (await process.wait()).exit_status == 3
    process = await link.create_process("echo ready; exec sleep 100")
    assert await process.stdout.readline() == "ready\n"
    process.terminate()
    assert (await process.wait()).exit_signal is not None


async def test_forwards_reach_the_loopback_of_this_environment_alone(
    link: asyncssh.SSHClientConnection, guests: Guests, alice: Caller, bench: Bench
) -> None:
    server = "import socket,sys; s=socket.create_server(('127.0.0.1',8000)); print('up',flush=True);" \
             " c,_=s.accept(); c.sendall(c.recv(99).upper()); c.close()"  # fmt: skip
    process = await link.create_process(f'/usr/bin/python3 -c "{server}"')
    assert await process.stdout.readline() == "up\n"
    other = await guests.connect(alice, await bench.add(alice, "other"))
    with pytest.raises(asyncssh.ChannelOpenError):
        await other.open_connection("127.0.0.1", 8000)
    reader, writer = await link.open_connection("127.0.0.1", 8000)
    writer.write(b"hello")
    assert await reader.read() == b"HELLO"
    with pytest.raises(asyncssh.ChannelOpenError):
        await link.open_connection("192.0.2.1", 80)


async def test_a_socket_of_the_environment_can_be_reached(link: asyncssh.SSHClientConnection) -> None:
    server = "import socket; s=socket.socket(socket.AF_UNIX); s.bind('/tmp/x.sock'); s.listen();" \
             " print('up',flush=True); c,_=s.accept(); c.sendall(b'welcome'); c.close()"  # fmt: skip
    process = await link.create_process(f'/usr/bin/python3 -c "{server}"')
    assert await process.stdout.readline() == "up\n"
    reader, _ = await link.open_unix_connection("/tmp/x.sock")
    assert await reader.read() == b"welcome"


async def test_sftp_keeps_every_byte(link: asyncssh.SSHClientConnection, tmp_path: Path) -> None:
    content = os.urandom(20_000_000)
    (tmp_path / "up").write_bytes(content)
    async with link.start_sftp_client() as sftp:
        await sftp.put(str(tmp_path / "up"), "/workspace/data")
        await sftp.get("/home/developer/data", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == content


async def test_a_hundred_megabytes_come_out_whole(link: asyncssh.SSHClientConnection) -> None:
    command = "head -c 104857600 /dev/urandom > /tmp/big; sha256sum < /tmp/big"
    expected = str((await link.run(command)).stdout).split()[0]
    process = await link.create_process("cat /tmp/big", encoding=None)
    digest, count = hashlib.sha256(), 0
    while piece := await process.stdout.read(1 << 20):
        digest.update(piece)
        count += len(piece)
    assert (count, digest.hexdigest()) == (104857600, expected)


async def test_an_agent_is_forwarded_on_a_connection_of_its_own(
    guests: Guests, alice: Caller, train: Environment, tmp_path: Path
) -> None:
    """The shared connection must not carry it: another session of the same person could then use the agent."""
    shared = await guests.connect(alice, train)
    agent = str(tmp_path / "agent")
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(b"\0\0\0\5\x0c\0\0\0\0")  # SSH_AGENT_IDENTITIES_ANSWER without keys
        served.set()
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, agent):
        session = object()
        private = await guests.connect(alice, train, agent_path=agent, owner=session)
        assert private is not shared
        assert private is await guests.connect(alice, train, agent_path=agent, owner=session)
        assert "no identities" in str((await private.run("ssh-add -l")).stdout)
        assert served.is_set()
        assert not (await shared.run("echo -n $SSH_AUTH_SOCK")).stdout
        await guests.release(session)
        assert private.is_closed()
        assert not shared.is_closed()


async def test_variables_reach_the_shell_unchanged(bench: Bench, guests: Guests, alice: Caller) -> None:
    value = "a \"b\" 'c' \\d $HOME `id` #e %f"
    environment = await bench.add(alice, "vars", {"FIRST": value, "SECOND": "", "HTTP_PROXY": "http://x:1"})
    link = await guests.connect(alice, environment)
    done = await link.run('printf "%s|%s|%s" "$FIRST" "${SECOND-unset}" "$HTTP_PROXY"', env={"LANG": "C.UTF-8"})
    assert done.stdout == f"{value}||http://x:1"
    assert (await link.run("echo -n $LANG $EVIL", env={"LANG": "C", "EVIL": "1"})).stdout.split()[-1:] != ["1"]


async def test_a_variable_with_a_line_break_is_refused(bench: Bench, alice: Caller) -> None:
    with pytest.raises(BadInput, match="line break"):
        await bench.add(alice, "vars", {"KEY": "a\nb"})


async def test_callers_who_come_together_share_one_connection(
    guests: Guests, alice: Caller, train: Environment
) -> None:
    links = await asyncio.gather(*(guests.connect(alice, train) for _ in range(5)))
    assert len(set(links)) == 1
    results = await asyncio.gather(*(links[0].run(f"exit {number}") for number in range(30)))
    assert [done.exit_status for done in results] == list(range(30))


async def test_one_who_gives_up_does_not_take_it_from_the_others(
    guests: Guests, alice: Caller, train: Environment
) -> None:
    first = asyncio.create_task(guests.connect(alice, train))
    second = asyncio.create_task(guests.connect(alice, train))
    await asyncio.sleep(0)
    first.cancel()
    assert (await (await second).run("exit 4")).exit_status == 4


async def test_a_dead_connection_is_replaced(guests: Guests, alice: Caller, train: Environment) -> None:
    link = await guests.connect(alice, train)
    link.abort()
    again = await guests.connect(alice, train)
    assert (await again.run("true")).exit_status == 0


async def test_a_terminals_programs_end_with_the_connection(guests: Guests, alice: Caller, train: Environment) -> None:
    link = await guests.connect(alice, train)
    process = await link.create_process("sleep 7777", term_type="xterm")
    await asyncio.sleep(0.2)
    link.abort()
    del process
    again = await guests.connect(alice, train)
    for _ in range(50):
        if not (await again.run("pgrep -f 'sleep 777[7]'")).stdout:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the terminal's program stayed behind")


async def test_the_host_key_belongs_to_the_name(
    guests: Guests, database: Database, data_dir: Path, alice: Caller, bob: Caller, changes: Changes,
    local: LocalCompute,
) -> None:  # fmt: skip
    lines = await asyncio.gather(*(guests.public_key(alice.user_id, "train") for _ in range(4)))
    assert len(set(lines)) == 1
    assert lines[0].startswith("ssh-ed25519 AAAA")
    assert lines[0] != await guests.public_key(bob.user_id, "train")
    second = Guests(database, Vault.in_directory(data_dir), {"local": local}, changes)
    assert await second.public_key(alice.user_id, "train") == lines[0]


async def test_a_restart_takes_new_keys_and_old_ones_are_void(
    guests: Guests, local: LocalCompute, bench: Bench, alice: Caller, train: Environment
) -> None:
    old = await guests.connect(alice, train)
    await old.run("echo kept > /workspace/file; touch /tmp/gone")
    await local.stop(train.handle, grace=2)
    with pytest.raises(Conflict):
        await local.open_pipe(train.handle, ["/bin/true"], {})
    again = await bench.start(train)
    assert again.client_key != train.client_key
    assert old.is_closed()
    link = await guests.connect(alice, train)
    assert (await link.run("cat /workspace/file; ls /tmp")).stdout == "kept\n"


async def test_what_does_not_run_is_said_in_one_sentence(
    guests: Guests, local: LocalCompute, database: Database, alice: Caller, train: Environment
) -> None:
    await local.stop(train.handle, grace=0)
    with pytest.raises(Conflict, match="does not run"):
        await guests.connect(alice, train)
    async with database.writing() as tx:
        await tx.delete(await tx.get_one(Environment, train.id))
    with pytest.raises(NotFound):
        await guests.connect(alice, train)


async def test_a_guest_that_fails_is_quoted(guests: Guests, data_dir: Path, alice: Caller, train: Environment) -> None:
    (data_dir / "environments" / train.id / "run" / "sshd_config").write_text("Nonsense yes\n")
    with pytest.raises(Unavailable, match=r"terminating, 1 bad configuration options"):
        await guests.connect(alice, train)


async def test_a_guest_with_another_host_key_is_not_trusted(
    guests: Guests, data_dir: Path, alice: Caller, train: Environment
) -> None:
    """Somebody inside cannot pretend to be the environment."""
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    (data_dir / "environments" / train.id / "run" / "ssh_host_ed25519_key").write_bytes(key)
    with pytest.raises(Unavailable, match="Host key is not trusted"):
        await guests.connect(alice, train)


async def test_connections_are_dropped_when_another_process_stops_the_environment(
    guests: Guests, database: Database, changes: Changes, alice: Caller, train: Environment
) -> None:
    link = await guests.connect(alice, train)
    changes.tell("environment", train.id)
    await asyncio.sleep(0.1)
    assert not link.is_closed()
    async with database.writing() as tx:
        (await tx.get_one(Environment, train.id)).state = EnvironmentState.STOPPED
    changes.tell("environment", train.id)
    async with asyncio.timeout(60):
        await link.wait_closed()


async def test_idle_connections_are_found(guests: Guests, alice: Caller, train: Environment) -> None:
    link = await guests.connect(alice, train)
    process = await link.create_process("cat")
    assert guests._finished() == []
    slot = next(iter(guests._pool.values()))
    assert slot.idle_since is None
    process.stdin.write_eof()
    await process.wait_closed()
    assert guests._finished() == []
    assert slot.idle_since is not None
    slot.idle_since -= IDLE.total_seconds() + 1
    assert len(guests._finished()) == 1
