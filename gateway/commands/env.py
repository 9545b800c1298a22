"""`env`: environments, from creation to their log."""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from backends.lifecycle import (
    Due,
    LifecycleChoice,
    check_keep_days,
    coming_words,
    span_words,
    usual_keep_days,
)
from backends.mounts import Choice
from backends.planning import Request
from gateway.commands.context import Context
from gateway.commands.env_access import ACCESS, PORTS, condition_row, port_number
from gateway.commands.env_stats import STATS
from gateway.commands.output import Row, amount, facts, table, to_json
from gateway.commands.parsing import Noun, Parser, Usage, Verb, assignment, checked, duration, size
from storage.errors import BadInput, Conflict, NotFound
from storage.names import printable
from storage.records import AssetKind, GpuMode, Lifecycle, Wish

if TYPE_CHECKING:
    from storage.records import Environment

_COLUMNS = {
    "name": "NAME", "owner": "OWNER", "state": "STATE", "compute": "COMPUTE", "image": "IMAGE",
    "cpus": "CPUS", "memory_text": "MEMORY", "gpus_text": "GPUS", "lifecycle": "LIFE CYCLE", "note": "NOTE",
}  # fmt: skip


async def _list(context: Context, options: argparse.Namespace) -> None:
    environments = await context.services.environments.list(context.caller, everybody=options.all)
    columns = {key: title for key, title in _COLUMNS.items() if options.all or key != "owner"}
    rows = await _rows(context, environments)
    if not options.json:
        rows = [{**row, **_texts(context, one)} for row, one in zip(rows, environments, strict=True)]
    empty = "you have no environments yet: ssh gw env create NAME"
    table(context, rows, columns, as_json=options.json, empty=empty)
    for one in () if options.json else await context.services.environments.lost(context.caller):
        context.err(f"'{one.name}' is lost: it was given up with its host {one.host} on {one.lost:%Y-%m-%d}\n")


async def _show(context: Context, options: argparse.Namespace) -> None:
    await _print(context, await context.services.environments.show(context.caller, options.name), options)


async def _create(context: Context, options: argparse.Namespace) -> int:
    request = _request(options)
    environments = context.services.environments
    if options.dry_run:
        return await _dry_run(context, request, as_json=options.json)
    # Asked before, as afterwards its cards are taken; there is nothing to ask where no GPU is wanted.
    warnings = (await environments.plan(context.caller, request)).warnings if _wants_gpus(request) else ()
    environment = await environments.create(context.caller, request)
    for warning in warnings:
        context.err(f"warning: {warning}\n")
    if options.wait:
        environment = await environments.wait(context.caller, request.name, on_progress=_progress(context))
    await _print(context, environment, options)
    if environment.lifecycle is Lifecycle.EPHEMERAL:
        context.err(_farewell(context, environment))
    if not options.wait:
        context.err(f"'ssh gw env show {request.name}' tells how far it is; --wait waits for it\n")
    return 0


def _wants_gpus(request: Request) -> bool:
    return bool(request.gpus or request.gpu_model or request.gpu_mode)


async def _dry_run(context: Context, request: Request, *, as_json: bool) -> int:
    plan = await context.services.environments.plan(context.caller, request)
    row: Row = {
        "name": request.name,
        "compute": plan.compute,
        "host": plan.host,
        "image": plan.image,
        "cpus": plan.request.cpus,
        "memory": plan.request.memory if as_json else _memory(plan.request.memory),
        "gpus": gpu_rows(plan.cards) if as_json else list(plan.cards.values()),
        "gpu_mode": plan.gpus.mode.value if plan.gpus.count else "",
        "processes": plan.processes or None,
        "variables": sorted(request.variables),
        "mounts": [_mount(one.kind, one.reference, one.path) for one in plan.mounts],
        "lifecycle": request.lifecycle.lifecycle.value,
        "keep_output_days": _keep_days(context, request),
        "possible": not plan.refusals,
        "refusals": list(plan.refusals),
        "warnings": list(plan.warnings),
    }
    facts(context, row if as_json else {**row, "mounts": _mounts(row)}, as_json=as_json)
    return 1 if plan.refusals else 0


