"""Which program this is. Imports nothing, so that `ashore version` answers at once."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of this program; `unknown` where it was never installed."""
    try:
        return metadata.version("ashore")
    except metadata.PackageNotFoundError:
        return "unknown"
