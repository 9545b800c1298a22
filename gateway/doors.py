"""What happens behind each door: menu, gateway command, data tree, or a program in an environment.

Thin: each door finds its use case, joins the channel to it, and tells how it ended. No rule lives here.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from backends.environments import owned
from gateway import commands, digests, scp
from gateway.channel import Size, Terminal
from gateway.commands.context import ChannelContext
from gateway.file_audit import FileAudit
from gateway.languages import language_of, words_for
from gateway.recorder import Recorder
from gateway.relay import Exit, Relay, Tap
from gateway.routes import Door, Route
from gateway.session import ClientSession
from gateway.sftp import SftpDoor
from gateway.signs import Signs
from storage.access import Action, Caller, decide, require
from storage.errors import NotAllowed
from storage.records import Environment, SshSession

if TYPE_CHECKING:
    from gateway.connection import Connection

log = logging.getLogger(__name__)
_KILL_SECONDS = 5.0
_HINT = "ashore: the connection is held for its forwards; end it with Ctrl-C. For the menu: ssh -t"


async def enter(connection: Connection, session: ClientSession, route: Route) -> None:
    """Go through the door and stay until it is over. AshoreError: refused, nothing has been sent."""
    match route.door:
        case Door.REFUSED:
            raise NotAllowed(route.reason)
        case Door.MENU:
            await _menu(connection, session)
        case Door.COMMAND:
            await _command(connection, session, route.command)
        case Door.DIGEST:
            await _digest(connection, session, route.command)
        case Door.DATA | Door.SCP:
            await _data(connection, session, route)
        case Door.HOLD:
            await _hold(connection, session)
        case Door.WELCOME:
            await _welcome(connection, session)
        case Door.SHELL | Door.EXEC | Door.SFTP:
            await _environment(connection, session, route)


async def _menu(connection: Connection, session: ClientSession) -> None:
    caller, _ = await connection.identity()
    house = connection.house
    require(caller, Action.MENU)

    async def open_shell(name: str) -> int:
        # The menu goes on after the shell: the end of its output is not the channel's.
        result = await into_environment(
            connection,
            session,
            name,
            Route(Door.SHELL),
            end_of_output=lambda: None,
            before=(session.bytes_in, session.bytes_out),
        )
        return result.code

    async with _session_row(connection, session, Door.MENU) as ended:
        language = await language_of(house.services.accounts, caller, session)
        status = await house.menu.run(session, caller, language=language, open_shell=open_shell)
        ended(Exit(status))
        session.exit(status)


async def _command(connection: Connection, session: ClientSession, command: str) -> None:
    caller, _ = await connection.identity()
    house = connection.house
    require(caller, Action.COMMAND)
    context = ChannelContext(
        session,
        house.services,
        caller,
        house.settings,
        host=house.services.address.host,
        port=house.services.address.port,
        host_keys=house.host_keys,
    )
    session.exit(await commands.run(context, command))


async def _digest(connection: Connection, session: ClientSession, command: str) -> None:
    caller, _ = await connection.identity()
    services = connection.house.services
    status = await digests.run(session, services.files, caller, services.audit, shlex.split(command))
    session.exit(127 if status is None else status)


async def _data(connection: Connection, session: ClientSession, route: Route) -> None:
    caller, _ = await connection.identity()
    services = connection.house.services
    require(caller, Action.TREE_READ)
    async with _session_row(connection, session, route.door, detail=route.command) as ended:
        if route.door is Door.DATA:
            status = await SftpDoor(session, services.files, caller, services.audit).run()
        else:
            status = await scp.serve(session, services.files, caller, services.audit, shlex.split(route.command))
        ended(Exit(status))
        session.exit(status)


async def _hold(connection: Connection, session: ClientSession) -> None:
    session.say(_HINT)
    async with _session_row(connection, session, Door.HOLD) as ended:
        await _Idle(session).closed_by_client()
        ended(Exit(0))


async def _welcome(connection: Connection, session: ClientSession) -> None:
    caller, _ = await connection.identity()
    address = connection.house.services.address
    session.say(f"ashore: your key is known from now on: ssh -p {address.port} {caller.name}@{address.host}")
    session.exit(0)


async def _environment(connection: Connection, session: ClientSession, route: Route) -> None:
    _, target = await connection.identity()
    result = await into_environment(connection, session, target.environment, route, end_of_output=session.write_eof)
    if result.signal is not None:
        session.exit_with_signal(result.signal, result.core_dumped, result.message)
    else:
        session.exit(result.code)


async def into_environment(
    connection: Connection,
    session: ClientSession,
    name: str,
    route: Route,
    *,
    end_of_output: Callable[[], None],
    before: tuple[int, int] = (0, 0),
) -> Exit:
    """Wake the environment, run the program in it on this channel, and tell how it ended."""
    caller, _ = await connection.identity()
    services = connection.house.services
    action = {Door.SHELL: Action.SHELL, Door.EXEC: Action.EXEC, Door.SFTP: Action.SFTP}[route.door]
    words = await words_for(services.accounts, caller, session)

    def say(line: str) -> None:
        session.say(words(line))

    environment = await services.environments.open(caller, action, name, on_progress=say)
    await services.environments.activity.arrive(environment)
    agent = connection.agent_path if _may_use_agent(caller, environment) else None
    guest = await services.guests.connect(caller, environment, agent_path=agent, owner=connection)
    async with _session_row(
        connection, session, route.door, environment=environment.name, detail=route.command, before=before
    ) as ended:
        async with _tapped(connection, session, environment, route, ended.row) as tap:
            signs = Signs(
                services.environments.activity, environment.id, tap,
                has_terminal=session.terminal is not None, is_protocol=route.door is Door.SFTP,
            )  # fmt: skip
            relay = Relay(session, signs, end_of_output)
            with _present(connection, session, environment, say):
                if route.door is Door.SFTP:
                    result = await relay.run(guest, subsystem="sftp")
                else:
                    command = route.command if route.door is Door.EXEC else None
                    result = await relay.run(guest, command=services.guests.command(environment, command))
        ended(result)
    return result


@contextmanager
def _present(
    connection: Connection, session: ClientSession, environment: Environment, say: Callable[[str], None]
) -> Iterator[None]:
    """Somebody is in the environment while the block runs, and is told what happens to it if there is a terminal."""
    house = connection.house

    def interrupt(line: str) -> None:
        session.say("")  # programs leave the cursor anywhere
        say(line)

    with house.services.environments.activity.presence(environment.id), ExitStack() as stack:
        if session.terminal is not None:
            stack.enter_context(house.notices.terminal(environment.id, environment.name, interrupt))
        yield


def _may_use_agent(caller: Caller, environment: Environment) -> bool:
    """Whether the client's agent may be shown to this environment."""
    return decide(caller, Action.AGENT, owned(environment)).allowed


