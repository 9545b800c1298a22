"""`image`: what environments are made from; list, show, share, delete, and bringing one to a host."""

from __future__ import annotations

import argparse

from backends.images import ImageView
from gateway.commands import image_build
from gateway.commands.context import Context
from gateway.commands.output import Row, amount, facts, moment, table
from gateway.commands.parsing import Noun, Parser, Usage, Verb
from storage.access import Visibility
from storage.names import printable

_COLUMNS = {
    "name": "NAME", "kind": "KIND", "state": "STATE", "visibility": "VISIBLE TO", "size": "SIZE", "cuda": "CUDA",
    "note": "NOTE",
}  # fmt: skip
_STORED = {"repository": "REPOSITORY", "tags": "TAGS", "image": "IMAGE", "owner": "OWNER"}
_EMPTY = "there are no images yet: put an archive of one into /images with sftp, and see 'image list'"


async def _list(context: Context, options: argparse.Namespace) -> None:
    if options.registry:
        await _stored(context, options)
        return
    views = await context.services.images.list(context.caller, everybody=options.all)
    rows = [as_row(view) if options.json else as_texts(view) for view in views]
    table(context, rows, _COLUMNS, as_json=options.json, empty=_EMPTY)


async def _stored(context: Context, options: argparse.Namespace) -> None:
    found = await context.services.image_care.stored(context.caller)
    rows: list[Row] = [
        {"repository": one.repository, "tags": list(one.tags), "image": one.title, "owner": one.owner} for one in found
    ]
    table(context, rows, _STORED, as_json=options.json, empty="the registry is empty")


async def _show(context: Context, options: argparse.Namespace) -> None:
    _print(context, await context.services.images.show(context.caller, options.name), as_json=options.json)


async def _share(context: Context, options: argparse.Namespace) -> None:
    if not options.visibility:
        raise Usage("say who may use it: --visibility private, workspace or public")
    wanted = Visibility(options.visibility)
    view = await context.services.images.set_visibility(context.caller, options.name, wanted)
    _print(context, view, as_json=options.json)


async def _delete(context: Context, options: argparse.Namespace) -> None:
    view = await context.services.images.delete(context.caller, options.name)
    facts(context, {"deleted": view.title}, as_json=options.json)


async def _pull(context: Context, options: argparse.Namespace) -> None:
    said = ""

    def progress(line: str) -> None:
        nonlocal said
        if line != said:
            said = line
            context.err(f"{printable(line, limit=200)}\n")

    is_new = await context.services.image_care.pull(context.caller, options.name, options.host, progress)
    state = "fetched" if is_new else "already there"
    facts(context, {"image": options.name, "host": options.host, "state": state}, as_json=options.json)


def as_row(view: ImageView) -> Row:
    """For programs; `size` in bytes."""
    return {
        "name": view.title, "id": view.id, "kind": view.kind.value, "state": view.state.value, "reason": view.reason,
        "owner": view.owner, "workspace": view.workspace, "visibility": view.visibility.value,
        "description": view.description, "reference": view.reference, "digest": view.digest, "size": view.size,
        "architecture": view.architecture, "cuda": view.cuda, "driver": view.driver, "base": view.base,
        "usable": view.is_usable, "created": view.created, "ready": view.ready,
    }  # fmt: skip


def as_texts(view: ImageView) -> Row:
    """For people."""
    return {
        "name": view.title,
        "kind": view.kind.value,
        "state": view.state.value,
        "visibility": view.visibility.value,
        "size": amount(view.size) if view.size else "",
        "cuda": view.cuda,
        "note": view.reason or view.description,
    }


def _print(context: Context, view: ImageView, *, as_json: bool) -> None:
    row = dict(as_row(view))
    if not as_json:
        row["size"] = amount(view.size) if view.size else ""
        row |= {"created": moment(view.created), "ready": moment(view.ready)}
    facts(context, row, as_json=as_json)


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="everybody's (administrators)")
    parser.add_argument(
        "--registry", action="store_true", help="what the registry has, known here or not (administrators)"
    )


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:TAG]", help="as 'image list' shows it")


def _share_arguments(parser: Parser) -> None:
    _name(parser)
    choices = [one.value for one in Visibility]
    parser.add_argument("--visibility", choices=choices, default="", help="who may use it from now on")


def _pull_arguments(parser: Parser) -> None:
    _name(parser)
    parser.add_argument("host", metavar="HOST", help="as 'host list' shows it; 'here' where the settings name none")


NOUN = Noun(
    "image",
    "what environments are made from",
    (
        Verb("list", "list the images that you may use", _list, _list_arguments,
             about="Yours first, then official ones, then those of others: OWNER/NAME:TAG of your workspace,\n"
             "WORKSPACE/OWNER/NAME:TAG of other ones. 'env create --image' takes these names, and besides them\n"
             "whatever 'docker pull' would.",
             examples=("image list", "image list --json")),
        Verb("show", "show one image: size, digest, CUDA, whose it is", _show, _name,
             examples=("image show model:v1",)),
        Verb("share", "choose who may use an image", _share, _share_arguments,
             about="A new image is private. Environments that run from it go on, whatever is chosen.",
             examples=("image share model:v1 --visibility workspace",)),
        Verb("delete", "delete an image; refused while environments use it", _delete, _name,
             examples=("image delete model:v1",)),
        Verb("pull", "bring an image to a host before it is needed there", _pull, _pull_arguments,
             examples=("image pull pytorch:2.4 gpu1",), admin=True),
        *image_build.VERBS,
    ),
    about="To bring one: sftp> put model.tar /images/model_v1.tar    makes the image model:v1\n"
    "To build one: image build model:v2 --base debian:bookworm --wait < Dockerfile",
)  # fmt: skip
