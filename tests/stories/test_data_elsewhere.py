"""Data sets inside environments on another machine, from `sftp put` to `sha256sum`: through its SSH server alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.docker_hosts import ENGINE, Sshd
from tests.stories.clients import Environment, Gateway, eventually, run
from tests.stories.conftest import remove_guest_volumes, served
from tests.stories.test_mounts import FILES, MIB, put, sftp, sums

_SETTINGS = """
[backends.placement]
heartbeat_seconds = 2.0

[backends.docker.hosts.here]
url = "unix://{engine}"

[backends.docker.hosts.far]
url = "ssh://root@127.0.0.1:{port}"
host_key = "{host_key}"
key_file = "{key_file}"
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path / "sshd")
    yield sshd
    sshd.stop()


def settings_of(far: Sshd, more: str = "") -> str:
    host_key = (far.directory / "host.pub").read_text().strip()
    return _SETTINGS.format(engine=ENGINE, port=far.port, host_key=host_key, key_file=far.directory / "client") + more


@pytest.fixture
def gateway(tmp_path: Path, far: Sshd) -> Iterator[Gateway]:
    with served(tmp_path, settings=settings_of(far)) as gateway:
        yield gateway
    remove_guest_volumes(gateway.data)
    for note in (gateway.data / "cache-hosts").glob("*/*/volume"):
        run(["docker", "volume", "rm", note.read_text().strip()], check=False)


def test_from_upload_to_another_machine(gateway: Gateway, tmp_path: Path) -> None:
    sftp(gateway, "mkdir /datasets/mnist", "mkdir /models/bert")
    digests = put(gateway, tmp_path / "files", "/datasets/mnist/v1")
    weights = put(gateway, tmp_path / "model", "/models/bert/v1", {"weights.bin": MIB})
    gateway.ssh("alice", "dataset", "publish", "mnist:v1")
    wanted = ("--host", "far", "--data", "mnist:v1", "--model", "bert:v1")
    assert gateway.json("alice", "env", "create", "box", *wanted, "--dry-run")["host"] == "far"
    made = gateway.ssh("alice", "env", "create", "box", *wanted, "--wait", timeout=180)
    assert b"data mnist:v1" in made.stderr  # how far it is
    environment = Environment(gateway, "box", "docker")
    assert sums(environment, "/gemini/data-1") == digests
    assert sums(environment, "/gemini/pretrain1") == weights
    for attempt in ("echo x > /gemini/data-1/f", "rm -f /gemini/data-1/f", "touch /gemini/pretrain1/new"):
        assert environment.ssh(attempt, check=False).returncode != 0
    assert not list((gateway.data / "cache").glob("*/files"))  # never a second copy here

    shown = next(row for row in gateway.json("carol", "host", "list") if row["name"] == "far")
    assert shown["cache"] == {"copies": 2, "bytes": sum(FILES.values()) + MIB, "limit": None}
    # An environment of this machine has a copy of its own.
    gateway.ssh("alice", "env", "create", "near", "--host", "here", "--data", "mnist:v1", "--wait", timeout=180)
    assert sums(Environment(gateway, "near", "docker"), "/gemini/data-1") == digests
    refused = gateway.ssh("alice", "dataset", "delete", "mnist", check=False)
    assert "'mnist' is mounted in box (alice), near (alice)" in refused.stderr.decode()

    # What is not published yet is compared at each start; a gateway that was killed finds what it had sent.
    (tmp_path / "new").write_bytes(b"more")
    sftp(gateway, f"put {tmp_path}/new /models/bert/v1/new")
    gateway.stop(how=signal.SIGKILL)
    gateway.start()
    gateway.ssh("alice", "env", "restart", "box", "--wait", timeout=180)
    assert set(sums(environment, "/gemini/pretrain1")) == {"weights.bin", "new"}
    fills = [event["detail"] for event in gateway.audit(action="cache.fill", thing="model bert:v1")]
    assert [(fill["host"], fill["files"], fill["fetched"]) for fill in fills] == [("far", 2, 4), ("far", 1, MIB)]

    for name in ("box", "near"):
        gateway.ssh("alice", "env", "delete", name, "--wait")
    gateway.ssh("alice", "dataset", "delete", "mnist", "--wait")
    gateway.ssh("alice", "model", "delete", "bert", "--wait")
    eventually(lambda: not list((gateway.data / "cache-hosts" / "far").iterdir()))


# ---- the bucket that is mounted already --------------------------------------------------------------------------
@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """Where the bucket is mounted, sooner or later."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    yield bucket
    run(["fusermount", "-u", "-z", bucket], check=False)


@pytest.fixture
def shared(tmp_path: Path, far: Sshd, bucket: Path) -> Iterator[Gateway]:
    """Both machines have it at the same path, being one machine."""
    more = f'shared_root = "{bucket}"\n\n[backends.cache]\nshared_root = "{bucket}"\n'
    with served(tmp_path, settings=settings_of(far, more)) as gateway:
        yield gateway
    remove_guest_volumes(gateway.data)


def mount(gateway: Gateway, at: Path) -> None:
    """By s3fs, as the README says: read only, for everybody."""
    identity = json.loads((gateway.data / "objects" / "store.json").read_text())
    passwords = gateway.home / "s3fs"
    passwords.write_text(f"{identity['access_key']}:{identity['secret_key']}\n")
    passwords.chmod(0o600)
    options = f"url=http://127.0.0.1:{identity['ports']['s3']},use_path_request_style,passwd_file={passwords}"
    run(["s3fs", "ashore", at, "-o", f"{options},ro,allow_other,umask=0222,complement_stat"])
    eventually(lambda: (at / "datasets").is_dir())


def test_a_bucket_that_is_mounted_already(shared: Gateway, bucket: Path, tmp_path: Path) -> None:
    gateway = shared
    sftp(gateway, "mkdir /datasets/mnist")
    digests = put(gateway, tmp_path / "files", "/datasets/mnist/v1")
    gateway.ssh("alice", "dataset", "publish", "mnist:v1")
    placed = {"far": ("--host", "far"), "box": ("--compute", "local")}
    for name, where in placed.items():
        wanted = (*where, "--data", "mnist:v1", "--wait")
        failed = gateway.ssh("alice", "env", "create", name, *wanted, check=False, timeout=180)
        said = failed.stderr.decode()
        assert failed.returncode != 0
        assert "data mnist:v1 is not to be seen on" in said
        assert f"is the bucket mounted at {bucket}?" in said
        assert gateway.json("alice", "env", "show", name)["state"] == "failed"
    mount(gateway, bucket)
    for name, where in placed.items():
        gateway.ssh("alice", "env", "start", name, "--wait", timeout=180)
        environment = Environment(gateway, name, where[-1])
        assert sums(environment, "/gemini/data-1") == digests
        for attempt in ("echo x > /gemini/data-1/f", "rm -f /gemini/data-1/f"):
            assert environment.ssh(attempt, check=False).returncode != 0
    assert not [path for path in gateway.data.glob("cache*/**/*") if path.is_file()]  # nothing was copied
    (host,) = (row for row in gateway.json("carol", "host", "list") if row["name"] == "far")
    assert host["shared_root"] == str(bucket)
    assert f"at {bucket}".encode() in gateway.ssh("carol", "host", "show", "far").stdout
