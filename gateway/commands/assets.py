"""What `dataset` and `model` have in common: the same verbs over two kinds of assets."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from gateway.commands import importing, linking
from gateway.commands.asset_rows import row_of, show_one, table_of, version_row
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, table, to_json
from gateway.commands.parsing import Parser, Usage, Verb, checked
from storage.access import Visibility
from storage.asset_facts import checked_visibility
from storage.asset_views import Filter, Reference, parse_reference
from storage.assets import Assets
from storage.deletions import DeletionView
from storage.errors import AlreadyExists, BadInput
from storage.names import printable
from storage.records import AssetKind

_FACTS = {"visibility": "visibility", "description": "description", "default": "default_version",
          "framework": "framework", "task": "task"}  # fmt: skip
_DUPLICATE_COLUMNS = {"size": "SIZE", "paths": "FILES", "elsewhere": "ALSO"}
_USE_COLUMNS = {
    "environment": "ENVIRONMENT", "user": "USER", "version": "VERSION", "path": "PATH", "mounted": "FROM",
    "unmounted": "UNTIL",
}  # fmt: skip
_LOOK_SECONDS = 1.0


class AssetCommands:
    """The handlers of one kind."""

    def __init__(self, kind: AssetKind) -> None:
        self.kind = kind

    def use_cases(self, context: Context) -> Assets:
        return context.services.datasets if self.kind is AssetKind.DATASET else context.services.models

    def reference(self, options: argparse.Namespace) -> Reference:
        return parse_reference(options.name, self.kind)

    async def list(self, context: Context, options: argparse.Namespace) -> None:
        wanted = Filter(
            tag=options.tag, visibility=options.visibility,
            framework=getattr(options, "framework", ""), task=getattr(options, "task", ""),
        )  # fmt: skip
        assets = self.use_cases(context)
        views = list(await (assets.shared if options.shared else assets.list)(context.caller, wanted))
        if options.newest:
            views.sort(key=lambda view: view.created, reverse=True)
        noun = f"{self.kind.noun}s"
        empty = f"no other workspace shares {noun} with yours" if options.shared else (
            f"there are no {noun} yet: ssh gw {self.kind.value} create NAME:VERSION, or put files with sftp"
        )  # fmt: skip
        table_of(context, views, as_json=options.json, empty=empty)
        if not options.json and not options.shared:
            for deletion in await context.services.deletions.show(context.caller, self.kind):
                context.err(f"being deleted: {_how_far(deletion)}\n")

    async def show(self, context: Context, options: argparse.Namespace) -> None:
        wanted = self.reference(options)
        view = await self.use_cases(context).show(context.caller, wanted.asset)
        if wanted.version:
            row = version_row(view, view.version(wanted.version), for_people=not options.json)
            facts(context, row, as_json=options.json)
        else:
            show_one(context, view, as_json=options.json)

    async def create(self, context: Context, options: argparse.Namespace) -> None:
        wanted, assets = self.reference(options), self.use_cases(context)
        try:
            await assets.create(context.caller, wanted.asset)
        except AlreadyExists:
            if not wanted.version:
                raise
        if chosen := _chosen(options):
            await assets.change(context.caller, wanted.asset, **chosen)
        if options.tag:
            await assets.tag(context.caller, wanted.asset, add=options.tag)
        if wanted.version:
            await assets.create_version(context.caller, wanted.asset, wanted.version)
        if options.json:
            context.out(to_json(row_of(await assets.show(context.caller, wanted.asset))))
            return
        path = f"/{self.kind.folder}/{wanted.name}/{wanted.version}".rstrip("/")
        context.out(f"{path}\n")
        context.err("put files there with sftp, scp or lftp\n")

    async def publish(self, context: Context, options: argparse.Namespace) -> None:
        wanted, assets = self.reference(options), self.use_cases(context)
        if not wanted.version:
            raise Usage(f"say which version: ssh gw {self.kind.value} publish {wanted.name}:VERSION")
        version = await assets.publish(context.caller, wanted.asset, wanted.version)
        same = await assets.duplicates(context.caller, wanted.asset, wanted.version)
        if options.json:
            view = await assets.find(context.caller, wanted.asset)
            context.out(to_json({**version_row(view, version), "duplicates": len(same)}))
            return
        files = f"{version.files} {'file' if version.files == 1 else 'files'}"
        context.out(f"{options.name} is published: {files}, {amount(version.bytes)}, read-only from now on\n")
        if same:
            again = f"ssh gw {self.kind.value} duplicates {options.name}"
            context.err(f"{len(same)} contents in it are stored more than once: {again}\n")

    async def tag(self, context: Context, options: argparse.Namespace) -> None:
        if not options.tags and not options.remove:
            raise Usage("name at least one tag, or --remove TAG")
        assets = self.use_cases(context)
        view = await assets.tag(context.caller, options.name, add=options.tags, remove=options.remove)
        facts(context, {"name": view.name, "tags": list(view.tags)}, as_json=options.json)

    async def share(self, context: Context, options: argparse.Namespace) -> None:
        assets = self.use_cases(context)
        for workspace in options.workspaces:
            await assets.share(context.caller, options.name, workspace, wanted=not options.stop)
        view = await assets.find(context.caller, options.name, shares=True)
        row: Row = {
            "name": view.name, "visibility": view.visibility.value, "shared_with": list(view.shares.values()),
        }  # fmt: skip
        facts(context, row, as_json=options.json)

    async def set(self, context: Context, options: argparse.Namespace) -> None:
        wanted, assets = self.reference(options), self.use_cases(context)
        chosen, metrics = _chosen(options), dict(getattr(options, "metric", None) or ())
        if not chosen and not metrics:
            raise Usage("say what to set: see --help")
        if chosen:
            await assets.change(context.caller, wanted.asset, **chosen)
        if metrics:
            await context.services.models.set_metrics(context.caller, wanted.asset, wanted.version, metrics)
        show_one(context, await assets.find(context.caller, wanted.asset, shares=True), as_json=options.json)

    async def files(self, context: Context, options: argparse.Namespace) -> None:
        wanted = self.reference(options)
        rows: list[Row] = []
        async for file in self.use_cases(context).files(context.caller, wanted.asset, wanted.version, options.path):
            modified = _modified(file.mtime)
            if options.json:
                rows.append({"path": file.path, "size": file.size, "modified": modified})
                continue
            # Printed as they come: a version may have more files than anybody wants to keep in memory.
            context.out(f"{amount(file.size):>10}  {modified:%Y-%m-%d %H:%MZ}  {printable(file.path)}\n")
            await context.drain()
        if options.json:
            context.out(to_json(rows))

    async def duplicates(self, context: Context, options: argparse.Namespace) -> None:
        wanted = self.reference(options)
        found = await self.use_cases(context).duplicates(context.caller, wanted.asset, wanted.version)
        rows: list[Row] = [
            {"sha256": one.sha256, "size": amount(one.size) if not options.json else one.size,
             "paths": list(one.paths), "elsewhere": list(one.elsewhere)}
            for one in found
        ]  # fmt: skip
        table(context, rows, _DUPLICATE_COLUMNS, as_json=options.json, empty="nothing is stored more than once")

    async def uses(self, context: Context, options: argparse.Namespace) -> None:
        uses = await context.services.uses.history(context.caller, self.kind, options.name, limit=options.limit)
        rows: list[Row] = [
            {"environment": use.environment, "user": use.user, "version": use.version, "path": use.path,
             "mounted": use.mounted, "unmounted": use.unmounted}
            for use in uses
        ]  # fmt: skip
        table(context, rows, _USE_COLUMNS, as_json=options.json, empty="no environment has used it")

    async def delete(self, context: Context, options: argparse.Namespace) -> None:
        wanted, assets = self.reference(options), self.use_cases(context)
        if wanted.version:
            deletion_id = await assets.delete_version(context.caller, wanted.asset, wanted.version)
        else:
            deletion_id = await assets.delete(context.caller, wanted.asset)
        deletion = await self._progress(context, deletion_id, wait=options.wait)
        finished = deletion is None or deletion.finished is not None
        row: Row = {
            "deleted": options.name, "finished": finished, "objects": deletion.removed if deletion else 0,
        }  # fmt: skip
        facts(context, row if options.json else {"deleted": options.name}, as_json=options.json)
        if not finished and not options.json:
            context.err(f"nobody sees it any more; its files go in the background ({_how_far(deletion)})\n")

    async def _progress(self, context: Context, deletion_id: str, *, wait: bool) -> DeletionView | None:
        """The deletion as it is now, or with `wait` when it is finished; progress on stderr."""
        said = ""
        with context.services.changes.subscribe(self.kind.value) as hints:
            while True:
                deletion = await context.services.deletions.get(deletion_id)
                if not wait or deletion is None or deletion.finished is not None:
                    return deletion
                if (now := _how_far(deletion)) != said:
                    context.err(f"{now}\n")
                said = now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await hints.get()


def verbs(kind: AssetKind) -> Sequence[Verb]:
    """The verbs of `dataset` or `model`."""
    commands, name, noun = AssetCommands(kind), kind.value, kind.noun
    example = "mnist" if kind is AssetKind.DATASET else "bert"
    return (
        Verb("list", f"list the {noun}s of your workspace", commands.list, _listing(kind),
             about="With --shared: those that other workspaces share with yours, and the public ones. They are named\n"
             "WORKSPACE/NAME, and their files are below /shared in sftp.",
             examples=(f"{name} list", f"{name} list --tag vision --newest", f"{name} list --shared --json")),
        Verb("show", f"show a {noun} and its versions", commands.show, _name,
             examples=(f"{name} show {example}", f"{name} show {example}:v1 --json")),
        Verb("create", f"make an empty {noun}, or a version of one", commands.create, _making(kind),
             about=f"Not needed before an upload: 'mkdir' and 'put -r' over SFTP make {noun}s and versions too.",
             examples=(f"{name} create {example}", f"{name} create {example}:v1 --visibility private --tag vision")),
        Verb("publish", "close a version: its files stay as they are from now on", commands.publish, _version,
             about="Its files are counted in the store. A published version cannot be opened again: make the next one.",
             examples=(f"{name} publish {example}:v1",)),
        Verb("tag", f"add tags to a {noun}, or remove them", commands.tag, _tagging,
             examples=(f"{name} tag {example} vision small", f"{name} tag {example} --remove small")),
        Verb("share", f"let another workspace read a {noun}", commands.share, _sharing,
             about=f"A private {noun} cannot be shared; for everybody use: {name} set NAME --visibility public",
             examples=(f"{name} share {example} --with lab", f"{name} share {example} --with lab --stop")),
        Verb("set", "set visibility, description or default version", commands.set, _setting(kind),
             about="private: you alone; workspace: your workspace, and those that it is shared with; public: all.",
             examples=_set_examples(kind, example)),
        Verb("files", "list the files of a version", commands.files, _name_and_path,
             about="Without VERSION: the default one: the newest published, unless its owner chose another.",
             examples=(f"{name} files {example}", f"{name} files {example}:v1 train --json")),
        linking.verb(kind),
        importing.verb(kind),
        Verb("duplicates", "list files that are stored more than once", commands.duplicates, _name,
             about="Compared by SHA-256 within your workspace, as far as it is known: of what came through Ashore.",
             examples=(f"{name} duplicates {example}:v1",)),
        Verb("uses", "list the environments that use it, or did", commands.uses, _using,
             examples=(f"{name} uses {example}", f"{name} uses {example} --limit 1000 --json")),
        Verb("delete", f"delete a {noun} or one version, with all files", commands.delete, _deleting,
             about="This cannot be undone. What an environment has mounted is not deleted.",
             examples=(f"{name} delete {example}:v1", f"{name} delete {example} --wait")),
    )  # fmt: skip


def metric(text: str) -> tuple[str, float]:
    """`accuracy=0.93` as a pair."""
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not equals or not name or number != number:
        raise BadInput("a metric is written NAME=NUMBER")
    return name, number


def _chosen(options: argparse.Namespace) -> dict[str, str]:
    """The facts that options set; an empty text is one too."""
    given = {fact: getattr(options, option, None) for option, fact in _FACTS.items()}
    return {fact: str(value) for fact, value in given.items() if value is not None}


def _how_far(deletion: DeletionView | None) -> str:
    if deletion is None:
        return ""
    why = f"; {deletion.reason}" if deletion.reason else ""
    return f"{deletion.title}: {deletion.removed} objects removed{why}"


def _modified(seconds: int) -> datetime:
    """The time of a file; what no calendar has becomes 1970."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


