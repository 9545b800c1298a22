"""Sources of imports: which hosts may be asked, and what comes from web servers and from the hub's library."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from pydantic import SecretStr

from backends.settings import ImportSettings
from backends.sources import guard as guarding
from backends.sources.contract import RemoteFile, SourceAway, Stream
from backends.sources.guard import Guard, is_public, parse
from backends.sources.http import Fetcher
from backends.sources.registry import connect, parse_source
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound
from tests.backends.web import Web, WebFile
from tests.storage.tls import Authority

CONTENT = os.urandom(300_000)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web


@pytest.fixture
async def fetcher(web: Web) -> AsyncIterator[Fetcher]:
    settings = ImportSettings(allow_hosts=(web.host,), idle_seconds=2)
    fetcher = Fetcher(settings, Guard(settings))
    yield fetcher
    await fetcher.close()


async def whole(stream: Stream) -> bytes:
    pieces = []
    try:
        while piece := await stream.read():
            pieces.append(piece)
    finally:
        await stream.close()
    return b"".join(pieces)


# ---- which addresses are public -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
     "168.63.129.16", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
     "2002:7f00:1::", "2002:a9fe:a9fe::1", "::127.0.0.1", "2001:db8::1", "fec0::1", "100::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["http://2130706433/", "http://0x7f000001/", "http://127.1/", "http://localhost/", "http://[::1]/",
     "http://[::ffff:127.0.0.1]/", "http://0/", "https://localhost./", "http://[fe80::1%25lo]/"],
)  # fmt: skip
def test_every_way_to_write_this_machine_is_refused(url: str) -> None:
    with pytest.raises(AshoreError) as refusal:
        Guard(ImportSettings(plain_http=True)).resolve(url)
    assert isinstance(refusal.value, (NotAllowed, SourceAway))


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/x", "file:///etc/passwd", "gopher://127.0.0.1/", "https://", "https://a b/", "//example.org/x",
     "https://user:secret@example.org/", "https://example.org:99999/", "https://[::1/", "https://example.org/\r\nX: y"],
)  # fmt: skip
def test_what_is_no_address_to_import_from(url: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse(url)
    assert "secret" not in refusal.value.message


def test_plain_http_and_odd_ports_only_by_setting() -> None:
    with pytest.raises(NotAllowed, match="https"):
        Guard(ImportSettings()).check("http://example.org/x")
    with pytest.raises(NotAllowed, match="port 8080"):
        Guard(ImportSettings()).check("https://example.org:8080/x")
    Guard(ImportSettings(plain_http=True)).check("http://example.org/x")
    Guard(ImportSettings(allow_hosts=("mirror.internal",))).check("http://mirror.internal:8080/x")
    Guard(ImportSettings(allow_hosts=("Mirror.internal:8080",))).check("http://mirror.INTERNAL:8080/x")
    with pytest.raises(NotAllowed):
        Guard(ImportSettings(allow_hosts=("mirror.internal:8080",))).check("http://mirror.internal:9090/x")


def test_one_private_address_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address("10.0.0.7")]
    monkeypatch.setattr(guarding, "addresses_of", lambda name, port: mixed)
    with pytest.raises(NotAllowed, match="private"):
        Guard(ImportSettings()).resolve("https://example.org/x")


async def test_a_name_is_resolved_once_and_the_connection_goes_there(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a name that is public when it is looked at and private when it is connected to."""
    web.files["/x"] = WebFile(CONTENT)
    lookups: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == "rebind.example.org":
            lookups.append(name)
            return real("192.0.2.1" if len(lookups) == 1 else "127.0.0.1", *rest, **more)
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(guarding, "is_public", lambda address: not address.is_loopback)
    monkeypatch.setattr("backends.sources.http._CONNECT_SECONDS", 0.3)
    settings = ImportSettings(plain_http=True, ports=(int(web.host.partition(":")[2]),))
    fetcher = Fetcher(settings, Guard(settings))
    with pytest.raises(SourceAway):  # 192.0.2.1 never answers; 127.0.0.1 would
        await fetcher.open(f"http://rebind.example.org:{web.host.partition(':')[2]}/x")
    await fetcher.close()
    assert lookups == ["rebind.example.org"]
    assert web.asked == []


