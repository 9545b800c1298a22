"""The menu: which screen follows which, and the way into a shell and back.

Screens know nothing of each other; they post what somebody wants and this class, which owns the stack of screens,
brings it about.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType

from backends.services import Services
from storage.access import Caller
from storage.errors import AshoreError
from tui.desk import Address, Desk
from tui.screens.access import AccessScreen
from tui.screens.build_log import BuildLogScreen
from tui.screens.builds import BuildsScreen
from tui.screens.create_environment import CreateEnvironmentScreen
from tui.screens.datasets import DatasetsScreen
from tui.screens.edit_build import EditBuildScreen
from tui.screens.environments import EnvironmentsScreen
from tui.screens.files import FilesScreen
from tui.screens.help import HelpScreen
from tui.screens.hosts import HostsScreen
from tui.screens.images import ImagesScreen
from tui.screens.keys import KeysScreen
from tui.screens.logs import LogsScreen
from tui.screens.sessions import SessionsScreen
from tui.screens.uploads import UploadsScreen
from tui.screens.usage import UsageScreen
from tui.served import ServedApp
from tui.terminal import Terminal
from tui.texts import mark, translator
from tui.theme import DARK, LIGHT
from tui.widgets.dialogs import Ask
from tui.widgets.page import Page, say

_PLACES: dict[str, type[Page]] = {
    "files": FilesScreen,
    "builds": BuildsScreen,
    "datasets": DatasetsScreen,
    "images": ImagesScreen,
    "keys": KeysScreen,
    "sessions": SessionsScreen,
    "uploads": UploadsScreen,
    "usage": UsageScreen,
    "hosts": HostsScreen,
    "help": HelpScreen,
}
_SHORT = {
    "f": "files", "b": "builds", "data": "datasets", "t": "datasets", "models": "datasets", "k": "keys",
    "s": "sessions", "u": "uploads", "i": "images", "w": "usage", "stats": "usage", "h": "help", "?": "help",
}  # fmt: skip


class AshoreApp(ServedApp):
    """One person's menu on one terminal. `language` is what the terminal says; the person's own choice wins."""

    TITLE = "Ashore"
    CSS_PATH = Path(__file__).with_name("theme.tcss")
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (64, "-normal")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-medium"), (30, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", mark("Help"), key_display="?"),
        Binding("q", "quit", mark("Quit")),
        Binding("ctrl+q", "quit", mark("Quit"), show=False, priority=True),
        Binding("colon", "command", mark("Go to"), show=False),
    ]

    def __init__(
        self, terminal: Terminal, services: Services, caller: Caller, language: str, *, address: Address | None = None
    ) -> None:
        super().__init__(terminal)
        self.desk = Desk(services, caller, translator(language), address or services.address)
        self._home: EnvironmentsScreen | None = None
        self._is_away = False
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = LIGHT.name if terminal.capabilities.dark is False else DARK.name

    async def on_mount(self) -> None:
        try:
            chosen = await self.desk.services.accounts.language_of(self.desk.caller)
        except AshoreError:
            chosen = ""
        if chosen:
            self.desk = replace(self.desk, texts=translator(chosen))
        self._show_home()

    def _show_home(self) -> None:
        """A fresh home screen at the bottom of the stack, with everything else gone."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self._home = EnvironmentsScreen(self.desk)
        self.push_screen(self._home)

    # ---- from screen to screen -------------------------------------------------------------------------------
    @on(EnvironmentsScreen.PlaceWanted)
    def _go(self, event: EnvironmentsScreen.PlaceWanted) -> None:
        self.push_screen(_PLACES[event.place](self.desk))

    @on(EnvironmentsScreen.CreateWanted)
    def _create(self, event: EnvironmentsScreen.CreateWanted) -> None:
        self.push_screen(CreateEnvironmentScreen(self.desk, taken=event.names))

    @on(CreateEnvironmentScreen.Created)
    def _created(self, event: CreateEnvironmentScreen.Created) -> None:
        if isinstance(self.screen, CreateEnvironmentScreen):
            self.pop_screen()
        if self._home is not None:
            self._home.select(event.name)

    @on(EnvironmentsScreen.LogsWanted)
    def _logs(self, event: EnvironmentsScreen.LogsWanted) -> None:
        self.push_screen(LogsScreen(self.desk, event.name))

    @on(EnvironmentsScreen.AccessWanted)
    def _access(self, event: EnvironmentsScreen.AccessWanted) -> None:
        self.push_screen(AccessScreen(self.desk, event.name))

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.desk, self._home.selected if self._home else ""))

    def action_command(self) -> None:
        def answered(text: str | None) -> None:
            word = (text or "").lower()
            place = _SHORT.get(word, word)
            if place in ("q", "quit", "exit"):
                self.exit()
            elif place in ("env", "e", "home", "environments"):
                self._show_home()
            elif place in _PLACES:
                self.push_screen(_PLACES[place](self.desk))
            elif place:
                say(self.screen, self.desk.texts("There is no screen '{name}'.", name=place), trouble=True)

        texts = self.desk.texts
        question = texts("Go to: env, files, data, uploads, images, builds, usage, keys, sessions, hosts, help, quit")
        self.push_screen(Ask(texts, question), answered)

    @on(DatasetsScreen.FilesWanted)
    def _browse(self, event: DatasetsScreen.FilesWanted) -> None:
        self.push_screen(FilesScreen(self.desk, event.path))

    @on(UploadsScreen.ImageWanted)
    def _image(self, event: UploadsScreen.ImageWanted) -> None:
        self.push_screen(ImagesScreen(self.desk, event.title))

    @on(BuildsScreen.LogWanted)
    def _build_log(self, event: BuildsScreen.LogWanted) -> None:
        self.push_screen(BuildLogScreen(self.desk, event.title, event.number))

    @on(BuildsScreen.EditWanted)
    def _edit_build(self, event: BuildsScreen.EditWanted) -> None:
        self.push_screen(EditBuildScreen(self.desk, event.before))

    @on(EditBuildScreen.Asked)
    def _build_asked(self, event: EditBuildScreen.Asked) -> None:
        """From the editor to the log, which Esc leaves for the list."""
        if isinstance(self.screen, EditBuildScreen):
            self.pop_screen()
        self.push_screen(BuildLogScreen(self.desk, event.view.title, event.view.number))

    # ---- language --------------------------------------------------------------------------------------------
    @on(EnvironmentsScreen.LanguageWanted)
    def _change_language(self) -> None:
        language = "en" if self.desk.texts.language == "zh" else "zh"
        self.desk = replace(self.desk, texts=translator(language))
        self._show_home()
        if self._home is not None:
            self._home.attempt(lambda: self.desk.services.accounts.choose_language(self.desk.caller, language))

    # ---- into a shell ----------------------------------------------------------------------------------------
    @on(EnvironmentsScreen.ConnectWanted)
    def _connect(self, event: EnvironmentsScreen.ConnectWanted) -> None:
        # Enter pressed twice must not open two shells.
        if not self._is_away:
            self._is_away = True
            self.run_worker(self._connected(event.name), name="shell", group="shell")

    async def _connected(self, name: str) -> None:
        home = self._home or EnvironmentsScreen(self.desk)
        home.rest()
        try:
            status = await self.open_shell(name)
        except AshoreError as error:
            home.trouble(error)
        else:
            if status:
                ended = self.desk.texts("The shell in {name} ended with status {status}.", name=name, status=status)
                home.post_message(Page.Done(ended))
        finally:
            self._is_away = False
            home.wake()
