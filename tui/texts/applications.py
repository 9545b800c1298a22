"""Applications and published ports in few words."""

from __future__ import annotations

from collections.abc import Sequence

from backends.applications import Condition
from storage.records import ApplicationState, PublishedPort
from tui.texts import Texts, mark

_STATES = {
    ApplicationState.WAITING: mark("waiting"),
    ApplicationState.STARTING: mark("starting"),
    ApplicationState.RUNNING: mark("running"),
    ApplicationState.MISSING: mark("not installed"),
    ApplicationState.FAILED: mark("failed"),
    ApplicationState.ENDING: mark("ending"),
}


def condition_words(texts: Texts, one: Condition) -> str:
    """`Jupyter: running`."""
    return f"{one.title}: {texts(_STATES[one.state])}"


def applications_words(texts: Texts, found: Sequence[Condition], ports: Sequence[PublishedPort], host: str) -> str:
    """All of an environment's in one line, with the key that shows more; empty if it has none."""
    words = [condition_words(texts, one) for one in found]
    words += [texts("port {port}: {where}", port=port.port, where=f"{host}:{port.external_port}") for port in ports]
    return "   ".join([*words, texts("(a: how to get there)")]) if words else ""
