"""Sentences of the use cases in the language of whoever reads the menu.

Use cases speak English: their sentences also go to SSH clients, logs, records and the audit trail. The catalogue holds
the sentences with their places (`there is no file '{path}'`); here one that arrives is recognised by its shape, and
what stands in its places goes over into the translation. So nothing below the menu knows of languages. What has no
entry is shown as it came; a test walks the source of the use cases and finds it first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from tui.texts import SAID, Texts, mark, messages, translator

_LONGEST = 1000
_NOUNS = frozenset(
    {
        mark("environment"), mark("data set"), mark("model"), mark("version"), mark("workspace"), mark("tag"),
        mark("image"), mark("key"), mark("upload"), mark("import"), mark("build"), mark("host"), mark("recording"),
        mark("artifact"), mark("user"), mark("your"), mark("environments"), mark("CPUs"),
        mark("memory"), mark("GPU"), mark("GPUs"), mark("MIG device"), mark("MIG devices"), mark("storage"),
        mark("settings"), mark("registry"),
        mark("published"), mark("broken"), mark("none"), mark("a directory"),
        mark("starts"), mark("sleeps"), mark("offline"), mark("queued"), mark("building"), mark("pushing"),
        mark("success"), mark("failed"), mark("cancelled"), mark("running"), mark("done"), mark("ready"),
        mark("starting"), mark("deleting"),
    }
)  # fmt: skip
"""Words that stand in places. What stands there between quotes is a name, and never looked up."""
_PIECES = (
    *(mark("{n} s"), mark("{n} min"), mark("{n} h"), mark("{n} d")),
    mark("the workspace {name}'s"),
    mark("{owner}'s '{name}'"),
    mark("GPU '{model}'"), mark("GPUs '{model}'"), mark("MIG device '{model}'"), mark("MIG devices '{model}'"),
)  # fmt: skip
"""Parts that use cases put together of more than one text."""
_DEEPEST = 6
_OURS = "ashore: "  # before what the gateway says among the output of programs


def in_language(texts: Texts, sentence: str) -> str:
    """`sentence` in the language of `texts` where it is known, as a whole or in its parts."""
    if texts.language == "en" or len(sentence) > _LONGEST:
        return sentence
    if sentence.startswith(_OURS):
        return _OURS + _known(texts.language, sentence.removeprefix(_OURS), 0)
    return _known(texts.language, sentence, 0)


@dataclass(frozen=True)
class _Pattern:
    """A sentence of the catalogue, and the texts before, between and behind its places."""

    message: str
    places: Sequence[str]
    between: Sequence[str]
    is_said: bool

    @classmethod
    def of(cls, message: str, *, is_said: bool) -> _Pattern:
        parts = re.split(r"\{(\w+)\}", message)
        return cls(message, parts[1::2], parts[::2], is_said)

    def fit(self, sentence: str) -> Sequence[tuple[int, int]] | None:
        """Where in `sentence` each place is: up to the first fit of the text behind it. None: another sentence."""
        first, last = self.between[0], self.between[-1]
        if not self.places:
            return () if sentence == first else None
        if not sentence.startswith(first):
            return None
        found: list[tuple[int, int]] = []
        at = len(first)
        for text in self.between[1:-1]:
            end = sentence.find(text, at + 1)
            value = sentence[at:end]
            if end < 0 or "; " in value or (found and ": " in value):  # there something else begins
                return None
            found.append((at, end))
            at = end + len(text)
        end = len(sentence) - len(last)
        return [*found, (at, end)] if end > at and sentence.endswith(last) else None


@lru_cache(maxsize=1000)
def _known(language: str, sentence: str, depth: int) -> str:
    texts = translator(language)
    if sentence in _NOUNS:
        return texts(sentence)
    if depth > _DEEPEST or not sentence:
        return sentence
    for pattern in _patterns(language):
        spans = pattern.fit(sentence)
        if spans is not None:
            values = {
                place: _value(language, sentence, span, depth + 1)
                for place, span in zip(pattern.places, spans, strict=True)
            }
            return texts.said(pattern.message, **values) if pattern.is_said else texts(pattern.message, **values)
    return _in_parts(language, sentence, depth + 1)


def _in_parts(language: str, sentence: str, depth: int) -> str:
    """Use cases join what they have to say with `; `, and put what is concerned, or the cause, beside `: `. What is
    concerned is a name there, unless it has blanks."""
    parts = sentence.split("; ")
    if len(parts) > 1:
        return "; ".join(_known(language, part, depth) for part in parts)
    first, found, rest = sentence.partition(": ")
    if not found:
        return sentence
    return f"{_known(language, first, depth) if ' ' in first else first}: {_known(language, rest, depth)}"


def _value(language: str, sentence: str, span: tuple[int, int], depth: int) -> str:
    start, end = span
    value = sentence[start:end]
    if sentence[:start].endswith("'") and sentence[end:].startswith("'"):
        return value
    return _known(language, value, depth)


@cache
def _patterns(language: str) -> Sequence[_Pattern]:
    """Those with more text of their own first: they say more about what is meant."""
    found = [_Pattern.of(one, is_said=True) for one in messages(language, SAID)]
    found += [_Pattern.of(one, is_said=False) for one in _PIECES]
    return sorted(found, key=lambda one: (-sum(len(text) for text in one.between), one.message))
