"""Carries out the recorded deletions of data sets and models, whatever process recorded them."""

from __future__ import annotations

from backends.reconcilers.loop import ReconcilerLoop
from storage.changes import Changes
from storage.deletions import TOPIC, Deletions

_LOOK_SECONDS = 60.0
_AT_ONCE = 2


class DeletionReconciler:
    """A loop over the deletions that are not finished: woken by a hint for each, and by a timer."""

    def __init__(self, deletions: Deletions, changes: Changes) -> None:
        self._deletions = deletions
        self._loop = ReconcilerLoop(
            "deletion", TOPIC, changes=changes, look=deletions.pending, act=self._carry_out,
            pause=_LOOK_SECONDS, parallel=_AT_ONCE,
        )  # fmt: skip

    async def run(self) -> None:
        """Until cancelled; a page of objects that is being removed is removed again next time."""
        await self._loop.run()

    async def _carry_out(self, deletion_id: str) -> None:
        await self._deletions.carry_out(deletion_id)
