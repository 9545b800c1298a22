"""From text to instructions, line by line, after the grammar of moby's parser (`frontend/dockerfile/parser`).

Never raises: whatever cannot be read is a problem with its place, and reading goes on behind it. What is allowed is
none of this module's business, except that parser directives are settled here, for nothing of them is left afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from backends.dockerfiles.source import Dockerfile, Heredoc, Instruction, Piece, Problem, Text, Word
from backends.dockerfiles.words import NotStrings, heredocs_of, json_strings, take_flags
from storage.errors import BadInput
from storage.names import printable

LARGEST = 256 * 1024
"""Bytes of a Dockerfile."""
LONGEST = 60_000
"""Bytes of one instruction with its heredocs: builders read lines of up to 64 KiB, a kernel arguments of 128 KiB."""
MOST_PROBLEMS = 100
_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)\s*=(.+)")
"""Blanks around the value are stripped afterwards: `\\s*(.+?)\\s*` takes time with the square of their number."""
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n|$)")
_WITH_HEREDOC = frozenset({"ADD", "COPY", "RUN"})
_WITH_JSON = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"})
_CONTINUED = {escape: re.compile(rf"(?:^|(?<=[^{re.escape(escape)}])){re.escape(escape)}[ \t]*$") for escape in "\\`"}


def decode(data: bytes) -> str:
    """The text of a Dockerfile; BadInput with a place if it is too large or not UTF-8."""
    if len(data) > LARGEST:
        raise BadInput(f"a Dockerfile may have {LARGEST // 1024} KiB at most")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise BadInput(f"line {line}, column {column}: the Dockerfile is not UTF-8 text here") from None


def is_continued(line: str, escape: str) -> bool:
    """Whether a builder would join the next line to this one."""
    return _CONTINUED[escape].search(line) is not None


def parse(text: str) -> Dockerfile:
    """Everything that the text says."""
    if len(text) > LARGEST:
        return Dockerfile((), [Problem(1, 1, f"a Dockerfile may have {LARGEST // 1024} KiB at most")])
    reader = _Reader(text.removeprefix("\ufeff"))
    instructions = [one for one in reader.instructions() if one is not None]
    problems = sorted(set(reader.problems))
    if not instructions and not problems:
        problems = [Problem(1, 1, "there is no instruction in it")]
    return Dockerfile(instructions, problems[:MOST_PROBLEMS], reader.escape)


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = [line.rstrip("\r") for line in text.split("\n")]
        if self._lines[-1] == "":
            self._lines.pop()
        self._next = 0
        self.escape = "\\"
        self.problems: list[Problem] = list(_odd_characters(text))

    def instructions(self) -> Iterator[Instruction | None]:
        self._read_directives()
        while self._next < len(self._lines):
            text = self._join()
            if text is not None:
                yield self._instruction(text)

    # ---- lines -----------------------------------------------------------------------------------------------
    def _read_directives(self) -> None:
        """`# name=value` lines before anything else. A line `#!…` before them hides none from BuildKit."""
        seen: set[str] = set()
        for number, line in enumerate(self._lines, 1):
            stripped = line.lstrip()
            if number == 1 and stripped.startswith("#!"):
                continue
            match = _DIRECTIVE.fullmatch(stripped[1:].lstrip()) if stripped.startswith("#") else None
            if match is None or match[1].lower() not in _DIRECTIVES:
                return
            column = len(line) - len(stripped) + 1
            self._take_directive(match[1].lower(), match[2].strip(), seen, number, column)

    def _take_directive(self, name: str, value: str, seen: set[str], line: int, column: int) -> None:
        if name in seen:
            self._problem(line, column, f"'# {name}=' may stand here once only")
        elif name == "syntax":
            self._problem(line, column, "'# syntax=' is not allowed: it would run a parser from elsewhere")
        elif name == "escape" and value not in _CONTINUED:
            self._problem(line, column, f"'# escape=' can be \\ or ` only, not '{printable(value, limit=20)}'")
        elif name == "escape":
            self.escape = value
        seen.add(name)

    def _join(self) -> Text | None:
        """The next line with all that continues it; None for blank lines and comments."""
        pieces: list[Piece] = []
        found: list[str] = []
        length, first = 0, True
        begin = self._next + 1
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            stripped = line.lstrip()
            if stripped.startswith("#") or not stripped:
                if first:
                    return None
                continue
            column = 1
            if first:
                column, line, first = len(line) - len(stripped) + 1, stripped, False
            match = _CONTINUED[self.escape].search(line)
            piece = line if match is None else line[: match.start()]
            pieces.append(Piece(length, self._next, column))
            found.append(piece)
            length += len(piece)
            if match is None:
                break
        value = "".join(found)
        if not value.strip():
            self._problem(begin, 1, "there is nothing but the end of a line in this instruction")
            return None
        return Text(value, pieces)

    # ---- instructions ----------------------------------------------------------------------------------------
    def _instruction(self, text: Text) -> Instruction | None:
        offset = len(text.value) - len(text.value.lstrip())
        value = text.value.rstrip()
        match = re.compile(r"[^\t ]+").match(value, offset)
        assert match is not None  # the text is not blank
        keyword = match[0].upper()
        flags, start = take_flags(value, match.end(), self.escape)
        rest = value[start:].strip()
        start = len(value) - len(value[start:].lstrip())
        words = self._json(keyword, rest, text, start)
        found = Instruction(keyword, text, offset, flags, Word(rest, start), words)
        found = replace(found, heredocs=self._heredocs(found))
        if is_continued(value, self.escape):
            self.problems.append(text.problem(len(value) - 1, f"a single {self.escape} at the end joins nothing"))
        if len(value.encode("utf-8", "replace")) + sum(len(one.content) for one in found.heredocs) > LONGEST:
            self.problems.append(found.problem(f"an instruction may have {LONGEST} bytes at most"))
        return found

    def _json(self, keyword: str, rest: str, text: Text, start: int) -> Sequence[str] | None:
        if keyword not in _WITH_JSON:
            return None
        try:
            return json_strings(rest)
        except NotStrings:
            self.problems.append(text.problem(start, "an array in brackets may hold strings in double quotes only"))
            return None

    def _heredocs(self, one: Instruction) -> Sequence[Heredoc]:
        """The documents of an instruction, which are the lines that follow it."""
        inner = one.rest.value.partition(" ")[0].upper() if one.keyword == "ONBUILD" else one.keyword
        if inner not in _WITH_HEREDOC or "<<" not in one.text.value:
            return ()
        return [self._document(one, heredoc) for heredoc in heredocs_of(one.text.value, one.rest.offset)]

    def _document(self, one: Instruction, heredoc: Heredoc) -> Heredoc:
        content: list[str] = []
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if (line.lstrip("\t") if heredoc.chomp else line) == heredoc.name:
                return replace(heredoc, content="".join(content))
            content.append(f"{line}\n")
        name = printable(heredoc.name, limit=40)
        self.problems.append(one.problem(f"this heredoc has no end: no line is just '{name}'", heredoc.offset))
        return replace(heredoc, content="".join(content))

    def _problem(self, line: int, column: int, message: str) -> None:
        self.problems.append(Problem(line, column, message))


def _odd_characters(text: str) -> Iterator[Problem]:
    """Characters that no editor shows, and that hide from a reader what is built; the first of each line."""
    for number, line in enumerate(text.split("\n"), 1):
        if (match := _ODD.search(line)) is not None:
            name = "NUL" if match[0] == "\0" else f"U+{ord(match[0][0]):04X}"
            yield Problem(number, match.start() + 1, f"the character {name} may not stand in a Dockerfile")
