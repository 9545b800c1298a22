"""Images of a registry that is on this machine only, brought to engines as if they were on others: real Docker and real
Podman, real `docker-registry`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import pytest

from backends.compute.docker.driver import DockerCompute
from backends.image_archive import ImageArchive
from backends.image_loads import ImageLoads
from backends.image_names import loaded_name
from backends.registry import DOCKER_MANIFEST, Manifest, Registry
from backends.settings import DockerHostSettings, DockerSettings, RegistrySettings
from storage.errors import BadInput, NotFound, Unavailable
from tests.backends.test_image_registry import put_image
from tests.conformance import registries
from tests.conformance.docker_hosts import ENGINE, Sshd
from tests.conformance.podman import Podman

REPOSITORY, PUSHED = "w/i/model", "base/loads"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistrySettings]:
    with registries.served(tmp_path_factory.mktemp("registry")) as settings:
        yield settings


@pytest.fixture
async def registry(settings: RegistrySettings) -> AsyncIterator[Registry]:
    registry = Registry(settings)
    yield registry
    await registry.close()


@pytest.fixture(scope="session")
def pushed(settings: RegistrySettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image in the registry, with packed layers as builders push them."""
    registries.make_tiny("loads-base:v1")
    text = f"FROM loads-base:v1\nRUN echo {os.urandom(8).hex()} > /mark\nRUN echo two > /two\n"
    subprocess.run(["docker", "build", "-q", "-t", "loads:v1", "-"], input=text.encode(), check=True)
    try:
        registries.push_base(settings, tmp_path_factory.mktemp("push"), "loads:v1")
    finally:
        _run("docker", "rmi", "loads:v1", "loads-base:v1")
    return PUSHED


@pytest.fixture
async def reference(settings: RegistrySettings, registry: Registry, pushed: str) -> str:
    return f"{settings.prefix}{pushed}@{(await registry.manifest(pushed, 'v1')).digest}"


@pytest.fixture
async def far(tmp_path: Path, guest: Path) -> AsyncIterator[DockerCompute]:
    """The engine of this machine, behind an SSH server."""
    sshd = Sshd(tmp_path / "sshd")
    compute = DockerCompute(guest, DockerSettings(), sshd.host(), name="docker/far")
    yield compute
    await compute.close()
    sshd.stop()


async def test_an_engine_elsewhere_is_brought_what_it_cannot_pull(
    far: DockerCompute, registry: Registry, reference: str
) -> None:
    loads, said = ImageLoads(registry), list[str]()
    name = loaded_name(reference)
    assert loads.is_needed(far, reference)
    assert loads.name_there(far, reference) == name
    config = (await registry.manifest(PUSHED, "v1")).facts["config"]["digest"]
    try:
        await loads.bring(far, reference, "model:v1", said.append)
        assert await far.image_id(name) == config
        assert _run("docker", "run", "--rm", name, "sh", "-c", "read x < /two; echo $x") == "two\n"
        assert any(line.startswith("loading model:v1 ") and line.endswith(" %") for line in said)
        said.clear()
        await loads.bring(far, reference, "model:v1", said.append)
        assert said == []
    finally:
        await far.drop_image(name)
    assert await far.image_id(name) == ""


async def test_two_that_want_it_at_once_bring_it_once(far: DockerCompute, registry: Registry, reference: str) -> None:
    loads, lines = ImageLoads(registry), list[list[str]]()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                lines.append([])
                group.create_task(loads.bring(far, reference, "model:v1", lines[-1].append))
    finally:
        await far.drop_image(loaded_name(reference))
    assert sum(any(line.endswith("%") for line in one) for one in lines) == 1
    assert sum(one == ["loading model:v1: somebody else's environment has begun with it"] for one in lines) == 2


