"""What Podman does otherwise than Docker, behind the socket that looks like Docker's."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.compute.contract import RegistryAway
from backends.compute.docker.driver import DockerCompute
from backends.compute.docker.engine import Engine
from backends.compute.docker.lines import UnixLine
from backends.settings import BackendSettings
from storage.errors import Unavailable
from tests.conformance.conftest import podman_kit, run
from tests.conformance.docker_hosts import Sshd
from tests.conformance.podman import Podman


async def test_it_says_that_it_is_podman(podman: Podman, guest: Path) -> None:
    kit = podman_kit(podman, guest, [])
    try:
        assert (await kit.compute.check()).startswith("Podman ")
    finally:
        await kit.compute.close()


async def test_it_gives_no_gpus(podman: Podman, guest: Path) -> None:
    """It takes what Docker's API says of devices without a word and starts the container without them."""
    kit = podman_kit(podman, guest, [])
    spec = kit.spec(gpus=("GPU-00000000-0000-0000-0000-000000000000",))
    try:
        assert isinstance(kit.compute, DockerCompute)
        assert list(await kit.compute.gpus()) == []
        with pytest.raises(Unavailable, match="Podman, which gives no GPUs"):
            await kit.compute.create(spec, print)
    finally:
        await kit.compute.close()
    assert not kit.leftovers(spec.id)


async def test_networks_come_and_go_with_their_workspace(podman: Podman, guest: Path) -> None:
    """Podman answers with status 500 that a network is there already, or still used; but not when asked by its id."""
    kit = podman_kit(podman, guest, [])
    engine = Engine(UnixLine(str(podman.socket)))
    spec = kit.spec()
    network = f"ashore-{spec.workspace}"
    first = await kit.compute.create(spec, print)
    second = await kit.compute.create(kit.spec(workspace=spec.workspace), print)
    try:
        await kit.compute.start(first, spec, print)
        await engine.delete_network(network)
        await kit.compute.delete(second)
        assert network in podman.run("network", "ls", "--format", "{{.Name}}").split()
    finally:
        await kit.compute.delete(first)
        await kit.compute.delete(second)
        await kit.compute.close()
        await engine.close()
    assert network not in podman.run("network", "ls", "--format", "{{.Name}}").split()


async def test_limits_hold(podman: Podman, guest: Path) -> None:
    kit = podman_kit(podman, guest, [])
    spec = kit.spec(cpus=0.5, memory=256 << 20)
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        asked = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}"
        words = podman.run("inspect", "--format", asked, handle).split()
        assert words == [str(256 << 20), "500000000", str(BackendSettings().docker.pids_limit)]
        assert await run(kit.compute, handle, "cat /proc/1/comm") == (0, b"podman-init\n")
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()


async def test_by_way_of_ssh(podman: Podman, guest: Path, tmp_path: Path) -> None:
    """On another machine: the guest comes as an archive into a volume, through a container that never ran."""
    sshd = Sshd(tmp_path / "sshd")
    host = sshd.host()
    host = host.model_copy(update={"url": f"{host.url}{podman.socket}"})
    compute = DockerCompute(guest, BackendSettings().docker, host)
    kit = podman_kit(podman, guest, [])
    spec = kit.spec()
    try:
        handle = await compute.create(spec, print)
        await compute.start(handle, spec, print)
        assert await run(compute, handle, "cat; test -x /opt/ashore/guest/sshd || echo none", b"x") == (
            0, b"x",
        )  # fmt: skip
        assert (await run(compute, handle, "touch /opt/ashore/guest/x 2>/dev/null"))[0] != 0
        await compute.delete(handle)
    finally:
        await compute.close()
        await kit.compute.close()
        podman.run("volume", "rm", "-f", f"ashore-guest-{guest.name}")
        sshd.stop()
    assert not kit.leftovers(spec.id)


async def test_a_registry_that_is_away(podman: Podman, guest: Path) -> None:
    kit = podman_kit(podman, guest, [])
    spec = kit.spec(image="localhost:1/lab/base:1")
    try:
        with pytest.raises(RegistryAway, match="the registry localhost:1 does not answer, so 'localhost:1/lab/base:1'"):
            await kit.compute.create(spec, print)
    finally:
        await kit.compute.close()
    assert not kit.leftovers(spec.id)
