"""`ashore host …`: the same as the gateway's command, for whoever owns the data directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from backends.hosts import Hosts, HostView
from gateway.commands.host import (
    COLUMNS,
    DRY_RUN_WORDS,
    LOST_COLUMNS,
    LOST_WORDS,
    NONE_LOST_WORDS,
    as_row,
    as_texts,
    lost_rows,
)
from gateway.commands.output import Row, human, pad, to_json
from gateway.operator.house import open_records, settings_of
from storage.changes import Changes
from storage.errors import BadInput
from storage.records import Environment


async def show(options: argparse.Namespace) -> int:
    """All hosts."""
    async with _hosts(options) as hosts:
        return _tell(await hosts.all(), as_json=options.json)


async def drain(options: argparse.Namespace) -> int:
    """Let nothing new start on one."""
    async with _hosts(options) as hosts:
        return _tell([await hosts.drain_by_operator(options.name, options.reason)], as_json=options.json)


async def resume(options: argparse.Namespace) -> int:
    """Let environments start there again."""
    async with _hosts(options) as hosts:
        return _tell([await hosts.resume_by_operator(options.name)], as_json=options.json)


async def forget(options: argparse.Namespace) -> int:
    """Drop what is known of one that is offline or no longer in the settings."""
    name, as_json, done = options.name, options.json, f"the host {options.name} is forgotten\n"
    if options.dry_run and not options.with_environments:
        raise BadInput(DRY_RUN_WORDS)
    async with _hosts(options) as hosts:
        if options.dry_run:
            _tell_lost(await hosts.losses_by_operator(name), "would be", as_json=as_json)
            return 0
        if options.with_environments:
            _tell_lost(await hosts.forget_with_environments_by_operator(name), "are", as_json=as_json)
            sys.stderr.write("" if as_json else done)
            return 0
        await hosts.forget_by_operator(name)
    sys.stdout.write(to_json({"forgotten": name}) if as_json else done)
    return 0


@asynccontextmanager
async def _hosts(options: argparse.Namespace) -> AsyncIterator[Hosts]:
    settings = settings_of(options)
    async with open_records(options) as records:
        # Never started, as in `open_records`: the operator only tells.
        changes = Changes(options.data / "run" / "changes")
        yield Hosts(records.database, records.audit, changes, settings.backends, options.data)


def _tell(views: Sequence[HostView], *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(to_json([as_row(view) for view in views]))
        return 0
    _table([as_texts(view) for view in views], COLUMNS)
    return 0


def _tell_lost(lost: Sequence[Environment], verb: str, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(to_json(lost_rows(lost)))
        return
    _table(lost_rows(lost), LOST_COLUMNS)
    sys.stderr.write(f"these environments {verb} lost: {LOST_WORDS}\n" if lost else f"{NONE_LOST_WORDS}\n")


def _table(facts: Sequence[Row], columns: Mapping[str, str]) -> None:
    rows = [[human(row.get(key)) for key in columns] for row in facts]
    rows = [list(columns.values()), *rows] if rows else []
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(columns))]
    for row in rows:
        sys.stdout.write("  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
