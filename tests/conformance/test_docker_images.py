"""Images of the house on a real engine: pulled with a login that stays nowhere, by digest, and by nobody else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.compute.docker.driver import DockerCompute
from backends.registry import Registry
from backends.registry_child import EmbeddedRegistry
from backends.registry_login import auth_file, engine_auth
from backends.settings import RegistrySettings
from storage.errors import BadInput, Unavailable
from tests.conformance.conftest import IMAGE, KITS, docker, run

REPOSITORY = "w/i/model"


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[RegistrySettings]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    yield await child.start(RegistrySettings())
    await child.close()


@pytest.fixture
async def reference(settings: RegistrySettings, tmp_path: Path) -> AsyncIterator[str]:
    """An image in the registry, by its digest; the engine does not have it."""
    file = tmp_path / "auth.json"
    file.write_text(auth_file(settings))
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-authfile", str(file)]
    command += [f"docker-daemon:{IMAGE}", f"docker://{settings.prefix}{REPOSITORY}:v1"]
    # Not on the loop: the registry's port is served by it.
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    registry = Registry(settings)
    digest = (await registry.manifest(REPOSITORY, "v1")).digest
    await registry.close()
    reference = f"{settings.prefix}{REPOSITORY}@{digest}"
    yield reference
    subprocess.run(["docker", "rmi", "-f", reference], check=False, capture_output=True)


async def test_docker_pulls_with_the_login_of_this_pull(
    tmp_path: Path, guest: Path, settings: RegistrySettings, reference: str
) -> None:
    """The first pull without it fails. A later one would not: the engine keeps manifests that it has seen and asks
    nobody, which is why the catalogue takes no references of our own registry.
    """
    kit = KITS["docker"](tmp_path, guest, [])
    said: list[str] = []
    without = kit.spec(image=reference, image_title="model:v1")
    with pytest.raises(BadInput, match="no image 'model:v1' here") as caught:
        await kit.compute.create(without, said.append)
    assert settings.prefix not in caught.value.message.partition("(")[0]
    spec = kit.spec(image=reference, image_title="model:v1", image_auth=engine_auth(settings))
    assert settings.password.get_secret_value() not in repr(spec)
    assert engine_auth(settings) not in repr(spec)
    handle = await kit.compute.create(spec, said.append)
    try:
        await kit.compute.start(handle, spec, said.append)
        assert await run(kit.compute, handle, "exit 7") == (7, b"")
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()
    assert any(line.startswith("pulling model:v1") for line in said)
    assert not any(settings.prefix in line for line in said)
    for file in ("/root/.docker/config.json", "/var/lib/docker/config.json"):
        path = Path(file)
        assert not path.exists() or settings.prefix.rstrip("/") not in path.read_text()


async def test_an_image_is_brought_to_a_host_beforehand(
    tmp_path: Path, guest: Path, settings: RegistrySettings, reference: str
) -> None:
    kit = KITS["docker"](tmp_path, guest, [])
    compute = kit.compute
    assert isinstance(compute, DockerCompute)
    assert compute.is_here
    spec = kit.spec(image=reference, image_auth=engine_auth(settings))
    assert await compute.lacks_image(spec)
    await compute.bring_image(spec, print)
    await compute.bring_image(spec, print)
    assert not await compute.lacks_image(spec)
    await compute.drop_image(reference)
    assert await compute.pull_image(reference, "model:v1", engine_auth(settings), print)
    assert not await compute.pull_image(reference, "model:v1", engine_auth(settings), print)
    assert docker("image", "inspect", "--format", "{{.Id}}", reference).startswith("sha256:")
    await compute.drop_image(reference)
    await compute.drop_image(reference)
    assert subprocess.run(["docker", "image", "inspect", reference], check=False, capture_output=True).returncode == 1
    with pytest.raises(BadInput, match="no image 'nothing'"):
        await compute.pull_image(f"{settings.prefix}w/i/nothing:v1", "nothing", engine_auth(settings), print)
    await compute.close()


async def test_an_image_that_is_there_needs_no_registry(tmp_path: Path, guest: Path) -> None:
    """Environments run from it already. What is not there gets the name of the registry that did not answer."""
    compute = KITS["docker"](tmp_path, guest, []).compute
    assert isinstance(compute, DockerCompute)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    name = f"{host}/lab/base:1"
    try:
        with pytest.raises(Unavailable) as caught:
            await compute.pull_image(name, "base", "", print)
        assert caught.value.message == f"the registry {host} does not answer, so 'base' cannot be fetched"
        docker("tag", IMAGE, name)
        assert not await compute.pull_image(name, "base", "", print)
    finally:
        subprocess.run(["docker", "rmi", name], check=False, capture_output=True)
        await compute.close()
