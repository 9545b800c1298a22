"""`import`, and the verb `import` of data sets and models: filling a version from elsewhere."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress

from backends.imports import ImportView
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, table, to_json
from gateway.commands.parsing import Noun, Parser, Verb
from storage.asset_views import parse_reference
from storage.names import printable
from storage.records import AssetKind, ImportState

_COLUMNS = {
    "id": "ID", "user": "USER", "into": "INTO", "state": "STATE", "files": "FILES", "received": "RECEIVED",
    "percent": "%", "rate": "RATE", "source": "FROM",
}  # fmt: skip
_LOOK_SECONDS = 2.0
_FORMS = """\
ADDRESS is one of
  https://host/file                     one file
  s3://bucket/prefix                    all below a prefix, or one object
  hf://datasets/ORG/NAME[@REVISION]     a data set of the Hugging Face hub
  hf://ORG/MODEL[@REVISION]             a model of the hub

The gateway fetches it; you can hang up. What is cut off goes on from where it was, also after a restart of the
gateway. Hashes are checked where the source gives them. Without VERSION, a new one is made (v1, v2, ...)."""


def verb(kind: AssetKind) -> Verb:
    """`dataset import …` or `model import …`."""

    async def begin(context: Context, options: argparse.Namespace) -> int | None:
        wanted = parse_reference(options.name, kind)
        view = await context.services.imports.request(
            context.caller, kind.value, wanted.asset, wanted.version, options.source
        )
        if options.wait:
            return await _wait(context, view, as_json=options.json)
        if options.json:
            context.out(to_json(_row(view)))
            return None
        context.out(f"{view.id}\n")
        context.err(f"fetching {printable(view.source)} into {kind.value} {view.target}; see: import show {view.id}\n")
        return None

    examples = {
        "dataset": ("dataset import mnist --from hf://datasets/ylecun/mnist", "dataset import logs:v2 --from "
                    "s3://archive/logs/2026 --wait"),
        "model": ("model import bert --from hf://google-bert/bert-base-chinese@main --wait",),
    }  # fmt: skip
    return Verb(
        "import", f"fill a version of a {kind.noun} from elsewhere", begin,
        _arguments, about=_FORMS, examples=examples[kind.value],
    )  # fmt: skip


async def _list(context: Context, options: argparse.Namespace) -> None:
    views = await context.services.imports.list(context.caller, everybody=options.everybody, over=options.all)
    rows = [_row(view) for view in views] if options.json else [_human(view) for view in views]
    table(context, rows, _COLUMNS, as_json=options.json, empty="nothing is being imported; --all shows what was")


async def _show(context: Context, options: argparse.Namespace) -> int | None:
    view = await context.services.imports.show(context.caller, options.id)
    if options.wait and not view.state.is_over:
        return await _wait(context, view, as_json=options.json)
    _facts(context, view, as_json=options.json)
    return None


async def _cancel(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.imports.cancel(context.caller, options.id)
    _facts(context, view, as_json=options.json)


async def _retry(context: Context, options: argparse.Namespace) -> int | None:
    view = await context.services.imports.retry(context.caller, options.id)
    if options.wait:
        return await _wait(context, view, as_json=options.json)
    _facts(context, view, as_json=options.json)
    return None


async def _wait(context: Context, view: ImportView, *, as_json: bool) -> int:
    """Until it is over, with progress on stderr; 0 if everything has arrived. Hanging up does not end the import."""
    told = ""
    with context.services.changes.subscribe("import", "import-progress") as hints:
        while not view.state.is_over:
            line = _progress(view)
            if line != told and not as_json:
                context.err(f"{line}\n")
                told = line
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    while (await hints.get()).key not in ("", view.id):
                        pass
            view = await context.services.imports.show(context.caller, view.id)
    _facts(context, view, as_json=as_json)
    return 0 if view.state is ImportState.DONE else 1


def _progress(view: ImportView) -> str:
    if view.state is ImportState.QUEUED:
        return "waits for its turn"
    if not view.files:
        return "asks the source what it has"
    words = [f"{view.files_done} of {view.files} files", amount(view.bytes_done)]
    if view.bytes:
        words.append(f"{view.percent}% of {amount(view.bytes)}")
    if view.rate:
        words.append(f"{amount(view.rate)}/s")
    if view.reason:
        words.append(printable(view.reason, limit=200))
    return ", ".join(words)


def _facts(context: Context, view: ImportView, *, as_json: bool) -> None:
    if as_json:
        context.out(to_json(_row(view)))
        return
    shown = {
        "id": view.id, "into": f"{view.kind} {view.target}", "from": view.source, "revision": view.revision,
        "state": view.state.value, "reason": view.reason, "files": f"{view.files_done} of {view.files}",
        "received": f"{amount(view.bytes_done)} of {amount(view.bytes)}" if view.bytes else amount(view.bytes_done),
        "rate": f"{amount(view.rate)}/s" if view.rate else "", "created": view.created, "finished": view.finished,
    }  # fmt: skip
    facts(context, {name: value for name, value in shown.items() if value not in ("", None)}, as_json=False)
    if view.state is ImportState.FAILED:
        context.err(f"go on with: import retry {view.id}\n")


def _row(view: ImportView) -> Row:
    return {
        "id": view.id, "owner": view.owner, "kind": view.kind, "name": view.name, "version": view.version,
        "source": view.source, "revision": view.revision, "state": view.state.value, "reason": view.reason,
        "files": view.files, "files_done": view.files_done, "bytes": view.bytes, "bytes_done": view.bytes_done,
        "percent": view.percent, "bytes_per_second": view.rate, "seconds_left": view.seconds_left,
        "created": view.created, "started": view.started, "finished": view.finished,
    }  # fmt: skip


def _human(view: ImportView) -> Row:
    return {
        "id": view.id, "user": view.owner, "into": f"{view.kind} {view.target}", "state": view.state.value,
        "files": f"{view.files_done}/{view.files}" if view.files else "", "received": amount(view.bytes_done),
        "percent": view.percent, "rate": f"{amount(view.rate)}/s" if view.rate else "", "source": view.source,
    }  # fmt: skip


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:VERSION]")
    parser.add_argument("--from", dest="source", metavar="ADDRESS", required=True, help="https://, s3:// or hf://")
    parser.add_argument("--wait", action="store_true", help="return when it is over, with progress on stderr")


def _id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="as 'import list' shows it")


def _id_and_wait(parser: Parser) -> None:
    _id(parser)
    parser.add_argument("--wait", action="store_true", help="return when it is over, with progress on stderr")


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="also those that are over")
    parser.add_argument("--everybody", action="store_true", help="everybody's (administrators)")


NOUN = Noun(
    "import",
    "data sets and models that the gateway fetches from elsewhere",
    (
        Verb("list", "list the imports that run, wait or failed", _list, _list_arguments,
             examples=("import list", "import list --all --json")),
        Verb("show", "show one import", _show, _id_and_wait, examples=("import show 0123456789abcdef --wait",)),
        Verb("cancel", "end an import; files that have arrived stay", _cancel, _id,
             examples=("import cancel 0123456789abcdef",)),
        Verb("retry", "go on with an import that failed or was cancelled", _retry, _id_and_wait,
             examples=("import retry 0123456789abcdef",)),
    ),
    about="Begin one with 'dataset import' or 'model import'.",
)  # fmt: skip
