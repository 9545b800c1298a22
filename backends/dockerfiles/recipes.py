"""What a builder is given: a Dockerfile of one line an instruction, and the files that its heredocs were.

Neither the classic builder nor buildah 1.28 knows heredocs, and their parsers are of different ages. So nothing is
left to them: no comment, no directive but the escape, no continuation, and no `<<` that a newer one could take for a
heredoc. A RUN that has one becomes the exec form, with the shell that this Dockerfile has named last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from backends.dockerfiles.source import Dockerfile, Heredoc, Instruction
from backends.dockerfiles.words import split_words

FOLDER = "documents"
"""Folder of the build context that holds heredocs of COPY and ADD."""
_SHELL = ("/bin/sh", "-c")
_SCRIPT = 'f=$(mktemp) && printf %s "$0" >"$f" && chmod 755 "$f" && "$f"; s=$?; rm -f "$f"; exit $s'
"""Runs its own name as a file, for a document that begins with `#!`; it ends as that ends."""


@dataclass(frozen=True)
class Recipe:
    """`text` is the whole Dockerfile; `files` is the whole build context beside it, by path; `lines` tells of each
    step, FROM the first, in which line of what the person wrote it begins (0: nobody wrote it)."""

    text: str
    files: Mapping[str, bytes]
    lines: Sequence[int]
    base: str
    """What stands behind FROM."""

    def on(self, base: str) -> Recipe:
        """The same on another base: that which a builder found behind the name."""
        return replace(self, text=self.text.replace(f"FROM {self.base}\n", f"FROM {base}\n", 1), base=base)


def recipe(found: Dockerfile, base: str, labels: Mapping[str, str] | None = None) -> Recipe:
    """What builds this on `base`, a name that was checked. Call it only if `check` found nothing.

    `labels` stand directly below FROM: so also the layers of a build that fails have them.
    """
    writer = _Writer(found.escape)
    writer.add(f"FROM {base}")
    for name, value in (labels or {}).items():
        writer.add(f"LABEL {name}={json.dumps(value)}")
    for one in found.instructions:
        for line in writer.written(one):
            writer.add(line, one.line)
    head = [] if found.escape == "\\" else [f"# escape={found.escape}"]
    return Recipe("\n".join([*head, *writer.steps, ""]), writer.files, writer.lines, base)


class _Writer:
    def __init__(self, escape: str) -> None:
        self._escape = escape
        self._shell: Sequence[str] = _SHELL
        self._documents = 0
        self.steps: list[str] = []
        self.lines: list[int] = []
        self.files: dict[str, bytes] = {}

    def add(self, step: str, line: int = 0) -> None:
        self.steps.append(step)
        self.lines.append(line)

    def written(self, one: Instruction) -> Iterator[str]:
        if one.keyword == "RUN":
            yield self._run(one)
        elif one.keyword in ("COPY", "ADD"):
            yield self._copy(one)
        elif one.keyword == "ARG":  # the classic builder takes one at a time
            for word in split_words(one.text.value, one.rest.offset, self._escape)[0]:
                yield f"ARG {word.value}"
        else:
            if one.keyword == "SHELL" and one.words:
                self._shell = one.words
            yield " ".join([one.keyword, *(flag.value for flag in one.flags), _rest(one)])

    def _run(self, one: Instruction) -> str:
        if one.words is not None or "<<" not in one.rest.value:
            return f"RUN {_rest(one)}"
        command = one.rest.value
        if len(one.heredocs) == 1 and len(split_words(command, 0, "\\")[0]) == 1:
            document = one.heredocs[0].document
            if document.startswith("#!"):
                return f"RUN {_json(['/bin/sh', '-c', _SCRIPT, document])}"
            return f"RUN {_json([*self._shell, document])}"
        whole = "\n".join([command, *(f"{heredoc.content}{heredoc.name}" for heredoc in one.heredocs)])
        return f"RUN {_json([*self._shell, whole])}"

    def _copy(self, one: Instruction) -> str:
        sources = [self._file(heredoc) for heredoc in one.heredocs]
        target = one.words[-1] if one.words else re.split(r"[\t ]+", one.rest.value)[-1]
        flags = [flag.value for flag in one.flags]
        return " ".join([one.keyword, *flags, _json([*sources, target])])

    def _file(self, heredoc: Heredoc) -> str:
        self._documents += 1
        path = f"{FOLDER}/{self._documents}/{heredoc.name}"
        self.files[path] = heredoc.document.encode()
        return path


def _rest(one: Instruction) -> str:
    return one.rest.value if one.words is None else _json(one.words)


def _json(words: Sequence[str]) -> str:
    """In ASCII, and without `<`, so that no parser finds a heredoc in it."""
    return json.dumps(list(words)).replace("<", "\\u003c")
