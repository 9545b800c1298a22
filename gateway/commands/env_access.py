"""`env access` and `env ports`: how one gets at what listens inside an environment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.applications import Access, Condition
from gateway.commands.context import Context
from gateway.commands.output import Row, facts, table, to_json
from gateway.commands.parsing import Parser, Verb
from storage.errors import BadInput, TimedOut
from storage.records import ApplicationState

if TYPE_CHECKING:
    from storage.records import Environment

_PORTS = {
    "environment": "ENVIRONMENT",
    "port": "PORT",
    "external_port": "OPEN ON",
    "address": "ADDRESS",
    "since": "SINCE",
}
_WAIT_SECONDS = 120.0
_SETTLED = (ApplicationState.RUNNING, ApplicationState.MISSING, ApplicationState.FAILED)


def port_number(text: str) -> int:
    """A TCP port; BadInput otherwise."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise BadInput(f"'{text}' is no port: write 1 to 65535")
    return int(text)


async def _access(context: Context, options: argparse.Namespace) -> int:
    applications = context.services.applications
    if options.new_secret:
        await applications.new_secrets(context.caller, options.name, only=options.app)
    if options.wait:
        await _wait(context, options)
    environment, found = await applications.access(context.caller, options.name, only=options.app)
    rows = [_row(context, environment, one) for one in found]
    if options.json:
        context.out(to_json(rows))
        return 0
    for number, row in enumerate(rows):
        context.out("\n" if number else "")
        facts(context, row, as_json=False)
    return 0


async def _wait(context: Context, options: argparse.Namespace) -> None:
    """Until each of them runs, or has failed to."""
    services = context.services
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            with services.changes.subscribe("environment") as hints:
                while True:
                    environment = await services.environments.show(context.caller, options.name)
                    found = (await services.applications.of(context.caller, [environment])).get(environment.id, ())
                    if all(one.state in _SETTLED for one in found if options.app in ("", one.name)):
                        return
                    try:
                        async with asyncio.timeout(1.0):
                            await hints.get()
                    except TimeoutError:
                        continue
    except TimeoutError as error:
        raise TimedOut(f"the applications of '{options.name}' did not come up in time") from error


def condition_row(one: Condition) -> Row:
    """What programs get to see of an application; nothing secret."""
    return {"name": one.name, "title": one.title, "state": one.state.value, "reason": one.reason, "port": one.port}


def _row(context: Context, environment: Environment, one: Access) -> Row:
    line = one.line(context.caller.name, environment.name, context.host, context.port)
    return {
        **condition_row(one.condition),
        "ssh": line if one.condition.port else "",
        "local_port": one.local_port,
        "address": one.address,
        "user": one.user,
        one.kind if one.kind != "none" else "secret": one.secret,
        "advice": one.advice,
    }


async def _ports(context: Context, options: argparse.Namespace) -> None:
    services = context.services
    if options.name:
        environments: Sequence[Environment] = [await services.environments.show(context.caller, options.name)]
    else:
        environments = await services.environments.list(context.caller)
    found = await services.published.of(context.caller, environments)
    rows: list[Row] = [
        {
            "environment": one.name,
            "owner": one.owner_name,
            "port": port.port,
            "external_port": port.external_port,
            "address": f"{context.host}:{port.external_port}",
            "since": port.published,
        }
        for one in environments
        for port in found.get(one.id, ())
    ]
    table(context, rows, _PORTS, as_json=options.json, empty="no ports are published: env set NAME --publish PORT")


def _name_and_application(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the environment's name")
    parser.add_argument("--app", metavar="NAME", default="", help="this application only")
    parser.add_argument("--new-secret", action="store_true", help="make a new secret; the program starts anew with it")
    parser.add_argument("--wait", action="store_true", help="return when they run, or have failed to")


def _maybe_name(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default="", help="the environment's name (default: all yours)"
    )


ACCESS = Verb(
    "access", "how to get at Jupyter, the desktop and other applications of an environment", _access,
    _name_and_application,
    about="For each application: whether it runs, the ssh line that leads there, the address to open, and its\n"
    "secret. Run the ssh line on your own machine and leave it open. Others cannot see any of this.",
    examples=("env access lab", "env access lab --app jupyter --json", "env access lab --new-secret"),
)  # fmt: skip
PORTS = Verb(
    "ports", "list published ports", _ports, _maybe_name,
    about="A published port is open to everybody who reaches the gateway, without SSH; 'env set' opens and closes\n"
    "them. It is closed while its environment does not run, and a connection to it wakes nothing.",
    examples=("env ports", "env ports train --json"),
)  # fmt: skip
