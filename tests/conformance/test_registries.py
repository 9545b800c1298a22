"""Registries that are not ours, as houses have them: an own authority, basic passwords, token services. Our client, the
builders and the engines must all get along with each; Debian's docker-registry stands for them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from backends.archives.transfer import Stored, Transfer
from backends.builders.buildah import BuildahBuilder
from backends.builders.contract import LABEL, Builder, Order
from backends.builders.docker import DockerBuilder
from backends.compute.docker.driver import DockerCompute
from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import recipe
from backends.registry import FORBIDDEN, Registry
from backends.registry_login import engine_auth
from backends.registry_probe import probe
from backends.settings import BuildSettings, DockerHostSettings, DockerSettings, ImageSettings, RegistrySettings
from gateway import health
from storage.errors import AshoreError, BadInput, Unavailable
from tests.backends.test_image_registry import digest_of, pieces, put_image
from tests.conformance import registries
from tests.conformance.registries import Tokens
from tests.storage.memory_store import MemoryStore
from tests.storage.tls import Authority

TINY = "tiny-for-registries:v1"
CERTIFICATES = Path("/etc/docker/certs.d")


@dataclass
class Place:
    """A registry of one kind, with the base `base/tiny-for-registries:v1` in it."""

    settings: RegistrySettings
    tokens: Tokens | None

    @property
    def base(self) -> str:
        return f"{self.settings.prefix}base/{TINY}"

    def order(self, name: str) -> Order:
        text = f"RUN echo {os.urandom(8).hex()}\n"
        return Order(os.urandom(8).hex(), recipe(parse(text), self.base, {LABEL: "1"}),
                     f"{self.settings.prefix}tests/{name}:v1")  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all these registries have."""
    folder = tmp_path_factory.mktemp("registry")
    registries.make_tiny(TINY)
    try:
        with registries.served(folder) as settings:
            registries.push_base(settings, folder, TINY)
    finally:
        subprocess.run(["docker", "rmi", TINY], check=True, capture_output=True)
    return folder / "data"


@contextmanager
def trusted_by_docker(settings: RegistrySettings) -> Iterator[None]:
    """Docker engines read authorities of their own. They take 127.0.0.0/8 with any certificate, but not this one with
    a wrong file beside it."""
    folder = CERTIFICATES / urlsplit(settings.url).netloc
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(Path(settings.ca_file).read_bytes())
    try:
        yield
    finally:
        (folder / "ca.crt").unlink()
        folder.rmdir()


