"""Deletes outputs whose time is over, and goes on with deletions that did not come to their end."""

from __future__ import annotations

from backends.reconcilers.loop import ReconcilerLoop
from storage.artifacts import TOPIC, Artifacts
from storage.changes import Changes

_LOOK_SECONDS = 60.0
_AT_ONCE = 2


class ArtifactReconciler:
    """A loop over the artifacts that are to go: woken by a hint for each, and by a timer."""

    def __init__(self, artifacts: Artifacts, changes: Changes, *, pause: float = _LOOK_SECONDS) -> None:
        self._artifacts = artifacts
        self._loop = ReconcilerLoop(
            "artifact", TOPIC, changes=changes, look=artifacts.pending, act=self._carry_out,
            pause=pause, parallel=_AT_ONCE,
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled; a page of objects that is being removed is removed again next time."""
        await self._loop.run()

    async def _carry_out(self, artifact_id: str) -> None:
        await self._artifacts.expire(artifact_id)
        await self._artifacts.carry_out(artifact_id)
