"""`quota`: what a person and a workspace use and may use, and exceptions for either."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

from gateway.commands.context import Context
from gateway.commands.output import Row, table
from gateway.commands.parsing import Noun, Parser, Usage, Verb, checked, size
from storage.errors import BadInput
from storage.names import printable
from storage.quota_limits import QuotaLine, Resource
from storage.records import Holder

COLUMNS = {"of": "OF", "resource": "RESOURCE", "used": "USED", "allowed": "ALLOWED", "left": "LEFT", "by": "SET BY"}
_SIZES = (Resource.MEMORY, Resource.STORAGE, Resource.PARKED)
_HELP = {
    Resource.ENVIRONMENTS: "environments, stopped ones included",
    Resource.CPUS: "cores of all environments that run, together",
    Resource.MEMORY: "memory of all environments that run, together",
    Resource.GPUS: "GPUs of all environments that run, together; a shared one and a MIG device count as one",
    Resource.STORAGE: "files of data sets and models, and images",
    Resource.UPLOADS: "interrupted uploads that wait (of users)",
    Resource.PARKED: "storage that those hold (of users)",
    Resource.BUILDS: "builds of images that wait or run",
}


async def _show(context: Context, options: argparse.Namespace) -> None:
    lines = await context.services.quotas.show(context.caller, user=options.user, workspace=options.workspace)
    _print(context, lines, as_json=options.json)


async def _list(context: Context, options: argparse.Namespace) -> None:
    _print(context, await context.services.quotas.exceptions(context.caller), as_json=options.json)


async def _set(context: Context, options: argparse.Namespace) -> None:
    holder, name = holder_of(options)
    _print(
        context,
        await context.services.quotas.set(context.caller, holder, name, amounts_of(options)),
        as_json=options.json,
    )


async def _clear(context: Context, options: argparse.Namespace) -> None:
    holder, name = holder_of(options)
    _print(context, await context.services.quotas.clear(context.caller, holder, name), as_json=options.json)


def _print(context: Context, lines: Sequence[QuotaLine], *, as_json: bool) -> None:
    rows = [as_row(line) if as_json else as_texts(line) for line in lines]
    table(context, rows, COLUMNS, as_json=as_json, empty="no exceptions were made: the settings hold for everybody")


def as_row(line: QuotaLine) -> Row:
    """A line as programs see it: memory, storage and parked in bytes; null where there is no limit."""
    return {
        "of": line.subject.holder.value, "name": line.subject.name, "resource": line.resource.value,
        "used": line.used, "allowed": line.allowed, "left": line.left, "set_by": line.by,
    }  # fmt: skip


def as_texts(line: QuotaLine) -> Mapping[str, str]:
    """A line for people."""
    words = line.resource.words
    return {
        "of": f"{line.subject.holder.value} {printable(line.subject.name, limit=48)}",
        "resource": line.resource.value,
        "used": words(line.used),
        "allowed": "no limit" if line.allowed is None else words(line.allowed),
        "left": "-" if line.left is None else words(line.left),
        "by": printable(line.by, limit=40),
    }


def holder_of(options: argparse.Namespace) -> tuple[Holder, str]:
    """Whom `--user` or `--workspace` means; Usage if that is nobody or both."""
    if bool(options.user) == bool(options.workspace):
        raise Usage("say for whom: --user NAME or --workspace NAME")
    return (Holder.USER, options.user) if options.user else (Holder.WORKSPACE, options.workspace)


def amounts_of(options: argparse.Namespace) -> Mapping[Resource, float | None]:
    """What was typed, as `Quotas.set` takes it."""
    typed = {resource: getattr(options, resource.value) for resource in Resource}
    return {resource: found[0] for resource, found in typed.items() if found is not None}


def amount_of(resource: str) -> Callable[[str], tuple[float | None]]:
    """For argparse: `unlimited`, `default`, a size or a number; in a tuple, because None is one of the answers."""
    parse: Callable[[str], float] = size if resource in _SIZES else _number

    def read(text: str) -> tuple[float | None]:
        word = text.strip().lower()
        if word == "default":
            return (None,)
        return (math.inf if word == "unlimited" else float(parse(text)),)

    return checked(read)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BadInput(f"'{printable(text, limit=40)}' is no number: write 8, unlimited or default") from error


def _whom(parser: Parser) -> None:
    parser.add_argument("--user", metavar="NAME", default="", help="of this person")
    parser.add_argument("--workspace", metavar="NAME", default="", help="of this workspace, all its people together")


def _whom_and_what(parser: Parser) -> None:
    _whom(parser)
    for resource in Resource:
        parser.add_argument(
            f"--{resource.value}", metavar="SIZE" if resource in _SIZES else "N",
            type=amount_of(resource), default=None, help=_HELP[resource],
        )  # fmt: skip


NOUN = Noun(
    "quota",
    "what you and your workspace use and may use",
    (
        Verb("show", "show what is used, what is allowed, and what is left", _show, _whom,
             about="Environments count until they are deleted; their CPUs, memory and GPUs only while they run,\n"
             "or are wished to run. Builds of images count while they wait or run. Without a name: yours and your\n"
             "workspace's.",
             examples=("quota show", "quota show --json", "quota show --user bob")),
        Verb("set", "make an exception for a person or a workspace", _set, _whom_and_what,
             about="A number or a size, 'unlimited', or 'default' for what the settings say. What is not named stays.\n"
             "What runs goes on running; the next start or creation must fit.",
             examples=("quota set --user bob --memory 64GiB --cpus 16",
                       "quota set --workspace team --storage 2TiB --gpus 8",
                       "quota set --user bob --environments unlimited --memory default"), admin=True),
        Verb("clear", "take all exceptions of a person or a workspace back", _clear, _whom,
             examples=("quota clear --user bob",), admin=True),
        Verb("list", "list all exceptions", _list, examples=("quota list",), admin=True),
    ),
)  # fmt: skip
