"""What a host's engine or a registry may lack: each start ends in one sentence and holds nothing, and the next one
works as soon as the cause is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conformance.podman import Podman
from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served
from tests.stories.test_full_disk import small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
IMAGE = "debian:bookworm"


def reserved(gateway: Gateway) -> float:
    """Cores that the only host has promised."""
    (row,) = gateway.json("carol", "host", "list")
    return float(row["cpus_reserved"])


def failed(gateway: Gateway, name: str) -> str:
    """Why it failed; nothing of its host is held then."""
    row = gateway.json("alice", "env", "show", name)
    assert (row["state"], reserved(gateway)) == ("failed", 0), row
    return str(row["reason"])


def test_a_host_whose_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 900) as disk:
        podman = Podman(disk.path / "root")
        try:
            settings = f'[backends.docker.hosts.small]\nurl = "{podman.url}"\n'
            with served(tmp_path / "gateway", settings=settings) as gateway:
                gateway.ssh("alice", "env", "create", "old", "--cpu", "1", "--wait", timeout=120)
                gateway.ssh("alice+old", "echo kept > file")
                gateway.ssh("alice", "env", "stop", "old", "--wait")
                with disk.filled(but=0):
                    made = gateway.ssh("alice", "env", "create", "new", "--cpu", "1", "--wait", check=False)
                    assert made.returncode != 0
                    assert b"no space left on device" in made.stderr
                    said = "the disk of the host's Docker engine is full: no space left on device"
                    assert failed(gateway, "new") == said
                gateway.ssh("alice", "env", "start", "new", "--wait", timeout=120)
                assert gateway.ssh("alice+new", "echo up").stdout == b"up\n"
                gateway.ssh("alice", "env", "start", "old", "--wait", timeout=120)
                assert gateway.ssh("alice+old", "cat file").stdout == b"kept\n"
        finally:
            podman.stop()


@contextlib.contextmanager
def registry(directory: Path, port: int, *, auth: str = "") -> Iterator[None]:
    """A real registry over `directory`."""
    config = directory / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {directory}/store\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{auth}"
    )
    with (directory / "registry.log").open("ab") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        eventually(lambda: run(["curl", "-s", f"http://127.0.0.1:{port}/v2/"], check=False).returncode == 0)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def shown(gateway: Gateway) -> Mapping[str, str]:
    row: Mapping[str, str] = gateway.json("alice", "env", "show", "a")
    return row


def test_a_registry_that_gives_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    image = f"127.0.0.1:{port}/lab/base:1"
    create = ("env", "create", "a", "--compute", "docker", "--cpu", "1", "--image", image, "--wait")
    start = ("env", "start", "a", "--wait")
    lock = f"auth:\n  htpasswd:\n    realm: lab\n    path: {tmp_path}/htpasswd\n"
    with served(tmp_path / "gateway") as gateway:
        try:
            with registry(tmp_path, port, auth=lock):
                assert gateway.ssh("alice", *create, check=False, timeout=120).returncode != 0
                assert f"there is no image '{image}' here, and no registry gave it" in failed(gateway, "a")
                assert "no basic auth credentials" in failed(gateway, "a")
            with registry(tmp_path, port):
                assert gateway.ssh("alice", *start, check=False, timeout=120).returncode != 0
                assert "manifest" in failed(gateway, "a")
                run(["docker", "tag", IMAGE, image])
                run(["docker", "push", "-q", image], timeout=200)
                run(["docker", "rmi", image])
            gateway.ssh("alice", "env", "start", "a")
            eventually(lambda: "does not answer" in shown(gateway)["progress"], seconds=60)
            assert (shown(gateway)["state"], reserved(gateway)) == ("creating", 1)
            with registry(tmp_path, port):  # and nobody starts anything again
                eventually(lambda: shown(gateway)["state"] == "running", seconds=120)
                assert gateway.ssh("alice+a", "echo up").stdout == b"up\n"
        finally:
            gateway.ssh("alice", "env", "delete", "a", "--wait", check=False)
            run(["docker", "rmi", image], check=False)
