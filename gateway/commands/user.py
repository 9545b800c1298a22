"""`user`: people, for administrators."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.commands.context import Context
from gateway.commands.output import Row, facts, table
from gateway.commands.parsing import Noun, Parser, Verb
from storage.access import Action, require
from storage.errors import BadInput, Conflict
from storage.keys import parse_public_key

if TYPE_CHECKING:
    from storage.records import User

COLUMNS = {"name": "NAME", "administrator": "ADMINISTRATOR", "disabled": "DISABLED", "created": "ADDED"}
_LONGEST = 16 * 1024


async def _list(context: Context, options: argparse.Namespace) -> None:
    users = await context.services.accounts.users(context.caller)
    table(context, [as_row(user) for user in users], COLUMNS, as_json=options.json, empty="there are no users")


async def _add(context: Context, options: argparse.Namespace) -> None:
    require(context.caller, Action.USER_MANAGE)
    text = " ".join(options.key)
    if not text or text == "-":
        try:
            text = (await context.stdin.read_all(_LONGEST)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput("this is no public key") from error
    user = await context.services.accounts.add_user(
        options.name, [parse_public_key(text)], is_admin=options.admin, actor=context.caller.name
    )
    facts(context, as_row(user), as_json=options.json)


async def _disable(context: Context, options: argparse.Namespace) -> None:
    if options.name == context.caller.name:
        raise Conflict("you cannot lock yourself out")
    await _set_disabled(context, options, disabled=True)


async def _enable(context: Context, options: argparse.Namespace) -> None:
    await _set_disabled(context, options, disabled=False)


async def _set_disabled(context: Context, options: argparse.Namespace, *, disabled: bool) -> None:
    require(context.caller, Action.USER_MANAGE)
    await context.services.accounts.set_disabled(options.name, disabled=disabled, actor=context.caller.name)
    facts(context, {"name": options.name, "disabled": disabled}, as_json=options.json)


def as_row(user: User) -> Row:
    """A user as programs see them."""
    return {
        "name": user.name,
        "administrator": user.is_admin,
        "disabled": user.disabled,
        "created": user.created,
    }


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the user's name")


def _add_arguments(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("key", metavar="KEY", nargs="*", help="their public key; without it, it is read from stdin")
    parser.add_argument("--admin", action="store_true", help="an administrator")


NOUN = Noun(
    "user",
    "people (administrators)",
    (
        Verb("list", "list everybody", _list, examples=("user list",), admin=True),
        Verb("add", "add somebody whose public key you have", _add, _add_arguments,
             about="'invite create' is the way when you do not have it.",
             examples=("user add carol < carol.pub",), admin=True),
        Verb("disable", "lock somebody out", _disable, _name,
             about="Their environments and data stay. Their open connections end.",
             examples=("user disable carol",), admin=True),
        Verb("enable", "let somebody in again", _enable, _name, examples=("user enable carol",), admin=True),
    ),
)  # fmt: skip