def _keep_days(context: Context, request: Request) -> int:
    if request.keep_output_days is not None:
        return request.keep_output_days
    return usual_keep_days(request.lifecycle.lifecycle, context.settings.backends.lifecycle)


def _farewell(context: Context, environment: Environment) -> str:
    """What must be known of one that deletes itself."""
    after = environment.idle_seconds or context.settings.backends.lifecycle.ephemeral_minutes * 60
    days = context.services.environments.keep_days(environment)
    fate = (
        f"with everything in it but /gemini/output, which is kept for {days} days: ssh gw artifact list\n"
        if days
        else "with everything in it, /gemini/output and your home included: copy what you need before\n"
    )
    span = span_words(timedelta(seconds=after))
    return f"'{environment.name}' is deleted {span} after your last session there ended, {fate}"


async def _set(context: Context, options: argparse.Namespace) -> None:
    environments, published = context.services.environments, context.services.published
    ports, applications = options.publish or options.unpublish, options.app or options.no_app
    if not (options.lifecycle or options.idle or options.keep_output or ports or applications):
        raise Usage("say what to change: --lifecycle, --keep-output, --app, --no-app, --publish or --unpublish")
    if not options.lifecycle and (options.start_at or options.stop_at or options.timezone):
        raise Usage("times belong to a life cycle: say --lifecycle too")
    if not options.lifecycle and options.idle:  # another time for the life cycle that it has
        options.lifecycle = (await environments.show(context.caller, options.name)).lifecycle.value
        if options.lifecycle not in (Lifecycle.ON_DEMAND, Lifecycle.EPHEMERAL):
            raise Usage(f"--idle goes with --lifecycle on-demand or ephemeral, and '{options.name}' has neither")
    # Programs and a life cycle may be refused, and then nothing is to have been changed.
    programs = context.services.applications
    if applications:
        await programs.check(context.caller, options.name, add=options.app, remove=options.no_app)
    if options.lifecycle:
        await environments.set_lifecycle(context.caller, options.name, _choice(options))
    if options.keep_output:
        await environments.set_keep_output(context.caller, options.name, *options.keep_output)
    if applications:
        await programs.change(context.caller, options.name, add=options.app, remove=options.no_app)
    for port in options.unpublish:
        await published.unpublish(context.caller, options.name, port)
    for port in options.publish:
        await published.publish(context.caller, options.name, port)
    environment = await environments.show(context.caller, options.name)
    await _print(context, environment, options)
    if environment.lifecycle is Lifecycle.EPHEMERAL:
        context.err(_farewell(context, environment))


async def _start(context: Context, options: argparse.Namespace) -> None:
    await _wish(context, options, context.services.environments.start)


async def _stop(context: Context, options: argparse.Namespace) -> None:
    await _wish(context, options, context.services.environments.stop)


async def _restart(context: Context, options: argparse.Namespace) -> None:
    await _wish(context, options, context.services.environments.restart)


async def _delete(context: Context, options: argparse.Namespace) -> None:
    days: int | None = None
    if options.keep_output:
        (days,) = options.keep_output
    environments = context.services.environments
    await _wish(context, options, partial(environments.delete, keep_output_days=days))


async def _wish(context: Context, options: argparse.Namespace, verb: Callable[..., Awaitable[Environment]]) -> None:
    environment = await verb(context.caller, options.name)
    if options.wait:
        try:
            environment = await context.services.environments.wait(
                context.caller, options.name, on_progress=_progress(context)
            )
        except NotFound:
            # Only a deleted environment disappears while somebody waits for it, and then that was the wish.
            gone = {**as_row(environment), "state": "gone"}
            context.out(to_json(gone) if options.json else f"{environment.name}: gone\n")
            return
        if options.verb.name == "delete" and environment.wish is not Wish.DELETED:
            raise Conflict(environment.wish_reason or "somebody else wished it otherwise")
    if options.json:
        (row,) = await _rows(context, [environment])
        context.out(to_json(row))
        return
    context.out(f"{environment.name}: {environment.state.value}, wanted {environment.wish.value}\n")


