"""Views of assets, kept for a second: what a run of requests about one version need not ask again and again.

Every hint about an asset empties it, those of other processes too; the second is for hints that got lost. Whoever
makes something appear asks the database once more (`storage.uploads`' guard), never this.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from storage.access import Caller
from storage.asset_views import AssetView
from storage.changes import Changes
from storage.records import AssetKind

_SECONDS = 1.0
_MOST = 256

Key = tuple[str, str, bool, AssetKind | None, str]
Begun = tuple[int, float]
"""When a question was put to the database."""


class AssetCache:
    """By caller, since each may see something else."""

    def __init__(self, changes: Changes, clock: Callable[[], float] = time.monotonic) -> None:
        self._hints = changes.listen(*(kind.value for kind in AssetKind), "user")
        self._clock = clock
        self._views: dict[Key, tuple[float, AssetView]] = {}
        self._emptied = 0

    def get(self, caller: Caller, kind: AssetKind | None, name: str) -> AssetView | None:
        """What was asked less than a second ago, if nothing has changed since."""
        if not self._hints.empty():
            self.clear()
            return None
        moment, view = self._views.get(_key(caller, kind, name), (0.0, None))
        return view if view is not None and self._clock() - moment < _SECONDS else None

    def begin(self) -> Begun:
        """Call it before the database is asked."""
        return self._emptied, self._clock()

    def put(self, caller: Caller, kind: AssetKind | None, name: str, view: AssetView, begun: Begun) -> None:
        """What was read since `begin`. Hints that came meanwhile are still heard, or have been already."""
        emptied, moment = begun
        if emptied != self._emptied:
            return
        if len(self._views) >= _MOST:
            self._views.clear()
        self._views[_key(caller, kind, name)] = moment, view

    def clear(self) -> None:
        while not self._hints.empty():
            self._hints.get_nowait()
        self._emptied += 1
        self._views.clear()


def _key(caller: Caller, kind: AssetKind | None, name: str) -> Key:
    return caller.user_id, caller.workspace_id, caller.is_admin, kind, name
