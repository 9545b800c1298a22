"""`host`: the machines that run environments; list, show, drain, resume, forget, for administrators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from backends.gpus import Card
from backends.hosts import HostView
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, moment, table
from gateway.commands.parsing import Noun, Parser, Usage, Verb
from storage.records import Environment

COLUMNS = {
    "name": "NAME", "state": "STATE", "cpus": "CPUS", "memory": "MEMORY", "gpus": "GPUS", "driver": "DRIVER (CUDA)",
    "environments": "RUNNING", "data": "DATA", "placed": "PLACED", "seen": "LAST SEEN", "reason": "NOTE",
}  # fmt: skip

LOST_COLUMNS = {"name": "NAME", "owner": "OWNER", "state": "STATE", "created": "CREATED"}
LOST_WORDS = "their homes, and what of their output was not kept; data sets, models and images are not"
DRY_RUN_WORDS = "--dry-run goes with --with-environments: without it nothing is lost"
NONE_LOST_WORDS = "no environment has its home there"
_WOULD_BE_LOST = f"these environments would be lost: {LOST_WORDS}"
_LOST = f"these environments are lost: {LOST_WORDS}; their owners are told by 'env list'"


async def _list(context: Context, options: argparse.Namespace) -> None:
    views = await context.services.hosts.list(context.caller)
    rows = [as_row(view) if options.json else as_texts(view) for view in views]
    table(context, rows, COLUMNS, as_json=options.json, empty="no compute that serves has hosts")


async def _show(context: Context, options: argparse.Namespace) -> None:
    _print(context, await context.services.hosts.show(context.caller, options.name), as_json=options.json)


async def _drain(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.hosts.drain(context.caller, options.name, options.reason)
    _print(context, view, as_json=options.json)


async def _resume(context: Context, options: argparse.Namespace) -> None:
    _print(context, await context.services.hosts.resume(context.caller, options.name), as_json=options.json)


async def _forget(context: Context, options: argparse.Namespace) -> None:
    hosts, caller, name = context.services.hosts, context.caller, options.name
    if options.dry_run and not options.with_environments:
        raise Usage(DRY_RUN_WORDS)
    if options.dry_run:
        _say_lost(context, await hosts.losses(caller, name), _WOULD_BE_LOST, as_json=options.json)
    elif options.with_environments:
        lost = await hosts.forget_with_environments(caller, name)
        _say_lost(context, lost, _LOST, as_json=options.json)
        if not options.json:
            context.err(f"the host {name} is forgotten\n")
    else:
        await hosts.forget(caller, name)
        facts(context, {"forgotten": name}, as_json=options.json)


def _say_lost(context: Context, lost: Sequence[Environment], words: str, *, as_json: bool) -> None:
    rows = lost_rows(lost)
    if as_json:
        rows = [{**row, "created": one.created} for row, one in zip(rows, lost, strict=True)]
    table(context, rows, LOST_COLUMNS, as_json=as_json, empty=NONE_LOST_WORDS)
    if not as_json and lost:
        context.err(f"{words}\n")


def _print(context: Context, view: HostView, *, as_json: bool) -> None:
    row = as_row(view)
    if not as_json:
        trouble = {"gpus asked": view.gpu_trouble} if view.gpu_trouble else {}
        row = {**as_texts(view), **trouble, "placed": _names(view), "cards": _cards(view)}
    facts(context, row, as_json=as_json)


def lost_rows(lost: Sequence[Environment]) -> list[Row]:
    """Environments that go with their host."""
    return [
        {"name": one.name, "owner": one.owner_name, "state": one.state.value, "created": moment(one.created)}
        for one in lost
    ]


def as_row(view: HostView) -> Row:
    """For programs; memory in bytes. `environments` hold something of it, `placed` have their home on it."""
    room = view.room
    return {
        "name": view.name, "compute": view.compute, "state": view.state.value, "reason": room.reason,
        "cpus": room.cpus, "cpus_reserved": room.used_cpus, "cpus_to_promise": room.cpus_to_promise,
        "memory": room.memory, "memory_reserved": room.used_memory, "memory_to_promise": room.memory_to_promise,
        "environments": room.environments,
        "gpus": [_card(card) for card in room.cards],
        "gpu_driver": view.gpu_driver or None, "cuda": view.cuda or None, "gpu_trouble": view.gpu_trouble,
        "cache": {"copies": view.cache.copies, "bytes": view.cache.bytes, "limit": view.cache.limit or None},
        "shared_root": view.shared_root,
        "placed": _names(view), "is_here": room.is_here, "last_heartbeat": view.last_heartbeat,
    }  # fmt: skip


def as_texts(view: HostView) -> Row:
    """A host for people: reserved of what there is."""
    room = view.room
    return {
        "name": view.name,
        "state": view.state.value,
        "cpus": f"{room.used_cpus:g} of {room.cpus_to_promise:g}",
        "memory": f"{amount(room.used_memory)} of {amount(room.memory_to_promise)}",
        "gpus": f"{room.cards_in_use} of {len(room.cards)}" if room.cards else "",
        "driver": driver_words(view),
        "environments": room.environments,
        "data": _data(view),
        "placed": len(view.placed),
        "seen": moment(view.last_heartbeat) or "never",
        "reason": room.reason or view.gpu_trouble,
    }


def driver_words(view: HostView) -> str:
    """`550.54 (12.4)`."""
    return f"{view.gpu_driver} ({view.cuda})" if view.cuda else view.gpu_driver


def _data(view: HostView) -> str:
    """What copies of data sets and models take, or where they are anyway."""
    cache = view.cache
    if view.shared_root:
        return f"at {view.shared_root}"
    return f"{amount(cache.bytes)} of {amount(cache.limit)}" if cache.limit else amount(cache.bytes)


def _card(card: Card) -> Row:
    return {
        "uuid": card.uuid, "model": card.model, "memory": card.memory, "parent": card.parent, "profile": card.profile,
        "present": card.is_present, "held_by": [f"{one.name}.{one.owner}" for one in card.holders],
        "mode": card.holders[0].mode.value if card.holders else "",
    }  # fmt: skip


def _cards(view: HostView) -> Sequence[str]:
    """`GPU-…: NVIDIA A100 80GiB, exclusive, train.alice`."""
    return [
        f"{card.uuid}: "
        + ", ".join([
            f"{card.words} {amount(card.memory)}", *([] if card.is_present else ["lost"]),
            *([card.holders[0].mode.value] if card.holders else []),
            *(f"{one.name}.{one.owner}" for one in card.holders),
        ])
        for card in view.room.cards
    ]  # fmt: skip


def _names(view: HostView) -> Sequence[str]:
    return [f"{row.name}.{row.owner_name}" for row in view.placed]


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="as in the settings; 'here' where they name none")


def _name_and_reason(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("--reason", metavar="WORDS", default="", help="shown to everybody who is turned away")


def _forget_arguments(parser: Parser) -> None:
    _name(parser)
    parser.add_argument(
        "--with-environments", action="store_true", help="give up the environments there: their homes are lost"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --with-environments: say which those are, and change nothing"
    )


NOUN = Noun(
    "host",
    "the machines that run environments",
    (
        Verb("list", "list all hosts, with what is reserved of them", _list,
             about="Cores and memory may be promised several times: see backends.placement in the settings.\n"
             "An environment that is stopped keeps its place, where its files are, and reserves nothing.\n"
             "DATA: what copies of data sets and models take there, or where the bucket is mounted instead.\n"
             "GPUS: how many are in use; 'host show' names them and who has them. DRIVER: of NVIDIA, and the newest\n"
             "CUDA that it knows, as it was told last. NOTE says so if it does not answer.",
             examples=("host list", "host list --json"), admin=True),
        Verb("show", "show one host and the environments on it", _show, _name, examples=("host show gpu1",),
             admin=True),
        Verb("drain", "let nothing new start on a host; what runs goes on", _drain, _name_and_reason,
             examples=("host drain gpu1 --reason 'new cards, back at six'",), admin=True),
        Verb("resume", "let environments start on a host again", _resume, _name, examples=("host resume gpu1",),
             admin=True),
        Verb("forget", "drop what is known of a host that is offline or no longer in the settings", _forget,
             _forget_arguments,
             about="Its cards and whether it is drained. Environments that have their home there are in the way.\n"
             "If it is gone for ever, --with-environments gives them up: their homes are lost, and everything that\n"
             "they hold here is free again. That is possible while the host is offline. Should it come back, what is\n"
             "left there is reported in the log and not touched, and the host is in maintenance: remove that, then\n"
             "'host resume'.\n"
             "A host that the settings still name is listed again, as soon as it is asked the next time.",
             examples=("host forget gpu1", "host forget gpu1 --with-environments --dry-run"), admin=True),
    ),
)  # fmt: skip
