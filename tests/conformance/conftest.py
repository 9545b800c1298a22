"""Every compute that this machine must be able to run, each with the few things that only its engine can tell."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backends import guest_tree
from backends.compute.contract import Compute, Pipe, WorkloadSpec
from backends.compute.docker.driver import DockerCompute
from backends.compute.local import LocalCompute
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.compute.ssh.driver import MachineCompute
from backends.settings import BackendSettings, DockerHostSettings, MachineSettings
from tests import machines
from tests.conformance.docker_hosts import ENGINE, Sshd
from tests.conformance.podman import Podman

IMAGE = "debian:bookworm"


@dataclass
class Kit:
    """One compute under test. `home` and `run` are paths as the programs inside see them."""

    name: str
    compute: Compute
    again: Callable[[], Compute]
    """Another driver for the same engine, as after a restart of the gateway."""
    remove: Callable[[str], Awaitable[None]]
    """Take a workload (by its environment's id) away behind the driver's back."""
    leftovers: Callable[[str], Sequence[str]]
    """What there still is of an environment, by its id."""
    image: str
    home: str
    run: str
    root: str = ""
    """In front of every other path inside."""
    isolates: bool = True
    """Whether programs inside are kept from anything at all."""
    end: Callable[[], None] = lambda: None
    """Stops what was started for it."""
    home_of: Callable[[str], str] = field(default=lambda _: "")
    """The absolute path of a home, by the environment's id, where `home` is none."""
    account: str = "developer"
    hostname: str = "train"
    programs: str = "sshd|ld.so|bash"
    """Names of programs that run only while somebody is connected, as a pattern of the shell."""

    def home_at(self, environment_id: str) -> str:
        return self.home_of(environment_id) or self.home

    def spec(self, **more: object) -> WorkloadSpec:
        values: dict[str, object] = {
            "id": secrets.token_hex(8), "name": "train", "owner": "alice", "image": self.image,
            "workspace": f"team-{secrets.token_hex(4)}", "variables": {"COLOUR": "deep blue"},
            "guest_files": {"secret": b"do not tell\0\xff'%\\"},
        }  # fmt: skip
        return WorkloadSpec(**(values | more))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = guest_tree.build(tmp_path_factory.mktemp("guest"))
    # Volumes of engines are named after it: another suite on this machine at the same time must not remove ours.
    return built.rename(built.with_name(f"{built.name}-{secrets.token_hex(4)}"))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, guest: Path) -> Iterator[machines.Machine]:
    """One for all tests; they tell what is theirs by the environments' ids."""
    with machines.served(tmp_path_factory.mktemp("machine"), guest) as machine:
        yield machine


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """One for all tests."""
    podman = Podman()
    yield podman
    podman.stop()


@pytest.fixture(params=["memory", "local", "docker", "docker-ssh", "podman", "ssh"])
async def kit(request: pytest.FixtureRequest, tmp_path: Path, guest: Path) -> AsyncIterator[Kit]:
    made: list[Compute] = []
    kit = make_kit(request, tmp_path, guest, made)
    yield kit
    for compute in made:
        await compute.close()
    kit.end()


@pytest.fixture
async def up(kit: Kit) -> AsyncIterator[tuple[Kit, str, WorkloadSpec]]:
    """A running workload."""
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        yield kit, handle, spec
    finally:
        await kit.compute.delete(handle)


def _memory(tmp_path: Path, guest: Path, made: list[Compute]) -> Kit:
    engine = MemoryEngine(tmp_path / "memory")

    def again() -> Compute:
        made.append(MemoryCompute(engine))
        return made[-1]

    async def remove(environment_id: str) -> None:
        engine.remove(f"memory-{environment_id}")

    def leftovers(environment_id: str) -> Sequence[str]:
        return [str(path) for path in (tmp_path / "memory").glob(f"*{environment_id}*")]

    return Kit("memory", again(), again, remove, leftovers, "", ".", "../run", "../root", isolates=False)


def _local(tmp_path: Path, guest: Path, made: list[Compute]) -> Kit:
    def again() -> Compute:
        made.append(LocalCompute(tmp_path, guest, BackendSettings()))
        return made[-1]

    async def remove(environment_id: str) -> None:
        folder = tmp_path / "environments" / environment_id
        os.kill(json.loads((folder / "state.json").read_text())["pid"], signal.SIGKILL)
        await asyncio.sleep(0.3)
        shutil.rmtree(folder)

    def leftovers(environment_id: str) -> Sequence[str]:
        return [str(path) for path in (tmp_path / "environments").glob(f"*{environment_id}*")]

    return Kit("local", again(), again, remove, leftovers, "", "/home/developer", "/opt/ashore/run")