async def test_one_that_was_given_up_leaves_nothing_and_begins_anew(
    far: DockerCompute, registry: Registry, reference: str
) -> None:
    loads, begun = ImageLoads(registry), asyncio.Event()
    task = asyncio.create_task(loads.bring(far, reference, "model:v1", lambda line: begun.set()))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await far.image_id(loaded_name(reference)) == ""
    try:
        await loads.bring(far, reference, "model:v1", print)
        assert await far.image_id(loaded_name(reference))
    finally:
        await far.drop_image(loaded_name(reference))


async def test_what_is_here_already_needs_no_registry(far: DockerCompute, registry: Registry, reference: str) -> None:
    """An environment must start again although the registry is away. One that never came needs it."""
    loads = ImageLoads(registry)
    away = Registry(RegistrySettings(url="http://127.0.0.1:1"))
    elsewhere = reference.replace(reference.partition("/")[0], "127.0.0.1:1")
    try:
        await loads.bring(far, reference, "model:v1", print)
        await ImageLoads(away).bring(far, elsewhere, "model:v1", print)
    finally:
        await far.drop_image(loaded_name(reference))
    with pytest.raises(Unavailable, match="the image registry does not answer"):
        await ImageLoads(away).bring(far, elsewhere, "model:v1", print)
    await away.close()


async def test_podman_takes_the_same_archive(registry: Registry, reference: str, guest: Path) -> None:
    podman = Podman()
    compute = DockerCompute(guest, DockerSettings(), DockerHostSettings(url=podman.url), name="docker/podman")
    name = loaded_name(reference)
    archive = await ImageArchive.of(registry, PUSHED, reference.partition("@")[2], name)
    try:
        await compute.load_image(archive.pieces(), "model:v1")
        assert await compute.image_id(name) in archive.ids
        assert (
            podman.run("run", "--rm", "--network=none", "--pull=never", name, "sh", "-c", "read x < /two; echo $x")
            == "two\n"
        )
        await compute.drop_image(name)
        assert await compute.image_id(name) == ""
    finally:
        await compute.close()
        podman.stop()


async def test_it_knows_whom_the_registry_reaches(
    far: DockerCompute, guest: Path, registry: Registry, settings: RegistrySettings
) -> None:
    prefix = settings.prefix
    here = DockerCompute(guest, DockerSettings(), DockerHostSettings(url=f"unix://{ENGINE}"), name="docker/here")
    everywhere = Registry(RegistrySettings(url="https://registry.example"))
    digest = f"sha256:{'1' * 64}"
    assert ImageLoads(registry).is_needed(far, f"{prefix}w/i/model@{digest}")
    assert not ImageLoads(registry).is_needed(here, f"{prefix}w/i/model@{digest}")
    assert not ImageLoads(registry).is_needed(far, "docker.io/library/debian:bookworm")
    assert not ImageLoads(None).is_needed(far, f"{prefix}w/i/model@{digest}")
    assert not ImageLoads(everywhere).is_needed(far, f"registry.example/w/i/model@{digest}")
    await here.close()
    await everywhere.close()


async def test_no_engine_elsewhere_is_told_the_login_of_a_registry_here(
    far: DockerCompute, guest: Path, registry: Registry, settings: RegistrySettings
) -> None:
    """On its machine somebody else listens at 127.0.0.1:5000, if anybody does, and would be sent the password. Official
    images are in a project beside that of the house, so they are not brought there."""
    here = DockerCompute(guest, DockerSettings(), DockerHostSettings(url=f"unix://{ENGINE}"), name="docker/here")
    both = settings.model_copy(update={"project": "house", "official_from": ("library",)})
    beside, digest = Registry(both), f"sha256:{'1' * 64}"
    loads, official = ImageLoads(beside), f"{both.official['library']}debian@{digest}"
    assert loads.login_there(here, official, "secret") == "secret"
    assert loads.login_there(far, f"{both.prefix}w/i/model@{digest}", "secret") == ""
    assert loads.login_there(far, "docker.io/library/debian:bookworm", "") == ""
    with pytest.raises(BadInput, match="a registry that only the gateway's own machine reaches"):
        loads.login_there(far, official, "secret")
    everywhere = Registry(RegistrySettings(url="https://registry.example"))
    assert ImageLoads(everywhere).login_there(far, f"registry.example/w/i/model@{digest}", "secret") == "secret"
    await here.close()
    await beside.close()
    await everywhere.close()


