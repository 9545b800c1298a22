"""A field for several data sets or models, which proposes how the last name may go on (Right takes it)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from textual.suggester import Suggester
from textual.widgets import Input

from backends.mounts import Choice
from storage.records import AssetKind

_BETWEEN = re.compile(r"[\s,]+")


class ReferencesInput(Input):
    """`mnist:v1, lab/cifar`: separated by commas or spaces. `names` tells what there is, and is asked once."""

    def __init__(self, kind: AssetKind, names: Callable[[], Awaitable[Sequence[str]]], *, id: str, hint: str) -> None:
        super().__init__(id=id, compact=True, max_length=800, placeholder=hint, suggester=_LastWord(names))
        self._kind = kind

    @property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(Choice(self._kind, word) for word in _BETWEEN.split(self.value) if word)


class _LastWord(Suggester):
    def __init__(self, names: Callable[[], Awaitable[Sequence[str]]]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._ask = names
        self._names: Sequence[str] | None = None

    async def get_suggestion(self, value: str) -> str | None:
        *before, word = _BETWEEN.split(value)
        if not word:
            return None
        if self._names is None:
            self._names = await self._ask()
        fitting = (name for name in self._names if name.startswith(word) and name != word and name not in before)
        found = next(fitting, None)
        return None if found is None else value + found.removeprefix(word)
