"""Where an upload goes, what is found of it, and the part that is being filled: small things that its rooms share."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from storage.objects.contract import Part
from storage.objects.parts import Coverage, Schedule, Slot
from storage.upload_rows import Held

Guard = Callable[[], Awaitable[None]]
Room = Callable[[int], Awaitable[int]]


async def always() -> None:
    return


async def _plenty(size: int) -> int:
    return sys.maxsize


@dataclass(frozen=True)
class Target:
    """Where an upload goes."""

    path: str
    """In the data tree, as the client names it."""
    key: str
    """In the bucket, where the object appears."""
    guard: Guard = always
    """Raises if the object must not appear (any more)."""
    only_new: bool = False
    """Conflict at the end if somebody else's object is there by then."""
    sent_as: str = ""
    """The key that `path` stands for, if that is a temporary name of `key`; a rename then makes the object."""
    is_watched: bool = False
    """Others remove what is at `key`, and look at the rows before: it has one before its bytes are stored, however
    small it is."""
    room: Room = _plenty
    """Raises OverQuota if a file of so many bytes is too much; otherwise, how many it may have as things stand."""

    @property
    def name_key(self) -> str:
        return self.sent_as or self.key

    @property
    def is_temporary(self) -> bool:
        return self.name_key != self.key


@dataclass
class OpenPart:
    slot: Slot
    buffer: bytearray = field(default_factory=bytearray)
    coverage: Coverage = field(default_factory=Coverage)

    def put(self, start: int, data: memoryview) -> None:
        # The buffer grows with what arrives: to zero a whole part first would cost small files more than they are.
        present = len(self.buffer)
        if start == present:
            self.buffer += data
        else:
            if start > present:
                self.buffer += bytes(start - present)
            self.buffer[start : start + len(data)] = data
        self.coverage.add(start, start + len(data))

    def cut(self, size: int) -> None:
        del self.buffer[size:]
        self.coverage.cut(size)


@dataclass(frozen=True)
class Found:
    """What the store has of an upload that is gone on with."""

    held: Held
    upload_id: str
    schedule: Schedule
    parts: Sequence[Part]
    """Without a gap, each as large as the schedule wants it."""
    tail: bytes = b""
    """Bytes behind them that do not fill a part; their memory is reserved already."""
    was_sealed: bool = False
    mtime: int | None = None
