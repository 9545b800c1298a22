"""Links to single files: who gets one, where it leads, how long it works, and what the trail says of it."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote, urlsplit

import pytest
import urllib3
from sqlalchemy import select

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.clock import now
from storage.database.engine import Database
from storage.errors import BadInput, NotFound
from storage.links import Links
from storage.records import AuditEvent
from storage.settings import ObjectSettings
from tests.storage.conftest import Desk

NAME = "a b+c %41 \u4e2d\u6587.bin"


@pytest.fixture
def links(desk: Desk, audit: AuditTrail, object_settings: ObjectSettings) -> Links:
    return Links(desk.tree, audit, object_settings)


def fetched(url: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body."""
    with urllib3.PoolManager() as pool:
        answer = pool.request(method, url, retries=False)
        return answer.status, answer.data


async def test_a_link_opens_without_a_key_and_for_nothing_else(
    desk: Desk, links: Links, alice: Caller, root: str
) -> None:
    await desk.put(f"{root}/{NAME}", b"content")
    link = await links.url(alice, f"{root}/{NAME}")
    assert fetched(link.url) == (200, b"content")
    assert link.size == 7
    assert timedelta(minutes=59) < link.expires - now() <= timedelta(hours=1)
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", link.url).headers["content-disposition"] == "attachment"
    assert fetched(link.url, "DELETE")[0] == 403
    assert fetched(link.url.replace(quote(NAME), "other"))[0] in (403, 404)
    assert fetched(link.url.partition("?")[0])[0] == 403


async def test_a_link_that_has_expired_opens_nothing(desk: Desk, links: Links, alice: Caller, root: str) -> None:
    await desk.put(f"{root}/x", b"content")
    link = await links.url(alice, f"{root}/x", 3600)
    assert "X-Amz-Expires=3600" in link.url
    assert fetched(link.url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"))[0] == 403


async def test_the_trail_tells_of_the_link_and_does_not_hold_it(
    desk: Desk, links: Links, alice: Caller, root: str, database: Database
) -> None:
    await desk.put(f"{root}/x", b"content")
    link = await links.url(alice, f"{root}/x", 60)
    signature = link.url.rpartition("X-Amz-Signature=")[2]
    async with database.reading() as tx:
        events = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == "file.link"))).all()
        everything = [f"{event.thing} {event.detail}" for event in await tx.scalars(select(AuditEvent))]
    assert [(event.actor, event.thing) for event in events] == [("alice", f"{root}/x")]
    assert not any(signature in line or "X-Amz" in line for line in everything)


async def test_what_may_not_be_read_gets_no_link(
    desk: Desk, links: Links, bob: Caller, root: str, datasets: Datasets, alice: Caller
) -> None:
    await desk.put(f"{root}/x", b"content")
    assert (await links.url(bob, f"{root}/x")).size == 7
    await datasets.change(alice, "d", visibility="private")
    for path in (f"{root}/x", f"{root}/nothing", "/datasets/other/v1/x"):
        with pytest.raises(NotFound):
            await links.url(bob, path)
    for path in (root, "/datasets", "/README.txt", "/"):
        with pytest.raises((BadInput, NotFound)):
            await links.url(alice, path)


@pytest.mark.parametrize("seconds", [0, -1, 24 * 3600 + 1])
async def test_lives_that_are_too_long_or_none(
    desk: Desk, links: Links, alice: Caller, root: str, seconds: int
) -> None:
    await desk.put(f"{root}/x", b"content")
    with pytest.raises(BadInput, match="24 hours"):
        await links.url(alice, f"{root}/x", seconds)


@pytest.mark.parametrize(
    ("endpoint", "public", "host", "only_here"),
    [
        ("http://127.0.0.1:8333", "", "127.0.0.1:8333", True),
        ("http://localhost:8333", "", "localhost:8333", True),
        ("http://[::1]:8333", "", "[::1]:8333", True),
        ("http://127.0.0.1:8333", "https://data.example.org", "data.example.org", False),
        ("https://minio.internal:9000", "", "minio.internal:9000", False),
    ],
)
async def test_where_links_lead(
    desk: Desk,
    audit: AuditTrail,
    object_settings: ObjectSettings,
    root: str,
    alice: Caller,
    endpoint: str,
    public: str,
    host: str,
    only_here: bool,
) -> None:
    await desk.put(f"{root}/x", b"content")
    settings = object_settings.model_copy(update={"endpoint": endpoint, "public_endpoint": public})
    link = await Links(desk.tree, audit, settings).url(alice, f"{root}/x")
    assert (urlsplit(link.url).netloc, link.host, link.only_here) == (host, host, only_here)
