"""`artifact`: what environments had in /gemini/output when they were deleted."""

from __future__ import annotations

import argparse

from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, table
from gateway.commands.parsing import Noun, Parser, Usage, Verb
from storage.access import Visibility
from storage.artifacts import ArtifactView

_COLUMNS = {
    "name": "NAME", "workspace": "WORKSPACE", "owner": "OWNER", "visibility": "VISIBLE TO",
    "environment": "ENVIRONMENT", "state": "STATE",
    "files": "FILES", "size": "SIZE", "expires": "KEPT UNTIL (UTC)",
}  # fmt: skip


async def _list(context: Context, options: argparse.Namespace) -> None:
    found = await context.services.artifacts.list(context.caller, everybody=options.all)
    columns = {key: title for key, title in _COLUMNS.items() if options.all or key != "workspace"}
    rows = [_row(view) for view in found]
    if not options.json:
        rows = [{**row, **_texts(view)} for row, view in zip(rows, found, strict=True)]
    empty = "none of your environments has left an output, and nobody shares one with you"
    table(context, rows, columns, as_json=options.json, empty=empty)


async def _show(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.artifacts.show(context.caller, options.name)
    row = {**_row(view), "remarks": list(view.remarks), "more_remarks": view.unlisted}
    if not options.json:
        row = {**row, **_texts(view), "bytes": "", "more_remarks": view.unlisted or ""}
    facts(context, row, as_json=options.json)


async def _share(context: Context, options: argparse.Namespace) -> None:
    if not options.visibility:
        raise Usage("say who may read it: --visibility private or workspace")
    wanted = Visibility(options.visibility)
    view = await context.services.artifacts.share(context.caller, options.name, wanted)
    facts(context, {"name": view.name, "visibility": view.visibility.value}, as_json=options.json)


async def _delete(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.artifacts.delete(context.caller, options.name)
    facts(context, {"deleted": view.name, "files": view.files}, as_json=options.json)


def _row(view: ArtifactView) -> Row:
    return {
        "name": view.name, "workspace": view.workspace, "owner": view.owner, "environment": view.environment,
        "visibility": view.visibility.value, "state": view.state.value, "files": view.files, "bytes": view.bytes,
        "path": view.path,
        "created": view.created, "expires": view.expires,
    }  # fmt: skip


def _texts(view: ArtifactView) -> Row:
    return {"size": amount(view.bytes), "expires": f"{view.expires:%Y-%m-%d %H:%M}" if view.expires else ""}


def _all(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="of all workspaces (administrators)")


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="as 'artifact list' shows it; WORKSPACE/NAME (administrators)")


def _share_arguments(parser: Parser) -> None:
    _name(parser)
    choices = [Visibility.PRIVATE.value, Visibility.WORKSPACE.value]
    parser.add_argument("--visibility", choices=choices, default="", help="who may read it from now on")


NOUN = Noun(
    "artifact",
    "outputs of environments that were deleted",
    (
        Verb("list", "list what your environments have left, and what others share with you", _list, _all,
             examples=("artifact list", "artifact list --json")),
        Verb("show", "show one output, and what of it could not be kept as it was", _show, _name,
             about="Its files are below /artifacts/NAME in sftp, scp and the menu. Links are not kept, and\n"
             "names that an object store does not take are written with %XX; the remarks tell which.",
             examples=("artifact show train-20260301-1a2b3c",)),
        Verb("share", "choose who may read an output", _share, _share_arguments,
             about="Only its owner reads it until it is shared with the workspace.",
             examples=("artifact share train-20260301-1a2b3c --visibility workspace",)),
        Verb("delete", "delete an output before its time", _delete, _name,
             about="Its owner may, and administrators. This cannot be undone.",
             examples=("artifact delete train-20260301-1a2b3c",)),
    ),
    about="'env create --keep-output DAYS' and 'env delete --keep-output DAYS' keep them.",
)  # fmt: skip
