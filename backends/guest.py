"""The guest: the SSH server that Ashore runs inside an environment, and the pooled connections to it.

A compute only opens a byte pipe to a program; over that pipe `sshd -i` (from `backends.guest_tree`) speaks SSH with
asyncssh here. So exit statuses, signals, half-close, forwards and SFTP work the same on every compute. Who may connect
is decided before (`environments.open`); no rule belongs in here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import asyncssh
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from backends.compute.contract import Compute, OnAccount, Pipe
from backends.compute.places import place_of
from backends.guest_files import ENTER, ENTER_ACCOUNT, LOGIN_USER, account_files, at_home, guest_files
from storage.access import Caller
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError, Conflict, NotFound, TimedOut, Unavailable
from storage.names import printable
from storage.records import Environment, EnvironmentKey, EnvironmentState
from storage.vault import Vault

log = logging.getLogger(__name__)
CONNECT_SECONDS = 20.0
IDLE = timedelta(minutes=5)
"""A connection without channels is closed after this time."""
_TRIES = 2
_LOOK_SECONDS = 30.0
_SCRIPT_SECONDS = 30.0
_SCRIPT_OUTPUT = 64 * 1024
"""Bytes that a script may print; a profile that prints for ever must not fill the memory."""
_ALIVE = (EnvironmentState.RUNNING, EnvironmentState.CREATING, EnvironmentState.STOPPING)

_Place = tuple[str, str, int, str]
"""User, environment, whose agent (identity of the owner, 0: nobody's), the agent's socket."""


@dataclass(eq=False)
class _Slot:
    """One connection, or the making of it. `owner` is kept so that its identity is not given to another object."""

    task: asyncio.Task[asyncssh.SSHClientConnection]
    owner: object | None
    idle_since: float | None = None

    @property
    def connection(self) -> asyncssh.SSHClientConnection | None:
        if not self.task.done() or self.task.cancelled() or self.task.exception() is not None:
            return None
        return self.task.result()

    @property
    def usable(self) -> bool:
        if not self.task.done():
            return True
        connection = self.connection
        return connection is not None and not connection.is_closed()


class Guests:
    """Keys of environments, and connections to their guests: one per user and environment, shared by many channels."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        computes: Mapping[str, Compute],
        changes: Changes,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._vault = vault
        self._computes = computes
        self._changes = changes
        self._clock = clock
        self._pool: dict[_Place, _Slot] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def prepare(self, environment: Environment) -> dict[str, bytes]:
        """Guest files for a start, with a fresh client key, which is sealed into the environment's record.

        BadInput: one of its variables cannot be handed over. NotFound: its record is gone.
        """
        host_key = await self.host_key(environment.owner_id, environment.name)
        client_key = asyncssh.generate_private_key("ssh-ed25519")
        make = account_files if self._account(environment) else guest_files
        files = make(environment, host_key.export_private_key(), client_key.export_public_key())
        sealed = self._vault.seal(client_key.export_private_key().decode())
        await self.drop(environment.id)
        async with self._database.writing() as tx:
            change = update(Environment).where(Environment.id == environment.id).values(client_key=sealed)
            found = await tx.scalar(change.returning(Environment.id))
            if found is None:
                raise NotFound(f"there is no environment '{environment.name}'")
        return files

    async def host_key(self, owner_id: str, name: str) -> asyncssh.SSHKey:
        """The host key that belongs to this name; made on first use and kept when the environment is deleted."""
        async with self._database.reading() as tx:
            record = await tx.get(EnvironmentKey, (owner_id, name))
        if record is None:
            record = await self._make_host_key(owner_id, name)
        return asyncssh.import_private_key(self._vault.open(record.private_key))

    async def public_key(self, owner_id: str, name: str) -> str:
        """The public half as one `ssh-ed25519 AAAA…` line, without comment; for known_hosts lines."""
        key = await self.host_key(owner_id, name)
        return " ".join(key.export_public_key().decode().split()[:2])

    def login_user(self, environment: Environment) -> str:
        """The account to log in as: of the machine's, if it is one; else the same name in every environment (an alias
        of the image's own user, if any)."""
        return self._account(environment) or LOGIN_USER

    def command(self, environment: Environment, command: str | None) -> str | None:
        """What to ask the guest for so that `command` (None: a login shell) begins in the environment's home."""
        return at_home(command) if self._account(environment) else command

    async def connect(
        self,
        caller: Caller,
        environment: Environment,
        *,
        agent_path: str | None = None,
        owner: object | None = None,
    ) -> asyncssh.SSHClientConnection:
        """The connection of this caller to this environment, made if there is none.

        With `agent_path` (a socket of this machine) it is one that forwards that agent, and belongs to `owner` alone
        until `release(owner)`. Nobody but this class closes connections.
        Unavailable, TimedOut: the guest does not answer. Conflict: the environment does not run. NotFound: it is gone.
        """
        self._keep()
        mine = id(owner) if agent_path is not None else 0
        place = (caller.user_id, environment.id, mine, agent_path or "")
        await asyncio.sleep(0)  # a connection that was aborted just now says so in the next round of the loop
        slot = self._pool.get(place)
        if slot is None or not slot.usable:
            dial = self._dial(environment.id, environment.name, agent_path)
            slot = _Slot(asyncio.create_task(dial, name=f"guest {environment.id}"), owner if mine else None)
            slot.task.add_done_callback(_look_at)
            self._pool[place] = slot
        slot.idle_since = None
        # Shielded: one caller that gives up must not take the connection from the others who wait for it.
        try:
            return await asyncio.shield(slot.task)
        except asyncio.CancelledError:
            if slot.task.cancelled():
                raise Conflict(f"'{environment.name}' was stopped") from None
            raise

    async def tell_shell(self, caller: Caller, environment: Environment, command: str, script: str) -> str:
        """What `command`, which reads `script`, prints in this environment; its exit status is of no interest.

        As for `connect`; Unavailable also: it was cut off, took too long, or printed without end.
        """
        guest = await self.connect(caller, environment)
        try:
            async with asyncio.timeout(_SCRIPT_SECONDS):
                return await _told(guest, command, script)
        except (asyncssh.Error, TimeoutError, OSError) as error:
            raise Unavailable(f"the shell of '{environment.name}' does not answer") from error

    async def release(self, owner: object) -> None:
        """Close the connections that forward this owner's agent."""
        await self._close([place for place in self._pool if place[2] == id(owner) and place[3]])

    async def drop(self, environment_id: str) -> None:
        """Close every connection to an environment; it stops, or its guest gets new keys."""
        await self._close([place for place in self._pool if place[1] == environment_id])

    async def close(self) -> None:
        """Close every connection."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._close(list(self._pool))

    # ---- inside ----------------------------------------------------------------------------------------------
    def _account(self, environment: Environment) -> str:
        compute = self._computes.get(environment.compute)
        return compute.account if isinstance(compute, OnAccount) else ""

    async def _make_host_key(self, owner_id: str, name: str) -> EnvironmentKey:
        key = asyncssh.generate_private_key("ssh-ed25519")
        record = EnvironmentKey(
            owner_id=owner_id, name=name, created=self._clock(),
            private_key=self._vault.seal(key.export_private_key().decode()),
            public_key=key.export_public_key().decode().strip(),
        )  # fmt: skip
        with contextlib.suppress(IntegrityError):
            async with self._database.writing() as tx:
                tx.add(record)
            return record
        # Another process was faster; its key is the key.
        async with self._database.reading() as tx:
            return cast("EnvironmentKey", await tx.get_one(EnvironmentKey, (owner_id, name)))

    async def _dial(self, environment_id: str, name: str, agent_path: str | None) -> asyncssh.SSHClientConnection:
        for attempt in range(_TRIES):
            # Read each time: a restart in between means another key and perhaps another handle.
            record = await self._load(environment_id, name)
            try:
                return await self._dial_once(record, agent_path)
            except Unavailable:
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(0.3)
        raise AssertionError("unreachable")

    async def _dial_once(self, environment: Environment, agent_path: str | None) -> asyncssh.SSHClientConnection:
        place = place_of(environment.compute, environment.host)
        compute = self._computes.get(place)
        if compute is None:
            raise Unavailable(f"the compute '{place}' is not there now")
        options = await self._options(environment, agent_path)
        enter = ENTER_ACCOUNT if self._account(environment) else ENTER
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                pipe = await compute.open_pipe(environment.handle, enter, {})
                async with _closed_on_error(pipe):
                    return await asyncssh.connect(environment.id, sock=pipe.socket, options=options)
        except TimeoutError as error:
            seconds = int(CONNECT_SECONDS)
            raise TimedOut(f"the guest of '{environment.name}' did not answer within {seconds} s") from error
        except (asyncssh.Error, OSError) as error:
            # What sshd says explains a lost connection; otherwise it only saw us go.
            lost = isinstance(error, (asyncssh.ConnectionLost, asyncssh.PermissionDenied, OSError))
            said = (await _complaint(pipe) if lost else "") or printable(str(error), limit=200)
            raise Unavailable(f"the guest of '{environment.name}' does not answer: {said}") from error

    async def _options(self, environment: Environment, agent_path: str | None) -> asyncssh.SSHClientConnectionOptions:
        host_key = await self.host_key(environment.owner_id, environment.name)
        client_key = asyncssh.import_private_key(self._vault.open(environment.client_key))
        return asyncssh.SSHClientConnectionOptions(
            config=None,
            username=self.login_user(environment),
            client_keys=[client_key],
            known_hosts=([host_key.convert_to_public()], [], []),
            server_host_key_algs=["ssh-ed25519"],
            # The pipe is private; the cipher is only there because the protocol wants one, so take the fastest.
            encryption_algs=["aes128-gcm@openssh.com"],
            kex_algs=["curve25519-sha256"],
            compression_algs=["none"],
            preferred_auth=["publickey"],
            agent_path=None,  # else the agent of whoever started the gateway would be used
            agent_forwarding=agent_path or False,
            gss_host=None,
            login_timeout=CONNECT_SECONDS,
            keepalive_interval=30,
            keepalive_count_max=3,
        )

    async def _load(self, environment_id: str, name: str) -> Environment:
        async with self._database.reading() as tx:
            record = await tx.scalar(select(Environment).where(Environment.id == environment_id))
        if record is None:
            raise NotFound(f"there is no environment '{name}'")
        if not record.client_key or not record.handle:
            raise Conflict(f"'{name}' does not run")
        return record

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._look_after(), name="guest connections")

    async def _look_after(self) -> None:
        """Close what is idle, forget what is dead, and let go of environments that other processes stopped."""
        with self._changes.subscribe("environment") as hints:
            while True:
                changed = ""
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        changed = (await hints.get()).key
                try:
                    await self._close(self._finished())
                    if changed and any(place[1] == changed for place in self._pool):
                        await self._drop_if_over(changed)
                except AshoreError as error:
                    log.warning("guest connections: %s", error.message)

    async def _drop_if_over(self, environment_id: str) -> None:
        async with self._database.reading() as tx:
            state = await tx.scalar(select(Environment.state).where(Environment.id == environment_id))
        if state not in _ALIVE:
            await self.drop(environment_id)

    def _finished(self) -> list[_Place]:
        time = asyncio.get_running_loop().time()
        finished = []
        for place, slot in self._pool.items():
            if not slot.usable:
                finished.append(place)
                continue
            connection = slot.connection
            if connection is None or _channels(connection):
                slot.idle_since = None
            elif slot.idle_since is None:
                slot.idle_since = time
            elif time - slot.idle_since > IDLE.total_seconds():
                finished.append(place)
        return finished

    async def _close(self, places: list[_Place]) -> None:
        slots = [slot for slot in (self._pool.pop(place, None) for place in places) if slot is not None]
        await asyncio.gather(*(_end(slot) for slot in slots))


async def _end(slot: _Slot) -> None:
    if not slot.task.done():
        slot.task.cancel()
        await asyncio.gather(slot.task, return_exceptions=True)
    connection = slot.connection
    if connection is None:
        return
    connection.close()
    try:
        async with asyncio.timeout(2):
            await connection.wait_closed()
    except TimeoutError:
        connection.abort()


def _look_at(task: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
    """Take note of an error that nobody may have waited for; those who wait get it as well."""
    if not task.cancelled() and task.exception() is not None:
        log.info("%s: %s", task.get_name(), task.exception())


def _channels(connection: asyncssh.SSHClientConnection) -> int:
    # asyncssh has no public way to ask; the version is pinned, and a test watches this name.
    return len(connection._channels)


@contextlib.asynccontextmanager
async def _closed_on_error(pipe: Pipe) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        pipe.socket.close()
        raise


async def _complaint(pipe: Pipe) -> str:
    """The last thing that sshd said, once it had a moment to say it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await pipe.wait()
    lines = [line.strip() for line in pipe.complaint().splitlines() if line.strip()]
    return printable(lines[-1], limit=200) if lines else ""


async def _told(guest: asyncssh.SSHClientConnection, command: str, script: str) -> str:
    """What `command` prints. Not by `run`, which reads without a limit, and leaves the channel open when time is up."""
    process = await guest.create_process(command, stderr=asyncssh.DEVNULL, encoding=None)
    try:
        process.stdin.write(script.encode())
        process.stdin.write_eof()
        output = b""
        while piece := await process.stdout.read(_SCRIPT_OUTPUT):
            output += piece
            if len(output) > _SCRIPT_OUTPUT:
                raise OSError("it prints without end")
        return output.decode("utf-8", "replace")
    finally:
        process.close()
