"""Archives that become images: those of real programs, and each form by hand."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from storage.access import Caller
from storage.records import ArchiveState, ImageState
from tests.backends.archives.files import IMAGE, NOISE, SMALL, File, config_of, digest_of, docker_archive, oci_archive
from tests.backends.archives.house import House


def skopeo(*words: str | Path) -> None:
    subprocess.run(["skopeo", "copy", "--quiet", *map(str, words)], check=True, capture_output=True)


def image_id(reference: str) -> str:
    shown = subprocess.run(["docker", "image", "inspect", "-f", "{{.Id}}", reference], check=True, capture_output=True)
    return shown.stdout.decode().strip()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "tar.gz", "tar.zst"])
async def test_what_real_programs_save(house: House, alice: Caller, saved: Path, tmp_path: Path, form: str) -> None:
    """The configuration, and so the id of the image, is the same at the end as it was in the engine."""
    content, name = saved.read_bytes(), "debian_v1.tar"
    if form == "oci-archive":
        skopeo(f"docker-archive:{saved}", f"oci-archive:{tmp_path}/oci.tar:x")
        content = (tmp_path / "oci.tar").read_bytes()
    elif form == "tar.gz":
        content, name = gzip.compress(content, 1), "debian_v1.tar.gz"
    elif form == "tar.zst":
        content, name = zstandard.compress(content, 3), "debian_v1.tar.zst"
    row = await house.sent(alice, name, content)
    assert (row.state, row.reason) == (ArchiveState.READY, "")
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    view = await house.images.show(alice, "debian:v1")
    assert (view.state, view.architecture) == (ImageState.READY, "amd64")
    image = await house.image(row)
    found = await house.registry.manifest(image.repository, "v1")
    assert found.digest == view.digest == digest_of(found.body)
    if form != "oci-archive":
        assert found.facts["config"]["digest"] == image_id(IMAGE)
    assert view.size == sum(one["size"] for one in (found.facts["config"], *found.facts["layers"]))
    assert await house.objects() == []
    assert await house.facts() == []


# ---- what is taken -----------------------------------------------------------------------------------------------
LINKED = File("1/layer.tar", b"", tarfile.SYMTYPE, "../0/layer.tar")
LONG = "a/" * 120 + "layer.tar"


@pytest.mark.parametrize(
    "content",
    [
        docker_archive(SMALL),
        docker_archive(SMALL, NOISE),
        docker_archive(SMALL, config=config_of(SMALL, SMALL), names=["0/layer.tar", "1/layer.tar"], extra=[LINKED]),
        docker_archive(SMALL, config=config_of(SMALL, SMALL), names=["0/layer.tar", "0/layer.tar"]),
        docker_archive(SMALL, config=config_of(SMALL, NOISE), names=["0/layer.tar", LONG], extra=[File(LONG, NOISE)]),
        docker_archive(NOISE, packed=gzip.compress),
        docker_archive(NOISE, packed=zstandard.compress),
        docker_archive(NOISE, packed=lambda content: gzip.compress(content[:999]) + gzip.compress(content[999:])),
        oci_archive(NOISE),
        oci_archive(NOISE, blob=NOISE),
        oci_archive(NOISE, elsewhere=["arm64", "s390x"], nested=True),
        oci_archive(NOISE, blob=zstandard.compress(NOISE)),
        gzip.compress(docker_archive(SMALL)),
    ],
    ids=[
        "one",
        "two",
        "link",
        "twice",
        "long name",
        "gzip",
        "zstd",
        "members",
        "oci",
        "oci plain",
        "platforms",
        "oci zstd",
        "gz",
    ],
)
async def test_archives_that_become_images(house: House, alice: Caller, content: bytes) -> None:
    row = await house.sent(alice, "model_v1.tar", content)
    assert (row.state, row.reason) == (ArchiveState.READY, "")
    image = await house.image(row)
    found = await house.registry.manifest(image.repository, "v1")
    for one in found.facts["layers"]:
        assert await house.registry.has_blob(image.repository, one["digest"])
    assert await house.objects() == []


async def test_cuda_and_driver_are_told(house: House, alice: Caller) -> None:
    variables = ["PATH=/bin", "CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4,driver>=470 brand=tesla"]
    content = docker_archive(SMALL, config=config_of(SMALL, config={"Env": variables}))
    await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    await house.sent(alice, "model_v1.tar", content)
    view = await house.images.show(alice, "model:v1")
    assert view.cuda == "12.4.1"


@pytest.mark.parametrize(
    "content",
    [
        docker_archive(SMALL, NOISE),
        docker_archive(NOISE, packed=zstandard.compress),
        docker_archive(NOISE, packed=gzip.compress),
        oci_archive(NOISE),
        gzip.compress(oci_archive(NOISE)),
    ],
    ids=["plain", "zstd", "gzip", "oci", "oci gz"],
)
async def test_what_the_registry_has_is_not_sent_again(house: House, alice: Caller, content: bytes) -> None:
    """As after a crash: the sizes are those of the registry, whatever is in the archive."""
    row = await house.sent(alice, "model_v1.tar", content)
    image = await house.image(row)
    before = (await house.registry.manifest(image.repository, "v1")).facts
    row = await house.sent(alice, "model_v1.tar", content)
    assert (row.state, row.reason) == (ArchiveState.READY, "")
    after = (await house.registry.manifest(image.repository, "v1")).facts
    assert before == after
    for one in after["layers"]:
        assert await house.registry.blob_size(image.repository, one["digest"]) == one["size"]


async def test_a_layer_that_only_claims_to_be_there_is_refused(house: House, alice: Caller) -> None:
    """Else its name would count for what it unpacks to, and the registry's one for what is run."""
    blob = gzip.compress(NOISE)
    await house.sent(alice, "model_v1.tar", oci_archive(NOISE, blob=blob))
    content = oci_archive(SMALL, blob=gzip.compress(SMALL), digest=digest_of(blob))
    row = await house.sent(alice, "model_v1.tar", content)
    assert (row.state, "digest" in row.reason) == (ArchiveState.FAILED, True)
