"""`env stats`: what running environments take of the machine, once or again and again."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.gpu_use import GpuUse
from backends.usage import Load, Rates
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, table, to_json_line
from gateway.commands.parsing import Parser, Verb

if TYPE_CHECKING:
    from storage.records import Environment

_COLUMNS = {
    "name": "NAME", "owner": "OWNER", "cores": "CORES", "cpus": "OF", "memory": "MEMORY", "memory_limit": "OF",
    "processes": "PROCESSES", "gpus_text": "GPUS",
}  # fmt: skip
_LOOK_SECONDS = 2.0


async def _stats(context: Context, options: argparse.Namespace) -> None:
    """Cores take two looks: one now, and one a moment later; with --watch, again and again."""
    rates = Rates()
    rates.of(await context.services.loads.of(context.caller, await _measured(context, options)))
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        environments = await _measured(context, options)
        loads = await context.services.loads.of(context.caller, environments)
        known = rates.of(loads)
        gpus = await context.services.loads.gpus(context.caller, environments)
        rows = [
            _row(one, loads[one.id], known.get(one.id), gpus.get(one.id, ())) for one in environments if one.id in loads
        ]
        _show(context, options, rows)
        if not options.watch:
            return
        await context.drain()


async def _measured(context: Context, options: argparse.Namespace) -> Sequence[Environment]:
    environments = context.services.environments
    if options.name:
        return [await environments.show(context.caller, options.name)]
    return await environments.list(context.caller, everybody=options.all)


def _show(context: Context, options: argparse.Namespace, rows: Sequence[Row]) -> None:
    if options.json and options.watch:
        context.out(to_json_line(rows))
        return
    if options.watch and context.has_terminal and context.raw is not None:
        context.raw("\x1b[H\x1b[J")
    columns = {key: title for key, title in _COLUMNS.items() if options.all or key != "owner"}
    shown = rows if options.json else [line for row in rows for line in (_texts(row), *_process_lines(row))]
    table(context, shown, columns, as_json=options.json, empty="nothing runs that could be measured")
    if options.watch and not context.has_terminal:
        context.out("\n")


def _row(environment: Environment, load: Load, cores: float | None, gpus: Sequence[GpuUse]) -> Row:
    return {
        "id": environment.id,
        "name": environment.name,
        "owner": environment.owner_name,
        "cores": None if cores is None else round(cores, 2),
        "cpus": environment.cpus or None,
        "memory": load.memory,
        "memory_limit": environment.memory or None,
        "processes": load.processes,
        "gpus": [_gpu_row(use) for use in gpus],
    }


def _gpu_row(use: GpuUse) -> Row:
    return {
        "uuid": use.uuid, "model": use.model, "percent": use.utilization, "memory_used": use.used,
        "memory": use.memory, "own_percent": use.own_utilization, "own_memory": use.own_memory,
        "processes": None if use.processes is None else [
            {"pid": one.pid, "percent": one.utilization, "memory": one.memory} for one in use.processes
        ],
    }  # fmt: skip


def _gpu_text(use: Row) -> str:
    """`97% 12GiB/80GiB`; the environment's own share of a card that others have too is in the JSON."""
    percent, used, memory = use["percent"], use["memory_used"], use["memory"]
    assert isinstance(used, int)
    assert isinstance(memory, int)
    busy = "-" if percent is None else f"{percent}%"
    return f"{busy} {amount(used)}/{amount(memory)}"


def _texts(row: Row) -> Row:
    sizes = {key: amount(value) for key in ("memory", "memory_limit") if isinstance(value := row[key], int)}
    gpus = row["gpus"]
    assert isinstance(gpus, list)
    return {**row, **sizes, "gpus_text": ", ".join(_gpu_text(use) for use in gpus) or "-"}


def _process_lines(row: Row) -> list[Row]:
    """A line for each process on a card, below its environment."""
    cards = row["gpus"]
    assert isinstance(cards, list)
    return [
        {**dict.fromkeys(_COLUMNS, ""), "name": f"  process {one['pid']}", "gpus_text": _process_text(one, number)}
        for number, card in enumerate(cards, start=1)
        for one in card["processes"] or ()
    ]


def _process_text(one: Row, number: int) -> str:
    """`60% 2GiB on card 1`."""
    busy = "-" if one["percent"] is None else f"{one['percent']}%"
    memory = one["memory"]
    assert isinstance(memory, int)
    return f"{busy} {amount(memory)} on card {number}"


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="one environment (default: all of yours)")
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C; with --json, one line for each look")


STATS = Verb(
    "stats", "show the cores, memory, processes and GPUs that running environments take", _stats, _arguments,
    about="Cores are those of the last two seconds. Memory is counted without file cache that can be given back.\n"
    "GPUS tells for each card how much of the time it computes and how much of its memory is used, by all on it. On\n"
    "the gateway's machine a line follows for each of the environment's own processes on a card.",
    examples=("env stats", "env stats train --watch", "env stats --all --json"),
)  # fmt: skip
