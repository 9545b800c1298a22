"""How the suite is shared out among the processes of `pytest -n 4`; without `-n` nothing of this is in use.

The tests of one file stay in one process, in their order, so what a module builds is built once. Files whose tests see
each other through something that the machine has only once are kept in one process too; before a file is named here for
that, think of a name of its own for the thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import pytest
from xdist.scheduler import LoadScopeScheduling

_TOGETHER = {
    # A builder's cache is the engine's: one prunes it, the other looks into it, and both count what builds.
    "tests/conformance/test_builders.py": "builds",
    "tests/stories/test_builds.py": "builds",
    # Gateways of one version bring their guest to a far engine in one volume, and these remove it at their end.
    "tests/stories/test_hosts.py": "far hosts",
    "tests/stories/test_data_elsewhere.py": "far hosts",
    # Two Podmans may choose the same bridge for their networks, and one of them cannot serve names there.
    "tests/conformance/test_compute.py": "podman",
    "tests/conformance/test_guest.py": "podman",
    "tests/conformance/test_mounts.py": "podman",
    "tests/conformance/test_podman.py": "podman",
    "tests/stories/test_host_faults.py": "podman",
}
_LONGEST = (
    "podman",
    "builds",
    "tests/stories/test_store_faults.py",
    "tests/stories/test_lifecycle.py",
    "tests/stories/test_resume.py",
    "tests/storage/test_upload_histories.py",
    "tests/gateway/test_main.py",
    "tests/tui/test_screens_datasets.py",
)
"""Begun first in their folders, so that the processes end together. Nothing but time hangs on it."""


class Scheduling(LoadScopeScheduling):
    """xdist's, with the units of this module, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)  # type: ignore[arg-type]

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def unit(nodeid: str) -> str:
    """What is given to one process as a whole."""
    path = nodeid.partition("::")[0]
    return _TOGETHER.get(path, path)


def mixed(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """All folders at once, each from its first unit to its last: some wait for engines while others compute."""
    folders: dict[PurePath, list[str]] = {}
    for item in items:
        units = folders.setdefault(PurePath(item.nodeid.partition("::")[0]).parent, [])
        if (name := unit(item.nodeid)) not in units:
            units.append(name)
    place: dict[str, tuple[float, str]] = {}
    for units in folders.values():
        units.sort(key=lambda name: _LONGEST.index(name) if name in _LONGEST else len(_LONGEST))
        for index, name in enumerate(units):
            place[name] = min(place.get(name, (1.0, name)), (index / len(units), name))
    return sorted(items, key=lambda item: place[unit(item.nodeid)])
