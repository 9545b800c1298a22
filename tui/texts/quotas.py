"""Quotas in few words: what is used of what is allowed, where there is a limit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from storage.names import printable
from storage.quota_limits import QuotaLine, Resource
from storage.records import Holder
from tui.texts import Texts, mark
from tui.texts.formats import size_words

_WORDS = {
    Resource.ENVIRONMENTS: mark("environments {used} of {allowed}"),
    Resource.CPUS: mark("CPUs {used} of {allowed}"),
    Resource.MEMORY: mark("memory {used} of {allowed}"),
    Resource.GPUS: mark("GPUs {used} of {allowed}"),
    Resource.BUILDS: mark("open builds {used} of {allowed}"),
}


def quota_words(texts: Texts, lines: Sequence[QuotaLine], *, without: Collection[Resource] = ()) -> str:
    """`memory 6 GiB of 8 GiB   team: CPUs 12 of 64`; empty where nothing is limited. `without`: of persons only."""
    found = []
    for line in lines:
        mine = line.subject.holder is Holder.USER
        if line.allowed is None or line.resource not in _WORDS or (mine and line.resource in without):
            continue
        words = texts(_WORDS[line.resource], used=_amount(line, line.used), allowed=_amount(line, line.allowed))
        found.append(words if mine else f"{printable(line.subject.name, limit=48)}: {words}")
    return "   ".join(found)


def allowed_environments(lines: Sequence[QuotaLine]) -> int | None:
    """How many environments the person may have; None: no limit."""
    for line in lines:
        if line.resource is Resource.ENVIRONMENTS and line.subject.holder is Holder.USER and line.allowed is not None:
            return int(line.allowed)
    return None


def _amount(line: QuotaLine, amount: float) -> str:
    return size_words(int(amount)) if line.resource is Resource.MEMORY else f"{amount:g}"