class _Ended:
    """Takes the result of a session while it is open."""

    def __init__(self, row: SshSession) -> None:
        self.row = row
        self.result = Exit()

    def __call__(self, result: Exit) -> None:
        self.result = result


@asynccontextmanager
async def _session_row(
    connection: Connection,
    session: ClientSession,
    door: Door,
    *,
    environment: str = "",
    detail: str = "",
    before: tuple[int, int] = (0, 0),
) -> AsyncIterator[_Ended]:
    """The session is in the list while the block runs, can be killed from elsewhere, and is audited at its end.

    `before`: bytes in and out that belong to whoever had the channel before.
    """
    caller, _ = await connection.identity()
    house = connection.house
    row = await house.services.sessions.begin(caller, door.value, environment=environment, detail=detail)

    def end(reason: str) -> None:
        session.say(f"ashore: {reason}")
        session.exit(255)
        # A client that does not read, or does not answer the close, would stay for as long as it likes.
        asyncio.get_running_loop().call_later(_KILL_SECONDS, session.abort)

    house.live.ends[row.id] = end
    ended = _Ended(row)
    try:
        yield ended
    finally:
        house.live.ends.pop(row.id, None)
        await asyncio.shield(
            house.services.sessions.end(
                caller,
                row,
                exit_status=ended.result.status,
                bytes_in=session.bytes_in - before[0],
                bytes_out=session.bytes_out - before[1],
            )
        )


@asynccontextmanager
async def _tapped(
    connection: Connection,
    session: ClientSession,
    environment: Environment,
    route: Route,
    row: SshSession,
) -> AsyncIterator[Tap | None]:
    """What watches a relay: a recorder for terminals, a file auditor for SFTP, nothing for plain programs."""
    caller, _ = await connection.identity()
    services = connection.house.services
    terminal = session.terminal
    if route.door is Door.SFTP:
        files = FileAudit(caller, environment.name, services.audit)
        try:
            yield files
        finally:
            await asyncio.shield(files.close())
    elif terminal is not None and connection.house.settings.audit.recording:
        async with _recorded(connection, caller, row, terminal) as recorder:
            yield recorder
    else:
        yield None


@asynccontextmanager
async def _recorded(
    connection: Connection, caller: Caller, row: SshSession, terminal: Terminal
) -> AsyncIterator[Recorder]:
    recordings = connection.house.services.recordings
    recording = await recordings.begin(caller, row)
    recorder = Recorder(
        recordings.path(recording.id),
        terminal.size,
        title=f"{caller.name}+{row.environment}",
        kind=terminal.kind,
        limit=connection.house.settings.audit.recording_max_mib * 1024 * 1024,
    )
    recorder.start()
    try:
        yield recorder
    finally:
        seconds, size, sha256 = await asyncio.shield(recorder.close())
        await asyncio.shield(recordings.finish(recording.id, seconds=seconds, size=size, sha256=sha256))


class _Idle:
    """A consumer that wants nothing but to know when the client has gone."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._gone = asyncio.Event()

    async def closed_by_client(self) -> None:
        self._session.attach(self)
        await self._gone.wait()

    def data_received(self, data: bytes) -> None:
        if b"\x03" in data or b"\x04" in data:
            self._session.exit(0)

    def eof_received(self) -> None: ...

    def resized(self, size: Size) -> None: ...

    def signal_received(self, name: str) -> None:
        if name in ("INT", "TERM", "HUP"):
            self._session.exit(0)

    def output_unwanted(self) -> None: ...

    def break_received(self, milliseconds: int) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def closed(self) -> None:
        self._gone.set()
