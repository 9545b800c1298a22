"""Data sets and models inside environments, with real clients on both computes: from `sftp put` to `sha256sum`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.clients import Environment, Gateway, eventually, run
from tests.stories.conftest import served

MIB = 1024 * 1024
FILES = {"f": 3, "deep/er/数据 with space": 70_000, "empty": 0, "big.bin": 30 * MIB + 17}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("mounts")) as gateway:
        move(gateway, "bob", "lab")
        yield gateway


def move(gateway: Gateway, person: str, workspace: str) -> None:
    """Let somebody be in another workspace."""
    with sqlite3.connect(gateway.data / "ashore.sqlite3", timeout=30) as database:
        database.execute(
            "INSERT OR IGNORE INTO workspaces (id, name, created) VALUES (?, ?, '2026-01-01 00:00:00')",
            (workspace, workspace),
        )
        database.execute("UPDATE users SET workspace_id = ? WHERE name = ?", (workspace, person))
    database.close()


def put(gateway: Gateway, folder: Path, path: str, files: dict[str, int] = FILES) -> dict[str, str]:
    """Send random files by `sftp put -r`; their digests."""
    digests = {}
    for name, size in files.items():
        content = os.urandom(size)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    sftp(gateway, f"put -r {folder} {path}")
    return digests


def sftp(gateway: Gateway, *lines: str) -> None:
    batch = "".join(f"{line}\n" for line in lines).encode()
    run([*gateway.client("alice", program="sftp"), "-b", "-", "alice@gw"], input=batch, timeout=120)


def sums(environment: Environment, folder: str) -> dict[str, str]:
    said = environment.ssh(f"cd {folder} && find . -type f -exec sha256sum {{}} +").stdout.decode()
    return {name.removeprefix("./"): digest for digest, name in (line.split("  ", 1) for line in said.splitlines())}


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_from_upload_to_mount_to_deletion(gateway: Gateway, tmp_path: Path, compute: str) -> None:
    name, box = f"mnist-{compute}", f"box-{compute}"
    sftp(gateway, f"mkdir /datasets/{name}", f"mkdir /models/{name}")
    digests = put(gateway, tmp_path / "data", f"/datasets/{name}/v1")
    weights = put(gateway, tmp_path / "model", f"/models/{name}/v2", {"weights.bin": MIB})
    gateway.ssh("alice", "dataset", "publish", f"{name}:v1")
    gateway.ssh("alice", "model", "publish", f"{name}:v2")
    wanted = ["--compute", compute, "--data", f"{name}:v1", "--model", name]

    plan = gateway.json("alice", "env", "create", box, *wanted, "--dry-run")
    assert plan["possible"]
    assert [(one["version"], one["path"]) for one in plan["mounts"]] == [
        (f"{name}:v1", "/gemini/data-1"), (f"{name}:v2", "/gemini/pretrain1"),
    ]  # fmt: skip
    made = gateway.ssh("alice", "env", "create", box, *wanted, "--wait", timeout=120)
    environment = Environment(gateway, box, compute)
    assert f"/gemini/data-1={name}:v1".encode() in made.stdout
    assert sums(environment, "/gemini/data-1") == digests
    assert sums(environment, "/gemini/pretrain1") == weights
    assert environment.ssh("sha256sum /gemini/data-1/f").stdout.split()[0].decode() == digests["f"]
    assert environment.ssh("echo $ASHORE_DATA").stdout.decode() == (
        f"/gemini/data-1={name}:v1 /gemini/pretrain1={name}:v2\n"
    )
    for attempt in ("echo x > /gemini/data-1/f", "rm -f /gemini/data-1/f", "touch /gemini/pretrain1/new"):
        assert environment.ssh(attempt, check=False).returncode != 0
    environment.ssh("echo result > /gemini/output/log && cp /gemini/data-1/f /gemini/code/")

    refused = gateway.ssh("alice", "dataset", "delete", name, check=False)
    assert refused.returncode == 1
    assert f"'{name}' is mounted in {box} (alice): delete that environment first" in refused.stderr.decode()
    assert gateway.ssh("alice", "model", "delete", f"{name}:v2", check=False).returncode == 1

    gateway.ssh("alice", "env", "restart", box, "--wait", timeout=120)
    assert sums(environment, "/gemini/data-1") == digests
    assert environment.ssh("cat /gemini/output/log").stdout == b"result\n"
    gateway.ssh("alice", "env", "stop", box, "--wait")
    assert gateway.ssh("alice", "dataset", "delete", name, check=False).returncode == 1

    (shown,) = gateway.json("alice", "dataset", "uses", name)
    assert (shown["environment"], shown["unmounted"]) == (box, None)
    gateway.ssh("alice", "env", "delete", box, "--wait")
    gateway.ssh("alice", "dataset", "delete", name, "--wait")
    gateway.ssh("alice", "model", "delete", name, "--wait")
    copies = gateway.data / "cache"
    # What was deleted does not live on in the copies of this machine.
    eventually(lambda: not [path for path in copies.glob("*/files/**/*") if path.name in digests])
    assert gateway.audit(action="dataset.mount", thing=f"{name}:v1")
    assert gateway.audit(action="cache.fill", thing=f"data {name}:v1")


def test_what_belongs_to_others(gateway: Gateway, tmp_path: Path) -> None:
    sftp(gateway, "mkdir /datasets/secret")
    put(gateway, tmp_path / "data", "/datasets/secret/v1", {"f": 10})

    def tried(person: str, reference: str) -> tuple[bool, str]:
        done = gateway.ssh(person, "env", "create", "spy", "--compute", "local", "--data", reference, "--dry-run",
                           "--json", check=False)  # fmt: skip
        plan = json.loads(done.stdout)
        return plan["possible"], " ".join(plan["refusals"])

    # Somebody else's answers like one that is not there.
    workspace = gateway.json("alice", "whoami")["workspace"]
    assert tried("bob", f"{workspace}/secret:v1") == (False, "there is no data set 'secret'")
    assert tried("bob", f"{workspace}/nothing:v1")[0] is False
    assert gateway.ssh("bob", "env", "create", "spy", "--compute", "local", "--data", f"{workspace}/secret:v1",
                       check=False).returncode != 0  # fmt: skip
    assert gateway.json("bob", "env", "list") == []
    # Shared, but not published yet; then published; then not shared any more.
    gateway.ssh("alice", "dataset", "share", "secret", "--with", "lab")
    assert "is not published yet" in tried("bob", f"{workspace}/secret:v1")[1]
    assert tried("alice", "secret:v1") == (True, "")
    gateway.ssh("alice", "dataset", "publish", "secret:v1")
    gateway.ssh("bob", "env", "create", "spy", "--compute", "local", "--data", f"{workspace}/secret:v1", "--wait",
                timeout=120)  # fmt: skip
    gateway.ssh("bob+spy", "cat /gemini/data-1/f")
    gateway.ssh("alice", "dataset", "share", "secret", "--with", "lab", "--stop")
    again = gateway.ssh("bob", "env", "restart", "spy", "--wait", check=False, timeout=120)
    assert again.returncode != 0
    assert f"'{workspace}/secret:v1' cannot be read by 'bob' any more" in again.stderr.decode()
    gateway.ssh("bob", "env", "delete", "spy", "--wait")
    gateway.ssh("alice", "dataset", "delete", "secret", "--wait")


def test_unpublished_work_is_looked_at_again_at_each_start(gateway: Gateway, tmp_path: Path) -> None:
    sftp(gateway, "mkdir /datasets/draft")
    digests = put(gateway, tmp_path / "one", "/datasets/draft/v1", {"a": 100, "b/c": 200})
    gateway.ssh("alice", "env", "create", "try", "--compute", "local", "--data", "draft:v1", "--wait", timeout=120)
    environment = Environment(gateway, "try", "local")
    assert sums(environment, "/gemini/data-1") == digests
    newer = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "d")}
    for name in newer:
        (tmp_path / name).write_text(name)
    sftp(gateway, "rm /datasets/draft/v1/b/c", "rmdir /datasets/draft/v1/b", f"put {tmp_path}/[ad] /datasets/draft/v1/")
    gateway.ssh("alice", "env", "restart", "try", "--wait", timeout=120)
    assert sums(environment, "/gemini/data-1") == newer
    gateway.ssh("alice", "env", "delete", "try", "--wait")
    gateway.ssh("alice", "dataset", "delete", "draft", "--wait")


def test_a_gateway_that_is_killed_in_the_middle_goes_on(gateway: Gateway, tmp_path: Path) -> None:
    sftp(gateway, "mkdir /datasets/large")
    digests = put(gateway, tmp_path / "data", "/datasets/large/v1", {f"{n:03}": MIB for n in range(200)})
    gateway.ssh("alice", "dataset", "publish", "large:v1")
    gateway.ssh("alice", "env", "create", "box", "--compute", "local", "--data", "large:v1")
    eventually(lambda: list((gateway.data / "cache").glob("*/files/*")), pause=0.01)
    gateway.stop(how=signal.SIGKILL)
    gateway.start()
    gateway.ssh("alice", "env", "start", "box", "--wait", timeout=120)
    environment = Environment(gateway, "box", "local")
    assert sums(environment, "/gemini/data-1") == digests
    gateway.ssh("alice", "env", "delete", "box", "--wait")
    gateway.ssh("alice", "dataset", "delete", "large", "--wait")
