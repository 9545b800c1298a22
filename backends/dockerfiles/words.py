"""One line of a Dockerfile, taken apart the way moby's parser does: flags, words, quotes, JSON, heredocs.

Docker has several rules for what a word is. Flags lose their quotes; NAME=VALUE pairs keep them; heredocs are looked
for in words as a shell has them. Each has its function here. Nothing here knows any instruction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from backends.dockerfiles.source import Heredoc, Word

_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")


class NotStrings(ValueError):
    """A JSON array that has something else than strings in it."""


def take_flags(line: str, start: int, escape: str) -> tuple[Sequence[Word], int]:
    """The leading words that begin with `--`, without their quotes, and where the rest of the line begins.

    A bare `--` ends them, as in moby's `extractBuilderFlags`; here it is the last of them, so that a rule can
    refuse it.
    """
    flags: list[Word] = []
    position = start
    while True:
        while position < len(line) and line[position].isspace():
            position += 1
        if not line.startswith("--", position):
            return flags, position
        word, end = _unquoted(line, position, escape)
        flags.append(Word(word, position))
        position = end
        if word == "--":
            return flags, position


def _unquoted(line: str, start: int, escape: str) -> tuple[str, int]:
    """One word without quotes and escapes, and where it ends. Here an escape counts in single quotes too."""
    found: list[str] = []
    quote, position = "", start
    while position < len(line):
        character = line[position]
        if not quote and character.isspace():
            break
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif character == escape:
            position += 1
            found.append(line[position : position + 1])
        else:
            found.append(character)
        position += 1
    return "".join(found), position


def split_words(line: str, start: int, escape: str) -> tuple[Sequence[Word], int | None]:
    """Words with their quotes and escapes kept; and where a quote begins that is never closed, if one does."""
    words: list[Word] = []
    position, opened = start, None
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        begin, quote, opened = position, "", None
        while position < len(line) and (quote or not line[position].isspace()):
            character = line[position]
            if character == escape and quote != "'":
                position += 1
            elif character == quote:
                quote, opened = "", None
            elif not quote and character in "'\"":
                quote, opened = character, position
            position += 1
        words.append(Word(line[begin:position], begin))
    return words, opened


def json_strings(text: str) -> Sequence[str] | None:
    """The strings of a JSON array; None if it is none, and NotStrings if it holds anything else.

    Brackets in brackets exhaust Python's parser long before the line's limit: then it surely holds something else.
    """
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except RecursionError:
        raise NotStrings from None
    except ValueError:
        return None
    if not all(isinstance(item, str) for item in found):
        raise NotStrings
    return list(found)


def heredocs_of(line: str, start: int) -> Sequence[Heredoc]:
    """The heredocs that a line announces, still without content. The escape is always a backslash here, whatever
    `# escape=` says: it is the shell's."""
    found: list[Heredoc] = []
    for word in split_words(line, start, "\\")[0]:
        match = _HEREDOC.fullmatch(word.value)
        if match is None:
            continue
        name = re.sub(r"\\(.)|['\"]", lambda one: one[1] or "", match[2])
        quoted = any(quote in match[2] for quote in "'\"")
        if name:
            found.append(Heredoc(name, word.offset, expand=not quoted, chomp=match[1] == "-"))
    return found
