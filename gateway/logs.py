"""The log: lines for people on stderr or in a file, or one JSON object per line for machines.

Logs are for the operator; what users did is in the audit trail. No secret is ever passed to a logger, and no other
module touches logging handlers. Foreign text in a message is made harmless here: operators read logs in terminals.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from storage.names import printable

_LOUD = ("asyncssh", "sqlalchemy", "aiosqlite", "alembic", "asyncio", "aiodocker", "urllib3", "textual")


def configure(*, file: Path | None = None, as_json: bool = False, debug: bool = False, quiet: bool = False) -> None:
    """Send the log to `file`, or to stderr. `quiet`: warnings only, for commands that say themselves what they do."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file)
    handler.setFormatter(JsonLines() if as_json else Lines())
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    for name in _LOUD:
        # Libraries print packets, statements and parameters when they are asked for more.
        logging.getLogger(name).setLevel(logging.WARNING)


class Lines(logging.Formatter):
    """`2025-01-31T12:00:00Z INFO gateway.server: message`, a traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = _moment(record).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = f"{moment} {record.levelname} {record.name}: {printable(record.getMessage(), limit=4000)}"
        trace = _trace(self, record)
        return line + "".join(f"\n    {printable(part)}" for part in trace.splitlines())


class JsonLines(logging.Formatter):
    """One object per line: time, level, logger, message, and trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": _moment(record).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = _trace(self, record)
        return json.dumps(facts | ({"trace": trace} if trace else {}), ensure_ascii=True)


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
