"""A form for a new environment; every change is planned at once, so refusals are seen before anything is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, Select

from backends.lifecycle import LifecycleChoice, usual_keep_days
from backends.planning import Plan, Request
from storage.errors import AshoreError, BadInput
from storage.names import is_resource, printable
from storage.records import AssetKind, GpuMode, Lifecycle
from tui.desk import Desk
from tui.texts import mark
from tui.texts.formats import parse_cpus, parse_days, parse_gpus, parse_port, parse_size, parse_span, size_words
from tui.texts.gpus import mode_words
from tui.texts.hints import OF_FIELDS
from tui.texts.lifecycles import LIFECYCLES
from tui.texts.quotas import quota_words
from tui.texts.sentences import in_language
from tui.widgets.line import Plain
from tui.widgets.page import Page
from tui.widgets.references import ReferencesInput

_DEBOUNCE_SECONDS = 0.15
_TAKES_IMAGE = frozenset({"docker"})
_OF_MACHINES_NEVER = ("cpus", "memory", "apps", AssetKind.DATASET.folder, AssetKind.MODEL.folder)
"""Fields that are hidden for an existing machine."""
_ANY = ""
"""The choice of a host that leaves it open."""
_MODES = (GpuMode.EXCLUSIVE, GpuMode.SHARED, GpuMode.MIG)


class CreateEnvironmentScreen(Page):
    """Name, compute, host, image, cpus, memory, GPUs, data, life cycle, output; Enter in any field creates."""

    TITLE_TEXT = mark("New environment")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", mark("Back"), key_display="Esc"),
        Binding("tab", "app.focus_next", mark("Next field"), key_display="Tab"),
        Binding("f2", "create", mark("Create"), key_display="F2"),
    ]

    class Planned(Message):
        """What the request would become; `refusals` are all reasons why it cannot."""

        def __init__(self, plan: Plan | None, refusals: list[str]) -> None:
            super().__init__()
            self.plan = plan
            self.refusals = refusals

    class Created(Message):
        """The environment `name` is on its way."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, desk: Desk, *, taken: frozenset[str] = frozenset()) -> None:
        super().__init__(desk)
        self._proposed = _propose(taken)
        self._timer: Timer | None = None
        self._is_sending = False
        self._is_fine = False
        self._shown = Lifecycle.PERSISTENT
        self._offered_hosts: Sequence[str] = ()

    def compose_body(self) -> ComposeResult:
        t = self.texts
        limits = self.desk.services.environments.planner.limits
        offered = self.desk.services.environments.planner.offered(self.desk.caller)
        computes = [(Text(printable(name, limit=40)), name) for name in offered]
        with VerticalScroll(id="form", can_focus=False):
            yield from self._field("name", t("Name"), Input(self._proposed, id="name", compact=True, max_length=48))
            yield from self._field(
                "compute",
                t("Compute"),
                Select(computes, id="compute", compact=True, allow_blank=not computes,
                       value=computes[0][1] if computes else Select.NULL),
            )  # fmt: skip
            hosts = Select(self._hosts(), id="host", compact=True, allow_blank=False, value=_ANY)
            yield from self._field("host", t("Host"), hosts)
            yield from self._field("image", t("Image"), Input(id="image", compact=True, max_length=200))
            yield from self._field("cpus", t("CPUs"), Input(id="cpus", compact=True, max_length=10,
                                                             placeholder=f"{limits.default_cpus:g}"))  # fmt: skip
            memory = size_words(limits.default_memory)
            yield from self._field("memory", t("Memory"), Input(id="memory", compact=True, max_length=12,
                                                                 placeholder=memory))  # fmt: skip
            yield from self._field("gpus", t("GPUs"), Input(id="gpus", compact=True, max_length=3, placeholder="0"))
            model = Input(id="gpu-model", compact=True, max_length=64, placeholder=t("any, or part of its name"))
            yield from self._field("gpu-model", t("GPU model"), model)
            modes = [(mode_words(t, mode), mode.value) for mode in _MODES]
            yield from self._field("gpu-mode", t("GPU mode"), Select(modes, id="gpu-mode", compact=True,
                                                                     allow_blank=False, value=modes[0][1]))  # fmt: skip
            for kind, label in ((AssetKind.DATASET, t("Data")), (AssetKind.MODEL, t("Models"))):
                field = ReferencesInput(
                    kind, partial(self._names, kind), id=kind.folder, hint=t("none, or NAME:VERSION, ...")
                )
                yield from self._field(kind.folder, label, field)
            known = ", ".join(sorted(self.desk.services.environments.planner.applications))
            apps = Input(id="apps", compact=True, max_length=200, placeholder=t("none, or {names}", names=known))
            yield from self._field("apps", t("Programs"), apps)
            if self.desk.services.published.are_offered:
                hint = t("none, or 8000, ...: open to everybody")
                ports = Input(id="ports", compact=True, max_length=60, placeholder=hint)
                yield from self._field("ports", t("Ports"), ports)
            yield from self._field("lifecycle", t("Life cycle"), Select(
                [(Text(t(word)), lifecycle.value) for lifecycle, word in LIFECYCLES.items()], id="lifecycle",
                compact=True, allow_blank=False, value=Lifecycle.PERSISTENT.value,
            ))  # fmt: skip
            yield from self._field("keep-output", t("Keep output"), Input(
                id="keep-output", compact=True, max_length=5, placeholder=self._kept(Lifecycle.PERSISTENT),
            ))  # fmt: skip
        # Outside of what scrolls: why it is refused must be seen whichever field is being filled in.
        with Vertical(id="verdict"):
            yield Plain(id="meaning")
            yield Plain(id="quotas")
            yield Plain(id="refusals")
            with Horizontal(id="buttons"):
                yield Button(t("Create"), id="create", variant="primary", compact=True, disabled=True)
                yield Button(t("Back"), id="back", compact=True)

    def _field(self, name: str, label: str, widget: Input | Select[str]) -> ComposeResult:
        with Vertical(id=f"{name}-field", classes="field"):
            yield Plain(label, classes="label")
            yield widget

    def on_mount(self) -> None:
        self.query_one("#name").focus()
        self._plan_soon()

    def on_descendant_focus(self) -> None:
        """Say what the field is for, or nothing."""
        meaning = OF_FIELDS.get(self.focused.id or "", "") if self.focused else ""
        self.query_one("#meaning", Plain).show(self.texts(meaning))

    # ---- live plan -------------------------------------------------------------------------------------------
    @on(Input.Changed)
    @on(Select.Changed)
    def _changed(self, event: Message) -> None:
        event.stop()
        self._show_fields()
        self._plan_soon()

    def _show_fields(self) -> None:
        self.query_one("#image-field").display = self._compute() in _TAKES_IMAGE
        for name in ("gpus", "gpu-model", "gpu-mode"):
            self.query_one(f"#{name}-field").display = self._has_hosts()
        for name in _OF_MACHINES_NEVER:
            self.query_one(f"#{name}-field").display = not self._is_machine()
        self.query("#ports-field").set(display=not self._is_machine())
        self._show_hosts()
        lifecycle = self._lifecycle()
        if lifecycle is not self._shown:
            self._shown = lifecycle
            self.query(".of-lifecycle").remove()
            self.query_one("#form").mount_all(self._lifecycle_fields(lifecycle), after="#lifecycle-field")
            self.query_one("#keep-output", Input).placeholder = self._kept(lifecycle)

    def _kept(self, lifecycle: Lifecycle) -> str:
        """For how many days the output is kept, if nothing is written there."""
        days = usual_keep_days(lifecycle, self.desk.services.environments.lifecycle)
        return self.texts("{n} days, then gone", n=days) if days else self.texts("no, or days after its deletion")

    def _show_hosts(self) -> None:
        """A choice only where there is one."""
        hosts = self.desk.services.environments.planner.hosts_of(self._compute())
        self.query_one("#host-field").display = len(hosts) > 1
        if hosts != self._offered_hosts:
            self._offered_hosts = hosts
            self.query_one("#host", Select).set_options(self._hosts())

    def _hosts(self) -> list[tuple[Text, str]]:
        return [(Text(self.texts("any that has room")), _ANY), *((Text(name), name) for name in self._offered_hosts)]

    def _lifecycle_fields(self, lifecycle: Lifecycle) -> list[Widget]:
        """What else must be known of it. Made when it is chosen: the form opens while people type already."""
        t, defaults = self.texts, self.desk.services.environments.lifecycle
        minutes = defaults.ephemeral_minutes if lifecycle is Lifecycle.EPHEMERAL else defaults.idle_minutes
        idle = [("idle", t("Idle for"), f"{minutes:g}m")]
        fields = {
            Lifecycle.EPHEMERAL: idle,
            Lifecycle.ON_DEMAND: idle,
            Lifecycle.SCHEDULED: [
                ("start-at", t("Starts at"), t("never, or {example}", example="0 8 * * MON-FRI")),
                ("stop-at", t("Stops at"), t("never, or {example}", example="0 20 * * *")),
                ("timezone", t("Time zone"), defaults.timezone),
            ],
        }.get(lifecycle, [])
        return [
            Vertical(
                Plain(label, classes="label"),
                Input(id=f"{lifecycle.name.lower()}-{name}", compact=True, max_length=100, placeholder=hint),
                classes="field of-lifecycle",
            )
            for name, label, hint in fields
        ]

    def _plan_soon(self) -> None:
        self._is_fine = False
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(
            _DEBOUNCE_SECONDS, lambda: self.run_worker(self._plan(), name="plan", group="plan", exclusive=True)
        )

    async def _plan(self) -> None:
        try:
            plan = await self.desk.services.environments.plan(self.desk.caller, self._request())
        except AshoreError as error:
            self.post_message(self.Planned(None, [error.message]))
        else:
            self.post_message(self.Planned(plan, list(plan.refusals)))

    @on(Planned)
    def _planned(self, event: Planned) -> None:
        self._is_fine = not event.refusals
        self.query_one("#create", Button).disabled = not self._is_fine or self._is_sending
        if event.plan is not None:
            self._show_quotas(event.plan)
            self._show_defaults(event.plan)
        refusals = self.query_one("#refusals", Plain)
        refusals.show("\n".join(in_language(self.texts, refusal) for refusal in event.refusals))
        refusals.display = bool(event.refusals)
        if event.plan is not None and event.plan.image:
            self.query_one("#image", Input).placeholder = printable(event.plan.image, limit=80)

    def _show_quotas(self, plan: Plan) -> None:
        """What is used of what is allowed, before this environment; and where it would go, if that is a question."""
        words = quota_words(self.texts, plan.quotas)
        lines = [self.texts("In use: {words}", words=words)] if words else []
        if plan.host and len(self.desk.services.environments.planner.hosts_of(plan.compute)) > 1:
            lines.append(self.texts("Host: {name}", name=plan.host))
        if plan.cards:
            lines.append(self.texts("GPUs: {names}", names=", ".join(plan.cards.values())))
        lines += [self.texts("Note: {words}", words=in_language(self.texts, warning)) for warning in plan.warnings]
        line = self.query_one("#quotas", Plain)
        line.show("\n".join(lines))
        line.display = bool(lines)

    def _show_defaults(self, plan: Plan) -> None:
        """What fields that are empty mean; it depends on the host."""
        for name, text in (("cpus", f"{plan.request.cpus:g}"), ("memory", size_words(plan.request.memory))):
            if plan.host and not self._value(name):
                self.query_one(f"#{name}", Input).placeholder = text

    def _compute(self) -> str:
        value = self.query_one("#compute", Select).value
        return value if isinstance(value, str) else ""

    def _is_machine(self) -> bool:
        return self.desk.services.environments.planner.is_machine(self._compute())

    def _lifecycle(self) -> Lifecycle:
        return Lifecycle(str(self.query_one("#lifecycle", Select).value))

    def _choice(self) -> LifecycleChoice:
        """The life cycle, with the fields that belong to it."""
        lifecycle = self._lifecycle()
        if lifecycle is Lifecycle.SCHEDULED:
            return LifecycleChoice(lifecycle, self._more("start-at"), self._more("stop-at"), self._more("timezone"))
        if lifecycle is Lifecycle.PERSISTENT:
            return LifecycleChoice()
        return LifecycleChoice(lifecycle, idle_seconds=parse_span(self._more("idle")))

    def _more(self, name: str) -> str:
        """What a field of the life cycle says; empty also while it is not there yet."""
        found = list(self.query(f"#{self._lifecycle().name.lower()}-{name}").results(Input))
        return found[-1].value.strip() if found else ""  # those before it are on their way out

    def _host(self) -> str:
        """The host that was chosen; empty: none in particular."""
        value = self.query_one("#host", Select).value
        return value if isinstance(value, str) and len(self._offered_hosts) > 1 else _ANY

    def _has_hosts(self) -> bool:
        """Whether there may be GPUs."""
        return bool(self.desk.services.environments.planner.hosts_of(self._compute()))

    def _gpus(self) -> tuple[int, str, str]:
        """Count, model and mode; a model alone means one, a mode nothing as long as no number stands before it."""
        typed, model = self._value("gpus"), self._value("gpu-model")
        count = parse_gpus(typed) if typed else int(bool(model))
        if not self._has_hosts() or not count:
            return 0, "", ""
        mode = self.query_one("#gpu-mode", Select).value
        return count, model, mode if isinstance(mode, str) else ""

    def _value(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value.strip()

    def _request(self) -> Request:
        compute = self._compute()
        kept = parse_days(self._value("keep-output"))
        if self._is_machine():
            return Request(name=self._value("name"), compute=compute, keep_output_days=kept)
        gpus, model, mode = self._gpus()
        return Request(
            name=self._value("name"),
            compute=compute,
            image=self._value("image") if compute in _TAKES_IMAGE else "",
            cpus=parse_cpus(self._value("cpus")),
            memory=parse_size(self._value("memory")),
            host=self._host(),
            gpus=gpus,
            gpu_model=model,
            gpu_mode=mode,
            data=self.query_one("#datasets", ReferencesInput).choices
            + self.query_one("#models", ReferencesInput).choices,
            lifecycle=self._choice(),
            keep_output_days=kept,
            applications=_words(self._value("apps")),
            ports=self._ports(),
        )

    def _ports(self) -> tuple[int, ...]:
        if not self.desk.services.published.are_offered:
            return ()
        return tuple(parse_port(word) for word in _words(self._value("ports")))

    async def _names(self, kind: AssetKind) -> list[str]:
        """What may be mounted, as one types it."""
        services, caller = self.desk.services, self.desk.caller
        assets = services.datasets if kind is AssetKind.DATASET else services.models
        try:
            views = [*await assets.list(caller), *await assets.shared(caller)]
        except AshoreError:
            return []  # a proposal only
        return [view.reference(caller, version.name) for view in views for version in reversed(view.versions)]

    # ---- keys ------------------------------------------------------------------------------------------------
    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_create()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "create":
            self.action_create()
        else:
            self.action_back()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_create(self) -> None:
        if self._is_sending:
            return
        try:
            request = self._request()
        except BadInput as error:
            self.trouble(error)
            return
        self._is_sending = True
        self.query_one("#create", Button).disabled = True
        self.run_worker(self._create(request), name="create", group="create")

    async def _create(self, request: Request) -> None:
        try:
            await self.desk.services.environments.create(self.desk.caller, request)
        except AshoreError as error:
            self.trouble(error)
            self._is_sending = False
            self._plan_soon()
        else:
            self.post_message(self.Created(request.name))


def _words(text: str) -> tuple[str, ...]:
    """Names between commas or blanks."""
    return tuple(text.replace(",", " ").split())


def _propose(taken: frozenset[str]) -> str:
    """`dev`, or `dev-2`, `dev-3` … if that is taken."""
    names = ("dev", *(f"dev-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in taken and is_resource(name))
