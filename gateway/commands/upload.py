"""`upload`: what is being sent right now, what broke off and can be gone on with, and ending either."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from backends.archives.views import ArchiveView
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, table, to_json_line
from gateway.commands.parsing import Noun, Parser, Verb
from storage.names import printable
from storage.transfers import Progress, Rates, TransferView

_COLUMNS = {
    "id": "ID", "owner": "USER", "state": "STATE", "sent": "SENT", "percent": "%", "rate": "RATE", "left": "LEFT",
    "path": "FILE",
}  # fmt: skip
_WATCH_SECONDS = 2.0
_EMPTY = "nothing is being sent, and nothing is left unfinished"


async def _list(context: Context, options: argparse.Namespace) -> None:
    if options.watch:
        await _watch(context, options)
        return
    views = await context.services.transfers.list(context.caller, everybody=options.all)
    rates = Rates().of(views)
    rows = [_row(view, rates.get(view.id), for_people=not options.json) for view in views]
    rows += await _archives(context, options)
    table(context, rows, _COLUMNS, as_json=options.json, empty=_EMPTY)
    if not options.json and any(view.progress is Progress.PARKED for view in views):
        context.err("an interrupted upload goes on with: sftp> reput FILE, or lftp's mirror -c -R\n")


async def _watch(context: Context, options: argparse.Namespace) -> None:
    """The list, again and again, until the client goes: one JSON line for each look, or a screenful."""
    rates = Rates()
    with context.services.changes.subscribe("upload") as hints:
        while True:
            views = await context.services.transfers.list(context.caller, everybody=options.all)
            known = rates.of(views)
            archives = await _archives(context, options)
            if options.json:
                rows = [_row(view, known.get(view.id), for_people=False) for view in views]
                context.out(to_json_line(rows + archives))
            else:
                _screenful(context, views, known, archives)
            await context.drain()
            await asyncio.sleep(0.5)
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS - 0.5):
                    await hints.get()
            while not hints.empty():
                hints.get_nowait()


async def _archives(context: Context, options: argparse.Namespace) -> list[Row]:
    """Archives of images that have arrived, and what is done with them."""
    views = await context.services.archives.list(context.caller, everybody=options.all)
    return [_archive_row(view, for_people=not options.json) for view in views]


def _archive_row(view: ArchiveView, *, for_people: bool) -> Row:
    if not for_people:
        return {
            "id": view.id, "owner": view.owner, "path": view.path, "state": f"image-{view.state.value}",
            "bytes": view.done, "expected": view.size, "percent": view.percent, "bytes_per_second": None,
            "started": view.created, "touched": view.touched, "sha256": view.sha256, "reason": view.reason,
        }  # fmt: skip
    reason = f": {printable(view.reason)}" if view.reason else ""
    return {
        "id": view.id, "owner": view.owner, "state": f"image: {view.state.value}", "sent": amount(view.size),
        "percent": view.percent, "rate": "", "left": "", "path": f"{printable(view.path)}{reason}",
    }  # fmt: skip


def _screenful(
    context: Context, views: Sequence[TransferView], rates: Mapping[str, float], archives: Sequence[Row]
) -> None:
    rows = [*(_row(view, rates.get(view.id), for_people=True) for view in views), *archives]
    if context.has_terminal and context.raw is not None:
        context.raw("\x1b[H\x1b[J")
    if rows:
        table(context, rows, _COLUMNS, as_json=False, empty="")
    else:
        context.out(f"{_EMPTY}\n")
    if not context.has_terminal:
        context.out("\n")


async def _show(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.transfers.show(context.caller, options.id)
    row = dict(_row(view, Rates().of([view]).get(view.id), for_people=not options.json))
    if not options.json:
        row["size"] = amount(view.expected) if view.expected else ""
        row |= {"started": view.started, "last_bytes": view.touched, "note": _NOTES.get(view.progress, "")}
    facts(context, row, as_json=options.json)


async def _abort(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.transfers.show(context.caller, options.id)
    await context.services.transfers.abort(context.caller, options.id)
    facts(context, {"ended": view.id, "file": view.path}, as_json=options.json)


_NOTES = {
    Progress.STALLED: "nothing has come for a while; its connection is still there",
    Progress.PARKED: "go on with: sftp> reput FILE; or lftp's mirror -c -R",
    Progress.SEALED: "all of it is stored; it appears when the client gives it its name",
    Progress.SUSPECT: "it ended as an interrupted upload does; if you stopped it, go on with reput",
    Progress.LOST: "the object store has thrown its parts away; send the file again",
}


def _row(view: TransferView, rate: float | None, *, for_people: bool) -> Row:
    if not for_people:
        return {
            "id": view.id, "owner": view.owner, "path": view.path, "state": view.progress.name.lower(),
            "bytes": view.size, "expected": view.expected or None, "percent": view.percent,
            "bytes_per_second": None if rate is None else round(rate), "started": view.started,
            "touched": view.touched,
        }  # fmt: skip
    left = (view.expected - view.size) / rate if rate and view.expected else None
    return {
        "id": view.id,
        "owner": view.owner,
        "state": view.progress.value,
        "sent": amount(view.size),
        "percent": view.percent,
        "rate": f"{amount(round(rate))}/s" if rate is not None else "",
        "left": _duration(left) if left is not None else "",
        "path": printable(view.path),
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C; with --json, one line for each look")


def _id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="as 'upload list' shows it")


NOUN = Noun(
    "upload",
    "files on their way: how far, how fast, and what broke off",
    (
        Verb("list", "list what is being sent, and what can be gone on with", _list, _list_arguments,
             about="Archives of images are listed until they are ready: received, verifying, loading, pushing,\n"
             "or failed and why.",
             examples=("upload list", "upload list --watch", "upload list --all --json")),
        Verb("show", "show one upload, also after it is over", _show, _id, examples=("upload show 0123456789abcdef",)),
        Verb("abort", "end an upload and throw its bytes away", _abort, _id,
             about="Its client is told when it sends more. Administrators may end everybody's.",
             examples=("upload abort 0123456789abcdef",)),
    ),
)  # fmt: skip