# ---- web servers --------------------------------------------------------------------------------------------------
async def test_a_file_and_a_range_of_it(web: Web, fetcher: Fetcher) -> None:
    web.files["/a/data.bin"] = WebFile(CONTENT, headers={"Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"})
    stream = await fetcher.open(f"{web.url}/a/data.bin")
    assert (stream.start, stream.size, stream.mtime, stream.name) == (0, len(CONTENT), 1700000000, "data.bin")
    assert await whole(stream) == CONTENT
    rest = await fetcher.open(f"{web.url}/a/data.bin", offset=1000, etag=stream.etag)
    assert (rest.start, rest.size) == (1000, len(CONTENT))
    assert await whole(rest) == CONTENT[1000:]


async def test_a_changed_file_comes_from_its_beginning(web: Web, fetcher: Fetcher) -> None:
    web.files["/x"] = WebFile(CONTENT)
    changed = await fetcher.open(f"{web.url}/x", offset=1000, etag='"another"')
    assert (changed.start, await whole(changed)) == (0, CONTENT)
    beyond = await fetcher.open(f"{web.url}/x", offset=len(CONTENT) + 5)
    assert (beyond.start, await whole(beyond)) == (0, CONTENT)


async def test_a_connection_that_is_cut_is_no_end(web: Web, fetcher: Fetcher) -> None:
    web.files["/x"] = WebFile(CONTENT, cuts=[100_000])
    with pytest.raises(SourceAway, match="stopped"):
        await whole(await fetcher.open(f"{web.url}/x"))
    web.files["/chunked"] = WebFile(CONTENT, cuts=[100_000], chunked=True)
    with pytest.raises(SourceAway):
        await whole(await fetcher.open(f"{web.url}/chunked"))
    assert await whole(await fetcher.open(f"{web.url}/chunked")) == CONTENT


async def test_a_server_that_tells_no_size_is_refused(web: Web, fetcher: Fetcher) -> None:
    web.files["/x"] = WebFile(CONTENT, tells_size=False)
    with pytest.raises(BadInput, match="how large"):
        await fetcher.open(f"{web.url}/x")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (410, NotFound), (403, NotAllowed), (503, SourceAway), (429, SourceAway), (418, BadInput)],
)  # fmt: skip
async def test_answers_that_are_no_file(web: Web, fetcher: Fetcher, status: int, error: type[AshoreError]) -> None:
    web.files["/x"] = WebFile(b"", status=status)
    with pytest.raises(error):
        await fetcher.open(f"{web.url}/x")


async def test_redirects_are_followed_five_times_and_through_the_guard(web: Web, fetcher: Fetcher) -> None:
    web.files["/end"] = WebFile(CONTENT)
    for number in range(7):
        web.files[f"/{number}"] = WebFile(b"", redirect=f"/{number + 1}" if number < 6 else "/end")
    assert await whole(await fetcher.open(f"{web.url}/2")) == CONTENT
    with pytest.raises(BadInput, match="redirects more than 5"):
        await fetcher.open(f"{web.url}/0")
    port = web.host.partition(":")[2]
    for target in (f"http://localhost:{port}/end", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd",
                   "http://[::ffff:127.0.0.1]/end", f"https://127.1:{port}/end", "//10.0.0.1/x"):  # fmt: skip
        web.files["/out"] = WebFile(b"", redirect=target)
        with pytest.raises((NotAllowed, BadInput)):
            await fetcher.open(f"{web.url}/out")


