"""`session`: what is open right now, and ending it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.commands.context import Context
from gateway.commands.output import Row, facts, table
from gateway.commands.parsing import Noun, Parser, Verb

if TYPE_CHECKING:
    from storage.records import SshSession

_COLUMNS = {
    "id": "ID", "user": "USER", "kind": "KIND", "environment": "ENVIRONMENT", "address": "ADDRESS",
    "started": "STARTED", "detail": "DETAIL",
}  # fmt: skip


async def _list(context: Context, options: argparse.Namespace) -> None:
    sessions = await context.services.sessions.list(context.caller, everybody=options.all)
    rows = [_row(session) for session in sessions]
    table(context, rows, _COLUMNS, as_json=options.json, empty="nothing is open")


async def _kill(context: Context, options: argparse.Namespace) -> None:
    await context.services.sessions.kill(context.caller, options.id)
    facts(context, {"ending": options.id}, as_json=options.json)


def _row(session: SshSession) -> Row:
    return {
        "id": session.id,
        "user": session.user_name,
        "kind": session.kind,
        "environment": session.environment,
        "address": session.address,
        "connection": session.connection,
        "started": session.started,
        "detail": session.detail,
    }


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")


def _kill_arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="as 'session list' shows it")


NOUN = Noun(
    "session",
    "what you have open: shells, transfers, forwards",
    (
        Verb("list", "list your open sessions", _list, _list_arguments, examples=("session list",)),
        Verb("kill", "end a session", _kill, _kill_arguments,
             about="Administrators may end everybody's.", examples=("session kill 0123456789abcdef",)),
    ),
)  # fmt: skip
