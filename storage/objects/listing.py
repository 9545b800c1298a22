"""What a ListObjectsV2 answer says, read fast: directories of 100,000 files are a hundred of these.

The fields are found by pattern, which is five times faster than a tree of elements; an answer that does not fit the
pattern is read as the XML that it is. Pure; no I/O.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.sax.saxutils import unescape

from storage.errors import Unavailable
from storage.objects.contract import ObjectFacts

_QUOTES = {"&quot;": '"', "&apos;": "'", "&#34;": '"', "&#39;": "'"}
_FIELDS = {name: re.compile(rf"<{name}>([^<]*)</{name}>") for name in ("Key", "Size", "ETag", "LastModified")}
_PREFIX = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>")
_NUMERIC = re.compile(r"&#(\d+|x[0-9A-Fa-f]+);")


@dataclass(frozen=True)
class Page:
    """One answer: entries by key, and the token that asks for what follows; empty at the end."""

    entries: Sequence[ObjectFacts]
    token: str = ""


def query(prefix: str, *, delimiter: bool, token: str, most: int) -> Mapping[str, str]:
    """The query of the request for one page."""
    # Names may hold characters that XML cannot; S3 then sends them quoted as in a URL.
    asked = {"list-type": "2", "prefix": prefix, "max-keys": str(most), "encoding-type": "url"}
    if delimiter:
        asked["delimiter"] = "/"
    if token:
        asked["continuation-token"] = token
    return asked


def parse(data: bytes) -> Page:
    """Unavailable for what is no listing."""
    text = data.decode("utf-8", "replace")
    if "<ListBucketResult" not in text:
        raise Unavailable("the object store answered something that is no listing")
    quoted = "<EncodingType>url</EncodingType>" in text
    columns = {name: field.findall(text) for name, field in _FIELDS.items()}
    if {len(column) for column in columns.values()} != {text.count("<Contents>")}:
        return _parse_tree(data)
    entries = [
        ObjectFacts(
            _key(key, quoted), int(size), etag.replace("&quot;", "").replace("&#34;", "").strip('"'), _time(time)
        )
        for key, size, etag, time in zip(*columns.values(), strict=True)
    ]
    prefixes = [ObjectFacts(_key(key, quoted), is_prefix=True) for key in _PREFIX.findall(text)]
    if prefixes:
        entries = sorted(entries + prefixes, key=lambda facts: facts.key)
    return Page(entries, _token(text))


def _token(text: str) -> str:
    if "<IsTruncated>true</IsTruncated>" not in text:
        return ""
    found = re.search(r"<NextContinuationToken>([^<]*)</NextContinuationToken>", text)
    return _plain(found[1]) if found else ""


def _key(text: str, quoted: bool) -> str:
    plain = _plain(text)
    return unquote_plus(plain) if quoted and ("%" in plain or "+" in plain) else plain


def _plain(text: str) -> str:
    if "&" not in text:
        return text
    return unescape(_NUMERIC.sub(lambda found: _character(found[1]), text), _QUOTES)


def _character(number: str) -> str:
    return chr(int(number[1:], 16) if number.startswith("x") else int(number))


@lru_cache(1024)
def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _parse_tree(data: bytes) -> Page:
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise Unavailable("the object store answered something that is no listing") from error
    top = {_name(child): child.text or "" for child in root}
    quoted = top.get("EncodingType") == "url"
    entries: list[ObjectFacts] = []
    for child in root:
        fields = {_name(field): (field.text or "").strip() for field in child}
        if _name(child) == "Contents":
            size, etag = int(fields.get("Size") or 0), fields.get("ETag", "").strip('"')
            key = fields.get("Key", "")
            name = unquote_plus(key) if quoted else key
            entries.append(ObjectFacts(name, size, etag, _time(fields.get("LastModified", ""))))
        elif _name(child) == "CommonPrefixes":
            key = fields.get("Prefix", "")
            entries.append(ObjectFacts(unquote_plus(key) if quoted else key, is_prefix=True))
    token = top.get("NextContinuationToken", "") if top.get("IsTruncated") == "true" else ""
    return Page(sorted(entries, key=lambda facts: facts.key), token)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
