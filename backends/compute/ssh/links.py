"""SSH connections from here to one machine: made when needed, its pinned host key the only one that is believed.

OpenSSH gives each connection 10 sessions (`MaxSessions`), so there are as many connections as it takes, made one after
the other. One that is lost is made anew by whoever needs it next. Where that fails, everybody is told so at once from
then on, while it is tried again in the background, at growing distances. Knows nothing of environments; asyncssh is
spoken here and in `pipe` only, as a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from backends.settings import MachineSettings
from storage.errors import Unavailable
from storage.names import printable

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
_SESSIONS = 10
_IDLE_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TRIES = 20
_HOST_KEY_ALGORITHMS = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip

Process = asyncssh.SSHClientProcess[bytes]


@dataclass(frozen=True)
class Answer:
    """What a program on the machine said, and how it ended; -1: by a signal."""

    status: int
    output: str
    complaint: str


@dataclass(eq=False)
class _Link:
    """One connection. `used`: sessions on it. `full`: it refused one, and gets no more. `proven`: it allowed one."""

    connection: asyncssh.SSHClientConnection
    used: int = 0
    full: bool = False
    proven: bool = False
    closing: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        return not self.full and self.used < _SESSIONS and not self.connection.is_closed()


class Links:
    """All connections to the machine `name`. Make it inside a running event loop; `close` it at the end."""

    def __init__(self, name: str, settings: MachineSettings) -> None:
        self._name = name
        self._settings = settings
        self._links: list[_Link] = []
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: Unavailable | None = None
        self._redialing: asyncio.Task[None] | None = None

    async def start(self, command: str) -> Process:
        """Run a command line, with all three streams. Unavailable: the machine is away, or refuses."""
        for _ in range(_TRIES):
            link = await self._take()
            is_first = link.used == 1 and not link.proven
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    process = await link.connection.create_process(command, encoding=None)
            except TimeoutError as error:
                link.connection.abort()  # silent for so long: whoever waits on it waits in vain
                link.full = True
                self._give_back(link)
                raise Unavailable(f"the machine '{self._name}' does not answer") from error
            except (asyncssh.Error, OSError) as error:
                lost = link.connection.is_closed()
                link.full = True
                self._give_back(link)
                if is_first and not lost:
                    said = printable(str(error), limit=200)
                    raise Unavailable(f"the machine '{self._name}' runs no programs for us: {said}") from error
                continue
            except BaseException:
                self._give_back(link)
                raise
            link.proven = True
            task = asyncio.create_task(self._stay_with(link, process), name=f"session on {self._name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return process
        raise Unavailable(f"the machine '{self._name}' takes no more sessions")

    async def run(self, script: bytes, *, seconds: float) -> Answer:
        """What a script for /bin/sh says and ends with."""
        process = await self.start("exec /bin/sh -s")
        try:
            async with asyncio.timeout(seconds):
                output, complaint = await process.communicate(script)
        except TimeoutError as error:
            raise Unavailable(f"the machine '{self._name}' does not answer") from error
        except (asyncssh.Error, OSError) as error:
            raise Unavailable(f"the connection to the machine '{self._name}' was lost") from error
        finally:
            process.close()
        if process.exit_status is None:
            raise Unavailable(f"the connection to the machine '{self._name}' was lost")
        return Answer(process.exit_status, _text(output), _text(complaint))

    async def close(self) -> None:
        """End every connection."""
        if self._redialing is not None:
            self._redialing.cancel()
            await asyncio.gather(self._redialing, return_exceptions=True)
        links, self._links = self._links, []
        for link in links:
            if link.closing is not None:
                link.closing.cancel()
            link.connection.close()
        for link in links:
            try:
                async with asyncio.timeout(2):
                    await link.connection.wait_closed()
            except TimeoutError:
                link.connection.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _take(self) -> _Link:
        """A connection with room for one more session, which is counted already."""
        async with self._lock:
            await asyncio.sleep(0)  # a connection that was aborted just now says so in the next round of the loop
            self._links = [link for link in self._links if not link.connection.is_closed()]
            link = next((link for link in self._links if link.has_room), None)
            if link is None:
                link = _Link(await self._connect())
                self._links.append(link)
            link.used += 1
            if link.closing is not None:
                link.closing.cancel()
                link.closing = None
            return link

    def _give_back(self, link: _Link) -> None:
        link.used -= 1
        if link.used:
            return
        if link.full:
            link.connection.close()
            self._links = [other for other in self._links if other is not link]
        elif link in self._links:
            self._let_rest(link)

    def _let_rest(self, link: _Link) -> None:
        link.closing = asyncio.get_running_loop().call_later(_IDLE_SECONDS, link.connection.close)

    async def _stay_with(self, link: _Link, process: Process) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            await process.wait_closed()
        self._give_back(link)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        if self._trouble is not None:
            raise Unavailable(self._trouble.message)
        try:
            return await self._dial()
        except Unavailable as error:
            self._trouble = error
            self._redialing = asyncio.create_task(self._redial(), name=f"redial {self._name}")
            raise

    async def _redial(self) -> None:
        """Try until it answers; whoever comes next finds the connection."""
        pause = _FIRST_PAUSE
        while self._trouble is not None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                link = _Link(await self._dial())
            except Unavailable as error:
                self._trouble = error
            else:
                self._trouble = None
                self._links.append(link)
                self._let_rest(link)

    async def _dial(self) -> asyncssh.SSHClientConnection:
        name, settings = self._name, self._settings
        key = await asyncio.to_thread(_private_key, name, Path(settings.key_file))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncssh.connect(settings.address, settings.port, options=_options(settings, key))
        except TimeoutError as error:
            raise Unavailable(f"the machine '{name}' does not answer") from error
        except asyncssh.PermissionDenied as error:
            raise Unavailable(
                f"the machine '{name}' does not let '{settings.user}' in with the gateway's key"
            ) from error
        except OSError as error:
            raise Unavailable(f"the machine '{name}' cannot be reached: {_reason(error)}") from error
        except asyncssh.HostKeyNotVerifiable as error:
            sentence = f"the machine '{name}' shows another host key than the one in the settings"
            if self._trouble is None or self._trouble.message != sentence:
                log.error("%s: it was installed anew, or somebody stands in between; nothing was sent to it", sentence)
            raise Unavailable(sentence) from error
        except asyncssh.Error as error:
            said = printable(str(error), limit=200)
            raise Unavailable(f"the machine '{name}' cannot be talked to: {said}") from error


def status_of(process: Process) -> int | None:
    """As a shell would show it; None: nobody told."""
    if process.exit_signal is None:
        return process.exit_status
    number = getattr(signal, f"SIG{process.exit_signal[0]}", None)
    return None if number is None else 128 + int(number)


def _options(settings: MachineSettings, key: asyncssh.SSHKey) -> asyncssh.SSHClientConnectionOptions:
    host_key = asyncssh.import_public_key(settings.host_key)
    # Those of other kinds come last: a machine without a key of the pinned kind shows one that is refused in words.
    algorithms = sorted(_HOST_KEY_ALGORITHMS, key=lambda name: name.encode() not in host_key.sig_algorithms)
    return asyncssh.SSHClientConnectionOptions(
        config=None,
        username=settings.user,
        client_keys=[key],
        known_hosts=([host_key], [], []),
        server_host_key_algs=algorithms,
        agent_path=None,  # else the agent of whoever started the gateway would be used
        preferred_auth=["publickey"],
        gss_host=None,
        compression_algs=["none"],
        keepalive_interval=15,
        keepalive_count_max=3,
        login_timeout=CONNECT_SECONDS,
    )


def _private_key(name: str, path: Path) -> asyncssh.SSHKey:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Unavailable(f"the key file of the machine '{name}' may be read by others: chmod 600 {path}")
        return asyncssh.read_private_key(path)
    except OSError as error:
        raise Unavailable(f"the key file of the machine '{name}' cannot be read: {error.strerror}") from error
    except asyncssh.KeyImportError as error:
        raise Unavailable(f"the key file of the machine '{name}' is no private key without a passphrase") from error


def _reason(error: OSError) -> str:
    return printable(error.strerror or str(error), limit=200)


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()
