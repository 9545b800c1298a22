"""`model`: models and their versions, with framework, task, metrics, and links to what others publish."""

from __future__ import annotations

import argparse
import contextlib

from gateway.commands.asset_rows import show_one
from gateway.commands.assets import verbs
from gateway.commands.context import Context
from gateway.commands.parsing import Noun, Parser, Usage, Verb
from storage.asset_views import parse_reference
from storage.errors import AlreadyExists
from storage.records import AssetKind


async def _link(context: Context, options: argparse.Namespace) -> None:
    wanted = parse_reference(options.name, AssetKind.MODEL)
    target = parse_reference(options.to, AssetKind.MODEL)
    if not wanted.version:
        raise Usage(
            f"say which version of yours it is to be: ssh gw model link {wanted.name}:VERSION --to {options.to}"
        )
    models = context.services.models
    with contextlib.suppress(AlreadyExists):
        await models.create(context.caller, wanted.asset)
    view = await models.link(context.caller, wanted.asset, wanted.version, target)
    show_one(context, view, as_json=options.json)


def _linking(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME:VERSION", help="yours; the model is made if it is not there")
    parser.add_argument("--to", metavar="[WORKSPACE/]NAME[:VERSION]", required=True, help="what it is to lead to")


NOUN = Noun(
    "model",
    "models of your workspace",
    (
        *verbs(AssetKind.MODEL),
        Verb("link", "have a pretrained model as your own, without a copy", _link, _linking,
             about="'ssh gw model list --shared' shows what there is. A link can be mounted and read like any version\n"
             "for as long as the other workspace shares it; nothing is copied, nothing is counted twice.",
             examples=("model link bert:base --to pretrained/bert:v1", "model link best:v2 --to resnet:run-7")),
    ),
)  # fmt: skip