async def test_a_layer_that_is_not_what_the_configuration_says_is_not_taken(
    far: DockerCompute, registry: Registry, settings: RegistrySettings
) -> None:
    """Somebody has changed a file of the registry, or a disk has. The engine finds out; nothing of it stays there."""
    digest = await put_image(registry, REPOSITORY, "bad", layer=b"something else" * 100)
    reference = f"{settings.prefix}{REPOSITORY}@{digest}"
    with pytest.raises((BadInput, Unavailable)):
        await ImageLoads(registry).bring(far, reference, "model:bad", print)
    assert await far.image_id(loaded_name(reference)) == ""


async def test_a_manifest_that_is_not_the_pinned_one_is_not_taken(registry: Registry) -> None:
    digest = await put_image(registry, REPOSITORY)
    found = await registry.manifest(REPOSITORY, digest)

    class Other(Registry):
        async def manifest(self, repository: str, reference: str) -> Manifest:
            return Manifest(found.body + b" ", found.media_type, digest)

    with pytest.raises(BadInput, match="damaged"):
        await ImageArchive.of(Other(RegistrySettings()), REPOSITORY, digest, "x")
    with pytest.raises(NotFound):
        await ImageArchive.of(registry, REPOSITORY, f"sha256:{'0' * 64}", "x")


async def test_an_image_for_several_machines_is_refused(registry: Registry) -> None:
    one = await registry.manifest(REPOSITORY, await put_image(registry, REPOSITORY))
    facts = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [{
            "mediaType": DOCKER_MANIFEST, "digest": one.digest, "size": len(one.body),
            "platform": {"architecture": "amd64", "os": "linux"},
        }],
    }  # fmt: skip
    digest = await registry.put_manifest(REPOSITORY, "many", json.dumps(facts).encode(), str(facts["mediaType"]))
    with pytest.raises(BadInput, match="for several machines"):
        await ImageArchive.of(registry, REPOSITORY, digest, "x")


async def test_a_registry_that_ends_in_the_middle_is_no_whole_image(registry: Registry) -> None:
    """Also: a layer that two lines of the manifest name is sent once, as an archive has each file once."""
    layer = os.urandom(100_000)
    digest = await put_image(registry, REPOSITORY, layer=layer)

    class Short(Registry):
        async def blob_pieces(self, repository: str, digest: str) -> AsyncGenerator[bytes]:
            yield layer[:50_000]

    found = await registry.manifest(REPOSITORY, digest)
    config = await registry.blob(REPOSITORY, found.facts["config"]["digest"])
    short = ImageArchive(Short(RegistrySettings()), REPOSITORY, found, config, "x")
    with pytest.raises(Unavailable, match="damaged"):
        async for _ in short.pieces():
            pass
    twice = {**found.facts, "layers": [*found.facts["layers"], *found.facts["layers"]]}
    doubled = ImageArchive(registry, REPOSITORY, Manifest(json.dumps(twice).encode(), "", ""), config, "x")
    assert doubled.size == 100_000
    assert sum([len(piece) async for piece in doubled.pieces()]) < 150_000


async def test_memory_is_bounded_by_what_the_engine_takes(registry: Registry) -> None:
    """Nobody reads: so nothing more is read from the registry than fits between the two."""
    layer = os.urandom(32_000_000)
    digest = await put_image(registry, REPOSITORY, layer=layer)
    archive = await ImageArchive.of(registry, REPOSITORY, digest, "x")
    pieces, sizes = archive.pieces(), []
    async for piece in pieces:
        sizes.append(len(piece))
        if sum(sizes) > 1_000_000:
            break
    await asyncio.sleep(0.5)
    await pieces.aclose()
    assert max(sizes) <= 1024 * 1024


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
