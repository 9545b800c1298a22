"""The client of a registry and the embedded one: real `docker-registry`, real `skopeo`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backends.registry import DOCKER_MANIFEST, Registry, Unsupported
from backends.registry_child import EmbeddedRegistry
from backends.registry_login import auth_file, engine_auth
from backends.settings import RegistrySettings
from storage.errors import BadInput, NotFound, Unavailable


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[EmbeddedRegistry]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    yield child
    await child.close()


@pytest.fixture
async def settings(child: EmbeddedRegistry) -> RegistrySettings:
    return await child.start(RegistrySettings())


@pytest.fixture
async def registry(settings: RegistrySettings) -> AsyncIterator[Registry]:
    registry = Registry(settings)
    yield registry
    await registry.close()


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 1000):
        yield content[at : at + 1000]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def put(registry: Registry, repository: str, content: bytes) -> str:
    async with registry.upload(repository) as upload:
        await upload.send(pieces(content))
        await upload.finish(digest_of(content))
    return digest_of(content)


async def put_image(registry: Registry, repository: str, tag: str = "v1", layer: bytes = b"layer" * 5000) -> str:
    config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
    facts = {
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config),
            "digest": await put(registry, repository, config),
        },
        "layers": [
            {"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": len(layer),
             "digest": await put(registry, repository, layer)}
        ],
    }  # fmt: skip
    return await registry.put_manifest(repository, tag, json.dumps(facts).encode(), DOCKER_MANIFEST)


def blobs(tmp_path: Path) -> int:
    """Bytes of the blobs on the disk."""
    return sum(path.stat().st_size for path in (tmp_path / "registry/data").rglob("data") if path.is_file())


async def test_an_image_from_its_blobs_to_its_deletion(registry: Registry) -> None:
    layer = b"layer" * 5000
    assert not await registry.has_blob("w/i/model", digest_of(layer))
    digest = await put_image(registry, "w/i/model", layer=layer)
    assert await registry.has_blob("w/i/model", digest_of(layer))
    found = await registry.manifest("w/i/model", "v1")
    assert found.digest == digest == digest_of(found.body)
    assert await registry.blob("w/i/model", found.facts["config"]["digest"])
    assert await registry.repositories() == ["w/i/model"]
    assert await registry.tags("w/i/model") == ["v1"]
    await registry.delete_manifest("w/i/model", digest)
    await registry.delete_manifest("w/i/model", digest)
    with pytest.raises(NotFound):
        await registry.manifest("w/i/model", "v1")
    assert await registry.tags("w/i/nothing") == ()


async def test_a_wrong_digest_is_refused_and_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    async def send() -> None:
        async with registry.upload("w/i/model") as upload:
            await upload.send(pieces(b"something"))
            await upload.finish(digest_of(b"something else"))

    with pytest.raises(BadInput):
        await send()
    assert [path for path in (tmp_path / "registry/data").rglob("data") if path.is_file()] == []


async def test_a_manifest_needs_its_blobs(registry: Registry) -> None:
    missing = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": digest_of(b"x")}
    facts = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": missing, "layers": []}
    with pytest.raises((BadInput, NotFound)):
        await registry.put_manifest("w/i/model", "v1", json.dumps(facts).encode(), DOCKER_MANIFEST)


async def test_nobody_else_on_the_machine_reads_it(
    registry: Registry, settings: RegistrySettings, tmp_path: Path
) -> None:
    """Everybody shares loopback, people inside local sandboxes too. The port says nothing without the password."""
    await put_image(registry, "w/i/model")
    for path in ("/v2/", "/v2/_catalog", "/v2/w/i/model/tags/list", "/v2/w/i/model/manifests/v1"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(urllib.request.urlopen, settings.url + path)
        assert caught.value.code == 401
        caught.value.close()
    wrong = Registry(settings.model_copy(update={"password": settings.password.__class__("guess")}))
    with pytest.raises(Unavailable, match="user and password"):
        await wrong.check()
    await wrong.close()
    for name in ("htpasswd", "config.yml", "reading.yml", "registry.json"):
        assert stat.S_IMODE((tmp_path / "registry" / name).stat().st_mode) == 0o600
    secret = settings.password.get_secret_value()
    assert secret not in repr(settings)
    assert secret.encode() not in (tmp_path / "registry.log").read_bytes()
    assert secret not in (tmp_path / "registry/htpasswd").read_text()


async def test_two_installations_have_two_passwords(settings: RegistrySettings, tmp_path: Path) -> None:
    other = EmbeddedRegistry(tmp_path / "other", log=tmp_path / "other.log")
    found = await other.start(RegistrySettings())
    assert found.password != settings.password
    await other.close()


async def test_it_keeps_its_images_and_its_port(child: EmbeddedRegistry, tmp_path: Path) -> None:
    """Its password is another one: somebody may have taken the port while the gateway was down, and been sent it."""
    first = await child.start(RegistrySettings())
    client = Registry(first)
    digest = await put_image(client, "w/i/model")
    await client.close()
    await child.close()
    again = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    second = await again.start(RegistrySettings())
    assert second.url == first.url
    assert second.password != first.password
    client = Registry(second)
    assert (await client.manifest("w/i/model", "v1")).digest == digest
    await client.close()
    await again.close()


async def test_a_port_that_somebody_has_taken_is_left_to_them(child: EmbeddedRegistry, tmp_path: Path) -> None:
    first = await child.start(RegistrySettings())
    await child.close()
    with socket.create_server(("127.0.0.1", int(first.url.rpartition(":")[2]))):
        again = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
        second = await again.start(RegistrySettings())
        assert second.url != first.url
        await again.close()


def can_be_taken(port: int) -> bool:
    try:
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            thief.bind(("127.0.0.1", port))
            thief.listen()
    except OSError:
        return False
    return True


async def test_nobody_can_take_its_port_while_it_starts_again(
    registry: Registry, settings: RegistrySettings, tmp_path: Path
) -> None:
    """Any account could listen there, and would be sent the password with the next request. That one waits instead."""
    await put_image(registry, "w/i/model")
    os.kill(int((tmp_path / "registry/pid").read_text()), signal.SIGKILL)
    assert not can_be_taken(int(settings.url.rpartition(":")[2]))
    for _ in range(20):  # until it is found dead, and while nobody is there
        try:
            assert await registry.tags("w/i/model") == ["v1"]
        except Unavailable:  # a connection that was open already
            await asyncio.sleep(0.1)
    assert await registry.tags("w/i/model") == ["v1"]


async def test_it_is_read_while_it_is_collected_and_takes_nothing(
    child: EmbeddedRegistry, registry: Registry, settings: RegistrySettings, tmp_path: Path
) -> None:
    """A layer that were pushed then belongs to no image yet, and would be collected. Pushes wait at the gate."""
    kept = await put_image(registry, "w/i/kept", layer=os.urandom(200_000))
    for number in range(40):
        gone = await put_image(registry, f"w/i/gone{number}", layer=os.urandom(20_000))
        await registry.delete_manifest(f"w/i/gone{number}", gone)
    collecting = asyncio.create_task(child.collect())
    read, refused = 0, 0
    while not collecting.done():
        assert not can_be_taken(int(settings.url.rpartition(":")[2]))
        with contextlib.suppress(Unavailable):  # cut off while it starts again
            assert (await registry.manifest("w/i/kept", "v1")).digest == kept
            read += 1
        try:
            async with registry.upload("w/i/late"):
                pass
        except Unsupported:
            refused += 1
        except Unavailable:
            pass
    await collecting
    assert read
    assert refused
    assert blobs(tmp_path) < 250_000
    assert not child.has_garbage
    await put_image(registry, "w/i/late")


async def test_pushes_and_collections_keep_out_of_each_others_way(child: EmbeddedRegistry, registry: Registry) -> None:
    said: list[str] = []

    async def waits() -> None:
        said.append("waits")

    gone = await put_image(registry, "w/i/gone")
    await registry.delete_manifest("w/i/gone", gone)
    child.note_garbage()
    async with child.gate.pushing(waits):
        assert not await child.collect()
        assert child.has_garbage
    collecting = asyncio.create_task(child.collect())
    await asyncio.sleep(0)
    async with child.gate.pushing(waits):
        assert collecting.result()
        await put_image(registry, "w/i/later")
    assert said == ["waits"]
    assert not child.has_garbage


async def test_a_collector_that_a_crash_has_left_is_ended(child: EmbeddedRegistry, tmp_path: Path) -> None:
    """It would go on to remove what the next gateway's people push."""
    folder = tmp_path / "registry" / "collecting"
    folder.mkdir(parents=True)
    left = subprocess.Popen(["sh", "-c", "sleep 300; true", "garbage-collect"], cwd=folder, start_new_session=True)
    (folder / "pid").write_text(str(left.pid))
    while not Path(f"/proc/{left.pid}/cmdline").read_bytes():  # noqa: ASYNC110 - the kernel is about to fill it
        await asyncio.sleep(0.01)
    await child.start(RegistrySettings())
    assert await asyncio.to_thread(left.wait, 20) == -signal.SIGKILL


