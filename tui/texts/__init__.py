"""The words of the menu in each language: gettext catalogues, one object per person, nothing installed globally.

English is the language of the source. `zh/LC_MESSAGES/ashore.po` is what translators edit; the `.mo` beside it is
compiled from it (`python -m tests.tui.catalogue`) and is what runs. Two people in one process may read two languages.
"""

from __future__ import annotations

import gettext
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
"""Code → the language's own name."""
_DIRECTORY = Path(__file__).parent
_DOMAIN = "ashore"
SAID = "said"
"""Context of the messages that are sentences of use cases, see `sentences`."""


class Texts:
    """The menu's words in one language; call it with a sentence of the source."""

    def __init__(self, language: str, catalogue: gettext.NullTranslations) -> None:
        self.language = language
        self._catalogue = catalogue

    def __call__(self, message: str, /, **values: object) -> str:
        """`message` in this language, its `{named}` places filled with `values`."""
        # gettext answers the empty message with the catalogue's header.
        text = self._catalogue.gettext(message) if message else ""
        return text.format(**values) if values else text

    def said(self, sentence: str, /, **values: str) -> str:
        """A `sentence` of the use cases in this language, its places filled with `values`."""
        return self._catalogue.pgettext(SAID, sentence).format(**values)

    def plural(self, one: str, many: str, number: int, /, **values: object) -> str:
        """`one` or `many`, whichever fits `number`, which also fills the place `{n}`."""
        return self._catalogue.ngettext(one, many, number).format(n=number, **values)


def mark(message: str, /) -> str:
    """`message` itself; marks for the catalogue what is translated later, when the language is known."""
    return message


@cache
def translator(language: str) -> Texts:
    """The texts of `language`, such as `zh`, `zh_CN.UTF-8`, `en` or empty; English for what is not known."""
    code = language.replace("-", "_").partition("_")[0].partition(".")[0].lower()
    if code not in LANGUAGES or code == "en":
        return Texts("en", gettext.NullTranslations())
    return Texts(code, gettext.translation(_DOMAIN, _DIRECTORY, [code]))


def messages(language: str, context: str) -> Sequence[str]:
    """The messages of `context` in the catalogue of `language`, in English. Reads the tables of the .mo file itself,
    because `gettext` lists nothing."""
    data = (_DIRECTORY / language / "LC_MESSAGES" / f"{_DOMAIN}.mo").read_bytes()
    count, table = struct.unpack_from("<2I", data, 8)
    rows = struct.iter_unpack("<2I", data[table : table + 8 * count])
    found = [data[start : start + length].decode() for length, start in rows]
    return [one.removeprefix(f"{context}\x04") for one in found if one.startswith(f"{context}\x04")]
