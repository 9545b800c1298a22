"""Life cycles of environments in words."""

from __future__ import annotations

from backends.lifecycle import Due, Step
from storage.records import Environment, Lifecycle
from tui.texts import Texts, mark
from tui.texts.formats import date_words

LIFECYCLES = {
    Lifecycle.PERSISTENT: mark("persistent"),
    Lifecycle.ON_DEMAND: mark("on demand"),
    Lifecycle.SCHEDULED: mark("scheduled"),
    Lifecycle.EPHEMERAL: mark("ephemeral"),
}
_STEPS = {
    Step.START: mark("starts at {when}"),
    Step.STOP: mark("stops at {when}"),
    Step.SLEEP: mark("sleeps at {when}"),
    Step.DELETE: mark("is deleted at {when}"),
}


def lifecycle_words(texts: Texts, environment: Environment, coming: Due | None) -> str:
    """`on demand, sleeps at 2026-03-01 12:30 UTC`; empty for those that nothing happens to."""
    if environment.lifecycle is Lifecycle.PERSISTENT:
        return ""
    words = texts(LIFECYCLES[environment.lifecycle])
    if coming is None:
        return words
    when = f"{date_words(int(coming.at.timestamp()))} UTC"
    return f"{words}, {texts(_STEPS[coming.step], when=when)}"


def output_words(texts: Texts, days: int) -> str:
    """What becomes of the output at the end; empty where nothing is kept."""
    return texts("output kept for {n} d", n=days) if days else ""
