"""What things may be called, and how foreign text is made harmless before a terminal sees it.

Names are checked before any look-up. `/ : @ # %` never occur in a name, because VS Code and scp mangle them.
Pure functions only.
"""

from __future__ import annotations

import re
import unicodedata

from storage.errors import BadInput

_USER = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def check_user(name: str) -> str:
    """`name` if it may name a user; BadInput otherwise."""
    if not _USER.fullmatch(name):
        raise BadInput(
            f"'{printable(name, limit=48)}' cannot be a user name: use a letter, then up to 31 of a-z 0-9 . _ -"
        )
    return name


def check_resource(name: str, *, kind: str) -> str:
    """`name` if it may name an environment, data set, version or image; BadInput otherwise."""
    if not _RESOURCE.fullmatch(name) or ".." in name:
        raise BadInput(
            f"'{printable(name, limit=60)}' is no possible {kind} name:"
            " use 1 to 48 of a-z 0-9 . _ - and begin and end with a letter or a digit"
        )
    return name


def is_resource(name: str) -> bool:
    """Whether `name` may name an environment, data set, version or image."""
    return bool(_RESOURCE.fullmatch(name)) and ".." not in name


def printable(text: str, *, limit: int = 1000) -> str:
    """`text` without anything that a terminal would obey: C0, C1, line separators, bidi controls, surrogates.

    Each becomes U+FFFD; what is longer than `limit` characters is cut with an ellipsis.
    """
    if len(text) <= limit and text.isprintable():  # the usual case, and by far the quickest
        return text
    clean = _CONTROL.sub("\ufffd", text[: limit + 1])
    clean = "".join("\ufffd" if unicodedata.category(c) == "Cs" else c for c in clean)
    return clean if len(clean) <= limit else clean[:limit] + "…"
