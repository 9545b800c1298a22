"""`doctor`: is the gateway well, and can an editor work in my environment?"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import asyncssh

from gateway import health
from gateway.commands.context import Context
from gateway.commands.output import human, pad, to_json
from gateway.commands.parsing import Noun, Parser, Verb
from storage.access import Action, decide
from storage.errors import TimedOut, Unavailable
from storage.names import printable

_PATIENCE = 30.0
_PLAIN = "\x1b[0m"
_MARKS = {"ok": ("ok  ", "\x1b[32m"), "bad": ("BAD ", "\x1b[31m"), "unknown": ("?   ", "\x1b[33m")}


async def _doctor(context: Context, options: argparse.Namespace) -> int:
    services = context.services
    if options.name:
        findings = await _of_environment(context, options.name)
    else:
        # Everybody may ask whether the store answers; to try all that it can writes into it.
        may_probe = decide(context.caller, Action.STORE_PROBE).allowed
        objects = services.objects if may_probe and services.objects.endpoint else None
        findings = await health.of_house(services.database, services.store, services.computes, None, objects)
        if may_probe and services.registry is not None:
            findings += await health.of_registry_in_full(services.registry)
        else:
            findings.append(await health.of_registry(services.registry))
        if may_probe and services.builders is not None:
            findings.append(await health.of_builder(services.builders))
    context.out(report(findings, as_json=options.json, colours=context.has_terminal))
    return 0 if all(finding.ok for finding in findings) else 1


def report(findings: Sequence[health.Finding], *, as_json: bool, colours: bool) -> str:
    """The findings as JSON, or as lines for people."""
    if as_json:
        return to_json([_row(one) for one in findings])
    width = max((len(one.name) for one in findings), default=0)
    return "".join(_line(one, width, colours=colours) for one in findings)


def _row(finding: health.Finding) -> dict[str, str | bool]:
    hint = "" if finding.ok and finding.known else finding.hint
    return {
        "name": finding.name, "ok": finding.ok, "state": _state(finding), "detail": finding.detail, "hint": hint,
    }  # fmt: skip


def _state(finding: health.Finding) -> str:
    if not finding.known:
        return "unknown"
    return "ok" if finding.ok else "bad"


def _line(finding: health.Finding, width: int, *, colours: bool) -> str:
    mark, colour = _MARKS[_state(finding)]
    if colours:
        mark = f"{colour}{mark}{_PLAIN}"
    text = f"{mark} {pad(finding.name, width)}  {human(finding.detail)}\n"
    if not finding.hint or (finding.ok and finding.known):
        return text
    return f"{text}{' ' * (width + 7)}{finding.hint}\n"


async def _of_environment(context: Context, name: str) -> Sequence[health.Finding]:
    services = context.services
    environment = await services.environments.open(
        context.caller, Action.EXEC, name, on_progress=lambda line: context.err(f"{printable(line)}\n")
    )
    connection = await services.guests.connect(context.caller, environment)
    try:
        async with asyncio.timeout(_PATIENCE):
            # The script goes to stdin, so that it does not matter which shell the image gives its users.
            done = await connection.run("sh", input=health.PROBE, encoding="utf-8", errors="replace")
    except TimeoutError as error:
        raise TimedOut(f"'{environment.name}' did not answer in {_PATIENCE:.0f} seconds") from error
    except (asyncssh.Error, OSError) as error:
        raise Unavailable(f"'{environment.name}' could not be asked") from error
    return health.of_environment(str(done.stdout or ""))


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="ENV", nargs="?", default="", help="look into this environment; it is started")


NOUN = Noun(
    "doctor",
    "check the gateway, or what an editor needs in an environment",
    (
        Verb("", "check the gateway, or what an editor needs in an environment", _doctor, _arguments,
             about="Without ENV: database, object store, computes and image registry; for administrators also all\n"
             "that uploads need of the object store (about 5 MiB are written and removed again), all that images need\n"
             "of the registry, and the builder. With ENV: what VS Code Remote-SSH and others need inside it: bash,\n"
             "tar, curl or wget, glibc, localhost, a writable home, free disk.\n"
             "Exit status 1 if anything is bad.",
             examples=("doctor", "doctor train", "doctor train --json")),
    ),
)  # fmt: skip