# ---- what can be typed -------------------------------------------------------------------------------------------
def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:VERSION]", help="WORKSPACE/NAME for what another workspace shares")


def _version(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME:VERSION", help="one version")


def _name_and_path(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="only below this folder")


def _listing(kind: AssetKind) -> Callable[[Parser], None]:
    def arguments(parser: Parser) -> None:
        parser.add_argument("--shared", action="store_true", help="what other workspaces share with yours")
        parser.add_argument("--tag", default="", help="only those with this tag")
        _visibility(parser)
        parser.add_argument("--newest", action="store_true", help="the newest first")
        if kind is AssetKind.MODEL:
            _framework_and_task(parser, default="")

    return arguments


def _making(kind: AssetKind) -> Callable[[Parser], None]:
    def arguments(parser: Parser) -> None:
        parser.add_argument("name", metavar="NAME[:VERSION]", help="names: a-z 0-9 . _ -")
        parser.add_argument("--description", metavar="TEXT", help="what it is")
        _visibility(parser)
        parser.add_argument("--tag", action="append", default=[], help="a tag; may be repeated")
        if kind is AssetKind.MODEL:
            _framework_and_task(parser)

    return arguments


def _setting(kind: AssetKind) -> Callable[[Parser], None]:
    def arguments(parser: Parser) -> None:
        named = "NAME[:VERSION]" if kind is AssetKind.MODEL else "NAME"
        parser.add_argument("name", metavar=named, help="which one")
        _visibility(parser)
        parser.add_argument("--description", metavar="TEXT", help="what it is")
        parser.add_argument("--default", metavar="VERSION", help="what NAME alone means; '' is the newest published")
        if kind is AssetKind.MODEL:
            _framework_and_task(parser)
            parser.add_argument(
                "--metric", metavar="K=V", type=checked(metric), action="append", default=[],
                help="a number about the version; may be repeated",
            )  # fmt: skip

    return arguments


def _set_examples(kind: AssetKind, example: str) -> Sequence[str]:
    if kind is AssetKind.MODEL:
        return (
            f"model set {example} --visibility public --framework pytorch --task nlp",
            f"model set {example}:v1 --metric accuracy=0.93 --metric f1=0.91",
        )
    return (f"dataset set {example} --visibility public --description 'digits'", f"dataset set {example} --default v1")


def _framework_and_task(parser: Parser, default: str | None = None) -> None:
    parser.add_argument("--framework", default=default, help="such as pytorch, tensorflow, onnx")
    parser.add_argument("--task", default=default, help="such as classification, detection, nlp")


def _visibility(parser: Parser) -> None:
    words = ", ".join(one.value for one in Visibility)
    parser.add_argument("--visibility", type=checked(checked_visibility), default=None, help=words)


def _tagging(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("tags", metavar="TAG", nargs="*", help="tags to add")
    parser.add_argument("--remove", metavar="TAG", action="append", default=[], help="a tag to remove; may be repeated")


def _sharing(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument(
        "--with", metavar="WORKSPACE", dest="workspaces", action="append", required=True,
        help="the other workspace; may be repeated",
    )  # fmt: skip
    parser.add_argument("--stop", action="store_true", help="share it no longer")


def _using(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="WORKSPACE/NAME for what another workspace shares")
    parser.add_argument("--limit", metavar="N", type=int, default=200, help="how many, the newest first (default 200)")


def _deleting(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:VERSION]", help="all of it, or one version")
    parser.add_argument("--wait", action="store_true", help="return when all files are gone; progress on stderr")
