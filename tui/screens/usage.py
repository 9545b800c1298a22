"""What my running environments take of the machine: cores, memory, processes, GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from backends.gpu_use import GpuUse
from backends.usage import Load, Rates
from storage.records import Environment
from tui.desk import Desk
from tui.texts import Texts, mark
from tui.texts.formats import size_words
from tui.widgets.line import Line
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_BAR = 10


class UsageScreen(Page):
    """A line for each environment that runs, live."""

    TITLE_TEXT = mark("Usage")
    TOPICS = ("environment",)
    REFRESH_SECONDS = 2.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", mark("Back"), key_display="Esc"),
        Binding("a", "everybody", mark("Everybody's")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    class Loaded(Message):
        """What `load` found."""

        def __init__(
            self,
            environments: Sequence[Environment],
            loads: Mapping[str, Load],
            gpus: Mapping[str, Sequence[GpuUse]],
        ) -> None:
            super().__init__()
            self.environments = environments
            self.loads = loads
            self.gpus = gpus

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._everybody = False
        self._rates = Rates()

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table(
            [
                Column(t("NAME"), least=12, most=32),
                Column(t("OWNER"), most=16, rank=4),
                Column(t("CORES"), most=7, right=True),
                Column(t("OF"), most=_BAR + 9, rank=3),
                Column(t("MEMORY"), most=9, right=True),
                Column(t("OF"), most=_BAR + 12, rank=2),
                Column(t("PROCESSES"), most=10, rank=5, right=True),
                Column(t("GPUS"), most=44, rank=1, wide=True),  # the lines of processes say nothing without it
            ],
            id="usage",
        )
        yield Line(id="status")

    async def load(self) -> Message:
        services, caller = self.desk.services, self.desk.caller
        environments = await services.environments.list(caller, everybody=self._everybody)
        loads, gpus = await asyncio.gather(
            services.loads.of(caller, environments), services.loads.gpus(caller, environments)
        )
        return self.Loaded(environments, loads, gpus)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.desk.caller.is_admin if action == "everybody" else True

    @on(Loaded)
    def _loaded(self, event: Loaded) -> None:
        cores = self._rates.of(event.loads)
        measured = [one for one in event.environments if one.id in event.loads]
        rows: list[Row] = []
        for one in measured:
            gpus = event.gpus.get(one.id, ())
            rows += [
                _row(self.texts, one, event.loads[one.id], cores.get(one.id), gpus),
                *_process_rows(self.texts, one, gpus),
            ]
        self.query_one(Table).show_rows(rows)
        self.query_one("#status", Line).show(_summary(self.texts, event.loads, cores))

    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_everybody(self) -> None:
        self._everybody = not self._everybody
        self.wake()


def _row(texts: Texts, one: Environment, load: Load, cores: float | None, gpus: Sequence[GpuUse]) -> Row:
    return Row(
        one.id,
        (
            Cell(one.name, "strong"),
            Cell(one.owner_name, "dim"),
            Cell("" if cores is None else f"{cores:.2f}"),
            Cell("" if cores is None else _share(cores, one.cpus, f"{one.cpus:g}"), "dim"),
            Cell(size_words(load.memory)),
            Cell(_share(load.memory, one.memory, size_words(one.memory)), "dim"),
            Cell(str(load.processes)),
            Cell(", ".join(_gpu_words(texts, use) for use in gpus) or "-"),
        ),
    )


def _process_rows(texts: Texts, one: Environment, gpus: Sequence[GpuUse]) -> list[Row]:
    """A line for each of its processes on a card, where they are known."""
    rows = []
    for number, use in enumerate(gpus, start=1):
        for process in use.processes or ():
            busy = "-" if process.utilization is None else f"{process.utilization} %"
            words = texts("{busy} {memory} on card {n}", busy=busy, memory=size_words(process.memory), n=number)
            name = texts("process {pid}", pid=process.pid)
            cells = (Cell(f"  {name}", "dim"), *(Cell(""),) * 6, Cell(words, "dim"))
            rows.append(Row(f"{one.id} {use.uuid} {process.pid}", cells))
    return rows


def _gpu_words(texts: Texts, use: GpuUse) -> str:
    """`97 % 12 GiB/80 GiB`, of everybody on the card; with its age where the driver has not answered since."""
    if use.age is None:
        return texts("does not answer")
    busy = "-" if use.utilization is None else f"{use.utilization} %"
    words = f"{busy} {size_words(use.used)}/{size_words(use.memory)}"
    return texts("{words} ({n} s ago)", words=words, n=round(use.age)) if use.age else words


def _share(part: float, whole: float, words: str) -> str:
    """`###.......  4`; letters only, since some terminals draw blocks two cells wide. Empty without a limit."""
    if not whole:
        return ""
    full = min(_BAR, round(_BAR * part / whole))
    return f"{'#' * full}{'.' * (_BAR - full)}  {words}"


def _summary(texts: Texts, loads: Mapping[str, Load], cores: Mapping[str, float]) -> str:
    if not loads:
        return texts("Nothing runs that could be measured.")
    words = texts.plural("{n} environment runs", "{n} environments run", len(loads))
    memory = size_words(sum(load.memory for load in loads.values()))
    return words + "   " + texts("{cores} cores and {size} together", cores=f"{sum(cores.values()):.1f}", size=memory)