async def test_own_headers_do_not_go_along_to_another_host(web: Web) -> None:
    with Web().running() as other:
        other.files["/x"] = WebFile(CONTENT)
        web.files["/x"] = WebFile(b"", redirect=f"{other.url}/x")
        settings = ImportSettings(allow_hosts=(web.host, other.host))
        fetcher = Fetcher(settings, Guard(settings))
        assert await whole(await fetcher.open(f"{web.url}/x", headers={"Authorization": "Bearer t"})) == CONTENT
        await fetcher.close()
        assert web.asked[0].headers["authorization"] == "Bearer t"
        assert "authorization" not in other.asked[0].headers


async def test_digests_and_names_that_servers_give(web: Web, fetcher: Fetcher) -> None:
    sha256, md5 = hashlib.sha256(CONTENT), hashlib.md5(CONTENT)
    web.files["/a"] = WebFile(CONTENT, headers={"Repr-Digest": f"sha-256=:{b64encode(sha256.digest()).decode()}:"})
    web.files["/b"] = WebFile(CONTENT, headers={"Content-MD5": b64encode(md5.digest()).decode()})
    web.files["/c"] = WebFile(CONTENT, headers={"Content-Disposition": 'attachment; filename="../../etc/pass wd"'})
    found = [await fetcher.open(f"{web.url}/{name}?token=1") for name in "abc"]
    assert [stream.digest for stream in found] == [f"sha256:{sha256.hexdigest()}", f"md5:{md5.hexdigest()}", ""]
    assert [stream.name for stream in found] == ["a", "b", "pass wd"]
    for stream in found:
        await stream.close()


async def test_a_silent_server_is_given_up_and_closing_ends_a_waiting_read(web: Web, fetcher: Fetcher) -> None:
    web.files["/slow"] = WebFile(CONTENT, pause=5)
    with pytest.raises(SourceAway):
        await whole(await fetcher.open(f"{web.url}/slow"))


async def test_certificates_are_verified(tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path)
    with Web(authority.context()).running() as web:
        web.files["/x"] = WebFile(CONTENT)
        for settings, works in (
            (ImportSettings(allow_hosts=(web.host,)), False),
            (ImportSettings(allow_hosts=(web.host,), ca_file=str(authority.ca_file)), True),
        ):
            fetcher = Fetcher(settings, Guard(settings))
            if works:
                assert await whole(await fetcher.open(f"{web.url}/x")) == CONTENT
            else:
                with pytest.raises(BadInput, match="not trusted"):
                    await fetcher.open(f"{web.url}/x")
            await fetcher.close()


# ---- addresses ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "kind", "place", "rest", "shown"),
    [
        ("https://example.org/a/b.tar?sig=s#f", "http", "https://example.org/a/b.tar?sig=s", "",
         "https://example.org/a/b.tar"),
        ("s3://bucket/some/prefix", "s3", "bucket", "some/prefix", "s3://bucket/some/prefix"),
        ("s3://bucket", "s3", "bucket", "", "s3://bucket/"),
        ("hf://datasets/org/name", "hf-dataset", "org/name", "", "hf://datasets/org/name"),
        ("hf://datasets/org/name@v1.0", "hf-dataset", "org/name", "v1.0", "hf://datasets/org/name@v1.0"),
        ("hf://org/model@refs/pr/1", "hf-model", "org/model", "refs/pr/1", "hf://org/model@refs/pr/1"),
        ("hf://gpt2", "hf-model", "gpt2", "", "hf://gpt2"),
    ],
)  # fmt: skip
def test_addresses_are_understood(text: str, kind: str, place: str, rest: str, shown: str) -> None:
    address = parse_source(text)
    assert (address.kind, address.place, address.rest, address.shown) == (kind, place, rest, shown)
    assert parse_source(address.written) == address


@pytest.mark.parametrize(
    "text", ["", "mnist", "hf://", "hf://datasets/", "hf://a/b/c", "hf://../x", "hf://spaces/a/b", "hf://a/b@../../x",
             "s3://", "s3://B_AD/x", "s3://bucket/\x1b", "ftp://x/y", "http:/x"]
)  # fmt: skip
def test_addresses_that_are_not(text: str) -> None:
    with pytest.raises(BadInput):
        parse_source(text)


