"""`whoami`: who the gateway thinks you are."""

from __future__ import annotations

import argparse

from gateway.commands.context import Context
from gateway.commands.output import facts
from gateway.commands.parsing import Noun, Verb


async def _whoami(context: Context, options: argparse.Namespace) -> None:
    caller = context.caller
    facts(
        context,
        {
            "user": caller.name,
            "workspace": caller.workspace,
            "administrator": caller.is_admin,
            "address": caller.address,
            "connection": caller.connection,
        },
        as_json=options.json,
    )


NOUN = Noun("whoami", "who you are here", (Verb("", "who you are here", _whoami, examples=("whoami",)),))
