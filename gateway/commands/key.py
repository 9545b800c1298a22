"""`key`: the SSH keys that you may log in with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.commands.context import Context
from gateway.commands.output import Row, facts, table
from gateway.commands.parsing import Noun, Parser, Verb
from storage.errors import BadInput
from storage.keys import parse_public_key

if TYPE_CHECKING:
    from storage.records import SshKey

_LONGEST = 16 * 1024
_COLUMNS = {"fingerprint": "FINGERPRINT", "type": "TYPE", "title": "TITLE", "created": "ADDED", "last_used": "USED"}


async def _list(context: Context, options: argparse.Namespace) -> None:
    keys = await context.services.accounts.keys(context.caller)
    table(context, [_row(key) for key in keys], _COLUMNS, as_json=options.json, empty="you have no keys")


async def _add(context: Context, options: argparse.Namespace) -> None:
    text = " ".join(options.key)
    if not text or text == "-":
        if context.has_terminal:
            context.err("Paste the public key (one line of ~/.ssh/id_ed25519.pub), then press Enter and Ctrl-D:\n")
        try:
            text = (await context.stdin.read_all(_LONGEST)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput("this is no public key") from error
    key = await context.services.accounts.add_key(context.caller, parse_public_key(text))
    facts(context, _row(key), as_json=options.json)


async def _remove(context: Context, options: argparse.Namespace) -> None:
    await context.services.accounts.remove_key(context.caller, options.fingerprint)
    facts(context, {"removed": options.fingerprint}, as_json=options.json)


def _row(key: SshKey) -> Row:
    return {
        "fingerprint": key.fingerprint,
        "type": key.line.split(" ")[0],
        "title": key.title,
        "created": key.created,
        "last_used": key.last_used,
    }


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="*", help="the public key; without it, it is read from stdin")


def _remove_arguments(parser: Parser) -> None:
    parser.add_argument("fingerprint", metavar="FINGERPRINT", help="as 'key list' shows it; its beginning is enough")


NOUN = Noun(
    "key",
    "the SSH keys that you may log in with",
    (
        Verb("list", "list your keys", _list, examples=("key list",)),
        Verb("add", "allow one more key to log in as you", _add, _add_arguments,
             about="Give it the public key: the line in a file that ends in .pub. A private key is refused.",
             examples=("key add < ~/.ssh/id_ed25519.pub", "key add ssh-ed25519 AAAAC3Nza… me@laptop")),
        Verb("remove", "take a key away; the last one stays", _remove, _remove_arguments,
             about="Connections that it let in end.", examples=("key remove SHA256:Qy1r",)),
    ),
)  # fmt: skip
