"""Runs one gateway command: finds it, parses it, runs it, turns failures into sentences and exit statuses, audits it.

Exit statuses: 0 done, 1 failed, 2 usage, 69 a needed service is away, 70 an error of ours, 77 not allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import logging

from gateway.commands.catalogue import NOUNS
from gateway.commands.context import INTERRUPTED, Context
from gateway.commands.parsing import Help, Noun, Usage, Verb, split
from storage.access import Action, require
from storage.audit import Event
from storage.errors import AshoreError, NotAllowed
from storage.names import printable
from storage.records import new_id

log = logging.getLogger(__name__)
USAGE, INTERNAL = 2, 70
_MOST_WORDS = 500
"""Of one command: the time that argparse takes grows with their square, and everybody waits for it."""


async def run(context: Context, command: str) -> int:
    """Run `command` and return its exit status; one event in the audit trail tells that it ran, without arguments.

    A command that the client interrupts, or whose client has gone, ends with 130; its event is written nevertheless.
    """
    return await context.serve(_run(context, command))


async def _run(context: Context, command: str) -> int:
    name, status = "", INTERRUPTED
    try:
        name, options = _parse(command)
        status = await _call(context, options)
    except Help as answer:
        context.out(f"{answer}")
        status = 0
    except Usage as problem:
        _complain(context, problem)
        status = USAGE
    finally:
        audited = await _audit(context, name or _first_words(command), status)
    return status if audited or status else 69


async def _call(context: Context, options: argparse.Namespace) -> int:
    verb: Verb = options.verb
    try:
        require(context.caller, Action.COMMAND)
        return await verb.handler(context, options) or 0
    except AshoreError as error:
        context.err(f"{printable(error.message)}\n")
        return error.exit_status
    except (Help, Usage):
        raise
    except Exception:  # the wall: one command's bug must not end the connection, nor show its insides
        reference = new_id()[:8]
        log.exception("command failed, reference %s", reference)
        context.err(f"internal error (reference {reference}); please tell your administrator\n")
        return INTERNAL


def _parse(command: str) -> tuple[str, argparse.Namespace]:
    """The command's name (`env list`) and its parsed arguments."""
    words = split(command)
    if len(words) > _MOST_WORDS:
        raise Usage(f"a command has at most {_MOST_WORDS} words")
    if not words or words[0] in ("--help", "-h"):
        words = ["help", *words[1:]]
    noun = NOUNS.get(words[0])
    if noun is None:
        raise Usage(_unknown(words[0]))
    parser = noun.parser()
    if words[1:] == [] and not noun.is_plain:
        raise Usage(f"'{noun.name}' needs a verb: {_verbs(noun)}", parser.format_usage().strip())
    if not noun.is_plain and not words[1].startswith("-") and words[1] not in {verb.name for verb in noun.verbs}:
        raise Usage(_unknown_verb(noun, words[1]), parser.format_usage().strip())
    options, unknown = parser.parse_known_args(words[1:])
    if unknown:
        said = f"unrecognized arguments: {' '.join(unknown)}{_lost_quotes(words, options, frozenset(unknown))}"
        raise Usage(said, parser.format_usage().strip())
    verb: Verb = options.verb
    return f"{noun.name} {verb.name}".strip(), options


def _lost_quotes(words: list[str], options: argparse.Namespace, unknown: frozenset[str]) -> str:
    """What to type where an option before the unknown words took the first word of a text; else nothing."""
    for at, word in enumerate(words[:-2]):
        taken = getattr(options, word[2:].replace("-", "_"), None) if word.startswith("--") else None
        if not taken or taken != words[at + 1] or words[at + 2] not in unknown:
            continue
        end = next((i for i in range(at + 2, len(words)) if words[i].startswith("--")), len(words))
        meant = [*words[: at + 1], f"'{' '.join(words[at + 1 : end])}'", *words[end:]]
        return f'; ssh takes quotes away, so quote it twice: ssh gw "{" ".join(meant)}"'
    return ""


def _complain(context: Context, problem: Usage) -> None:
    context.err(f"{printable(problem.message)}\n")
    if problem.usage:
        context.err("".join(f"{printable(line)}\n" for line in problem.usage.splitlines()))


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word, NOUNS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"there is no command '{printable(word, limit=40)}'{hint} (commands: {', '.join(NOUNS)})"


def _unknown_verb(noun: Noun, word: str) -> str:
    close = difflib.get_close_matches(word, [verb.name for verb in noun.verbs], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"'{noun.name}' has no verb '{printable(word, limit=40)}'{hint} (verbs: {_verbs(noun)})"


def _verbs(noun: Noun) -> str:
    return ", ".join(verb.name for verb in noun.verbs)


def _first_words(command: str) -> str:
    """The noun and verb of a line that could not be parsed, if they are ours; nothing else of it is safe to keep."""
    words = command.split()[:2]
    if not words or words[0] not in NOUNS:
        return "unknown"
    verbs = {verb.name for verb in NOUNS[words[0]].verbs}
    return " ".join(words) if len(words) == 2 and words[1] in verbs else words[0]


async def _audit(context: Context, name: str, status: int) -> bool:
    outcome = {0: "ok", NotAllowed.exit_status: "refused"}.get(status, "failed")
    event = Event.by(context.caller, Action.COMMAND, thing=name, outcome=outcome, exit_status=status)
    writing = asyncio.ensure_future(context.services.audit.record(event))
    try:
        await asyncio.shield(writing)
    except AshoreError as error:
        context.err(f"this command could not be audited: {printable(error.message)}\n")
        return False
    except asyncio.CancelledError:
        with contextlib.suppress(AshoreError):
            await writing
        raise
    return True
