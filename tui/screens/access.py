"""How one gets at the applications of an environment, and its published ports: ssh lines, addresses, secrets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message

from backends.applications import Access
from storage.errors import NotFound
from storage.records import ApplicationState, PublishedPort
from tui.desk import Desk
from tui.texts import mark
from tui.texts.sentences import in_language
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page

_STATES = {
    ApplicationState.WAITING: mark("waiting"),
    ApplicationState.STARTING: mark("starting"),
    ApplicationState.RUNNING: mark("running"),
    ApplicationState.MISSING: mark("not installed"),
    ApplicationState.FAILED: mark("failed"),
}


class AccessScreen(Page):
    """A card for each application; F5 reads it again. Each look is in the audit trail, so it is not watched."""

    TITLE_TEXT = mark("Access")
    REFRESH_SECONDS = 3600.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("y", "copy", mark("Copy the line")),
        Binding("N", "renew", mark("New secrets")),
        Binding("f5", "reload", mark("Reload"), key_display="F5"),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(self, found: Sequence[Access], ports: Sequence[PublishedPort]) -> None:
            super().__init__()
            self.found = found
            self.ports = ports

    def __init__(self, desk: Desk, name: str) -> None:
        super().__init__(desk)
        self._environment = name
        self._lines: list[str] = []

    def compose_body(self) -> ComposeResult:
        with VerticalScroll(id="log"):
            yield Plain(id="cards")
        yield Line(self._environment, id="status")

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        environment = await services.environments.show(caller, self._environment)
        ports = (await services.published.of(caller, [environment])).get(environment.id, ())
        if environment.id not in await services.applications.of(caller, [environment]):
            return self.Loaded((), ports)
        try:
            return self.Loaded((await services.applications.access(caller, self._environment))[1], ports)
        except NotFound:
            return self.Loaded((), ports)

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        self._lines = [self._line(one) for one in event.found if one.condition.port]
        cards = [self._card(one) for one in event.found]
        cards += [self._port(port) for port in event.ports]
        nothing = self.texts("This environment was made without applications, and publishes no ports.")
        self.query_one("#cards", Plain).show("\n\n".join(cards) or nothing)

    def _line(self, one: Access) -> str:
        address = self.desk.address
        return one.line(self.desk.caller.name, self._environment, address.host, address.port)

    def _card(self, one: Access) -> str:
        t = self.texts
        words = [f"{one.condition.title}: {t(_STATES[one.condition.state])}", in_language(t, one.condition.reason)]
        if one.condition.port:
            words += [t("On your machine:  {line}", line=self._line(one)), t("Then open:  {line}", line=one.address)]
        if one.kind == "password":
            words.append(t("Password:  {secret}", secret=one.secret))
        elif one.kind == "token":
            words.append(t("Token:  {secret}", secret=one.secret))
        return "\n".join(filter(None, words))

    def _port(self, port: PublishedPort) -> str:
        where = f"{self.desk.address.host}:{port.external_port}"
        return self.texts("Port {port} is open to everybody at {where}", port=port.port, where=where)

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_copy(self) -> None:
        if self._lines:
            self.app.copy_to_clipboard(self._lines[0])
            self.post_message(self.Done(self.texts("Copied: {text}", text=self._lines[0])))

    def action_renew(self) -> None:
        applications, caller, name = self.desk.services.applications, self.desk.caller, self._environment
        self.attempt(lambda: applications.new_secrets(caller, name))
