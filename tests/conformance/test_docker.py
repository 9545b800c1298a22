"""What only Docker has: networks, images without a shell, an engine that is away."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from backends.compute.contract import State, WorkloadSpec
from backends.compute.docker.driver import DockerCompute
from backends.settings import DockerSettings
from storage.errors import BadInput, Unavailable
from tests.conformance.conftest import KITS, docker, run


async def test_docker_networks_come_and_go_with_their_workspace(tmp_path: Path, guest: Path) -> None:
    """One per workspace; gone with its last container; made anew, also by hand, it takes its containers back."""
    kit = KITS["docker"](tmp_path, guest, [])
    spec = kit.spec()
    network = f"ashore-{spec.workspace}"
    first = await kit.compute.create(spec, print)
    second = await kit.compute.create(kit.spec(workspace=spec.workspace), print)
    try:
        await kit.compute.start(first, spec, print)
        await kit.compute.delete(second)
        assert network in docker("network", "ls", "--format", "{{.Name}}").split()
        await kit.compute.stop(first, grace=1)
        docker("network", "rm", network)
        await kit.compute.start(first, WorkloadSpec(**{**spec.__dict__, "workspace": "renamed"}), print)
        assert await run(kit.compute, first, "exit 4") == (4, b"")
    finally:
        await kit.compute.delete(first)
        await kit.compute.delete(second)
        await kit.compute.close()
    names = docker("network", "ls", "--format", "{{.Name}}").split()
    assert network not in names
    assert "ashore-renamed" not in names


async def test_docker_refuses_an_image_without_a_shell(tmp_path: Path, guest: Path) -> None:
    image = f"ashore-test-{tmp_path.name[-1]}-empty"
    subprocess.run(["docker", "import", "-", image], input=_empty_tar(), check=True, capture_output=True)
    kit = KITS["docker"](tmp_path, guest, [])
    spec = kit.spec(image=image)
    handle = await kit.compute.create(spec, print)
    try:
        with pytest.raises(BadInput, match="no /bin/sh"):
            await kit.compute.start(handle, spec, print)
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()
        docker("rmi", "-f", image)
    assert not kit.leftovers(spec.id)


async def test_docker_that_is_away(tmp_path: Path, guest: Path) -> None:
    compute = DockerCompute(guest, DockerSettings(socket=str(tmp_path / "none.sock")))
    try:
        assert (await compute.inspect("ashore-x")).state is State.UNKNOWN
        for question in (compute.found(), compute.check(), compute.open_pipe("ashore-x", ["true"], {})):
            with pytest.raises(Unavailable, match="the Docker engine does not answer"):
                await question
    finally:
        await compute.close()


def _empty_tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    return content.getvalue()
