"""`image build|check|log|history|cancel`: images of Dockerfiles that people write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from backends.builds import BuildView, DockerfileRefused
from backends.dockerfiles.reading import LARGEST, decode
from backends.dockerfiles.source import Problem
from backends.image_names import parse_new
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, moment, table, to_json
from gateway.commands.parsing import Parser, Usage, Verb
from storage.errors import BadInput, OverQuota
from storage.names import printable
from storage.records import BuildState

_REFUSED = 2
_NOWHERE = 0
"""Line and column of what is not about the text."""
_COLUMNS = {
    "number": "BUILD", "tag": "TAG", "state": "STATE", "base": "BASE", "created": "ASKED FOR", "took": "TOOK",
    "reason": "NOTE",
}  # fmt: skip
_ALL_COLUMNS = {"name": "IMAGE", **_COLUMNS}
"""Of builds of several images."""
_FORMS = """The Dockerfile comes from stdin, without FROM: the base is put in front of it. There is no build context, so
COPY and ADD take documents that stand in the text itself (COPY <<'EOF' /etc/motd), and everything else is fetched
with RUN. FROM, EXPOSE, CMD, ENTRYPOINT, USER, ONBUILD, '# syntax=', RUN --mount and COPY --from are not offered. What
has been built before is taken from the cache. You can hang up: see 'image log'."""


async def _build(context: Context, options: argparse.Namespace) -> int | None:
    name, tag = parse_new(options.name)
    text = await _text(context)
    try:
        view = await context.services.builds.request(context.caller, name, tag, base=options.base, text=text)
    except DockerfileRefused as error:
        _say_problems(context, error.problems, as_json=options.json)
        return _REFUSED
    if not options.wait:
        _facts(context, view, as_json=options.json)
        if not options.json:
            context.err(f"see how it goes: image log {view.title} -f\n")
        return None
    async for piece in context.services.builds.follow(context.caller, view.title, view.number):
        if not options.json:
            context.err(piece.data.decode("utf-8", "replace"))
            await context.drain()
    view = await context.services.builds.show(context.caller, view.title, view.number)
    _facts(context, view, as_json=options.json)
    return 0 if view.state is BuildState.SUCCESS else 1


async def _check(context: Context, options: argparse.Namespace) -> int | None:
    try:
        problems = await context.services.builds.check(context.caller, await _text(context))
    except BadInput as error:
        if not options.json:
            raise
        problems = [Problem(1, 1, error.message)]
    refusals = (await context.services.builds.room(context.caller)).refusals
    said = [*problems, *(Problem(_NOWHERE, _NOWHERE, refusal) for refusal in refusals)] if options.json else problems
    _say_problems(context, said, as_json=options.json)
    if not options.json:
        context.err("".join(f"not now: {printable(refusal)}\n" for refusal in refusals))
    if problems:
        return _REFUSED
    if refusals:
        return OverQuota.exit_status
    if not options.json:
        context.err("this can be built\n")
    return None


async def _log(context: Context, options: argparse.Namespace) -> int | None:
    """Lines go out as they are: they hold no more than text and colours."""
    builds = context.services.builds
    view = await builds.show(context.caller, options.name, options.build)
    found: list[str] = []
    offset = options.offset
    async for piece in builds.follow(
        context.caller, options.name, view.number, offset=options.offset, wait=options.follow
    ):
        text, offset = piece.data.decode("utf-8", "replace"), piece.offset
        if options.json:
            found.append(text)
        else:
            context.out(text)
            await context.drain()
    view = await builds.show(context.caller, options.name, view.number)
    if options.json:
        context.out(to_json({**_row(view), "log": "".join(found), "offset": offset}))
    elif not options.follow and view.state is BuildState.QUEUED:
        context.err("it waits for its turn\n")
    return 1 if options.follow and view.state is not BuildState.SUCCESS else None


async def _history(context: Context, options: argparse.Namespace) -> None:
    views = await context.services.builds.list(context.caller, options.name)
    rows = [_row(view) if options.json else _human(view) for view in views]
    columns = _COLUMNS if options.name else _ALL_COLUMNS
    table(context, rows, columns, as_json=options.json, empty="nothing was built yet")


async def _cancel(context: Context, options: argparse.Namespace) -> None:
    _facts(context, await context.services.builds.cancel(context.caller, options.name), as_json=options.json)


async def _text(context: Context) -> str:
    if context.has_terminal:
        context.err("type the Dockerfile, without FROM, and end it with Ctrl-D:\n")
    return decode(await context.stdin.read_all(LARGEST))


def _say_problems(context: Context, problems: Sequence[Problem], *, as_json: bool) -> None:
    if as_json:
        context.out(to_json([_problem(one) for one in problems]))
        return
    for one in problems:
        context.err(f"{printable(str(one))}\n")


def _problem(one: Problem) -> Row:
    return {"line": one.line, "column": one.column, "message": one.message}


def _row(view: BuildView) -> Row:
    return {
        "id": view.id, "name": view.name, "tag": view.tag, "number": view.number, "state": view.state.value,
        "reason": view.reason, "base": view.base, "failed_step": view.failed_step, "failed_line": view.failed_line,
        "digest": view.digest, "size": view.size, "dockerfile": view.dockerfile, "created": view.created,
        "started": view.started, "finished": view.finished, "seconds": view.seconds,
    }  # fmt: skip


def _human(view: BuildView) -> Row:
    took = "" if view.seconds is None else f"{view.seconds // 60}m{view.seconds % 60:02d}s"
    return {
        "name": view.name, "number": view.number, "tag": view.tag, "state": view.state.value, "base": view.base,
        "created": moment(view.created), "took": took, "reason": view.reason,
    }  # fmt: skip


def _facts(context: Context, view: BuildView, *, as_json: bool) -> None:
    if as_json:
        facts(context, _row(view), as_json=True)
        return
    shown: Row = {
        "image": view.title, "build": view.number, "state": view.state.value, "reason": view.reason,
        "base": view.base, "digest": view.digest, "size": amount(view.size) if view.size else "",
    }  # fmt: skip
    facts(context, shown, as_json=False)


def _build_arguments(parser: Parser) -> None:
    _name(parser)
    parser.add_argument(
        "--base", metavar="IMAGE", required=True, help="what it stands on: an image as for 'env create'"
    )
    parser.add_argument("--wait", action="store_true", help="show the log on stderr and return when it is over")


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:TAG]")


def _log_arguments(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the build is over")
    parser.add_argument("--build", metavar="N", type=int, help="as 'image history' shows it; else the newest one")
    parser.add_argument("--offset", metavar="BYTES", type=_offset, default=0, help="leave out what comes before")


def _offset(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Usage("--offset is a number of bytes")
    return int(text)


def _history_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="of one image; else of all")


VERBS = (
    Verb("build", "build an image from a Dockerfile", _build, _build_arguments, about=_FORMS,
         examples=("image build tools --base debian:bookworm --wait < Dockerfile",
                   "image build tools:v2 --base pytorch:2.4 < Dockerfile")),
    Verb("check", "say what is wrong with a Dockerfile, without building it", _check,
         about="Each problem comes with its line and column; exit status 2 if there is one.\n"
         "If your quota of builds has no room now, it says so, with status 1 and, in the JSON, line 0.",
         examples=("image check < Dockerfile",)),
    Verb("log", "show the log of a build", _log, _log_arguments,
         about="With -f it goes on until the build is over, and ends with status 1 if that did not become an image.\n"
         "--json tells the offset at the end, from which --offset goes on.",
         examples=("image log tools -f", "image log tools:v2 --build 3")),
    Verb("history", "list your builds, the newest first", _history, _history_arguments,
         examples=("image history tools", "image history --json")),
    Verb("cancel", "stop a build that waits or runs", _cancel, _name,
         about="Administrators write OWNER/NAME[:TAG] for somebody else's, also with 'image log'.",
         examples=("image cancel tools:v2",)),
)  # fmt: skip
