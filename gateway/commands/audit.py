"""`audit`: the trail of everything that was done, for administrators."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from gateway.commands.context import Context
from gateway.commands.output import Row, facts, table
from gateway.commands.parsing import Noun, Parser, Verb, checked
from storage.access import Action, require
from storage.errors import BadInput
from storage.names import printable

if TYPE_CHECKING:
    from storage.records import AuditEvent

_COLUMNS = {
    "seq": "NUMBER", "time": "TIME", "actor": "ACTOR", "action": "ACTION", "outcome": "OUTCOME", "thing": "THING",
    "address": "ADDRESS", "detail": "DETAIL",
}  # fmt: skip
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


async def _search(context: Context, options: argparse.Namespace) -> None:
    events = await context.services.audit.search(
        context.caller, actor=options.actor, action=options.action, since=options.since, limit=options.limit
    )
    rows = [_row(event) for event in events]
    table(context, rows, _COLUMNS, as_json=options.json, empty="nothing like that happened")


async def _verify(context: Context, options: argparse.Namespace) -> int:
    require(context.caller, Action.AUDIT_SEARCH)
    verdict = await context.services.audit.verify()
    whole = verdict.broken_at is None
    row: Row = {
        "whole": whole, "events": verdict.events, "broken_at": verdict.broken_at, "problem": verdict.problem,
    }  # fmt: skip
    facts(context, row, as_json=options.json)
    return 0 if whole else 1


def _row(event: AuditEvent) -> Row:
    return {
        "seq": event.seq,
        "time": event.time,
        "actor": event.actor,
        "action": event.action,
        "outcome": event.outcome,
        "thing": event.thing,
        "address": event.address,
        "connection": event.connection,
        "detail": event.detail,
    }


def since(text: str) -> datetime:
    """`30m`, `12h`, `7d` ago, or an ISO date or time (UTC unless it says otherwise)."""
    if text[-1:] in _UNITS and text[:-1].isdigit() and len(text) < 8:
        return datetime.now(UTC) - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"'{printable(text, limit=40)}' is no time: write 30m, 12h, 7d or 2025-01-31") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _search_arguments(parser: Parser) -> None:
    parser.add_argument("--actor", default="", help="who did it: a user's name, 'system' or 'operator'")
    parser.add_argument("--action", default="", help="what was done, or how it begins: 'environment.', 'login'")
    parser.add_argument("--since", type=checked(since), default=None, help="30m, 12h, 7d or 2025-01-31")
    parser.add_argument("--limit", metavar="N", type=int, default=200, help="the newest N (default 200)")


NOUN = Noun(
    "audit",
    "the trail of everything that was done (administrators)",
    (
        Verb("search", "search the trail, newest first", _search, _search_arguments,
             examples=("audit search --actor alice --since 7d", "audit search --action login --json"), admin=True),
        Verb("verify", "check that nothing was changed or removed", _verify,
             about="Walks the whole chain of hashes. Exit status 1 and the first bad event if it does not hold.",
             examples=("audit verify",), admin=True),
    ),
)  # fmt: skip
