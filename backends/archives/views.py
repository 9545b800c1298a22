"""Archives on their way to be images, as their owners see them. The work itself is `reconcilers.archives`'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from backends.image_names import name_of_file
from storage.access import Action, Caller, require
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import BadInput
from storage.records import ArchiveState, ImageArchive

_SHOWN = timedelta(days=1)
"""How long a failed one is listed."""


@dataclass(frozen=True)
class ArchiveView:
    """`done` of `size` bytes have been read in the present step."""

    id: str
    owner: str
    path: str
    state: ArchiveState
    reason: str
    size: int
    done: int
    sha256: str
    created: datetime
    touched: datetime

    @property
    def image(self) -> str:
        """What it becomes, as its owner writes it; empty where its name says none."""
        try:
            return ":".join(name_of_file(self.path.rpartition("/")[2]))
        except BadInput:
            return ""

    @property
    def percent(self) -> int:
        if self.state.is_over:
            return 100
        return min(99, 100 * self.done // self.size) if self.size else 0


class Archives:
    """The use cases."""

    def __init__(self, database: Database, clock: Clock = now) -> None:
        self._database = database
        self._clock = clock

    async def list(self, caller: Caller, *, everybody: bool = False, ready: bool = False) -> Sequence[ArchiveView]:
        """Those under way and those that failed in the last day, oldest first; with `ready` also what became of
        others. The caller's, or everybody's for administrators."""
        require(caller, Action.UPLOAD_LIST)
        query = select(ImageArchive).order_by(ImageArchive.created)
        if everybody:
            require(caller, Action.USER_MANAGE)
        else:
            query = query.where(ImageArchive.owner_id == caller.user_id)
        async with self._database.reading() as tx:
            rows = (await tx.scalars(query)).all()
        since = self._clock() - _SHOWN
        shown = [
            row for row in rows
            if not row.state.is_over or (row.touched > since and (ready or row.state is ArchiveState.FAILED))
        ]  # fmt: skip
        return [
            ArchiveView(
                row.id, row.owner_name, row.path, row.state, row.reason, row.size, row.done, row.sha256, row.created,
                row.touched,
            )
            for row in shown
        ]  # fmt: skip
