"""`python -m tui.worker SOCKET DATA SETTINGS`: a process that hosts many menus.

The gateway starts a few, says hello on the Unix socket for each person, and keeps what is SSH; `tui.host`
does what is Textual. The process builds its own `Services` over the same database, prints `ready` on stdout
when it serves, and ends when stdin does, so none outlives its gateway. SETTINGS is a file of
`HouseSettings`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.widgets import Footer, Input, OptionList, Static

from storage.access import Caller
from tui.host import MakeMenu, MenuHost, RunPlain
from tui.served import ServedApp, harden_textual
from tui.sockets import listen
from tui.terminal import NullTerminal, Terminal
from tui.texts import LANGUAGES, translator
from tui.texts.sentences import in_language

if TYPE_CHECKING:
    from backends.services import Services

log = logging.getLogger(__name__)
_QUIET_SECONDS = 2.0
_COLLECT_AT_LAST = 20
"""Ended menus after which garbage is collected even though somebody types."""


@dataclass(frozen=True)
class Kit:
    """What a worker serves: how its services are opened, and its two kinds of menu."""

    open_services: Callable[[Path, Path], AbstractAsyncContextManager[Services]]
    """Called with the settings file and the data directory."""
    make_menu: MakeMenu
    run_plain: RunPlain


def ashore() -> Kit:
    """The menu of Ashore."""
    # Imported here: a worker that serves something else needs none of it.
    from backends.composition import HouseSettings, open_services
    from tui import plain
    from tui.app import AshoreApp
    from tui.desk import Address

    def open_house(settings: Path, data: Path) -> AbstractAsyncContextManager[Services]:
        return open_services(HouseSettings.read(settings), data)

    def address(services: Services) -> Address:
        return Address(services.address.host, services.address.port)

    def make_menu(terminal: Terminal, services: Services, caller: Caller, language: str) -> ServedApp:
        return AshoreApp(terminal, services, caller, language, address=address(services))

    async def run_plain(terminal: Terminal, services: Services, caller: Caller, language: str) -> int:
        return await plain.run(terminal, services, caller, language, address=address(services))

    return Kit(open_house, make_menu, run_plain)


class Worker:
    """One process: its socket, its menus, its garbage."""

    def __init__(self, host: MenuHost) -> None:
        self._host = host

    async def run(self, listener: socket.socket, until: asyncio.Event) -> None:
        """Serve until `until` is set; then every menu leaves its terminal in order."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(self._accept, sock=listener)
        keeper = asyncio.create_task(self._keep_tidy(), name="garbage")
        _say_ready()
        try:
            await until.wait()
        finally:
            server.close()
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper
            await self._host.close()

    def _accept(self) -> asyncio.Protocol:
        return self._host.connection()

    async def _keep_tidy(self) -> None:
        # A full collection stops every menu of this process, so it waits until nobody types.
        while True:
            await asyncio.sleep(1)
            quiet = asyncio.get_running_loop().time() - self._host.last_input > _QUIET_SECONDS
            if self._host.ended and (quiet or self._host.ended >= _COLLECT_AT_LAST):
                self._host.ended = 0
                gc.collect()


async def serve(kit: Kit, path: Path, data: Path, settings: Path) -> None:
    """Run one worker until stdin ends or SIGTERM comes."""
    until = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, until.set)
    _watch_parent(loop, until)
    await warm_up()
    async with kit.open_services(settings, data) as services:
        host = MenuHost(services, kit.make_menu, kit.run_plain)
        with closing(listen(path)) as listener:
            _tune_garbage()
            await Worker(host).run(listener, until)


def _watch_parent(loop: asyncio.AbstractEventLoop, until: asyncio.Event) -> None:
    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            until.set()

    os.set_blocking(0, False)
    loop.add_reader(0, readable)


def _say_ready() -> None:
    os.write(1, b"ready\n")
    # From now on nobody reads our stdout: what is printed by accident belongs into the log.
    os.dup2(2, 1)


def _tune_garbage() -> None:
    """Only young objects are collected by themselves: a full pass at fifty menus takes most of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 1_000_000_000, 1_000_000_000)


class _WarmUp(ServedApp):
    def compose(self) -> ComposeResult:
        yield Static("-")
        yield OptionList("-")
        yield Input()
        yield Footer()

    def on_ready(self) -> None:
        self.exit()


async def warm_up() -> None:
    """Draw one menu that nobody sees, so that the first person finds every cache filled."""
    for language in LANGUAGES:
        in_language(translator(language), "-")
    harden_textual()
    await _WarmUp(NullTerminal()).run_async()


def _kit(name: str) -> Kit:
    module, _, attribute = name.partition(":")
    kit = getattr(importlib.import_module(module), attribute)()
    assert isinstance(kit, Kit)
    return kit


def main() -> None:
    parser = argparse.ArgumentParser(prog="tui.worker", description="Hosts menus for the gateway.")
    parser.add_argument("socket", type=Path, help="Unix socket to serve on")
    parser.add_argument("data", type=Path, help="data directory")
    parser.add_argument("settings", type=Path, help="file of settings for the services")
    parser.add_argument("--kit", default="tui.worker:ashore", help="MODULE:FUNCTION that returns what is served")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"
    )
    asyncio.run(serve(_kit(arguments.kit), arguments.socket, arguments.data, arguments.settings))


if __name__ == "__main__":
    # `__main__.Kit` and `tui.worker.Kit` would be two classes.
    from tui.worker import main as main_of_module

    main_of_module()