async def test_a_connection_that_says_nothing_keeps_nobody_out(registry: Registry, settings: RegistrySettings) -> None:
    port = int(settings.url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    await registry.check()
    for one in silent:
        one.close()


async def test_it_is_started_again_when_it_dies(registry: Registry, tmp_path: Path) -> None:
    os.kill(int((tmp_path / "registry/pid").read_text()), signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            try:
                await registry.check()
                break
            except Unavailable:
                await asyncio.sleep(0.1)


async def test_deleted_layers_give_their_space_back(
    child: EmbeddedRegistry, registry: Registry, tmp_path: Path
) -> None:
    """Also: what is pushed again afterwards is really stored again; a cache of blobs would think it is there."""
    layer = os.urandom(1_000_000)
    digest = await put_image(registry, "w/i/model", layer=layer)
    kept = await put_image(registry, "w/i/other", layer=b"kept" * 1000)
    await registry.delete_manifest("w/i/model", digest)
    await child.collect()
    assert blobs(tmp_path) < 500_000
    assert (await registry.manifest("w/i/other", "v1")).digest == kept
    assert not await registry.has_blob("w/i/model", digest_of(layer))
    assert await put_image(registry, "w/i/model", layer=layer) == digest
    assert blobs(tmp_path) > 1_000_000


async def test_what_was_cut_off_gives_its_space_back(
    registry: Registry, child: EmbeddedRegistry, tmp_path: Path
) -> None:
    """The registry does not know how much it has then, refuses to give it up, and would keep it for a day."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(3 << 20)
        raise BadInput("hung up")

    with pytest.raises(Unavailable):
        async with registry.upload("w/i/model") as upload:
            await upload.send(broken())
    assert await _eventually(lambda: blobs(tmp_path) > 0)  # it may have hung up before all of it had come
    await child.collect()
    assert blobs(tmp_path) == 0


async def test_a_collector_that_fails_gives_nothing_back(
    child: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program, path = tmp_path / "docker-registry", os.environ["PATH"]
    program.write_text('#!/bin/sh\n[ "$1" = serve ] && exec docker-registry "$@"\nexit 3\n')
    program.chmod(0o755)
    await child.close()
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    await child.start(RegistrySettings())
    child.note_garbage()
    assert not await child.collect()
    assert "its collector ended with status 3" in caplog.text


async def _eventually(holds: Callable[[], bool]) -> bool:
    for _ in range(600):
        if holds():
            return True
        await asyncio.sleep(0.05)
    return False


async def test_without_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    assert await child.start(RegistrySettings()) == RegistrySettings()
    assert "package docker-registry" in caplog.text
    assert not await child.collect()
    await child.close()


async def test_skopeo_takes_our_auth_file(registry: Registry, settings: RegistrySettings, tmp_path: Path) -> None:
    await put_image(registry, "w/i/model")
    file = tmp_path / "auth.json"
    file.write_text(auth_file(settings))
    host = settings.url.removeprefix("http://")
    process = await asyncio.create_subprocess_exec(
        "skopeo", "inspect", "--raw", "--tls-verify=false", "--authfile", str(file), f"docker://{host}/w/i/model:v1",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(output)["schemaVersion"] == 2
    assert engine_auth(RegistrySettings()) == ""
    assert settings.password.get_secret_value() not in engine_auth(settings)


async def test_who_is_cancelled_while_it_is_collected_ends(child: EmbeddedRegistry, registry: Registry) -> None:
    """At any moment: a cancellation that got lost in the end of a process kept the gateway from stopping."""
    for moment in (0.0, 0.01, 0.05, 0.1, 0.2, 0.4):
        collecting = asyncio.create_task(child.collect())
        await asyncio.sleep(moment)
        is_cut_off = collecting.cancel()
        (ended,) = await asyncio.gather(collecting, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError) or not is_cut_off
        await put_image(registry, "w/i/model", layer=os.urandom(1000))
