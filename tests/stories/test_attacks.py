"""A client that keeps to no rules: floods, half-open connections, channels that never close, rights that are gone.

asyncssh is only the attacker's tool here; everything it does, any program could send. The gateway refuses with a
sentence, keeps its memory, and goes on serving everybody else, the attacker's other channels included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator

import asyncssh
import pytest
from asyncssh.channel import SSHClientChannel
from asyncssh.packet import String, UInt32

from tests.stories.clients import Environment, Gateway, eventually

MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def connected(
    gateway: Gateway, login: str, key: str = "", **options: object
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    connection = await asyncssh.connect(
        "127.0.0.1",
        gateway.port,
        username=login,
        client_keys=[str(gateway.home / (key or login.partition("+")[0]))],
        known_hosts=None,
        agent_path=None,
        config=None,
        **options,
    )
    try:
        yield connection
    finally:
        connection.close()
        with contextlib.suppress(asyncssh.Error, OSError):
            await connection.wait_closed()


async def bare_session(connection: asyncssh.SSHClientConnection) -> SSHClientChannel[bytes]:
    """A session channel on which nothing was asked for yet."""
    loop = asyncio.get_running_loop()
    channel: SSHClientChannel[bytes] = SSHClientChannel(connection, loop, "strict", None, "strict", 2 * MIB, 32768)
    await channel._open(b"session")
    return channel


async def answered(channel: SSHClientChannel[bytes]) -> None:
    """Everything that was sent before has been read."""
    await channel._make_request(b"env", String("LAST"), String("1"))


def descriptors(gateway: Gateway) -> int:
    assert gateway.process is not None
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


@contextlib.contextmanager
def half_open(gateway: Gateway, count: int, source: str) -> Iterator[list[socket.socket]]:
    address = (source, 0)
    connections = [
        socket.create_connection(("127.0.0.1", gateway.port), timeout=10, source_address=address) for _ in range(count)
    ]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


# ---- before anybody has logged in ------------------------------------------------------------------------------
def test_half_open_connections_do_not_pile_up(gateway: Gateway) -> None:
    """No limit like OpenSSH's MaxStartups: 600 silent connections from one address took 600 descriptors for 30 s.

    64 of them stay, and somebody else from the very same address logs in: the oldest silent one makes room.
    """
    before = descriptors(gateway)
    with half_open(gateway, 300, "127.0.0.1"):
        assert gateway.ssh("alice", "whoami").returncode == 0
        eventually(lambda: descriptors(gateway) - before <= 70, seconds=20)  # well before the login grace ends
    eventually(lambda: descriptors(gateway) - before <= 5)


def test_many_addresses_together_have_a_limit_too(gateway: Gateway) -> None:
    before = descriptors(gateway)
    with contextlib.ExitStack() as stack:
        for number in range(20, 28):
            stack.enter_context(half_open(gateway, 50, f"127.0.0.{number}"))
        assert gateway.ssh("alice", "whoami").returncode == 0
        eventually(lambda: descriptors(gateway) - before <= 262, seconds=20)


async def test_a_client_that_never_asks_for_the_methods_is_banned_all_the_same(gateway: Gateway) -> None:
    """The first failure was taken for the "none" that OpenSSH sends; clients that skip it were never counted."""
    bad = asyncssh.generate_private_key("ssh-ed25519")
    for _ in range(10):
        with contextlib.suppress(asyncssh.Error, OSError):
            await asyncssh.connect(
                "127.0.0.1", gateway.port, username="alice", client_keys=[bad], known_hosts=None, agent_path=None,
                config=None, local_addr=("127.0.0.41", 0), client_factory=_Hasty,
            )  # fmt: skip
    with pytest.raises((asyncssh.Error, OSError)):
        async with connected(gateway, "alice", local_addr=("127.0.0.41", 0)):
            pass
    async with connected(gateway, "alice", local_addr=("127.0.0.42", 0)) as other:
        assert (await other.run("whoami")).exit_status == 0
    told = gateway.ssh("alice", "whoami", options=["-b", "127.0.0.41", "-o", "LogLevel=ERROR"], check=False)
    assert told.returncode == 255
    assert b"invalid characters" not in told.stderr  # what OpenSSH says of a reason that comes before the version


class _Hasty(asyncssh.SSHClient):
    """Sends its key in its very first request."""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        original = conn.send_userauth_request

        async def send(method: bytes, *args: bytes, **options: object) -> None:
            if method != b"none":
                await original(method, *args, **options)  # type: ignore[arg-type]
                return
            conn._auth_methods = [b"publickey"]
            asyncio.get_running_loop().call_soon(conn.try_next_auth)

        conn.send_userauth_request = send  # type: ignore[method-assign]


# ---- floods ----------------------------------------------------------------------------------------------------
async def test_session_channels_that_ask_for_nothing_are_limited(gateway: Gateway) -> None:
    """Only sessions that had asked for a shell were counted: 3000 bare channels were opened on one connection."""
    async with connected(gateway, "alice") as connection:
        opened = await asyncio.gather(*(bare_session(connection) for _ in range(200)), return_exceptions=True)
        refused = [one for one in opened if isinstance(one, asyncssh.ChannelOpenError)]
        assert len(opened) - len(refused) == 64
        assert {one.code for one in refused} == {asyncssh.OPEN_RESOURCE_SHORTAGE}
        for one in opened:
            if isinstance(one, SSHClientChannel):
                one.close()
                await one.wait_closed()
        # What was given back can be used again.
        assert (await connection.run("whoami")).exit_status == 0


async def test_a_jump_does_not_multiply_the_limits(environment: Environment) -> None:
    """64 sessions on each of 256 jumps of one connection would be 16,384."""
    async with connected(environment.gateway, "alice") as outer:
        inner = [await _jumped(outer, environment) for _ in range(3)]
        opened = [
            await asyncio.gather(*(bare_session(one) for _ in range(30)), return_exceptions=True) for one in inner
        ]
        assert sum(isinstance(one, SSHClientChannel) for group in opened for one in group) == 64
        inner[0].abort()
        await asyncio.sleep(0.5)
        again = await asyncio.gather(*(bare_session(inner[2]) for _ in range(40)), return_exceptions=True)
        assert sum(isinstance(one, SSHClientChannel) for one in again) == 30


async def _jumped(outer: asyncssh.SSHClientConnection, environment: Environment) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        environment.name, username="alice", tunnel=outer, known_hosts=None, client_keys=[], agent_path=None, config=None
    )


async def test_forwards_that_are_on_their_way_count(environment: Environment) -> None:
    """The limit was looked at before the wait and counted after it: 2000 at once all came through the gap."""
    async with connected(environment.gateway, environment.login) as connection:

        async def one() -> str:
            try:
                await connection.open_connection("127.0.0.1", 9)
            except asyncssh.ChannelOpenError as error:
                return error.reason
            return ""

        reasons = await asyncio.gather(*(one() for _ in range(1000)))
        assert sum("forwards at a time" in reason for reason in reasons) > 0
        assert "forwards at a time" not in await one()


async def test_jumps_are_limited(environment: Environment) -> None:
    """Each jump is a whole SSH server; nothing counted them."""
    async with connected(environment.gateway, "alice") as connection:
        for _ in range(256):
            await connection.open_connection(environment.name, 22)
        with pytest.raises(asyncssh.ChannelOpenError, match="forwards at a time"):
            await connection.open_connection(environment.name, 22)


async def test_variables_do_not_fill_the_memory(gateway: Gateway) -> None:
    """4000 variables of 30 KB each were kept: no window holds back channel requests."""
    async with connected(gateway, "alice") as connection:
        channel = await bare_session(connection)
        before = gateway.memory()
        for number in range(4000):
            channel._send_request(b"env", String(f"V{number}"), String("x" * 30_000))
            if number % 100 == 0:
                await asyncio.sleep(0.01)
        await answered(channel)
        assert gateway.memory() - before < 30 * MIB


async def test_sizes_and_signals_do_not_fill_the_memory(gateway: Gateway) -> None:
    """While nobody served the channel each window-change was kept for later."""
    async with connected(gateway, "alice") as connection:
        channel = await bare_session(connection)
        before = gateway.memory()
        size = UInt32(80) + UInt32(24) + UInt32(0) + UInt32(0)
        for number in range(100_000):
            channel._send_request(b"window-change", size)
            channel._send_request(b"signal", String("USR1"))
            if number % 1000 == 0:
                await asyncio.sleep(0.01)
        await answered(channel)
        assert gateway.memory() - before < 30 * MIB


async def test_tiny_pieces_do_not_fill_the_memory(gateway: Gateway) -> None:
    """A window counts bytes, and a piece of three costs a hundred: 2 MiB of window became 70 MB, per channel."""
    async with connected(gateway, "alice") as connection:
        channel = await bare_session(connection)
        before = gateway.memory()
        for number in range(400_000):
            channel.send_packet(94, String(b"xyz"))  # CHANNEL_DATA
            if number % 1000 == 0:
                await asyncio.sleep(0.01)
        await answered(channel)
        assert gateway.memory() - before < 15 * MIB


async def test_a_long_command_line_does_not_stop_the_others(gateway: Gateway) -> None:
    """`shlex` takes more than linear time, on the event loop: twenty words of 240 KB stopped everybody for 3 s."""
    async with connected(gateway, "alice") as attacker:
        results = await asyncio.gather(*(attacker.run("env show " + "a" * 240_000) for _ in range(20)))
    assert {one.exit_status for one in results} == {255}
    assert "characters" in str(results[0].stderr)


# ---- walls -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("garbage", [b"\0" * 20_000, b"SSH-2.0-x\r\n" + b"\xff" * 9000, b"SSH-2.0-\xff\xff\r\n"])
async def test_garbage_in_a_jump_stays_in_it(environment: Environment, garbage: bytes) -> None:
    """The inner SSH server is fed by a channel of the outer one, whose other channels must not notice."""
    async with connected(environment.gateway, "alice") as connection:
        reader, writer = await connection.open_connection(environment.name, 22)
        writer.write(garbage)
        with contextlib.suppress(asyncssh.Error, OSError):
            async with asyncio.timeout(30):
                await reader.read()
        assert (await connection.run("whoami")).exit_status == 0


# ---- rights that are gone --------------------------------------------------------------------------------------
async def test_a_locked_user_is_put_out(gateway: Gateway) -> None:
    """`user disable` only stopped new logins: whoever was in stayed in, and could open new channels, for ever."""
    gateway.add_user("dave")
    async with connected(gateway, "dave") as connection:
        assert (await connection.run("whoami")).exit_status == 0
        gateway.ssh("carol", "user", "disable", "dave")
        async with asyncio.timeout(30):
            await connection.wait_closed()
    with pytest.raises(asyncssh.Error):
        async with connected(gateway, "dave"):
            pass
    assert gateway.audit(action="connection.end", actor="dave")


async def test_a_key_that_was_taken_away_puts_its_thief_out(gateway: Gateway) -> None:
    """The owner removes a stolen key; what it has opened ends, what the other key has opened does not."""
    gateway.add_user("erin")
    stolen = gateway.make_key("erin-stolen")
    gateway.ssh("erin", "key", "add", input=stolen.with_suffix(".pub").read_bytes())
    async with connected(gateway, "erin", key="erin-stolen") as thief, connected(gateway, "erin") as owner:
        rows = gateway.json("erin", "key", "list")
        fingerprint = next(row["fingerprint"] for row in rows if row["title"] == "erin-stolen")
        assert (await owner.run(f"key remove {fingerprint}")).exit_status == 0
        async with asyncio.timeout(30):
            await thief.wait_closed()
        assert (await owner.run("whoami")).exit_status == 0


async def test_a_killed_session_cannot_be_sat_out(environment: Environment) -> None:
    """A client that does not read, and does not answer the close, kept its program running after `session kill`."""
    gateway = environment.gateway
    async with connected(gateway, environment.login) as connection:
        process = await connection.create_process("exec -a sat-out yes", encoding=None)
        process.channel.pause_reading()
        eventually(lambda: "sat-out" in environment.processes())
        rows = gateway.json("carol", "session", "list", "--all")
        session = next(row["id"] for row in rows if "sat-out" in row["detail"])
        gateway.ssh("carol", "session", "kill", session)
        began = time.monotonic()
        while "sat-out" in environment.processes():
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.5)
        assert all(row["id"] != session for row in gateway.json("carol", "session", "list", "--all"))


def test_names_of_other_peoples_environments_are_not_confirmed(environment: Environment) -> None:
    """`train.alice` answered "no environment 'train'" if there is one, and "no environment 'train.alice'" if not."""
    gateway = environment.gateway
    for command in (["env", "show"], ["env", "logs"], ["env", "delete"]):
        there = gateway.ssh("bob", *command, f"{environment.name}.alice", check=False)
        never = gateway.ssh("bob", *command, "never-was.alice", check=False)
        assert there.stderr.decode().replace(environment.name, "never-was") == never.stderr.decode()
        assert (there.returncode, there.stdout) == (never.returncode, never.stdout)


async def test_the_trail_holds_together_while_several_processes_write(gateway: Gateway) -> None:
    """The gateway, its menus and the operator's commands append to one chain."""
    names = [f"writer{number}" for number in range(4)]
    keys = {name: gateway.make_key(name) for name in names}

    async def add(name: str) -> None:
        await asyncio.to_thread(gateway.operate, "user", "add", name, "--key", f"{keys[name]}.pub")

    async def use() -> None:
        async with connected(gateway, "alice") as connection:
            await asyncio.gather(*(connection.run("whoami") for _ in range(30)))

    await asyncio.gather(*(add(name) for name in names), use(), use())
    assert gateway.operate("audit", "verify").returncode == 0
