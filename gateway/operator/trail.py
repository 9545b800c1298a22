"""`ashore audit verify` and `ashore replay`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway import replay
from gateway.operator.house import open_records
from storage.audit import Event
from storage.errors import NotFound
from storage.names import printable


async def audit_verify(options: argparse.Namespace) -> int:
    """Walk the chain; exit status 1 where it does not hold."""
    async with open_records(options) as records:
        verdict = await records.audit.verify()
    if verdict.broken_at is None:
        sys.stdout.write(f"{verdict.events} events, nothing changed or missing\n")
        return 0
    sys.stdout.write(f"{verdict.problem}; the {verdict.events} events before it hold together\n")
    return 1


async def play(options: argparse.Namespace) -> int:
    """Play a file, or the recording of an id."""
    path, is_ours = _find(options.data, options.recording)
    if is_ours:
        async with open_records(options) as records:
            await records.audit.record(Event("record.play", actor="operator", detail={"recording": path.stem}))
    try:
        await replay.play(path, _write, speed=options.speed, idle_limit=options.idle_limit)
    finally:
        if sys.stdout.isatty():
            _write(replay.AFTERWARDS)
    return 0


def _find(data: Path, name: str) -> tuple[Path, bool]:
    """The file of that name, or of the recording with that id; and whether it is a recording of this house."""
    if Path(name).is_file():
        return Path(name), False
    path = data / "recordings" / f"{name}.cast"
    if name.isalnum() and path.is_file():
        return path, True
    raise NotFound(f"there is no file and no recording '{printable(name, limit=80)}'")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
