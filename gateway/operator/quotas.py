"""`ashore quota …`: the same as the gateway's command, for whoever owns the data directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from backends.composition import quotas_of
from gateway.commands.output import pad, to_json
from gateway.commands.parsing import Usage
from gateway.commands.quota import COLUMNS, amounts_of, as_row, as_texts, holder_of
from gateway.operator.house import open_records, settings_of
from storage.changes import Changes
from storage.errors import BadInput
from storage.quota_limits import QuotaLine
from storage.quotas import Quotas
from storage.records import Holder


async def show(options: argparse.Namespace) -> int:
    """One subject, or all exceptions."""
    async with _quotas(options) as quotas:
        named = options.user or options.workspace
        lines = await quotas.of(*_holder(options)) if named else await quotas.all_exceptions()
    return _tell(lines, as_json=options.json)


async def change(options: argparse.Namespace) -> int:
    """Make exceptions."""
    async with _quotas(options) as quotas:
        lines = await quotas.set_by_operator(*_holder(options), amounts_of(options))
    return _tell(lines, as_json=options.json)


async def clear(options: argparse.Namespace) -> int:
    """Take them back."""
    async with _quotas(options) as quotas:
        lines = await quotas.clear_by_operator(*_holder(options))
    return _tell(lines, as_json=options.json)


@asynccontextmanager
async def _quotas(options: argparse.Namespace) -> AsyncIterator[Quotas]:
    settings = settings_of(options)
    async with open_records(options) as records:
        # Never started, as in `open_records`: the operator only tells.
        changes = Changes(options.data / "run" / "changes")
        yield quotas_of(records.database, records.audit, changes, settings.quotas, settings.objects, settings.backends)


def _holder(options: argparse.Namespace) -> tuple[Holder, str]:
    try:
        return holder_of(options)
    except Usage as error:
        raise BadInput(error.message) from error


def _tell(lines: Sequence[QuotaLine], *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(to_json([as_row(line) for line in lines]))
        return 0
    rows = [COLUMNS, *map(as_texts, lines)] if lines else []
    widths = {key: max(len(row[key]) for row in rows) for key in COLUMNS} if rows else {}
    for row in rows:
        sys.stdout.write("  ".join(pad(row[key], width) for key, width in widths.items()).rstrip() + "\n")
    return 0
