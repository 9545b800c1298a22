"""`invite`: one-time login names, for administrators."""

from __future__ import annotations

import argparse

from gateway.commands.context import Context
from gateway.commands.output import to_json
from gateway.commands.parsing import Noun, Parser, Verb
from storage.access import Action, require


async def _create(context: Context, options: argparse.Namespace) -> None:
    require(context.caller, Action.USER_MANAGE)
    login = await context.services.accounts.invite(options.name, is_admin=options.admin, actor=context.caller.name)
    command = f"ssh -p {context.port} {login}@{context.host}"
    if options.json:
        context.out(to_json({"name": options.name, "administrator": options.admin, "login": login, "command": command}))
        return
    context.out(f"{command}\n")
    context.err(f"Send this line to {options.name}: it works once, within a week, and binds their first key.\n")


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the user that the invitation is for; made if new")
    parser.add_argument("--admin", action="store_true", help="an administrator, if new")


NOUN = Noun(
    "invite",
    "invitations (administrators)",
    (
        Verb("create", "make a one-time login for somebody", _create, _arguments,
             about="Whoever logs in with it becomes NAME with the key that they came with. It works once, for a week.",
             examples=("invite create carol",), admin=True),
    ),
)  # fmt: skip
