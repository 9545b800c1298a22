"""`record`: recordings of terminals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway import replay
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, table
from gateway.commands.parsing import Noun, Parser, Verb

if TYPE_CHECKING:
    from storage.records import Recording

_COLUMNS = {
    "id": "ID", "user": "USER", "environment": "ENVIRONMENT", "started": "STARTED",
    "seconds": "SECONDS", "size": "SIZE",
}  # fmt: skip


async def _list(context: Context, options: argparse.Namespace) -> None:
    recordings = await context.services.recordings.list(context.caller, everybody=options.all, limit=options.limit)
    rows = [_row(recording) for recording in recordings]
    if not options.json:
        rows = [
            {**row, "seconds": f"{recording.seconds:.0f}", "size": amount(recording.size)}
            for row, recording in zip(rows, recordings, strict=True)
        ]
    table(context, rows, _COLUMNS, as_json=options.json, empty="there are no recordings")


async def _play(context: Context, options: argparse.Namespace) -> None:
    path = await context.services.recordings.open(context.caller, options.id)
    if options.json:
        async for line in replay.lines(path):
            context.out(line)
            await context.drain()
        return
    write = context.raw or context.out
    try:
        await replay.play(path, write, speed=options.speed, idle_limit=options.idle_limit, drain=context.drain)
    finally:
        if context.has_terminal:
            write(replay.AFTERWARDS)


def _row(recording: Recording) -> Row:
    return {
        "id": recording.id,
        "session": recording.session_id,
        "user": recording.user_name,
        "environment": recording.environment,
        "started": recording.started,
        "seconds": round(recording.seconds, 3),
        "size": recording.size,
        "sha256": recording.sha256,
    }


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")
    parser.add_argument("--limit", metavar="N", type=int, default=200, help="the newest N (default 200)")


def play_arguments(parser: argparse.ArgumentParser) -> None:
    """Speed and idle limit, for this and for the operator's command line."""
    parser.add_argument(
        "--speed", metavar="FACTOR", type=replay.speed, default=1.0, help="2 is twice as fast (default 1)"
    )
    parser.add_argument(
        "--idle-limit", metavar="SECONDS", type=replay.seconds, default=None, help="shorten longer pauses to this"
    )


def _play_arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="as 'record list' shows it")
    play_arguments(parser)


NOUN = Noun(
    "record",
    "recordings of your terminals",
    (
        Verb("list", "list your recordings, newest first", _list, _list_arguments, examples=("record list",)),
        Verb("play", "play a recording, with its timing", _play, _play_arguments,
             about="Take 'ssh -t gw' so that your terminal shows it well; Ctrl-C ends it. With --json the recording\n"
             "itself is printed: asciicast v2, which 'asciinema play' understands.",
             examples=("record play 0123456789abcdef --speed 4 --idle-limit 1",
                       "record play 0123456789abcdef --json > work.cast")),
    ),
)  # fmt: skip
