"""The verb `url` of data sets and models: a link to one file that works without a key."""

from __future__ import annotations

import argparse

from gateway.commands.context import Context
from gateway.commands.output import moment, to_json
from gateway.commands.parsing import Parser, Verb, checked, duration
from storage.asset_views import parse_reference
from storage.errors import BadInput
from storage.links import DEFAULT_SECONDS
from storage.records import AssetKind
from storage.tree import normalize

_LONG = "the link opens on the gateway's own machine only: its object store has no address that others reach.\n" \
        "The operator can give it one: [objects] public_endpoint\n"  # fmt: skip


def verb(kind: AssetKind) -> Verb:
    """`dataset url …` or `model url …`."""

    async def url(context: Context, options: argparse.Namespace) -> None:
        path = await _path(context, kind, options.name, options.path)
        link = await context.services.links.url(context.caller, path, options.expires)
        if options.json:
            context.out(
                to_json(
                    {
                        "url": link.url, "path": link.path, "bytes": link.size, "expires": link.expires,
                        "only_on_this_machine": link.only_here,
                    }
                )
            )  # fmt: skip
            return
        context.out(f"{link.url}\n")
        context.err(f"whoever has this link can read the file until {moment(link.expires)}\n")
        if link.only_here:
            context.err(_LONG)

    return Verb(
        "url", "make a link to one file that works without a key", url, _arguments,
        about="It works until it expires and cannot be taken back before. That it was made is in the audit trail, the\n"
        "link itself is not.",
        examples=(f"{kind.value} url mnist:v1 train/images.bin", f"{kind.value} url mnist:v1 labels.csv --expires 30m"),
    )  # fmt: skip


async def _path(context: Context, kind: AssetKind, name: str, file: str) -> str:
    """The place of a file in the data tree."""
    wanted = parse_reference(name, kind)
    assets = context.services.datasets if kind is AssetKind.DATASET else context.services.models
    view = await assets.find(context.caller, wanted.asset)
    root = f"{kind.value}s/{view.name}/{view.version(wanted.version).name}/"
    if wanted.workspace:
        root = f"shared/{wanted.workspace}/{root}"
    path = normalize(f"/{root}{file}")
    if not path.startswith(f"/{root}"):
        raise BadInput("name a file of this version")
    return path


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME[:VERSION]")
    parser.add_argument("path", metavar="PATH", help="the file, as 'files' lists it")
    parser.add_argument(
        "--expires", metavar="TIME", type=checked(duration), default=DEFAULT_SECONDS,
        help="how long it works: 30m, 12h (default 1h)",
    )  # fmt: skip
