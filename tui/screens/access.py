"""How one gets at the applications of an environment, and its published ports: ssh lines, addresses, secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message

from backends.applications import Access, Condition
from storage.records import Environment, PublishedPort
from tui.desk import Desk
from tui.texts import mark
from tui.texts.applications import condition_words
from tui.texts.sentences import in_language
from tui.widgets.dialogs import Ask
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page


class AccessScreen(Page):
    """A card for each application and port. How they are is watched; their secrets are read once, as each look at them
    is in the audit trail. F5 reads all of it again."""

    TITLE_TEXT = mark("Access")
    TOPICS = ("environment",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("y", "copy", mark("Copy the line")),
        Binding("p", "programs", mark("Programs")),
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
        self._known: Mapping[str, Access] = {}
        self._reading = 0
        """How often what is known has become old."""
        self._programs: Sequence[str] = ()
        self._lines: Sequence[str] = ()
        self._copied = 0

    def compose_body(self) -> ComposeResult:
        with VerticalScroll(id="log"):
            yield Plain(id="cards")
        yield Line(self._environment, id="status")

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        environment = await services.environments.show(caller, self._environment)
        ports = (await services.published.of(caller, [environment])).get(environment.id, ())
        conditions = (await services.applications.of(caller, [environment])).get(environment.id, ())
        return self.Loaded(await self._accesses(environment, conditions), ports)

    async def _accesses(self, environment: Environment, conditions: Sequence[Condition]) -> Sequence[Access]:
        """With their secrets as they are known, if they are."""
        reading = self._reading
        # One that was removed has another secret when it is added again.
        known: Mapping[str, Access] = {one.name: self._known[one.name] for one in conditions if one.name in self._known}
        if any(one.name not in known for one in conditions):
            _, found = await self.desk.services.applications.access(self.desk.caller, environment.name)
            known = {one.condition.name: one for one in found}
        if reading == self._reading:
            self._known = known
        return [replace(known[one.name], condition=one) for one in conditions if one.name in known]

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        self._programs = [one.condition.name for one in event.found]
        lines = [self._line(one) for one in event.found if one.condition.port]
        lines += [self._where(port) for port in event.ports]
        if lines != self._lines:
            self._lines, self._copied = lines, 0
        cards = [self._card(one) for one in event.found]
        cards += [self._port(port) for port in event.ports]
        nothing = self.texts("This environment has no programs and publishes no ports. p adds programs.")
        self.query_one("#cards", Plain).show("\n\n".join(cards) or nothing)

    def _line(self, one: Access) -> str:
        address = self.desk.address
        return one.line(self.desk.caller.name, self._environment, address.host, address.port)

    def _card(self, one: Access) -> str:
        t = self.texts
        words = [condition_words(t, one.condition), in_language(t, one.condition.reason)]
        if one.condition.port:
            words += [t("On your machine:  {line}", line=self._line(one)), t("Then open:  {line}", line=one.address)]
        if one.user:
            words.append(t("User:  {name}", name=one.user))
        if one.kind == "password":
            words.append(t("Password:  {secret}", secret=one.secret))
        elif one.kind == "token":
            words.append(t("Token:  {secret}", secret=one.secret))
        return "\n".join(filter(None, words))

    def _port(self, port: PublishedPort) -> str:
        return self.texts("Port {port} is open to everybody at {where}", port=port.port, where=self._where(port))

    def _where(self, port: PublishedPort) -> str:
        return f"{self.desk.address.host}:{port.external_port}"

    # ---- keys ------------------------------------------------------------------------------------------------
    def action_back(self) -> None:
        self.dismiss(None)

    def action_reload(self) -> None:
        self._forget()
        super().action_reload()

    def action_copy(self) -> None:
        """The first line; pressed again, the next one."""
        if self._lines:
            line = self._lines[self._copied % len(self._lines)]
            self._copied += 1
            self.app.copy_to_clipboard(line)
            self.post_message(self.Done(self.texts("Copied: {text}", text=line)))

    def action_renew(self) -> None:
        async def renew() -> None:
            await self.desk.services.applications.new_secrets(self.desk.caller, self._environment)
            self._forget()

        self.attempt(renew)

    def action_programs(self) -> None:
        """Which shall be kept running, all of them in one line."""
        had, applications = self._programs, self.desk.services.applications

        async def change(wanted: Sequence[str]) -> None:
            add = [one for one in wanted if one not in had]
            remove = [one for one in had if one not in wanted]
            if add or remove:
                await applications.change(self.desk.caller, self._environment, add=add, remove=remove)
                self._forget()

        def answered(text: str | None) -> None:
            if text is not None:
                self.attempt(lambda: change(text.replace(",", " ").split()))

        offered = ", ".join(sorted(self.desk.services.environments.planner.applications))
        question = self.texts("Programs that are kept running ({names}):", names=offered)
        self.app.push_screen(Ask(self.texts, question, value=", ".join(had)), answered)

    def _forget(self) -> None:
        """Read the secrets anew."""
        self._known = {}
        self._reading += 1
