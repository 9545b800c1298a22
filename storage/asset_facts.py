"""What may be said about an asset: descriptions, tags, frameworks, metrics. Pure checks; BadInput for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from storage.access import Visibility
from storage.errors import BadInput
from storage.names import check_resource, printable

_LONGEST_DESCRIPTION = 1000
_LONGEST_WORD = 48
_MOST_TAGS = 32
_MOST_METRICS = 64
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,47}")


def checked_facts(facts: Mapping[str, str]) -> dict[str, object]:
    """The facts of `Assets.change` as column values."""
    return {name: _CHECKS[name](value) for name, value in facts.items()}


def checked_tag(tag: str) -> str:
    """One word of any language, up to 48 characters, without commas."""
    return _word(tag, "tag")


def refuse_too_many(tags: Sequence[str]) -> None:
    if len(tags) > _MOST_TAGS:
        raise BadInput(f"more than {_MOST_TAGS} tags are not kept")


def checked_visibility(text: str) -> Visibility:
    try:
        return Visibility(text)
    except ValueError as error:
        raise BadInput("visibility is one of private, workspace, public") from error


def checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Names of letters, digits and `. _ @ -`, values that are finite numbers."""
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise BadInput(f"'{printable(name, limit=60)}' cannot name a metric: use up to 48 of a-z A-Z 0-9 . _ @ -")
        if not math.isfinite(value):
            raise BadInput(f"the metric '{name}' is not a finite number")
    return dict(metrics)


def refuse_too_many_metrics(metrics: Mapping[str, float]) -> None:
    if len(metrics) > _MOST_METRICS:
        raise BadInput(f"more than {_MOST_METRICS} metrics are not kept")


def _description(text: str) -> str:
    if len(text) > _LONGEST_DESCRIPTION:
        raise BadInput(f"a description has at most {_LONGEST_DESCRIPTION} characters")
    return printable(text.strip())


def _version(name: str) -> str:
    return check_resource(name, kind="version") if name else ""


def _word(text: str, kind: str) -> str:
    clean = text.strip()
    if not clean or len(clean) > _LONGEST_WORD or clean != printable(clean) or "," in clean or len(clean.split()) > 1:
        raise BadInput(
            f"'{printable(text, limit=60)}' cannot be a {kind}: use one word of up to {_LONGEST_WORD} letters"
        )
    return clean


_CHECKS: dict[str, Callable[[str], object]] = {
    "description": _description,
    "visibility": checked_visibility,
    "default_version": _version,
    "framework": lambda text: _word(text, "framework").lower() if text else "",
    "task": lambda text: _word(text, "task").lower() if text else "",
}
