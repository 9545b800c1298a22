"""An image from somebody's own machine to a program in an environment: `docker save`, sftp over bad links, Docker.

`STORY_IMAGE_MIB` (96) makes the image larger, as for a look at 3 GiB.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served
from tests.stories.links import bad_link
from tests.stories.test_resume import cut_link, ended, killed_gateway, started, uploads
from tests.stories.test_transfers import lftp, sftp

IMAGE = "debian:bookworm"
MIB = int(os.environ.get("STORY_IMAGE_MIB", "96"))
SENT = MIB * 240_000
SECONDS = 180.0 + MIB / 4
BUDGET = 700 * 1024**2
"""Of the gateway's memory: 512 MiB for parts, and itself."""
pytestmark = pytest.mark.timeout(600 + MIB)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("images"), settings="[objects]\npart_mib = 5\n") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody made at home: an image with a file of its own, 100 MB of it random."""
    folder = tmp_path_factory.mktemp("home")
    with (folder / "weights").open("wb") as file:
        for _ in range(MIB):
            file.write(os.urandom(1024**2))
    container = run(["docker", "create", IMAGE]).stdout.decode().strip()
    run(["docker", "cp", folder / "weights", f"{container}:/weights"], timeout=SECONDS)
    run(["docker", "commit", "-c", "ENV CUDA_VERSION=12.4.1", container, "ashore-story-model:v1"], timeout=SECONDS)
    run(["docker", "rm", container])
    run(["docker", "save", "-o", folder / "model.tar", "ashore-story-model:v1"], timeout=SECONDS)
    run(["docker", "rmi", "ashore-story-model:v1"])
    return folder / "model.tar"


def weights(archive: Path) -> str:
    return digest(archive.parent / "weights")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image(gateway: Gateway, who: str, name: str, *, state: str = "ready") -> dict[str, Any]:
    """The image once it is in `state`."""

    def found() -> dict[str, Any] | None:
        assert gateway.memory() < BUDGET
        rows = [row for row in gateway.json(who, "image", "list") if row["name"] == name]
        return rows[0] if rows and rows[0]["state"] == state else None

    row: dict[str, Any] = eventually(found, seconds=SECONDS)
    return row


def has_copy(row: dict[str, Any]) -> bool:
    """Whether the engine still has an image that it pulled."""
    reference = f"{row['reference']}@{row['digest']}"
    return subprocess.run(["docker", "image", "inspect", reference], check=False, capture_output=True).returncode == 0


def test_an_archive_over_a_bad_link_runs_as_an_environment(gateway: Gateway, saved: Path) -> None:
    """The link is cut three times and the gateway is killed once; nobody sees a half image, and the hash is right."""
    target = "/images/model_v1.tar"
    sends = "put"
    for breaks in (cut_link, killed_gateway, cut_link, cut_link):
        with bad_link(gateway.port, allowance=SENT) as link:
            client = started(gateway, link, saved, target, verb=sends)
            link.wait_until_held()
            eventually(lambda: uploads(gateway, target) and uploads(gateway, target)[0]["bytes"])
            breaks(gateway, link, client)
            ended(client)
        eventually(lambda: [row for row in uploads(gateway, target) if row["state"] == "parked"])
        assert gateway.json("alice", "image", "list") == []
        sends = "reput"
    run([*gateway.client("alice", program="sftp"), "-b", "-", "alice@gw"], input=f"reput {saved} {target}\n".encode(),
        timeout=SECONDS)  # fmt: skip
    row = image(gateway, "alice", "model:v1")
    assert (row["architecture"], row["cuda"], row["visibility"]) == ("amd64", "12.4.1", "private")
    (event,) = gateway.audit(action="archive.ready")
    assert event["detail"]["sha256"] == digest(saved)
    assert uploads(gateway, target) == []
    assert "model_v1.tar" not in sftp(gateway, "alice", "ls /images")
    try:
        gateway.ssh("alice", "env", "create", "train", "--image", "model:v1", "--wait", timeout=SECONDS)
        told = gateway.ssh("alice+train", "sha256sum /weights; echo $CUDA_VERSION", timeout=SECONDS).stdout.decode()
        assert told.split() == [weights(saved), "/weights", "12.4.1"]
        refused = gateway.ssh("alice", "image", "delete", "model:v1", check=False)
        assert (refused.returncode, b"train.alice" in refused.stderr) == (1, True)
        _nobody_else_has_it(gateway, row)
    finally:
        gateway.ssh("alice", "env", "delete", "train", "--wait", check=False)
    gateway.ssh("alice", "image", "delete", "model:v1")
    assert gateway.json("alice", "image", "list") == []
    eventually(lambda: not has_copy(row), seconds=SECONDS)


def _nobody_else_has_it(gateway: Gateway, row: dict[str, Any]) -> None:
    """Bob, by any name, though the engine has it already and would start it for anybody."""
    assert gateway.json("bob", "image", "list") == []
    reference, digest = row["reference"], row["digest"]
    for written in (f"{reference}:v1", f"{reference}@{digest}", digest):
        refused = gateway.ssh("bob", "env", "create", "steal", "--image", written, check=False)
        assert refused.returncode == 2, refused.stderr
    for written in ("alice/model:v1", "alice/model"):
        plan = json.loads(
            gateway.ssh("bob", "env", "create", "x", "--image", written, "--dry-run", "--json", check=False).stdout
        )
        assert f"there is no image '{written}'" in plan["refusals"]
        assert gateway.ssh("bob", "image", "show", written, check=False).returncode == 1
        assert gateway.ssh("bob", "image", "delete", written, check=False).returncode == 1


def test_skopeo_and_lftp(gateway: Gateway, saved: Path, tmp_path: Path) -> None:
    """An OCI archive, sent by another client; a colleague starts it once it is shared."""
    run(["skopeo", "copy", "--quiet", f"docker-archive:{saved}", f"oci-archive:{tmp_path}/oci.tar:x"], timeout=SECONDS)
    lftp(gateway, "alice", f"put {tmp_path}/oci.tar -o /images/shared_v2.tar")
    row = image(gateway, "alice", "shared:v2")
    gateway.ssh("alice", "image", "share", "shared:v2", "--visibility", "workspace")
    assert [one["name"] for one in gateway.json("bob", "image", "list")] == ["alice/shared:v2"]
    try:
        gateway.ssh("bob", "env", "create", "train", "--image", "alice/shared:v2", "--wait", timeout=SECONDS)
        assert gateway.ssh("bob+train", "sha256sum /weights").stdout.decode().split()[0] == weights(saved)
    finally:
        gateway.ssh("bob", "env", "delete", "train", "--wait", check=False)
    gateway.ssh("alice", "image", "delete", "shared:v2")
    eventually(lambda: not has_copy(row), seconds=SECONDS)


def test_two_people_send_the_same_name(gateway: Gateway, saved: Path) -> None:
    for who in ("alice", "bob"):
        sftp(gateway, who, f"put {saved} /images/both_v1.tar")
    rows = [image(gateway, who, "both:v1") for who in ("alice", "bob")]
    assert rows[0]["reference"] != rows[1]["reference"]
    gateway.ssh("alice", "image", "delete", "both:v1")
    assert image(gateway, "bob", "both:v1")["usable"]
    gateway.ssh("bob", "image", "delete", "both:v1")


def test_what_is_broken_gets_a_sentence(gateway: Gateway, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "half.tar").write_bytes(saved.read_bytes()[:50_000_000])
    sftp(gateway, "alice", f"put {tmp_path}/half.tar /images/half_v1.tar")
    (row,) = eventually(
        lambda: [row for row in uploads(gateway, "/images/half_v1.tar") if row["state"] == "image-failed"],
        seconds=SECONDS,
    )
    assert "ends too early" in row["reason"]
    assert gateway.json("alice", "image", "list") == []
    said = sftp(gateway, "alice", f"put {tmp_path}/half.tar /images/half.zip", check=False)
    assert "NAME_TAG.tar" in said


def test_the_registry_survives_a_kill_of_the_gateway(gateway: Gateway, saved: Path) -> None:
    """While the archive is being loaded: the next process makes an image of it."""
    sftp(gateway, "alice", f"put {saved} /images/late_v1.tar")
    gateway.stop(how=signal.SIGKILL)
    gateway.start()
    assert image(gateway, "alice", "late:v1")["usable"]
    gateway.ssh("alice", "image", "delete", "late:v1")
