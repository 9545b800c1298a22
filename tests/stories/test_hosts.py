"""Two machines behind one gateway: this one, and one that is reached through its SSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.docker_hosts import ENGINE, Sshd
from tests.stories.clients import Gateway
from tests.stories.conftest import remove_guest_volumes, served

_SETTINGS = """
[backends.placement]
memory_overcommit = 1.0

[backends.docker.hosts.here]
url = "unix://{engine}"

[backends.docker.hosts.far]
url = "ssh://root@127.0.0.1:{port}"
host_key = "{host_key}"
key_file = "{key_file}"
memory_mib = 1024
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path / "sshd")
    yield sshd
    sshd.stop()


@pytest.fixture
def gateway(tmp_path: Path, far: Sshd) -> Iterator[Gateway]:
    host_key = (far.directory / "host.pub").read_text().strip()
    settings = _SETTINGS.format(engine=ENGINE, port=far.port, host_key=host_key, key_file=far.directory / "client")
    with served(tmp_path, settings=settings) as gateway:
        yield gateway
    remove_guest_volumes(gateway.data)


def test_work_on_another_machine(gateway: Gateway) -> None:
    far = next(row for row in gateway.json("carol", "host", "list") if row["name"] == "far")
    assert (far["state"], far["memory"], far["is_here"]) == ("online", 1 << 30, False)
    create = ("env", "create", "train", "--host", "far", "--cpu", "1", "--memory", "768MiB")
    assert gateway.json("alice", *create, "--dry-run")["host"] == "far"
    gateway.ssh("alice", *create, "--wait", timeout=120)
    assert gateway.ssh("alice+train", "cat > file; wc -c < file", input=b"x" * 100_000).stdout == b"100000\n"
    assert gateway.ssh("alice+train", "exit 7", check=False).returncode == 7
    full = gateway.ssh("bob", "env", "create", "b", "--host", "far", "--memory", "512MiB", check=False)
    assert (full.returncode, full.stdout) == (69, b"")
    assert b"far: memory: 256MiB of 1GiB left, 512MiB needed" in full.stderr
    gateway.ssh("carol", "host", "drain", "far", "--reason", "cards")
    assert gateway.ssh("alice+train", "cat file | wc -c").stdout == b"100000\n"
    gateway.ssh("alice", "env", "stop", "train", "--wait")
    asleep = gateway.ssh("alice+train", "true", check=False)
    assert b"'train' cannot start on its host far now (in maintenance, cards)" in asleep.stderr
    assert gateway.json("bob", "env", "create", "b", "--dry-run")["host"] == "here"
    gateway.ssh("carol", "host", "resume", "far")
    assert gateway.ssh("alice+train", "wc -c < file", timeout=120).stdout == b"100000\n"
    held = next(row for row in gateway.json("carol", "host", "list") if row["name"] == "far")
    assert (held["cpus_reserved"], held["placed"]) == (1, ["train.alice"])
