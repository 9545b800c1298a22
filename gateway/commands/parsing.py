"""Command lines: nouns, verbs, options, and help that is worth reading.

argparse without its habits: nothing exits, nothing is printed, help and complaints come back as exceptions.
`Noun` is how a file of this folder describes its commands. No command is run here.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from gateway.commands.context import Context
from storage.errors import BadInput
from storage.names import printable

Handler = Callable[[Context, argparse.Namespace], Awaitable[int | None]]
"""Runs one command; None is exit status 0. Failures are `storage.errors`."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Help(Exception):
    """Somebody asked for help; the text is the answer."""


class Usage(Exception):
    """The command line cannot be meant: what is wrong, and the usage line of the command that it was meant for."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """argparse that raises `Help` and `Usage`."""

    color = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _formatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.color = False

    def print_help(self, file: object = None) -> NoReturn:
        raise Help(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise Usage(message, self.format_usage().strip())

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Usage(message or "", self.format_usage().strip())


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        # The width that argparse finds by itself is that of the gateway's own terminal.
        super().__init__(prog, max_help_position=30, width=100)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return _Formatter(prog)


@dataclass(frozen=True)
class Verb:
    """One command below a noun (or the noun itself, when `name` is empty)."""

    name: str
    summary: str
    handler: Handler
    arguments: Callable[[Parser], None] = lambda parser: None
    about: str = ""
    """Longer help: what it does and what to know."""
    examples: Sequence[str] = ()
    """Whole command lines after `ssh gw`."""
    admin: bool = False
    """Whether only administrators may; said in the help, decided by `decide()`."""


@dataclass(frozen=True)
class Noun:
    """One word after `ssh gw`, and its verbs."""

    name: str
    summary: str
    verbs: Sequence[Verb]
    about: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it stands alone, without verbs."""
        return len(self.verbs) == 1 and not self.verbs[0].name

    def parser(self) -> Parser:
        """A parser for everything below this noun; the result has `verb`, `json` and the verb's own arguments."""
        if self.is_plain:
            return _verb_parser(self.verbs[0], Parser(prog=f"ssh gw {self.name}", **_texts(self.verbs[0])))
        parser = Parser(
            prog=f"ssh gw {self.name}",
            description="\n\n".join(filter(None, (self.summary, self.about))),
            epilog=f"'ssh gw {self.name} VERB --help' tells more about each.",
        )
        below = parser.add_subparsers(
            dest="verb_name", metavar="VERB", required=True, parser_class=Parser, title="verbs"
        )
        for verb in self.verbs:
            summary = verb.summary + (" (administrators)" if verb.admin else "")
            texts = _texts(verb)
            _verb_parser(
                verb,
                below.add_parser(verb.name, help=summary, description=texts["description"], epilog=texts["epilog"]),
            )
        return parser


def _texts(verb: Verb) -> dict[str, str]:
    examples = "".join(f"\n  ssh gw {as_typed(line)}" for line in verb.examples)
    return {
        "description": "\n\n".join(filter(None, (verb.summary[:1].upper() + verb.summary[1:] + ".", verb.about))),
        "epilog": f"examples:{examples}" if examples else "",
    }


def _verb_parser(verb: Verb, parser: Parser) -> Parser:
    verb.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(verb=verb)
    return parser


def as_typed(line: str) -> str:
    """A command line after `ssh gw` as it must be typed: ssh joins its words, so a shell's quotes would be lost."""
    return f'"{line}"' if "'" in line else line


def split(command: str) -> list[str]:
    """The words of a command line, quoted as in a shell. Usage if a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise Usage(f"this command line cannot be read: {str(error).lower()}") from error


def size(text: str) -> int:
    """Bytes of `16GiB`, `512MiB`, `16G`, `1.5GiB` or a plain number; K, M, G, T are powers of 1024.

    BadInput otherwise. For argparse, `type=checked(size)`.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"'{printable(text, limit=40)}' is no amount of memory: write it like 16GiB or 512MiB")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `7d`, `1h30m` or a plain number; BadInput otherwise."""
    clean = text.strip().lower()
    parts = _DURATION.findall(clean)
    if clean.isdigit():
        return int(clean)
    if not parts or "".join(number + unit for number, unit in parts) != clean:
        raise BadInput(f"'{printable(text, limit=40)}' is no length of time: write it like 30m, 12h or 1h30m")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def assignment(text: str) -> tuple[str, str]:
    """`K=V` as a pair. The value is not part of any message."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput("an environment variable is written NAME=VALUE")
    return name, value


def checked(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """`function` for argparse's `type=`: BadInput becomes a usage error with its own sentence."""

    def check(text: str) -> Any:
        try:
            return function(text)
        except BadInput as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return check
