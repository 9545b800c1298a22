"""What only Docker has: networks, images without a shell, an engine that is away."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from backends.compute.contract import Compute, State, WorkloadSpec
from backends.compute.docker.driver import DockerCompute
from backends.compute.docker.engine import Engine
from backends.compute.docker.lines import UnixLine
from backends.gpu_probe import SMI_SCRIPT
from backends.settings import DockerSettings
from storage.errors import BadInput, NotFound, Unavailable
from tests.conformance.conftest import IMAGE, KITS, docker, run
from tests.conformance.docker_hosts import ENGINE


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


async def test_docker_networks_of_the_same_name_become_one(tmp_path: Path, guest: Path) -> None:
    """Two gateways that make it at the same moment make it twice, and Docker then starts nothing on either."""
    kit = KITS["docker"](tmp_path, guest, [])
    spec = kit.spec()
    network = f"ashore-{spec.workspace}"
    body = json.dumps({"Name": network, "Labels": {"ashore.workspace": spec.workspace}})
    for _ in range(2):
        words = ["-H", "Content-Type: application/json", "-d", body, "http://d/v1.41/networks/create"]
        subprocess.run(["curl", "-sf", "--unix-socket", ENGINE, *words], check=True, capture_output=True, timeout=30)
    listing = ("network", "ls", "--no-trunc", "--filter", f"name={network}", "--format", "{{.ID}}")
    assert len(docker(*listing).split()) == 2
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        assert len(docker(*listing).split()) == 1
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()
    assert docker(*listing) == ""


async def test_docker_gateways_that_start_at_once_share_a_network(tmp_path: Path, guest: Path) -> None:
    kit = KITS["docker"](tmp_path, guest, [])
    computes = [kit.compute, *(kit.again() for _ in range(3))]
    specs = [kit.spec() for _ in computes]
    specs = [replace(spec, workspace=specs[0].workspace) for spec in specs]

    async def life(compute: Compute, spec: WorkloadSpec) -> None:
        handle = await compute.create(spec, print)
        await compute.start(handle, spec, print)

    try:
        await asyncio.gather(*map(life, computes, specs))
        shown = docker("network", "ls", "--filter", f"name=ashore-{specs[0].workspace}", "--format", "{{.Name}}")
        assert shown.split() == [f"ashore-{specs[0].workspace}"]
    finally:
        for compute, spec in zip(computes, specs, strict=True):
            await compute.delete(f"ashore-{spec.id}")
            await compute.close()


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


async def test_docker_makes_a_container_anew_when_it_gets_other_gpus(tmp_path: Path, guest: Path) -> None:
    """A container's devices are fixed. The home stays; without NVIDIA's toolkit the start says what is lacking."""
    kit = KITS["docker"](tmp_path, guest, [])
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        assert await run(kit.compute, handle, f"echo kept > {kit.home}/mine") == (0, b"")
        assert await run(kit.compute, handle, "echo $NVIDIA_VISIBLE_DEVICES") == (0, b"void\n")
        await kit.compute.stop(handle, grace=1)
        other = replace(spec, gpus=("GPU-00000000-0000-0000-0000-000000000000",))
        assert await kit.compute.create(other, print) == handle
        first = docker("inspect", "--format", "{{.Id}} {{json .HostConfig.DeviceRequests}}", handle)
        assert "GPU-00000000" in first
        assert await kit.compute.create(other, print) == handle
        assert docker("inspect", "--format", "{{.Id}}", handle).strip() in first
        with pytest.raises(Unavailable, match="gives no GPUs: it needs the NVIDIA Container Toolkit"):
            await kit.compute.start(handle, other, print)
        assert await kit.compute.create(spec, print) == handle
        await kit.compute.start(handle, spec, print)
        assert await run(kit.compute, handle, f"cat {kit.home}/mine") == (0, b"kept\n")
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()
    assert not kit.leftovers(spec.id)


async def test_docker_asks_for_gpus(tmp_path: Path, guest: Path) -> None:
    """On this machine by NVML, elsewhere by a container, and there only if the engine has NVIDIA's runtime."""
    for name in ("docker", "docker-ssh"):
        kit = KITS[name](tmp_path / name, guest, [])
        try:
            assert isinstance(kit.compute, DockerCompute)
            assert list(await kit.compute.gpus()) == []
            assert list(await kit.compute.gpu_loads()) == []
            assert await kit.compute.driver() is None
        finally:
            await kit.compute.close()
            kit.end()


async def test_docker_tells_the_variables_of_an_image(tmp_path: Path, guest: Path) -> None:
    """Of one that is there; nothing is pulled to answer that."""
    compute = DockerCompute(guest, DockerSettings())
    name = f"ashore-test-cuda:{secrets.token_hex(4)}"
    container = docker("create", IMAGE, "true").strip()
    try:
        docker("commit", "--change", "ENV CUDA_VERSION=12.4.1", container, name)
        assert "CUDA_VERSION=12.4.1" in await compute.image_variables(name)
        assert await compute.image_variables("nobody/has:this") == []
    finally:
        docker("rm", container)
        docker("rmi", name)
        await compute.close()


async def test_docker_runs_a_container_once(tmp_path: Path) -> None:
    """As for `nvidia-smi`; nothing of it stays, also when it fails."""
    engine = Engine(UnixLine("/var/run/docker.sock"))
    body = {"Image": IMAGE, "Labels": {"ashore.probe": tmp_path.name}, "HostConfig": {"NetworkMode": "none"}}
    try:
        said = await engine.run_once({**body, "Entrypoint": ["/bin/sh", "-c", "echo GPU 0; echo --"], "Cmd": []})
        assert said == "GPU 0\n--\n"
        with pytest.raises(Unavailable, match="nvidia-smi: not found"):
            await engine.run_once({**body, "Entrypoint": ["/bin/sh", "-c", SMI_SCRIPT], "Cmd": []})
    finally:
        await engine.close()
    assert docker("ps", "-aq", "--filter", f"label=ashore.probe={tmp_path.name}") == ""


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


async def test_docker_output_outlives_the_container(tmp_path: Path, guest: Path) -> None:
    """The home is a volume: what is in it can be read although somebody has removed the container."""
    kit = KITS["docker"](tmp_path, guest, [])
    assert isinstance(kit.compute, DockerCompute)
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        assert await run(kit.compute, handle, "echo precious > /gemini/output/file") == (0, b"")
        docker("rm", "-f", handle)
        packed = io.BytesIO(b"".join([piece async for piece in kit.compute.output(handle)]))
        with tarfile.open(fileobj=packed) as archive:
            (name,) = [name for name in archive.getnames() if name.endswith("file")]
            content = archive.extractfile(name)
            assert content is not None
            assert content.read() == b"precious\n"
        assert not docker("ps", "-aq", "--filter", f"label=ashore.reader={spec.id}")
    finally:
        await kit.compute.delete(handle)
    assert not kit.leftovers(spec.id)
    with pytest.raises(NotFound):
        await anext(kit.compute.output(handle))
    await kit.compute.close()
