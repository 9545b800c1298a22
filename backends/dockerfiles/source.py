"""The vocabulary of a Dockerfile that was read: instructions with their places, and problems."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """Something that cannot be built as it is written. `line` and `column` count from 1, in characters."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


@dataclass(frozen=True)
class Piece:
    """Where a part of a joined text comes from."""

    offset: int
    line: int
    column: int


@dataclass(frozen=True)
class Text:
    """A text that was joined from several lines, each character of which still knows its place."""

    value: str
    pieces: Sequence[Piece]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of the character at `offset`."""
        found = bisect.bisect_right(self.pieces, offset, key=lambda piece: piece.offset) - 1
        piece = self.pieces[max(0, found)]
        return piece.line, piece.column + max(0, offset - piece.offset)

    def problem(self, offset: int, message: str) -> Problem:
        return Problem(*self.place(offset), message)


@dataclass(frozen=True)
class Word:
    """A part of an instruction, and where in its text it begins."""

    value: str
    offset: int


@dataclass(frozen=True)
class Heredoc:
    """A document written into the Dockerfile. `content` has no carriage returns; with `chomp` (`<<-`) its leading tabs
    are not part of it, but still here. `expand`: its variables mean something, for the delimiter is not quoted."""

    name: str
    offset: int
    expand: bool
    chomp: bool
    content: str = ""

    @property
    def document(self) -> str:
        """What a file of it holds."""
        if not self.chomp:
            return self.content
        return "".join(line.lstrip("\t") for line in self.content.splitlines(keepends=True))


@dataclass(frozen=True)
class Instruction:
    """One instruction: `keyword` in capitals, its flags, and `rest`, everything after them."""

    keyword: str
    text: Text
    keyword_offset: int
    flags: Sequence[Word]
    rest: Word
    words: Sequence[str] | None
    """The strings of the JSON form; None in the other one."""
    heredocs: Sequence[Heredoc] = ()

    @property
    def line(self) -> int:
        return self.text.place(self.keyword_offset)[0]

    def problem(self, message: str, offset: int | None = None) -> Problem:
        return self.text.problem(self.keyword_offset if offset is None else offset, message)


@dataclass(frozen=True)
class Dockerfile:
    """What was read. With problems, the instructions are those that could be read nevertheless."""

    instructions: Sequence[Instruction]
    problems: Sequence[Problem]
    escape: str = "\\"
