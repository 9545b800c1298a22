"""Whether a file still fits: into what its owner may store, and into what its workspace may.

Asked from time to time while a file arrives, so it costs nothing where no limit is set, and where much is left a count
of a moment ago is good enough: to count takes longer the more files there are. What is on its way counts as if it were
there.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from sqlalchemy import func, or_, select

from storage.access import Caller
from storage.asset_rows import known_usage
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import OverQuota
from storage.quota_limits import Resource, Subject, size_words
from storage.quota_usage import prefixes_of, used_by
from storage.quotas import Owner, Quotas
from storage.records import FileFact, Holder, Upload
from storage.upload_rows import NOT_OVER

_FRESH = 2.0
_MOST_COUNTS = 1000
_ADVICE = "this file does not fit; remove something, or ask for more, then go on with reput"


@dataclass
class _Count:
    """Bytes that were taken at `moment` (of the monotonic clock), and at most how many have come since."""

    moment: float
    taken: int
    since: int


class Room:
    """The storage that is left."""

    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas
        self._counts: dict[Subject, _Count] = {}

    async def space(self, caller: Caller) -> tuple[int, int | None]:
        """Bytes that the caller's workspace takes, and those that the caller may still add; None: no quota says."""
        owner = Owner.of(caller)
        ours = Subject(Holder.WORKSPACE, caller.workspace_id, caller.workspace)
        limits = await self._limits(owner, caller.workspace)
        async with self._database.reading() as tx:
            taken = {one: sum(await _taken(tx, one)) for one in {ours: None, **limits}}
        if not limits:
            return taken[ours], None
        return taken[ours], max(0, min(int(limit) - taken[one] for one, limit in limits.items()))

    async def check(
        self, owner: Owner, workspace: str, key: str, sent_as: str, size: int, *, advice: str = _ADVICE
    ) -> int:
        """How many bytes the file at `key`, which is sent as `sent_as`, may have as things stand.

        OverQuota if `size` of them are too much; `advice` ends its sentence.
        """
        most = sys.maxsize
        for subject, limit in (await self._limits(owner, workspace)).items():
            fits = self._roughly(subject, limit, size)
            if fits is None:
                fits = await self._exactly(subject, limit, key, sent_as, size, advice)
            most = min(most, fits)
        return most

    async def check_whole(self, owner: Owner, workspace: str, prefix: str, size: int, *, advice: str = _ADVICE) -> None:
        """OverQuota if files of `size` bytes do not fit, before the first of them is sent.

        They are to be below `prefix`, and what is there already is some of them; empty: nothing is.
        """
        for subject, limit in (await self._limits(owner, workspace)).items():
            async with self._database.reading() as tx:
                there = (await known_usage(tx, prefix)).bytes if prefix else 0
                stored, coming = await _taken(tx, subject)
            if size > int(limit) - stored - coming + there:
                raise _refusal(subject, limit, stored, coming, advice)

    def _roughly(self, subject: Subject, limit: float, size: int) -> int | None:
        """How much fits by a count of a moment ago, if that leaves more than enough; None: count anew."""
        count = self._counts.get(subject)
        if count is None or time.monotonic() - count.moment > _FRESH:
            return None
        fits = int(limit) - count.taken - count.since
        if size > fits // 2:
            return None
        count.since += size
        return fits

    async def _exactly(self, subject: Subject, limit: float, key: str, sent_as: str, size: int, advice: str) -> int:
        moment = time.monotonic()
        async with self._database.reading() as tx:
            old = await tx.get(FileFact, key)
            stored, coming = await _taken(tx, subject, but=sent_as)
        if len(self._counts) >= _MOST_COUNTS:
            self._counts.clear()
        self._counts[subject] = _Count(moment, stored + coming, since=size)
        fits = int(limit) - stored - coming + (old.size if old else 0)
        if size <= fits:
            return fits
        raise _refusal(subject, limit, stored, coming, advice)

    async def _limits(self, owner: Owner, workspace: str) -> dict[Subject, float]:
        mine = Subject(Holder.USER, owner.user_id, owner.user_name)
        ours = Subject(Holder.WORKSPACE, owner.workspace_id, workspace)
        found = {one: await self._quotas.allowed(one.holder, one.id, Resource.STORAGE) for one in (ours, mine)}
        return {subject: limit for subject, limit in found.items() if limit is not None}


async def _taken(tx: Transaction, subject: Subject, *, but: str = "") -> tuple[int, int]:
    """Bytes that are stored, and those of files that are not finished, what is sent as `but` excepted."""
    stored = int((await used_by(tx, subject, [Resource.STORAGE]))[Resource.STORAGE])
    below = [(Upload.key >= prefix) & (Upload.key < prefix[:-1] + "0") for prefix in await prefixes_of(tx, subject)]
    query = select(func.coalesce(func.sum(Upload.size), 0)).where(Upload.state.in_(NOT_OVER), Upload.sent_as != but)
    coming = [int(await tx.scalar(query.where(or_(*below[at : at + 50]))) or 0) for at in range(0, len(below), 50)]
    return stored, sum(coming)


def _refusal(subject: Subject, limit: float, stored: int, coming: int, advice: str) -> OverQuota:
    held = f"{size_words(stored)} are stored"
    if coming:
        held = f"{size_words(stored)} are stored and {size_words(coming)} are on their way or broke off"
    return OverQuota(f"{_who(subject)} may hold {size_words(limit)}, {held}: {advice}")


def _who(subject: Subject) -> str:
    if subject.holder is Holder.WORKSPACE:
        return f"the workspace '{subject.name}'"
    return f"the data sets, models and images of '{subject.name}'"
