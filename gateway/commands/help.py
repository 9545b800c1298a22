"""`help`: what a newcomer reads first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gateway.commands.context import Context
from gateway.commands.output import to_json
from gateway.commands.parsing import Help, Noun, Parser, Usage, Verb

_BEFORE = """\
Ashore: one SSH port for your environments, your data and your editor.

usage:
{doors}

commands:
"""
_AFTER = """
'COMMAND --help' tells more, with examples. Every command takes --json.
In the examples "gw" stands for "{where}":  ssh {where} config >> ~/.ssh/config  makes it so,
and lets you write  ssh NAME  for a shell in your environment NAME.

Exit status: 0 done, 1 failed, 2 wrong usage, 69 a needed service is away, 70 an error of ours, 77 not allowed.
"""


def noun(others: Sequence[Noun]) -> Noun:
    """The noun `help`, which knows the others."""

    async def show(context: Context, options: argparse.Namespace) -> None:
        if options.word:
            _one(others, options.word)
        if options.json:
            context.out(to_json([_as_row(noun, verb) for noun in others for verb in noun.verbs]))
            return
        where = f"-p {context.port} {context.caller.name}@{context.host}"
        context.out(_BEFORE.format(doors=_doors(context, where)))
        for noun in others:
            verbs = "" if noun.is_plain else " " + "|".join(verb.name for verb in noun.verbs)
            context.out(f"  {noun.name + verbs:<54}  {noun.summary}\n")
        context.out(_AFTER.format(where=where))

    return Noun("help", "what there is", (Verb("", "what there is", show, _arguments, examples=("help env",)),))


def _doors(context: Context, where: str) -> str:
    name, host, port = context.caller.name, context.host, context.port
    doors = {
        f"ssh {where}": "the menu",
        f"ssh {where} COMMAND": "a command from the list below",
        f"ssh -p {port} {name}+NAME@{host}": "a shell in your environment NAME",
        f"sftp -P {port} {name}@{host}": "your data sets, and the files of your environments",
    }
    width = max(map(len, doors))
    return "\n".join(f"  {door:<{width}}  {what}" for door, what in doors.items())


def _arguments(parser: Parser) -> None:
    parser.add_argument("word", metavar="COMMAND", nargs="?", default="", help="tell about this command")


def _one(others: Sequence[Noun], word: str) -> None:
    for noun in others:
        if noun.name == word:
            raise Help(noun.parser().format_help())
    raise Usage(f"there is no command '{word[:40]}' (commands: {', '.join(noun.name for noun in others)})")


def _as_row(noun: Noun, verb: Verb) -> dict[str, str | bool]:
    name = f"{noun.name} {verb.name}".strip()
    return {"command": name, "summary": verb.summary, "administrators_only": verb.admin}