async def _logs(context: Context, options: argparse.Namespace) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lines, rest = [], ""
    async for piece in context.services.environments.logs(context.caller, options.name, tail=options.tail):
        *whole, rest = (rest + decoder.decode(piece)).split("\n")
        if options.json:
            lines += whole
            continue
        for line in whole:
            context.out(_log_line(line))
        await context.drain()
    rest += decoder.decode(b"", final=True)
    if options.json:
        context.out(to_json({"name": options.name, "lines": lines + [rest] * bool(rest)}))
    elif rest:
        context.out(_log_line(rest))


def as_row(
    environment: Environment,
    mounts: Sequence[Row] = (),
    coming: Due | None = None,
    applications: Sequence[Row] = (),
    ports: Sequence[Row] = (),
    *,
    keep_days: int = 0,
) -> Row:
    """What programs get to see of an environment; the values of its variables may be secrets."""
    return {
        "id": environment.id,
        "name": environment.name,
        "owner": environment.owner_name,
        "state": environment.state.value,
        "wish": environment.wish.value,
        "compute": environment.compute,
        "host": environment.host,
        "image": environment.image,
        "cpus": environment.cpus,
        "memory": environment.memory,
        "gpus": gpu_rows(environment.cards) if environment.reserves else [],
        "gpus_wanted": environment.gpus,
        "gpu_mode": environment.gpu_mode.value,
        "gpu_model": environment.gpu_model,
        "variables": sorted(environment.variables or {}),
        "mounts": list(mounts),
        "applications": list(applications),
        "ports": list(ports),
        "progress": environment.progress,
        "reason": environment.reason,
        "created": environment.created,
        "started": environment.started,
        "last_used": environment.last_used,
        "lifecycle": environment.lifecycle.value,
        "start_at": environment.start_at,
        "stop_at": environment.stop_at,
        "timezone": environment.timezone,
        "idle_seconds": environment.idle_seconds or None,
        "last_active": environment.last_active,
        "wish_reason": environment.wish_reason,
        "keep_output_days": keep_days,
        "next_step": coming.step.value if coming else None,
        "next_at": coming.at if coming else None,
    }


def gpu_rows(cards: Mapping[str, object]) -> list[Row]:
    """Cards as programs see them."""
    return [{"uuid": uuid, "model": str(model)} for uuid, model in cards.items()]


def _gpus(environment: Environment) -> Row:
    """What people read of them: those that it has now, or what it asked for."""
    if not environment.gpus:
        return {"gpus": "", "gpus_wanted": "", "gpu_mode": "", "gpu_model": ""}
    held = [f"{uuid} ({model})" for uuid, model in environment.cards.items()] if environment.reserves else []
    return {"gpus": held, "gpu_mode": environment.gpu_mode.value, "gpu_model": environment.gpu_model}


def _texts(context: Context, environment: Environment) -> Row:
    note = environment.progress or environment.reason
    if not note and environment.wish is not Wish.RUNNING:
        note = environment.wish_reason
    if not note and environment.warned and (coming := context.services.environments.due(environment)):
        note = coming_words(environment, context.settings.backends.lifecycle, coming)
    return {
        "cpus": _cores(environment.cpus),
        "memory_text": _memory(environment.memory),
        "gpus_text": environment.gpus or "",
        "note": note,
    }


async def _print(context: Context, environment: Environment, options: argparse.Namespace) -> None:
    (row,) = await _rows(context, [environment])
    if not options.json:
        row = {**row, "memory": _memory(environment.memory), "cpus": _cores(environment.cpus), "mounts": _mounts(row)}
        row |= _gpus(environment)
        row |= {"applications": _applications(row), "ports": _ports(row)}
    facts(context, row, as_json=options.json)


