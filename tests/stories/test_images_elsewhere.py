"""An image that is built on this machine runs on another one, which cannot reach the registry: a second Docker engine
behind an SSH server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.docker_hosts import ENGINE, SecondEngine, Sshd
from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served

_SETTINGS = """
[backends.placement]
heartbeat_seconds = 2.0

[backends.docker.hosts.here]
url = "unix://{engine}"

[backends.docker.hosts.far]
url = "ssh://root@127.0.0.1:{port}{socket}"
host_key = "{host_key}"
key_file = "{key_file}"
"""


@pytest.fixture
def engine() -> Iterator[SecondEngine]:
    engine = SecondEngine()
    yield engine
    engine.stop()


@pytest.fixture
def gateway(tmp_path: Path, engine: SecondEngine) -> Iterator[Gateway]:
    sshd = Sshd(tmp_path / "sshd")
    host_key = (sshd.directory / "host.pub").read_text().strip()
    settings = _SETTINGS.format(
        engine=ENGINE, port=sshd.port, socket=engine.socket, host_key=host_key, key_file=sshd.directory / "client"
    )
    with served(tmp_path, settings=settings) as gateway:
        yield gateway
    sshd.stop()
    for image in run(["docker", "images", "-q", "--no-trunc", "--filter", "label=ashore.built"]).stdout.split():
        run(["docker", "rmi", "-f", image.decode()], check=False)


def loaded(engine: SecondEngine) -> list[str]:
    names = engine.run("images", "--format", "{{.Repository}}").split()
    return [name for name in names if name.startswith("loaded.ashore.invalid/")]


@pytest.mark.timeout(900)
def test_built_here_run_there(gateway: Gateway, engine: SecondEngine) -> None:
    text = b"RUN echo built >/built-here && head -c 30000000 /dev/urandom >/large\n"
    gateway.ssh("alice", "image", "build", "tools:v1", "--base", "debian:bookworm", "--wait", input=text, timeout=300)
    create = ("env", "create", "far-one", "--image", "tools:v1", "--host", "far")
    assert gateway.json("alice", *create, "--dry-run")["refusals"] == []
    gateway.ssh("alice", *create)

    def says_how_far() -> bool:
        shown = gateway.json("alice", "env", "show", "far-one")
        return "loading tools:v1" in str(shown)

    eventually(says_how_far, pause=0.05)
    gateway.stop(how=signal.SIGKILL)
    gateway.start()
    eventually(lambda: gateway.json("alice", "env", "show", "far-one")["state"] == "running", seconds=240)
    assert gateway.ssh("alice+far-one", "cat", "/built-here").stdout == b"built\n"
    assert len(loaded(engine)) == 1
    # A second one needs no load, also in the eyes of a person who waits for it.
    second = gateway.ssh("alice", "env", "create", "two", "--image", "tools:v1", "--host", "far", "--wait", timeout=240)
    assert b"loading tools:v1" not in second.stderr
    assert gateway.ssh("alice+two", "cat", "/built-here").stdout == b"built\n"
    # Nobody reaches it by the name that it has there.
    name = engine.run("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "label=ashore.built").split()[0]
    refused = gateway.ssh("bob", "env", "create", "thief", "--image", name, "--host", "far", check=False)
    assert refused.returncode != 0
    assert b"is in the registry of this house" in refused.stderr
    for one in ("far-one", "two"):
        gateway.ssh("alice", "env", "delete", one, "--wait", timeout=120)
    gateway.ssh("alice", "image", "delete", "tools:v1")
    eventually(lambda: not loaded(engine))


@pytest.mark.timeout(900)
def test_brought_beforehand(gateway: Gateway, engine: SecondEngine) -> None:
    gateway.ssh("carol", "image", "build", "tools:v1", "--base", "debian:bookworm", "--wait", input=b"RUN echo a >/a\n",
                timeout=300)  # fmt: skip
    said = gateway.ssh("carol", "image", "pull", "tools:v1", "far", timeout=300)
    assert b"loading tools:v1" in said.stderr
    assert len(loaded(engine)) == 1
    assert gateway.audit(action="image.pull", actor="carol", thing="tools:v1")
    gateway.ssh("carol", "image", "delete", "tools:v1")
    eventually(lambda: not loaded(engine))
