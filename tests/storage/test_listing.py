"""Answers of ListObjectsV2, as several servers write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from storage.errors import Unavailable
from storage.objects.contract import ObjectFacts
from storage.objects.listing import parse, query
from storage.objects.s3 import S3Store, _parts

MOMENT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
_HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


def entry(key: str, *, etag: str = "&#34;abc&#34;", time: str = "2025-01-02T03:04:05.000Z") -> str:
    return f"<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>7</Size></Contents>"


def listing(*parts: str) -> bytes:
    return (_HEAD + "<Prefix>p/</Prefix>" + "".join(parts) + "</ListBucketResult>").encode()


def test_entries_and_directories_by_name() -> None:
    page = parse(
        listing(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>",
            entry("p/b", etag="&quot;abc&quot;"),
            entry("p/z", etag='"abc"'),
            "<CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes>",
        )
    )
    assert page.token == "a&b"
    assert page.entries == [
        ObjectFacts("p/b", 7, "abc", MOMENT),
        ObjectFacts("p/c/", is_prefix=True),
        ObjectFacts("p/z", 7, "abc", MOMENT),
    ]


def test_the_order_of_the_fields_is_the_servers_own() -> None:
    time = "<LastModified>2025-01-02T03:04:05Z</LastModified>"
    text = f"<Contents><ETag>x</ETag><Size>7</Size><Key>p/a</Key>{time}</Contents>"
    assert parse(listing(text)).entries == [ObjectFacts("p/a", 7, "x", MOMENT)]


def test_names_are_unquoted_once() -> None:
    quoted = "<EncodingType>url</EncodingType>"
    names = ("p/a%2Bb+c%25", "p/%E6%95%B0", "p/x&amp;y", "p/x&#34;")
    told = parse(listing(quoted, *[entry(name) for name in names])).entries
    assert [facts.key for facts in told] == ["p/a+b c%", "p/数", "p/x&y", 'p/x"']
    assert [facts.key for facts in parse(listing(entry("p/a%2Bb+c"))).entries] == ["p/a%2Bb+c"]


def test_what_does_not_fit_the_pattern_is_read_as_xml() -> None:
    """A server that leaves the ETag away, owners with keys of their own, comments."""
    text = "<Contents><!-- x --><Key>p/a</Key><Size>7</Size><Owner><ID>o</ID></Owner></Contents>"
    told = parse(listing("<EncodingType>url</EncodingType>", text, entry("p/%2B"))).entries
    assert told == [ObjectFacts("p/+", 7, "abc", MOMENT), ObjectFacts("p/a", 7, "", None)]


@pytest.mark.parametrize("data", [b"", b"<Error/>", b"<ListBucketResult><Contents><Key>", b"\xff\xfe"])
def test_what_is_no_listing(data: bytes) -> None:
    with pytest.raises(Unavailable):
        parse(data)


def test_the_query() -> None:
    asked = query("p/", delimiter=True, token="t", most=1000)
    assert asked == {
        "list-type": "2", "prefix": "p/", "max-keys": "1000", "encoding-type": "url", "delimiter": "/",
        "continuation-token": "t",
    }  # fmt: skip


async def test_pages_of_a_real_store(store: S3Store) -> None:
    names = [f"d/{number:04}" for number in range(1203)] + ["d/sub/x", "d/数 +%&\"'", "e/other"]
    for name in names:
        await store.put(name, b"1234567")
    pages = [page async for page in store.list("d/", delimiter=True)]
    assert len(pages) > 1
    flat = [facts for page in pages for facts in page]
    assert [facts.key for facts in flat] == sorted([*names[:1203], "d/sub/", names[-2]])
    assert {facts.size for facts in flat if not facts.is_prefix} == {7}
    assert all(len(facts.etag) == 32 for facts in flat if not facts.is_prefix)
    assert [facts.key for page in [p async for p in store.list("d/")] for facts in page] == sorted(names[:-1])
    assert [page async for page in store.list("nothing/")] == []


@pytest.mark.parametrize("text", ["<Part><PartNumber>1</PartNumber></Part>", "<Part><PartNumber>x</PartNumber></Part>"])
def test_a_list_of_parts_that_is_none(text: str) -> None:
    """A store may answer anything; the loops that ask it go on."""
    with pytest.raises(Unavailable):
        _parts(f"<ListPartsResult>{text}<ETag>e</ETag><Size>y</Size></ListPartsResult>".encode())