async def _rows(context: Context, environments: Sequence[Environment]) -> list[Row]:
    found = await context.services.environments.mounts(context.caller, environments)
    workspace = context.caller.workspace
    applications = await context.services.applications.of(context.caller, environments)
    ports = await context.services.published.of(context.caller, environments)
    return [
        as_row(
            one,
            [_mount(mount.kind, mount.reference(workspace), mount.path) for mount in found.get(one.id, ())],
            context.services.environments.due(one),
            [condition_row(condition) for condition in applications.get(one.id, ())],
            [{"port": port.port, "external_port": port.external_port} for port in ports.get(one.id, ())],
            keep_days=context.services.environments.keep_days(one),
        )
        for one in environments
    ]


def _mount(kind: AssetKind, reference: str, path: str) -> Row:
    return {"kind": kind.value, "version": reference, "path": path}


def _mounts(row: Row) -> list[str]:
    """`/gemini/data-1=mnist:v1`, as people read them."""
    mounts = row["mounts"]
    assert isinstance(mounts, list)
    return [f"{one['path']}={one['version']}" for one in mounts]


def _applications(row: Row) -> list[str]:
    """`jupyter running`, as people read them."""
    found = row["applications"]
    assert isinstance(found, list)
    return [f"{one['name']} {one['state']}" + (f" ({one['reason']})" if one["reason"] else "") for one in found]


def _ports(row: Row) -> list[str]:
    """`30001=8000`: the gateway's port and the one inside."""
    found = row["ports"]
    assert isinstance(found, list)
    return [f"{one['external_port']}={one['port']}" for one in found]


def _cores(cpus: float) -> str:
    return f"{cpus:g}" if cpus else "no limit"


def _memory(size_in_bytes: int) -> str:
    return amount(size_in_bytes) if size_in_bytes else "no limit"


def _log_line(line: str) -> str:
    return "\t".join(printable(part.rstrip("\r"), limit=8000) for part in line.split("\t")) + "\n"


def _progress(context: Context) -> Callable[[str], None]:
    return lambda line: context.err(f"{printable(line)}\n")


def _request(options: argparse.Namespace) -> Request:
    if options.name and options.name_option and options.name != options.name_option:
        raise Usage("the name was given twice, and not the same")
    name = options.name or options.name_option
    if not name:
        raise Usage("an environment needs a name: ssh gw env create NAME")
    return Request(
        name=name,
        compute=options.compute,
        image=options.image,
        cpus=options.cpu,
        memory=options.memory,
        variables=dict(options.env),
        data=tuple(options.data),
        host=options.host,
        gpus=options.gpu,
        gpu_model=options.gpu_model,
        gpu_mode=options.gpu_mode,
        lifecycle=_choice(options),
        keep_output_days=options.keep_output[0] if options.keep_output else None,
        applications=tuple(options.app),
        ports=tuple(options.publish),
    )


def _choice(options: argparse.Namespace) -> LifecycleChoice:
    return LifecycleChoice(
        Lifecycle(options.lifecycle or Lifecycle.PERSISTENT),
        options.start_at,
        options.stop_at,
        options.timezone,
        options.idle,
    )


def _dataset(reference: str) -> Choice:
    return Choice(AssetKind.DATASET, reference)


def _model(reference: str) -> Choice:
    return Choice(AssetKind.MODEL, reference)


# ---- what can be typed -------------------------------------------------------------------------------------------
def _all(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="its name; NAME.OWNER for somebody else's (administrators)")


