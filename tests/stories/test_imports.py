"""The gateway fetches data sets itself: with `ssh gw dataset import`, through SIGKILL, and never from inside."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.web import Web, WebFile
from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, web: Web) -> Iterator[Gateway]:
    settings = f'[imports]\nallow_hosts = ["{web.host}"]\nhf_endpoint = "{web.url}"\nhf_token = "hf_hunter2"\n'
    with served(tmp_path_factory.mktemp("imports"), settings=settings) as gateway:
        yield gateway


def sum_of(gateway: Gateway, path: str) -> str:
    return gateway.ssh("alice", "sha256sum", path).stdout.split()[0].decode()


def test_a_repository_of_the_hub_arrives_with_progress(gateway: Gateway, web: Web) -> None:
    files = {f"train/{number:03}.bin": os.urandom(5000) for number in range(60)} | {"big.bin": os.urandom(20 * MIB)}
    repository = web.publish("ylecun/mnist", "dataset", files, lfs=frozenset({"big.bin"}))
    done = gateway.ssh("alice", "dataset", "import", "mnist", "--from", "hf://datasets/ylecun/mnist", "--wait",
                       timeout=120)  # fmt: skip
    assert b"done" in done.stdout
    assert repository.commit.encode() in done.stdout
    assert b"hunter2" not in done.stdout + done.stderr
    assert sum_of(gateway, "/datasets/mnist/v1/big.bin") == hashlib.sha256(files["big.bin"]).hexdigest()
    listed = gateway.json("alice", "dataset", "files", "mnist:v1")
    assert {row["path"]: row["size"] for row in listed} == {path: len(data) for path, data in files.items()}


def test_killed_in_the_middle_it_goes_on_after_the_next_start(gateway: Gateway, web: Web) -> None:
    content = os.urandom(48 * MIB)
    file = web.files["/slow.bin"] = WebFile(content, pause=0.01)
    begun = gateway.ssh("alice", "dataset", "import", "slow", "--from", f"{web.url}/slow.bin?signature=hunter2")
    import_id = begun.stdout.decode().strip()

    def half() -> bool:
        return bool(gateway.json("alice", "import", "show", import_id)["bytes_done"] > 20 * MIB)

    eventually(half, seconds=60)
    gateway.stop(how=signal.SIGKILL)
    file.pause = 0.0
    gateway.start()
    over = gateway.ssh("alice", "import", "show", import_id, "--wait", timeout=120)
    assert b"done" in over.stdout
    assert sum_of(gateway, "/datasets/slow/v1/slow.bin") == hashlib.sha256(content).hexdigest()
    assert int(web.ranges_asked("/slow.bin")[-1][6:-1]) >= 16 * MIB
    row = gateway.json("alice", "import", "show", import_id)
    assert (row["state"], row["bytes_done"]) == ("done", len(content))
    trail = gateway.ssh("carol", "audit", "search", "--action", "import", "--json").stdout
    assert {event["action"] for event in json.loads(trail)} >= {"import.request", "import.done"}
    assert b"hunter2" not in trail


def test_nobody_reaches_into_the_network_through_an_import(gateway: Gateway, web: Web) -> None:
    """Server-side request forgery: straight, through a redirect, and through a name that means this machine."""
    port = web.host.partition(":")[2]
    web.files["/secret"] = WebFile(b"secret")
    web.files["/out"] = WebFile(b"", redirect=f"http://localhost:{port}/secret")
    for source, status in (
        ("http://169.254.169.254/latest/meta-data/", 77),
        (f"http://127.0.0.1:{int(port) + 1}/", 77),
        ("https://localhost/", 1),
        (f"{web.url}/out", 1),
    ):
        refused = gateway.ssh("alice", "dataset", "import", "theirs", "--from", source, "--wait", check=False)
        assert refused.returncode == status, (source, refused)
    assert not any(asked.path == "/secret" for asked in web.asked)


def endless(gateway: Gateway) -> list[dict[str, str]]:
    return [row for row in gateway.json("alice", "import", "list") if row["name"] == "endless"]


def test_hanging_up_does_not_end_it_and_cancelling_does(gateway: Gateway, web: Web) -> None:
    web.files["/endless.bin"] = WebFile(os.urandom(8 * MIB), pause=0.5)
    command = ["dataset", "import", "endless", "--from", f"{web.url}/endless.bin", "--wait"]
    with subprocess.Popen([*gateway.client("alice"), *command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as waiting:  # fmt: skip
        (row,) = eventually(lambda: endless(gateway))
        waiting.terminate()
        waiting.communicate(timeout=20)
    assert gateway.json("alice", "import", "show", row["id"])["state"] in ("queued", "running")
    assert gateway.ssh("bob", "import", "cancel", row["id"], check=False).returncode == 1
    gateway.ssh("alice", "import", "cancel", row["id"])
    assert endless(gateway) == []


def test_a_link_to_one_file(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a b+c.txt").write_bytes(b"linked")
    run([*gateway.client("alice", program="sftp"), "-b", "-", "alice@gw"],
        input=f'mkdir /datasets/linked\nmkdir /datasets/linked/v1\nput "{tmp_path}/a b+c.txt" /datasets/linked/v1/\n'.encode())  # fmt: skip  # noqa: E501
    made = gateway.ssh("alice", "dataset", "url", "linked:v1", "'a b+c.txt'", "--expires", "10m")
    assert b"own machine only" in made.stderr
    assert run(["curl", "-sSf", made.stdout.decode().strip()]).stdout == b"linked"


def test_doctor_tries_the_store_for_administrators_only(gateway: Gateway) -> None:
    full = {row["name"]: row for row in gateway.json("carol", "doctor")}
    assert {name for name, row in full.items() if not row["ok"] and name.startswith("store")} == set()
    assert full["store: multipart"]["state"] == "ok"
    assert not any(row["name"].startswith("store:") for row in gateway.json("alice", "doctor"))
