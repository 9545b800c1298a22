"""`version`: which Ashore this is."""

from __future__ import annotations

import argparse

from gateway.about import version
from gateway.commands.context import Context
from gateway.commands.output import to_json
from gateway.commands.parsing import Noun, Verb


async def _version(context: Context, options: argparse.Namespace) -> None:
    context.out(to_json({"version": version()}) if options.json else f"ashore {version()}\n")


NOUN = Noun(
    "version", "which Ashore this is", (Verb("", "tell which Ashore this is", _version, examples=("version",)),)
)
