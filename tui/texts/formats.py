"""Numbers for people: sizes, ages and times, short enough for a column."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from storage.errors import BadInput
from storage.names import printable
from tui.texts import Texts

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([kmgtp]?)i?b?", re.IGNORECASE)
_UNITS = "kmgtp"
_SPAN = re.compile(r"(\d{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_LARGEST = 2**53
_MOST_DAYS = 3650


def size_words(count: int) -> str:
    """`1536` → `1.5 KiB`: at most four digits, in powers of 1024."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB", "PiB"):
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 99.95 or value == int(value) else f"{value:.1f} {unit}"


def parse_size(text: str) -> int:
    """`512MiB`, `16G`, `16 gb` (always powers of 1024), or plain bytes; empty is 0. BadInput otherwise."""
    if not text.strip():
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"'{printable(text, limit=20)}' is not a size: write for example 512MiB or 16GiB")
    number, unit = match.groups()
    size = int(float(number) * 1024 ** (_UNITS.index(unit.lower()) + 1 if unit else 0))
    if size > _LARGEST:
        raise BadInput(f"'{printable(text, limit=20)}' is more than any machine has")
    return size


def parse_cpus(text: str) -> float:
    """`2`, `0.5`; empty is 0. BadInput otherwise."""
    if not text.strip():
        return 0.0
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text.strip()):
        raise BadInput(f"'{printable(text, limit=20)}' is not a number of processors: write for example 2 or 0.5")
    return float(text)


def parse_span(text: str) -> int:
    """Seconds of `90m`, `2h`, `1h30m` or `1d`; empty is 0. BadInput otherwise."""
    clean = text.strip().lower()
    parts = _SPAN.findall(clean)
    if "".join(number + unit for number, unit in parts) != clean:
        raise BadInput(f"'{printable(text, limit=20)}' is no length of time: write for example 30m, 2h or 1h30m")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def parse_gpus(text: str) -> int:
    """`2`. BadInput otherwise."""
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise BadInput(f"'{printable(text, limit=20)}' is not a number of GPUs: write for example 1")
    return int(text)


def parse_days(text: str) -> int | None:
    """`14`, `14d`; empty is None. BadInput otherwise, and for what is longer than ten years."""
    clean = text.strip().lower().removesuffix("d")
    if not text.strip():
        return None
    if not re.fullmatch(r"[0-9]{1,4}", clean) or int(clean) > _MOST_DAYS:
        raise BadInput(f"'{printable(text, limit=20)}' is no number of days: write for example 14, or 0")
    return int(clean)


def parse_port(text: str) -> int:
    """`8000`. BadInput otherwise."""
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise BadInput(f"'{printable(text, limit=20)}' is no port: write for example 8000")
    return int(text)


def age_words(texts: Texts, since: datetime | None, now: datetime) -> str:
    """How long ago: `12 s`, `5 min`, `3 h`, `12 d`; `-` for never."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    if seconds < 60:
        return texts("{n} s", n=seconds)
    if seconds < 3600:
        return texts("{n} min", n=seconds // 60)
    if seconds < 48 * 3600:
        return texts("{n} h", n=seconds // 3600)
    return texts("{n} d", n=seconds // 86400)


def date_words(seconds: int) -> str:
    """Seconds since 1970 → `2025-03-01 12:30` (UTC); empty for 0, which means unknown."""
    if seconds <= 0:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "?"