def _name_and_wait(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("--wait", action="store_true", help="return when it is done; progress on stderr")


def _name_and_output(parser: Parser) -> None:
    _name_and_wait(parser)
    choice = parser.add_mutually_exclusive_group()
    _keep_output(choice)
    choice.add_argument(
        "--discard-output", dest="keep_output", action="store_const", const=(0,),
        help="keep nothing of it, whatever was chosen before",
    )  # fmt: skip


def _name_and_tail(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("--tail", metavar="LINES", type=int, default=200, help="how many lines (default 200)")


def _keeping(text: str) -> tuple[int | None]:
    """Days of `14` or `14d`, 0 of `no`, None of `default`; in a tuple, which is true whatever it holds."""
    word = text.strip().lower()
    if word in ("no", "default"):
        return (0 if word == "no" else None,)
    digits = word.removesuffix("d")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise BadInput(f"'{printable(text, limit=20)}' is no number of days: write it like 14, or no")
    return (check_keep_days(int(digits)),)


def _keep_output(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--keep-output", metavar="DAYS", type=checked(_keeping), default=(),
        help="when it is deleted, keep what is in its /gemini/output for so many days, below /artifacts; no: do not; "
        "default: as the operator set for its life cycle",
    )  # fmt: skip


def _lifecycle(parser: Parser) -> None:
    parser.add_argument(
        "--lifecycle", choices=[one.value for one in Lifecycle], default="",
        help="persistent (default): only you stop it; on-demand: sleeps when idle, wakes at login; scheduled: by the "
        "clock; ephemeral: deleted after its last session, with everything in it but its output",
    )  # fmt: skip
    parser.add_argument(
        "--start-at", metavar="CRON", default="", help="scheduled: when it starts, such as '0 8 * * MON-FRI'"
    )
    parser.add_argument("--stop-at", metavar="CRON", default="", help="scheduled: when it stops")
    parser.add_argument(
        "--timezone", metavar="ZONE", default="", help="of these times, such as Europe/Berlin (default: the operator's)"
    )
    parser.add_argument(
        "--idle", metavar="TIME", type=checked(duration), default=0,
        help="on-demand, ephemeral: after which time, such as 90m (default: as the operator set)",
    )  # fmt: skip


def _name_and_lifecycle(parser: Parser) -> None:
    _name(parser)
    _lifecycle(parser)
    _keep_output(parser)
    _app(parser)
    parser.add_argument(
        "--no-app", metavar="NAME", action="append", default=[], help="end this program for good; may be repeated"
    )
    _publish(parser)
    parser.add_argument(
        "--unpublish", metavar="PORT", type=checked(port_number), action="append", default=[],
        help="close a published port; may be repeated",
    )  # fmt: skip


def _app(parser: Parser) -> None:
    parser.add_argument(
        "--app", metavar="NAME", action="append", default=[],
        help="a program that is kept running inside, as jupyter, vnc or rdp; may be repeated; 'env access' leads there",
    )  # fmt: skip


def _publish(parser: Parser) -> None:
    parser.add_argument(
        "--publish", metavar="PORT", type=checked(port_number), action="append", default=[],
        help="open this port of the environment to everybody who reaches the gateway, without SSH; may be repeated",
    )  # fmt: skip


def _new(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="its name: a-z 0-9 . _ -")
    parser.add_argument("--name", metavar="NAME", dest="name_option", default="", help="the same as the first word")
    parser.add_argument("--image", default="", help="container image (default: what the operator set)")
    parser.add_argument(
        "--compute",
        default="",
        help="where: 'docker', 'local' for a sandbox without an image, or a machine's name",
    )
    parser.add_argument("--host", metavar="NAME", default="", help="on this host (default: one that has room)")
    parser.add_argument(
        "--cpu", metavar="N", type=float, default=0.0, help="cores, 4 or 0.5 (default: as the operator set)"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", type=checked(size), default=0, help="such as 16GiB (default: as the operator set)"
    )
    parser.add_argument("--gpu", metavar="N", type=int, default=0, help="GPUs, by default whole ones and for it alone")
    parser.add_argument(
        "--gpu-model",
        metavar="WORDS",
        default="",
        help="part of the model's name (a100), or a MIG profile (1g.10gb)",
    )
    parser.add_argument(
        "--gpu-mode", choices=[mode.value for mode in GpuMode], default="",
        help="exclusive: whole cards (default); shared: with a few others, and Docker does not divide the memory of the"
        " card, so who takes too much makes the others fail; mig: a device of a divided card; none: no GPU",
    )  # fmt: skip
    parser.add_argument(
        "--env", metavar="K=V", type=checked(assignment), action="append", default=[],
        help="an environment variable for everything inside; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--data", "--dataset", metavar="NAME[:VERSION]", type=_dataset, action="append", default=[], dest="data",
        help="a data set to see inside, read only, at /gemini/data-1 and so on; may be repeated;"
        " WORKSPACE/NAME for what is shared",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME[:VERSION]", type=_model, action="append", dest="data",
        help="a model, at /gemini/pretrain1 and so on; may be repeated",
    )  # fmt: skip
    _app(parser)
    _publish(parser)
    _lifecycle(parser)
    _keep_output(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made, and what forbids it")
    parser.add_argument("--wait", action="store_true", help="return when it runs; progress on stderr")


NOUN = Noun(
    "env",
    "your environments: places to work in, with your files",
    (
        Verb("list", "list your environments", _list, _all, examples=("env list", "env list --json")),
        Verb("show", "show one environment", _show, _name, examples=("env show train",)),
        Verb(
            "create", "make a new environment and start it", _create, _new,
            about="The command returns at once and the environment comes up by itself; with --wait it returns when\n"
            "you can log in. Then 'ssh train' works, once 'ssh gw config' is in your ~/.ssh/config.",
            examples=(
                "env create train --wait",
                "env create train --image debian:bookworm --cpu 4 --memory 16GiB --wait",
                "env create train --gpu 2 --gpu-model a100 --wait",
                "env create train --data mnist:v1 --model vision/resnet --wait",
                "env create scratch --compute local --env EDITOR=vim",
                "env create train --lifecycle on-demand --idle 2h",
                "env create desk --lifecycle scheduled --start-at '0 8 * * MON-FRI' --stop-at '0 20 * * *'",
                "env create trial --lifecycle ephemeral --idle 30m",
                "env create lab --app jupyter --wait",
                "env create train --image debian:bookworm --dry-run",
            ),
        ),
        Verb(
            "set", "choose another life cycle, how long the output is kept, other programs, or which ports are open",
            _set, _name_and_lifecycle,
            about="With --lifecycle, its times count from now, and what was chosen before is forgotten. Programs are\n"
            "started and ended at once if the environment runs, else when it starts. A published port is open to\n"
            "everybody who reaches the gateway; the operator must have set a range for them.",
            examples=("env set train --lifecycle on-demand", "env set train --idle 4h",
                      "env set train --keep-output 30", "env set train --app jupyter",
                      "env set train --no-app jupyter", "env set train --publish 8000",
                      "env set train --unpublish 8000"),
        ),
        Verb("start", "start an environment that is stopped or failed", _start, _name_and_wait,
             about="Logging in to an environment starts it too.", examples=("env start train --wait",)),
        Verb("stop", "stop an environment; its files stay", _stop, _name_and_wait, examples=("env stop train",)),
        Verb("restart", "stop an environment and start it again", _restart, _name_and_wait,
             examples=("env restart train --wait",)),
        Verb("delete", "delete an environment with everything in it", _delete, _name_and_output,
             about="This cannot be undone. Data sets are not part of an environment and stay. What is in\n"
             "/gemini/output is kept below /artifacts if that was chosen; 'env show' tells for how many days. The\n"
             "environment goes when all of it is stored; if there is no room for it, it stays and says so.",
             examples=("env delete train", "env delete train --keep-output 30", "env delete train --discard-output")),
        Verb("logs", "show the last lines of an environment's main program", _logs, _name_and_tail,
             examples=("env logs train", "env logs train --tail 1000")),
        STATS,
        ACCESS,
        PORTS,
    ),
)  # fmt: skip
