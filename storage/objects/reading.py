"""Reads of one object, pinned to the version that was there at the open.

Reads in order are served from windows that are fetched ahead within the memory budget; anything else is fetched
exactly. Both kinds never mix two versions: an object that was replaced meanwhile answers Conflict.
"""

from __future__ import annotations

import asyncio
import time

from storage.errors import Unavailable
from storage.objects.budget import MemoryBudget
from storage.objects.contract import ObjectFacts, ObjectStore
from storage.tree import Node

_WINDOW = 4 * 1024 * 1024
_FIRST_AHEAD = 1
_MOST_AHEAD = 4
_IDLE = 20.0
"""Seconds after which a reader gives back what it has fetched ahead, if somebody waits for memory."""


class ObjectReader:
    """A `storage.tree.Reader`. Begins to fetch at once, because hardly anybody opens a file to read nothing."""

    def __init__(self, store: ObjectStore, facts: ObjectFacts, node: Node, budget: MemoryBudget, owner: str) -> None:
        self.node = node
        self._store = store
        self._facts = facts
        self._budget = budget
        self._owner = owner
        self._windows: dict[int, asyncio.Task[bytes]] = {}
        self._next = 0
        self._ahead = _FIRST_AHEAD
        self._closed = False
        self._busy = time.monotonic()
        self._reads = 0
        budget.lenders.add(self)
        self._fetch_ahead(0)

    async def read(self, offset: int, size: int) -> bytes:
        """See `storage.tree.Reader`. May be called for several ranges at once."""
        size = min(size, self._facts.size - offset)
        if size <= 0 or self._closed:
            return b""
        in_order = offset == self._next
        self._next = offset + size
        self._reads += 1
        try:
            if in_order or self._holds(offset, size):
                return await self._read_windows(offset, size)
            self._ahead = _FIRST_AHEAD
            return await self._fetch(offset, size)
        finally:
            self._reads -= 1
            self._busy = time.monotonic()

    async def close(self) -> None:
        self._closed = True
        self._budget.lenders.discard(self)
        self._drop_all()

    def give_back(self) -> bool:
        """See `storage.objects.budget.Lender`."""
        if self._reads or not self._windows or time.monotonic() - self._busy < _IDLE:
            return False
        self._drop_all()
        return True

    # ---- windows ---------------------------------------------------------------------------------------------
    def _holds(self, offset: int, size: int) -> bool:
        return offset // _WINDOW in self._windows and (offset + size - 1) // _WINDOW in self._windows

    async def _read_windows(self, offset: int, size: int) -> bytes:
        first, last = offset // _WINDOW, (offset + size - 1) // _WINDOW
        for index in tuple(self._windows):
            if index < first - 1:
                self._drop(index)
        self._fetch_ahead(first)
        pieces = [await self._piece(index, offset, offset + size) for index in range(first, last + 1)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _piece(self, index: int, start: int, end: int) -> bytes:
        base = index * _WINDOW
        start, end = max(start, base), min(end, base + _WINDOW)
        task = self._windows.get(index)
        if task is None:
            return await self._fetch(start, end - start)
        window = await asyncio.shield(task)
        return window[start - base : end - base]

    def _fetch_ahead(self, first: int) -> None:
        """Start what is missing of the next windows; more of them the longer the reading goes on in order."""
        if first not in self._windows and self._windows:
            self._ahead = _FIRST_AHEAD
        for index in range(first, first + self._ahead + 1):
            if index * _WINDOW >= self._facts.size:
                return
            if index in self._windows:
                continue
            if not self._budget.try_acquire(self._size_of(index), self._owner):
                return
            task = asyncio.create_task(self._fetch(index * _WINDOW, _WINDOW), name=f"read {self._facts.key}")
            task.add_done_callback(_retrieved)
            self._windows[index] = task
            if index > first:
                self._ahead = min(self._ahead + 1, _MOST_AHEAD)

    def _drop(self, index: int) -> None:
        self._windows.pop(index).cancel()
        self._budget.release(self._size_of(index), self._owner)

    def _drop_all(self) -> None:
        for index in tuple(self._windows):
            self._drop(index)

    def _size_of(self, index: int) -> int:
        return min(_WINDOW, self._facts.size - index * _WINDOW)

    async def _fetch(self, offset: int, size: int) -> bytes:
        size = min(size, self._facts.size - offset)
        data = await self._store.get(self._facts.key, offset=offset, size=size, etag=self._facts.etag)
        if len(data) != size:  # an empty answer would look like the end of the file
            raise Unavailable(f"the object store gave {len(data)} of {size} bytes")
        return data


class TextReader:
    """A file whose text is made on the spot."""

    def __init__(self, node: Node, content: bytes) -> None:
        self.node = node
        self._content = content

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def close(self) -> None:
        return


def _retrieved(task: asyncio.Task[bytes]) -> None:
    # A window that failed and that nobody came to read is nobody's error.
    if not task.cancelled():
        task.exception()
