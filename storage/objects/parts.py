"""The arithmetic of multipart uploads: which part a byte belongs to, and which bytes of a part have arrived.

The schedule depends on the number alone, so that a listing of parts tells where each of them begins. Pure; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from storage.objects.contract import Part

_STEPS = ((2500, 1), (2500, 4), (5000, 16))
"""(how many parts, times the first size): with 8 MiB this is 20 GiB, then 78 GiB, then 625 GiB."""
MOST_PARTS = sum(count for count, _ in _STEPS)
SMALLEST_PART = 5 * 1024**2
"""S3 takes no smaller part, except for the last one."""
_SLICE = 256 * 1024**2
"""Bytes of an older object that one part copies."""


@dataclass(frozen=True)
class Slot:
    """Where part `number` (from 1) lies in the file, in bytes."""

    number: int
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def slot_at(offset: int, first_size: int) -> Slot | None:
    """The part that holds byte `offset`; None beyond the largest file."""
    number, start = 1, 0
    for count, factor in _STEPS:
        size = first_size * factor
        if offset < start + count * size:
            index = (offset - start) // size
            return Slot(number + index, start + index * size, size)
        number, start = number + count, start + count * size
    return None


@dataclass(frozen=True)
class Schedule:
    """The parts of one upload: slices that copy `copied` bytes of an older object, then what is sent.

    `copied` is 0 or at least `SMALLEST_PART`.
    """

    part_size: int
    copied: int = 0

    @property
    def slices(self) -> int:
        return max(1, self.copied // _SLICE) if self.copied else 0

    def at(self, offset: int) -> Slot | None:
        """The part that holds byte `offset`; None beyond the largest file."""
        if offset < self.copied:
            return self.slice(min(offset // _SLICE + 1, self.slices))
        slot = slot_at(offset - self.copied, self.part_size)
        if slot is None or slot.number + self.slices > MOST_PARTS:
            return None
        return Slot(slot.number + self.slices, slot.start + self.copied, slot.size)

    def slice(self, number: int) -> Slot:
        """Copied part `number`; the last one takes what is left."""
        start = (number - 1) * _SLICE
        return Slot(number, start, (self.copied if number == self.slices else number * _SLICE) - start)

    def numbered(self, number: int) -> Slot:
        """Part `number`, which must be one that the schedule has."""
        if number <= self.slices:
            return self.slice(number)
        first, start = self.slices, self.copied
        for count, factor in _STEPS:
            size = self.part_size * factor
            if number <= first + count:
                return Slot(number, start + (number - first - 1) * size, size)
            first, start = first + count, start + count * size
        raise ValueError("there are not so many parts")

    def between(self, offset: int, end: int) -> Iterator[Slot | None]:
        """The parts that `offset` to `end` touches, in order; ends with None if that is beyond the largest file."""
        while offset < end:
            slot = self.at(offset)
            yield slot
            if slot is None:
                return
            offset = slot.end

    def contiguous(self, parts: Iterable[Part]) -> list[Part]:
        """The parts from the first one on that are there as a whole, up to the first that is not.

        SeaweedFS lists a part that was sent twice twice, and not in the order of sending.
        """
        found: list[Part] = []
        position = 0
        known = {(part.number, part.size): part for part in parts}
        while (slot := self.at(position)) is not None:
            part = known.get((slot.number, slot.size))
            if part is None:
                break
            found.append(part)
            position = slot.end
        return found


@dataclass
class Coverage:
    """Which bytes of a part have arrived, as merged half-open spans; in order, that is one span."""

    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        spans = self.spans
        if spans and spans[-1][0] <= start <= spans[-1][1]:  # the usual case, in place
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            return
        merged: list[tuple[int, int]] = []
        for span in sorted([*spans, (start, end)]):
            if merged and span[0] <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(span[1], merged[-1][1]))
            else:
                merged.append(span)
        self.spans = merged

    @property
    def prefix(self) -> int:
        """Bytes from the beginning without a gap."""
        return self.spans[0][1] if self.spans and self.spans[0][0] == 0 else 0

    def cut(self, end: int) -> None:
        """Forget what has arrived behind `end`."""
        self.spans = [(start, min(stop, end)) for start, stop in self.spans if start < end]

    @property
    def end(self) -> int:
        """Behind the last byte that has arrived."""
        return self.spans[-1][1] if self.spans else 0