def _docker(tmp_path: Path, guest: Path, made: list[Compute]) -> Kit:
    return _docker_at(None, guest, made)


def _docker_by_ssh(tmp_path: Path, guest: Path, made: list[Compute]) -> Kit:
    """The same engine as if it were another machine's: through a real sshd, with the guest in a volume."""
    sshd = Sshd(tmp_path / "sshd")
    kit = _docker_at(sshd.host(), guest, made)

    def end() -> None:
        docker("volume", "rm", "-f", f"ashore-guest-{guest.name}")
        sshd.stop()

    return replace(kit, name="docker-ssh", end=end)


def podman_kit(podman: Podman, guest: Path, made: list[Compute]) -> Kit:
    return replace(_docker_at(DockerHostSettings(url=podman.url), guest, made, engine=podman.url), name="podman")


def _docker_at(
    host: DockerHostSettings | None, guest: Path, made: list[Compute], engine: str = f"unix://{ENGINE}"
) -> Kit:
    def again() -> Compute:
        made.append(DockerCompute(guest, BackendSettings().docker, host))
        return made[-1]

    async def remove(environment_id: str) -> None:
        docker("-H", engine, "rm", "-f", f"ashore-{environment_id}")

    def leftovers(environment_id: str) -> Sequence[str]:
        label = f"label=ashore={environment_id}"
        containers = docker("-H", engine, "ps", "-a", "--filter", label, "--format", "{{.Names}}").split()
        volumes = docker(
            "-H", engine, "volume", "ls", "--filter", f"name={environment_id}", "--format", "{{.Name}}"
        ).split()
        return containers + volumes

    return Kit("docker", again(), again, remove, leftovers, IMAGE, "/workspace", "/opt/ashore/run")


def _ssh(machine: machines.Machine, made: list[Compute]) -> Kit:
    settings = MachineSettings(
        address=machine.address, port=machine.port, user=machines.ACCOUNT, host_key=machine.host_key,
        key_file=str(machine.key_file),
    )  # fmt: skip

    def again() -> Compute:
        made.append(MachineCompute("box", settings))
        return made[-1]

    async def remove(environment_id: str) -> None:
        machine.run("rm", "-rf", machine.folder(environment_id))

    def leftovers(environment_id: str) -> Sequence[str]:
        return machine.run("find", f"/home/{machines.ACCOUNT}", "-name", f"*{environment_id}*").split()

    def home_of(environment_id: str) -> str:
        return f"{machine.folder(environment_id)}/home"

    return Kit("box", again(), again, remove, leftovers, "", ".", "../run", home_of=home_of,
               account=machines.ACCOUNT, hostname="gpu7", programs="bash")  # fmt: skip


KITS = {"memory": _memory, "local": _local, "docker": _docker, "docker-ssh": _docker_by_ssh}


def make_kit(request: pytest.FixtureRequest, tmp_path: Path, guest: Path, made: list[Compute]) -> Kit:
    """The kit that a test's parameter names; what it makes is to be closed."""
    if request.param == "ssh":
        return _ssh(request.getfixturevalue("machine"), made)
    if request.param == "podman":
        return podman_kit(request.getfixturevalue("podman"), guest, made)
    return KITS[request.param](tmp_path, guest, made)


def docker(*words: str) -> str:
    """The Docker client's answer."""
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=50).stdout


async def run(
    compute: Compute, handle: str, script: str, data: bytes = b"", variables: Mapping[str, str] | None = None
) -> tuple[int | None, bytes]:
    """Exit status and output of a shell script that gets `data` and then EOF."""
    pipe = await compute.open_pipe(handle, ["/bin/sh", "-c", script], variables or {})
    output = await exchange(pipe, data)
    return await pipe.wait(), output


async def exchange(pipe: Pipe, data: bytes = b"") -> bytes:
    """Send `data` and EOF, and read to the end."""
    loop = asyncio.get_running_loop()

    async def send() -> None:
        await loop.sock_sendall(pipe.socket, data)
        pipe.socket.shutdown(socket.SHUT_WR)

    with pipe.socket:
        sending = asyncio.create_task(send())
        output = bytearray()
        while piece := await loop.sock_recv(pipe.socket, 1 << 18):
            output += piece
        await asyncio.gather(sending, return_exceptions=True)
    return bytes(output)
