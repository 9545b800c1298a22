"""A client with a screen: a real SSH client whose output an emulator draws, and a server that shows only menus."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pyte

from gateway.channel import Channel
from gateway.menu import InProcessMenu, MenuWorkers
from gateway.session import ClientSession
from storage.access import Caller

# What pyte would print instead of obeying.
_UNKNOWN = re.compile(rb"\x1b\[[<>=?]?[0-9;]*[$ ]?[>uqp]|\x1bP[^\x1b]*\x1b\\|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
OpenShell = Callable[[Channel, str], Awaitable[int]]


class Person(asyncssh.SSHClientSession[bytes]):
    """Somebody at a terminal."""

    def __init__(self, columns: int, rows: int, answers: bytes) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.raw = bytearray()
        self.closed = asyncio.Event()
        self.status: int | None = None
        self.connection: asyncssh.SSHClientConnection
        self._stream = pyte.ByteStream(self.screen)
        self._answers = answers
        self._channel: asyncssh.SSHClientChannel[bytes]

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._answers and data.find(b"\x1b[c") >= 0:
            self._channel.write(self._answers)
        self.raw += data
        self._stream.feed(_UNKNOWN.sub(b"", data))

    def exit_status_received(self, status: int) -> None:
        self.status = status

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def type(self, data: bytes) -> None:
        self._channel.write(data)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._channel.change_terminal_size(columns, rows)

    def send_signal(self, name: str) -> None:
        self._channel.send_signal(name)

    @property
    def text(self) -> str:
        # `Screen.display` fails where half of a wide character was overwritten.
        lines = self.screen.buffer
        return "\n".join(
            "".join(lines[y][x].data for x in range(self.screen.columns)) for y in range(self.screen.lines)
        )

    async def sees(self, text: str) -> None:
        for _ in range(2000):
            if text in self.text:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{text!r} is not on the screen:\n{self.text}")


class _Connection(asyncssh.SSHServer):
    """Lets everybody in and shows the menu; what `gateway.connection` is for a real client."""

    def __init__(self, site: MenuSite) -> None:
        self._site = site
        self.caller: Caller
        self._ssh: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._ssh = conn

    def begin_auth(self, username: str) -> bool:
        self.caller = Caller("1", username, False, "w", "team", "127.0.0.1", "c1")
        return False

    def session_requested(self) -> Any:
        return ClientSession(self)  # type: ignore[arg-type]

    def serve(self, session: ClientSession) -> asyncio.Task[None]:
        return asyncio.create_task(self._site.serve(session, self.caller), name="session")

    def session_gone(self, session: ClientSession, task: asyncio.Task[None] | None) -> None:
        self._site.gone += 1

    def transport_backlog(self) -> int:
        return 0


class MenuSite:
    """A server with a menu, and people who connect to it."""

    def __init__(self, menu: InProcessMenu | MenuWorkers, port: int) -> None:
        self.menu = menu
        self.port = port
        self.active = 0
        self.gone = 0
        self.shells: list[str] = []
        self.people: list[Person] = []
        self.open_shell: OpenShell | None = None

    async def serve(self, session: ClientSession, caller: Caller) -> None:
        async def open_shell(environment: str) -> int:
            assert self.open_shell is not None
            self.shells.append(environment)
            return await self.open_shell(session, environment)

        self.active += 1
        try:
            status = await self.menu.run(session, caller, language="zh", open_shell=open_shell)
            session.exit(status)
        finally:
            self.active -= 1

    async def person(
        self,
        name: str = "alice",
        *,
        term: str = "xterm-256color",
        size: tuple[int, int] = (100, 30),
        answers: bytes = b"\x1b[?62c",
        **options: Any,
    ) -> Person:
        connection = await asyncssh.connect(
            "127.0.0.1", self.port, username=name, known_hosts=None, client_keys=None, agent_path=None, config=None
        )
        _, person = await connection.create_session(
            lambda: Person(*size, answers), term_type=term, term_size=size, encoding=None, **options
        )
        person.connection = connection
        self.people.append(person)
        return person


async def leave(person: Person) -> None:
    person.connection.close()
    await person.connection.wait_closed()


@asynccontextmanager
async def menu_site(menu: InProcessMenu | MenuWorkers) -> AsyncIterator[MenuSite]:
    site = MenuSite(menu, 0)
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        lambda: _Connection(site), "127.0.0.1", 0, server_host_keys=[key], encoding=None, line_editor=False
    )
    site.port = server.get_port()
    await menu.start()
    try:
        yield site
    finally:
        for person in site.people:
            await leave(person)
        server.close()
        await server.wait_closed()
        await menu.close()