def test_what_a_house_may_forbid() -> None:
    with pytest.raises(NotAllowed, match="switched off"):
        connect(parse_source("hf://org/model"), ImportSettings(enabled=False))
    with pytest.raises(NotAllowed, match="bucket"):
        connect(parse_source("s3://other/x"), ImportSettings(s3_buckets=("open",)))
    with pytest.raises(NotAllowed):
        connect(parse_source("http://example.org/x"), ImportSettings())


# ---- the hub ------------------------------------------------------------------------------------------------------
FILES = {"README.md": b"# mnist\n", "data/train.parquet": CONTENT, "\u6570\u636e/a b.txt": b"x"}


@pytest.fixture
def _no_connections_left() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


def hub(web: Web, token: str = "") -> ImportSettings:
    return ImportSettings(hf_endpoint=web.url, hf_token=SecretStr(token))


@pytest.mark.usefixtures("_no_connections_left")
async def test_a_repository_is_listed_and_read(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-operator-himself")
    repository = web.publish("ylecun/mnist", "dataset", FILES, lfs=frozenset({"data/train.parquet"}))
    source = connect(parse_source("hf://datasets/ylecun/mnist"), hub(web))
    listing = await source.list()
    assert listing.revision == repository.commit
    assert {file.path: file.size for file in listing.files} == {path: len(data) for path, data in FILES.items()}
    digests = {file.path: file.digest for file in listing.files}
    assert digests["data/train.parquet"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    blob = b"blob 8\0" + FILES["README.md"]
    assert digests["README.md"] == f"git:{hashlib.sha1(blob).hexdigest()}"
    for file in listing.files:
        stream = await source.open(file, offset=1, revision=listing.revision)
        assert (stream.start, await whole(stream)) == ((1, FILES[file.path][1:]) if file.size > 1 else (0, b"x"))
    await source.close()
    assert not any("authorization" in asked.headers for asked in web.asked)


@pytest.mark.usefixtures("_no_connections_left")
async def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(web: Web) -> None:
    repository = web.publish("org/bert", "model", {"model.safetensors": CONTENT})
    with Web().running() as cdn:
        cdn.files["/blob"] = WebFile(CONTENT)
        web.files[f"/org/bert/resolve/{repository.commit}/model.safetensors"] = WebFile(b"", redirect=f"{cdn.url}/blob")
        settings = hub(web, "hf_secret").model_copy(update={"allow_hosts": (cdn.host,)})
        source = connect(parse_source("hf://org/bert@main"), settings)
        (file,) = (await source.list()).files
        assert await whole(await source.open(file, revision=repository.commit)) == CONTENT
        await source.close()
        assert {asked.headers.get("authorization") for asked in web.asked} == {"Bearer hf_secret"}
        assert "authorization" not in cdn.asked[0].headers


@pytest.mark.usefixtures("_no_connections_left")
async def test_repositories_that_are_not_there(web: Web) -> None:
    web.publish("org/bert", "model", {"a": b"a"})
    for text, words in (("hf://org/other", "no repository"), ("hf://org/bert@nope", "no such revision")):
        source = connect(parse_source(text), hub(web))
        with pytest.raises(NotFound, match=words):
            await source.list()
        await source.close()
    source = connect(parse_source("hf://org/bert"), ImportSettings(hf_endpoint="http://127.0.0.1:9"))
    with pytest.raises(SourceAway):
        await source.list()
    await source.close()


async def test_streams_of_nothing(web: Web, fetcher: Fetcher) -> None:
    web.files["/empty"] = WebFile(b"")
    stream = await fetcher.open(f"{web.url}/empty")
    assert (stream.size, await whole(stream)) == (0, b"")
    assert RemoteFile("x").size is None
