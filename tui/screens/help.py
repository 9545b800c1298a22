"""How to reach this place with ssh, sftp and editors, as lines to copy, and what the keys do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from tui.desk import Desk
from tui.texts import Texts, mark
from tui.widgets.line import Line, Plain
from tui.widgets.page import Page
from tui.widgets.table import Cell, Column, Row, Table

_KEYS = (
    ("Enter c", mark("connect: a shell in the selected environment")),
    ("n s x r d", mark("new, start, stop, restart, delete")),
    ("l f u k o", mark("log, files, uploads, SSH keys, open sessions")),
    ("a", mark("access to Jupyter, desktops and published ports")),
    ("w", mark("what your environments take: cores, memory, processes")),
    ("t", mark("data sets and models: publish, share, delete")),
    ("b", mark("builds of images: write, watch, stop")),
    ("i", mark("images: share, delete; archives on their way")),
    ("h", mark("hosts, for administrators")),
    ("/ Esc", mark("filter, show all")),
    (":", mark("go to a screen by name")),
    ("y", mark("copy the line shown")),
    ("F5 L", mark("reload, change the language")),
    ("q Ctrl+Q", mark("leave")),
)


class HelpScreen(Page):
    """A table of lines for this gateway; Enter or y copies the one under the cursor."""

    TITLE_TEXT = mark("Help")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "back", mark("Back"), key_display="Esc"),
        Binding("y", "copy", mark("Copy the line")),
        Binding("j", "move(1)", mark("Down"), show=False),
        Binding("k", "move(-1)", mark("Up"), show=False),
    ]

    def __init__(self, desk: Desk, environment: str = "") -> None:
        super().__init__(desk)
        self._lines = _commands(desk, environment or "dev")

    def compose_body(self) -> ComposeResult:
        t = self.texts
        yield Table([Column(t("TO"), most=26), Column(t("TYPE THIS"), most=200, wide=True)], id="commands-table")
        yield Plain(id="line")
        yield Plain(id="keys-help")
        yield Line(t("With the mouse: hold Shift to select text."), id="status")

    def on_mount(self) -> None:
        rows = [
            Row(str(at), (Cell(self.texts(what), "dim"), Cell(line, "strong")))
            for at, (what, line) in enumerate(self._lines)
        ]
        self.query_one(Table).show_rows(rows)
        self.query_one("#keys-help", Plain).show_text(_keys_text(self.texts))

    @on(Table.Highlighted)
    def _highlighted(self, event: Table.Highlighted) -> None:
        event.stop()
        self.query_one("#line", Plain).show(self._line())

    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self.action_copy()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        self.query_one(Table).action_move(step)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._line())
        self.post_message(self.Done(self.texts("Copied: {text}", text=self._line())))

    def _line(self) -> str:
        return self._lines[int(self.query_one(Table).key or 0)][1]


def _commands(desk: Desk, name: str) -> Sequence[tuple[str, str]]:
    """What for (a message of the catalogue) → the line to type, on the person's own machine."""
    return (
        (mark("open a shell"), desk.ssh_command(name)),
        (mark("run a command"), f"{desk.ssh_command(name)} nvidia-smi"),
        (mark("forward a port"), desk.ssh_command(name).replace("ssh ", "ssh -L 8888:localhost:8888 ", 1)),
        (mark("go through the gateway"), desk.jump_command(name)),
        (mark("configure ssh and VS Code"), f"{desk.gateway_command('config')} >> ~/.ssh/config"),
        (mark("open VS Code (Remote-SSH)"), f"code --remote ssh-remote+{name} /"),
        (mark("browse the data"), desk.sftp_command("/datasets")),
        (mark("send a directory"), desk.upload_command("mnist", "/datasets/mnist/v1")),
        (mark("copy out of it"), desk.sftp_command(f"/envs/{name}")),
        (mark("use it in scripts"), desk.gateway_command("env list --json")),
    )


def _keys_text(texts: Texts) -> Text:
    text = Text()
    for at, (keys, what) in enumerate(_KEYS):
        text.append(("\n" if at else "") + f"{keys:<10}", style="bold")
        text.append(texts(what), style="not bold")
    return text