@pytest.fixture(scope="session", params=["password", "password-tls", "tokens", "tokens-tls"])
def place(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        authority = Authority.made_in(folder) if "tls" in request.param else None
        tokens = Tokens(folder / "tokens", front=authority) if "tokens" in request.param else None
        if tokens is not None:
            stack.callback(tokens.stop)
        settings = stack.enter_context(registries.served(folder, data=data, authority=authority, tokens=tokens))
        if authority is not None:
            stack.enter_context(trusted_by_docker(settings))
        yield Place(settings, tokens)


@pytest.fixture
async def registry(place: Place) -> AsyncIterator[Registry]:
    registry = Registry(place.settings)
    yield registry
    await registry.close()


async def test_our_client(registry: Registry) -> None:
    await registry.check()
    digest = await put_image(registry, "w/i/model", layer=os.urandom(300_000))
    assert "w/i/model" in await registry.repositories()
    assert await registry.tags("w/i/model") == ["v1"]
    found = await registry.manifest("w/i/model", "v1")
    assert found.digest == digest
    assert await registry.blob("w/i/model", found.facts["config"]["digest"])
    await registry.delete_manifest("w/i/model", digest)
    assert await registry.tags("w/i/model") == []


async def test_an_archive_goes_there(registry: Registry, tmp_path: Path) -> None:
    """A layer is streamed, so nobody can ask for a password in the middle of it."""
    registries.make_tiny("tiny-archive:v1")
    try:
        subprocess.run(["docker", "save", "-o", f"{tmp_path}/a.tar", "tiny-archive:v1"], check=True)
    finally:
        subprocess.run(["docker", "rmi", "tiny-archive:v1"], check=True, capture_output=True)
    content = (tmp_path / "a.tar").read_bytes()
    store = MemoryStore()
    etag = await store.put("images/a.tar", content)
    transfer = Transfer(store, Stored("images/a.tar", etag, len(content)), ImageSettings(), lambda done: None)
    layout = await transfer.look()
    blobs = await transfer.send(layout, registry, "w/i/archive")
    digest = await transfer.publish(layout, blobs, registry, "w/i/archive", "v1")
    assert (await registry.manifest("w/i/archive", "v1")).digest == digest


@pytest.mark.parametrize("name", ["docker", "buildah"])
async def test_builders_pull_and_push(place: Place, registry: Registry, name: str, tmp_path: Path) -> None:
    """Without the login of the settings neither would get anything. None of them keeps it."""
    order = place.order(name)
    builder: Builder = BuildahBuilder(tmp_path / "buildah", place.settings, BuildSettings())
    if name == "docker":
        host = DockerHostSettings(url="unix:///var/run/docker.sock")
        builder = DockerBuilder(host, place.settings, BuildSettings())
    said = bytearray()
    try:
        image = await builder.build(order, said.extend)
        digest = await builder.push(order, image, said.extend)
    finally:
        await builder.close()
        if name == "docker":
            for one in (order.target, place.base):
                subprocess.run(["docker", "rmi", one], capture_output=True, check=False)
    assert (await registry.manifest(f"tests/{name}", "v1")).digest == digest
    assert registries.PASSWORD.encode() not in said
    assert not list((tmp_path / "buildah" / "work").glob("*"))


async def test_engines_pull_with_the_login_of_this_pull(place: Place, registry: Registry, guest: Path) -> None:
    compute = DockerCompute(guest, DockerSettings(), name="docker/here")
    digest = (await registry.manifest(f"base/{TINY.partition(':')[0]}", "v1")).digest
    reference = f"{place.base.rpartition(':')[0]}@{digest}"
    try:
        with pytest.raises(BadInput, match="no image 'tiny'"):
            await compute.pull_image(reference, "tiny", "", print)
        await compute.pull_image(reference, "tiny", engine_auth(place.settings), print)
        assert await compute.image_id(reference)
        await compute.drop_image(reference)
    finally:
        await compute.close()


async def test_what_doctor_tries(registry: Registry) -> None:
    before = set(await registry.repositories())
    assert [(one.name, one.ok) for one in await probe(registry)] == [("login", True), ("push", True), ("delete", True)]
    assert set(await registry.repositories()) == before


async def test_what_doctor_says_of_a_registry_that_does_too_little(data: Path, tmp_path: Path, tokens: Tokens) -> None:
    with registries.served(tmp_path, data=data, may_delete=False) as settings:
        registry = Registry(settings)
        *good, bad = await probe(registry)
        assert all(one.ok for one in good)
        assert (bad.name, bad.ok) == ("delete", False)
        assert "storage.delete.enabled" in bad.hint
        await registry.close()
    with registries.served(tmp_path, data=data, tokens=tokens) as settings:
        tokens.allowed = {"pull"}
        registry = Registry(settings)
        login, *bad_ones = await probe(registry)
        assert login.ok
        assert [(one.ok, one.detail) for one in bad_ones] == [(False, FORBIDDEN)] * 2
        await registry.close()
    away = Registry(settings)
    assert [(one.ok, one.detail) for one in await probe(away)] == [(False, "the image registry does not answer")]
    await away.close()


async def test_doctor_takes_one_that_gives_space_back_for_a_good_one(data: Path, tmp_path: Path) -> None:
    """It is read only for an hour perhaps, and its user lacks no right."""
    with registries.served(tmp_path, data=data, is_read_only=True) as settings:
        registry = Registry(settings)
        login, push = await health.of_registry_in_full(registry)
        await registry.close()
    assert login.ok
    assert login.known
    assert push.ok
    assert not push.known
    assert "read only now, as while it gives space back" in push.detail


async def test_a_wrong_password_is_a_sentence_everywhere(place: Place, tmp_path: Path) -> None:
    wrong = place.settings.model_copy(update={"password": SecretStr("guess")})
    registry = Registry(wrong)
    with pytest.raises(Unavailable, match="does not take the user and password of the settings"):
        await registry.check()
    with pytest.raises(Unavailable, match="does not take the user and password of the settings"):
        await put_image(registry, "w/i/model")
    await registry.close()
    builder = BuildahBuilder(tmp_path / "buildah", wrong, BuildSettings())
    said = bytearray()
    with pytest.raises(AshoreError, match="cannot be fetched"):
        await builder.build(place.order("wrong"), said.extend)
    assert re.search(rb"authentication required|unauthorized|invalid username/password", said)


# ---- certificates ------------------------------------------------------------------------------------------------
async def said_of(settings: RegistrySettings) -> str:
    registry = Registry(settings)
    try:
        await registry.check()
    except Unavailable as error:
        return error.message
    finally:
        await registry.close()
    return ""


async def test_what_is_wrong_with_a_certificate_is_said(data: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("good", "old", "other")]
    for folder in folders:
        folder.mkdir()
    good, old, other = (
        Authority.made_in(folders[0]), Authority.made_in(folders[1], hours=-1),
        Authority.made_in(folders[2], name="registry.example"),
    )  # fmt: skip
    with registries.served(folders[0], data=data, authority=good) as settings:
        assert await said_of(settings) == ""
        unknown = settings.model_copy(update={"ca_file": str(old.ca_file)})
        assert "authority that is not known here: see backends.registry.ca_file" in await said_of(unknown)
        assert "authority that is not known here" in await said_of(settings.model_copy(update={"ca_file": ""}))
        assert await said_of(unknown.model_copy(update={"insecure": True})) == ""
        missing = settings.model_copy(update={"ca_file": str(tmp_path / "none.pem")})
        assert await said_of(missing) == "the registry's ca_file cannot be read: No such file or directory"
        plain = settings.model_copy(update={"url": settings.url.replace("https:", "http:")})
        assert "wants TLS: is it https:// ?" in await said_of(plain)
        builder = BuildahBuilder(tmp_path / "buildah", unknown, BuildSettings())
        said = bytearray()
        with pytest.raises(AshoreError, match="cannot be fetched"):
            await builder.build(Place(unknown, None).order("unknown"), said.extend)
        assert b"certificate" in said
    with registries.served(folders[1], data=data, authority=old) as settings:
        assert await said_of(settings) == "the image registry's certificate has expired: it must be renewed"
    with registries.served(folders[2], data=data, authority=other) as settings:
        assert "certificate is for another name" in await said_of(settings)
    with registries.served(folders[2], data=data) as settings:
        secure = settings.model_copy(update={"url": settings.url.replace("http:", "https:"), "insecure": False})
        assert "speaks no TLS: is it http:// ?" in await said_of(secure)
    assert await said_of(settings) == "the image registry does not answer"


# ---- token services ----------------------------------------------------------------------------------------------
@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    tokens = Tokens(tmp_path / "tokens")
    yield tokens
    tokens.stop()


async def test_a_token_that_ends_in_the_middle_of_a_push_is_followed_by_another(
    data: Path, tmp_path: Path, tokens: Tokens
) -> None:
    """A layer takes longer than its token holds: what closes it needs a new one, and nothing is sent twice."""
    tokens.seconds = 2
    content = os.urandom(200_000)

    async def slowly() -> AsyncIterator[bytes]:
        async for piece in pieces(content):
            await asyncio.sleep(4 / 200)
            yield piece

    with registries.served(tmp_path, data=data, tokens=tokens) as settings:
        registry = Registry(settings)
        async with registry.upload("w/i/slow") as upload:
            await upload.send(slowly())
            await upload.finish(digest_of(content))
        assert await registry.has_blob("w/i/slow", digest_of(content))
        await registry.close()
    assert len(tokens.asked) >= 3


async def test_a_token_is_used_as_long_as_it_holds(data: Path, tmp_path: Path, tokens: Tokens) -> None:
    with registries.served(tmp_path, data=data, tokens=tokens) as settings:
        registry = Registry(settings)
        await put_image(registry, "w/i/one")
        await put_image(registry, "w/i/one", "v2")
        assert tokens.asked == [["repository:w/i/one:pull,push,delete"]]
        await registry.tags("w/i/two")
        await registry.repositories()
        assert tokens.asked[1:] == [["repository:w/i/two:pull,push,delete"], ["registry:catalog:*"]]
        await registry.close()


async def test_a_token_that_is_taken_no_more_is_asked_for_again(data: Path, tmp_path: Path, tokens: Tokens) -> None:
    """As when a service has got new keys, or more rights were given: the registry says what it wants, and gets it."""
    with registries.served(tmp_path, data=data, tokens=tokens) as settings:
        registry = Registry(settings)
        tokens.allowed = {"pull", "push"}
        digest = await put_image(registry, "w/i/one")
        with pytest.raises(Unavailable, match="does not let the user of the settings do this"):
            await registry.delete_manifest("w/i/one", digest)
        assert tokens.asked[-1] == ["repository:w/i/one:pull,push,delete", "repository:w/i/one:delete"]
        tokens.allowed |= {"delete"}
        await registry.delete_manifest("w/i/one", digest)
        assert await registry.tags("w/i/one") == []
        await registry.close()


async def test_a_service_that_may_not_be_trusted_with_the_password_gets_none(tmp_path: Path) -> None:
    """A registry with TLS that sends us to a service without: everybody on the way could read it."""
    tokens = Tokens(tmp_path / "tokens")
    authority = Authority.made_in(tmp_path)
    with registries.served(tmp_path, authority=authority, tokens=tokens) as settings:
        assert "a place without TLS, which is refused" in await said_of(settings)
    tokens.stop()
    assert tokens.asked == []


async def test_an_upload_does_not_go_on_without_tls(tmp_path: Path) -> None:
    """A proxy before it ends TLS, and tells it nothing of that: it names its own address as it sees it."""
    authority = Authority.made_in(tmp_path)
    with registries.served(tmp_path, authority=authority, behind="http") as settings:
        registry = Registry(settings)
        await registry.check()
        with pytest.raises(Unavailable, match="to its address without TLS, which is refused"):
            await put_image(registry, "w/i/model")
        await registry.close()
    with registries.served(tmp_path, authority=authority, behind="https") as settings:
        registry = Registry(settings)
        assert await put_image(registry, "w/i/model")
        await registry.close()
