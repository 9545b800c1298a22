"""Home: my environments, what each is doing, and the keys that act on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message

from backends.applications import Condition
from storage.clock import now
from storage.names import printable
from storage.quota_limits import QuotaLine, Resource
from storage.records import Environment, EnvironmentState, LostEnvironment, PublishedPort, Wish
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.applications import applications_words
from tui.texts.formats import age_words, size_words
from tui.texts.gpus import gpu_words
from tui.texts.lifecycles import lifecycle_words, output_words
from tui.texts.quotas import allowed_environments, quota_words
from tui.texts.sentences import in_language
from tui.widgets.delete_environment import DeleteEnvironment
from tui.widgets.dialogs import Ask, Confirm
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_MOST_LOST = 2
_STATES = {
    EnvironmentState.REQUESTED: (mark("requested"), "busy"),
    EnvironmentState.QUEUED: (mark("queued"), "busy"),
    EnvironmentState.CREATING: (mark("creating"), "busy"),
    EnvironmentState.RUNNING: (mark("running"), "good"),
    EnvironmentState.STOPPING: (mark("stopping"), "busy"),
    EnvironmentState.STOPPED: (mark("stopped"), "dim"),
    EnvironmentState.FAILED: (mark("failed"), "bad"),
    EnvironmentState.DELETING: (mark("deleting"), "busy"),
}


class EnvironmentsScreen(Page):
    """The list, the details of the selected one below it, and a greeting while there is none."""

    TITLE_TEXT = mark("Environments")
    TOPICS = ("environment", "quota")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,c", "connect", mark("Connect"), key_display="Enter"),
        Binding("n", "create", mark("New")),
        Binding("s", "start", mark("Start")),
        Binding("x", "stop", mark("Stop")),
        Binding("r", "restart", mark("Restart"), show=False),
        Binding("d", "delete", mark("Delete")),
        Binding("a", "access", mark("Access"), show=False),
        Binding("l", "logs", mark("Logs"), show=False),
        Binding("f", "go('files')", mark("Files")),
        Binding("t", "go('datasets')", mark("Data sets")),
        Binding("i", "go('images')", mark("Images"), show=False),
        Binding("u", "go('uploads')", mark("Uploads"), show=False),
        Binding("b", "go('builds')", mark("Image builds"), show=False),
        Binding("w", "go('usage')", mark("Usage"), show=False),
        Binding("k", "go('keys')", mark("Keys"), show=False),
        Binding("o", "go('sessions')", mark("Sessions"), show=False),
        Binding("h", "go('hosts')", mark("Hosts"), show=False),
        Binding("y", "copy", mark("Copy the ssh command"), show=False),
        Binding("slash", "filter", mark("Filter"), show=False),
        Binding("escape", "clear_filter", mark("Show all"), show=False),
        Binding("j", "down", mark("Down"), show=False),
        Binding("L", "language", "中文 / English", show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(
            self,
            environments: Sequence[Environment],
            quotas: Sequence[QuotaLine] = (),
            lost: Sequence[LostEnvironment] = (),
            applications: Mapping[str, Sequence[Condition]] | None = None,
            ports: Mapping[str, Sequence[PublishedPort]] | None = None,
        ) -> None:
            super().__init__()
            self.lost = lost
            self.environments = environments
            self.quotas = quotas
            self.applications = applications or {}
            self.ports = ports or {}

    class _OfOne(Message):
        # Never one of the messages below: whoever handles a message also gets those that are derived from it.
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class ConnectWanted(_OfOne):
        """Somebody wants a shell in `name`."""

    class LogsWanted(_OfOne):
        """Somebody wants to read the log of `name`."""

    class AccessWanted(_OfOne):
        """Somebody wants to get at the applications of `name`."""

    class CreateWanted(Message):
        """Somebody wants a new environment; `names` are taken."""

        def __init__(self, names: frozenset[str]) -> None:
            super().__init__()
            self.names = names

    class PlaceWanted(Message):
        """Somebody wants to go to another screen: files, uploads, usage, keys, sessions."""

        def __init__(self, place: str) -> None:
            super().__init__()
            self.place = place

    class LanguageWanted(Message):
        """Somebody wants the other language."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._environments: Sequence[Environment] | None = None
        self._quotas: Sequence[QuotaLine] = ()
        self._lost: Sequence[LostEnvironment] = ()
        self._applications: Mapping[str, Sequence[Condition]] = {}
        self._ports: Mapping[str, Sequence[PublishedPort]] = {}
        self._filter = ""
        self._select = ""

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("NAME"), least=16, most=32),
                Column(t("STATE"), most=12),
                Column(t("COMPUTE"), most=14, rank=3),
                Column(t("IMAGE"), most=60, rank=2, wide=True),
                Column(t("AGE"), most=8, rank=1, right=True),
            ],
            id="environments",
        )
        yield Plain(id="greeting")
        with Vertical(id="details"):
            yield Plain(id="headline")
            yield Plain(id="facts")
        yield Line(id="status")

    @property
    def selected(self) -> str:
        """The name under the cursor; empty when there is none."""
        one = self._selected()
        return one.name if one else ""

    def select(self, name: str) -> None:
        """Put the cursor on `name` as soon as it is in the list."""
        self._select = name
        self._filter = ""
        self.wake()

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        found = await services.environments.list(caller)
        return self.Loaded(
            found,
            await services.environments.quotas(caller),
            await services.environments.lost(caller),
            await services.applications.of(caller, found),
            await services.published.of(caller, found),
        )

    # ---- what is shown ---------------------------------------------------------------------------------------
    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        self._environments = event.environments
        self._quotas = event.quotas
        self._lost = event.lost
        self._applications, self._ports = event.applications, event.ports
        self._show()

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self._show_details()

    def _show(self) -> None:
        everything = self._environments or ()
        shown = [one for one in everything if self._filter in f"{one.name} {one.image} {one.compute}"]
        moment = now()
        table = self.query_one(Table)
        table.show_rows([_row(self.texts, one, moment) for one in shown])
        if self._select and table.go_to(self._select):
            self._select = ""
        empty = self._environments is not None and not everything
        table.display = not empty
        greeting = self.query_one("#greeting", Plain)
        greeting.display = empty
        greeting.show_text(_greeting(self.texts, self.desk))
        if not empty and table.display and self.focused is None:
            table.focus()
        self._show_details()
        self._show_status(len(everything), len(shown))

    def _show_status(self, count: int, shown: int) -> None:
        allowed = allowed_environments(self._quotas)
        if allowed is None:
            left = self.texts.plural("{n} environment", "{n} environments", count)
        else:
            left = self.texts.plural("{n} environment, {allowed} allowed", "{n} environments, {allowed} allowed",
                                     count, allowed=allowed)  # fmt: skip
        others = quota_words(self.texts, self._quotas, without=(Resource.ENVIRONMENTS,))
        lost = [self.texts("'{name}' is lost with its host {host}", name=one.name, host=one.host) for one in self._lost]
        left = "   ".join(filter(None, (left, *lost[:_MOST_LOST], others)))
        if self._filter:
            left = self.texts("{shown} of {count} with '{filter}'  (Esc: all)",
                              shown=shown, count=count, filter=self._filter)  # fmt: skip
        self.query_one("#status", Line).show(left, self.desk.address.host)

    def _show_details(self) -> None:
        one = self._selected()
        self.query_one("#details").display = one is not None
        if one is None:
            return
        headline = self.query_one("#headline", Plain)
        headline.show(_headline(self.texts, one))
        headline.set_class(one.state is EnvironmentState.FAILED, "bad")
        applications, ports = self._applications.get(one.id, ()), self._ports.get(one.id, ())
        reach = applications_words(self.texts, applications, ports, self.desk.address.host)
        self.query_one("#facts", Plain).show(_facts(self.texts, self.desk, one, reach))

    def _selected(self) -> Environment | None:
        key = self.query_one(Table).key
        return next((one for one in self._environments or () if one.name == key), None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.desk.caller.is_admin if (action, parameters) == ("go", ("hosts",)) else True

    # ---- keys ------------------------------------------------------------------------------------------------
    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self.action_connect()

    def action_connect(self) -> None:
        if one := self._selected():
            self.post_message(self.ConnectWanted(one.name))

    def action_create(self) -> None:
        self.post_message(self.CreateWanted(frozenset(one.name for one in self._environments or ())))

    def action_logs(self) -> None:
        if one := self._selected():
            self.post_message(self.LogsWanted(one.name))

    def action_access(self) -> None:
        if one := self._selected():
            self.post_message(self.AccessWanted(one.name))

    def action_go(self, place: str) -> None:
        self.post_message(self.PlaceWanted(place))

    def action_language(self) -> None:
        self.post_message(self.LanguageWanted())

    def action_down(self) -> None:
        self.query_one(Table).action_move(1)

    def action_copy(self) -> None:
        one = self._selected()
        command = self.desk.ssh_command(one.name if one else "")
        self.app.copy_to_clipboard(command)
        self.post_message(self.Done(self.texts("Copied: {text}", text=command)))

    def action_start(self) -> None:
        if one := self._selected():
            name = one.name
            self.attempt(lambda: self.desk.services.environments.start(self.desk.caller, name))

    def action_stop(self) -> None:
        one = self._selected()
        if one is None:
            return
        question = self.texts("Stop {name}? Its programs end; its files stay.", name=one.name)
        self._confirmed(Confirm(self.texts, question, yes=self.texts("Stop")), one.name, "stop")

    def action_restart(self) -> None:
        one = self._selected()
        if one is None:
            return
        question = self.texts("Restart {name}? Its programs end; its files stay.", name=one.name)
        self._confirmed(Confirm(self.texts, question, yes=self.texts("Restart")), one.name, "restart")

    def action_delete(self) -> None:
        one = self._selected()
        if one is None:
            return
        environments, name = self.desk.services.environments, one.name

        def answered(days: int | None) -> None:
            if days is not None:
                self.attempt(lambda: environments.delete(self.desk.caller, name, keep_output_days=days))

        self.app.push_screen(DeleteEnvironment(self.texts, one, days=environments.keep_days(one)), answered)

    def _confirmed(self, question: Confirm, name: str, verb: str) -> None:
        environments = self.desk.services.environments
        use_case = {"stop": environments.stop, "restart": environments.restart}[verb]

        def answered(yes: bool | None) -> None:
            if yes:
                self.attempt(lambda: use_case(self.desk.caller, name))

        self.app.push_screen(question, answered)

    def action_filter(self) -> None:
        def answered(text: str | None) -> None:
            if text is not None:
                self._filter = text.lower()
                self._show()

        self.app.push_screen(Ask(self.texts, self.texts("Show only what contains:"), value=self._filter), answered)

    def action_clear_filter(self) -> None:
        self._filter = ""
        self._show()


def _state(texts: Texts, one: Environment) -> Cell:
    if one.wish is Wish.DELETED:
        return Cell(texts("deleting"), "busy")
    word, tone = _STATES[one.state]
    return Cell(texts(word), tone)


def state_words(texts: Texts, one: Environment) -> str:
    """What it is doing, in one word."""
    return _state(texts, one).text


def _row(texts: Texts, one: Environment, moment: datetime) -> Row:
    return Row(
        one.name,
        (
            Cell(one.name, "strong"),
            _state(texts, one),
            Cell(one.compute),
            Cell(one.image or "-", "dim"),
            Cell(age_words(texts, one.created, moment), "dim"),
        ),
    )


def _headline(texts: Texts, one: Environment) -> str:
    """Name, state, and what matters now: why it failed, or how far it has come."""
    news = one.reason if one.state is EnvironmentState.FAILED else one.progress or one.reason
    if not news and one.wish is not Wish.RUNNING:
        news = one.wish_reason
    news = in_language(texts, news)
    return "  ".join(part for part in (one.name, state_words(texts, one), news) if part)


def _facts(texts: Texts, desk: Desk, one: Environment, reach: str) -> str:
    """What it is made of, and the lines that lead into it; `reach` is about its applications and ports."""
    limits = [
        texts("{n} cpus", n=f"{one.cpus:g}") if one.cpus else texts("cpus: no limit"),
        texts("{size} memory", size=size_words(one.memory)) if one.memory else texts("memory: no limit"),
    ]
    limits += [gpu_words(texts, one)] if one.gpus else []
    environments = desk.services.environments
    hosts = environments.planner.hosts_of(one.compute)
    where = [texts("on {host}", host=one.host)] if len(hosts) > 1 else []
    lines = [
        "   ".join([one.image or one.compute, *limits, *where]),
        "   ".join(
            filter(
                None,
                (lifecycle_words(texts, one, environments.due(one)), output_words(texts, environments.keep_days(one))),
            )
        ),
        reach,
        desk.ssh_command(one.name),
        desk.jump_command(one.name),
    ]
    return "\n".join(filter(None, lines))


def _greeting(texts: Texts, desk: Desk) -> Text:
    """What a newcomer reads instead of an empty table."""
    name = printable(desk.caller.name, limit=40)
    text = Text(texts("Welcome, {name}.", name=name) + "\n\n", style="bold")
    text.append(texts("You have no environment yet. Press n to make one:"), style="not bold")
    text.append(" " + texts("it is ready in seconds, and it is yours."), style="not bold")
    text.append("\n\n" + texts("f  browse the data sets") + "\n", style="not bold")
    text.append(texts("u  watch your uploads") + "\n", style="not bold")
    text.append(texts("k  manage your SSH keys") + "\n", style="not bold")
    text.append(texts("?  all keys, and how to connect with ssh, sftp and editors"), style="not bold")
    return text
