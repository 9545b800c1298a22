"""Archives that are broken or hostile: each gets a sentence and leaves nothing."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import tarfile
from pathlib import Path

import pytest
import zstandard

from backends.settings import ImageSettings
from storage.access import Caller
from storage.errors import Unavailable
from storage.records import ArchiveState, ImageState
from tests.backends.archives.files import (
    NOISE,
    SMALL,
    File,
    config_of,
    docker_archive,
    header_of,
    layer_of,
    oci_archive,
    tar_of,
)
from tests.backends.archives.house import House

RUBBISH = random.Random(7).randbytes(5000)
"""Always the same: some rubbish looks like the beginning of something long."""
ZEROS = bytes(100_000_000)
BOMB = gzip.compress(ZEROS, 1)
PADDED = docker_archive(SMALL, extra=[File("pad", ZEROS)])
GROUPS = 8
"""Each has a registry of its own, whose start takes longer than most cases."""


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 99]) + content[middle + 99 :]


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the file is empty"),
    "xz": (lzma.compress(docker_archive(SMALL)), "packed with xz"),
    "bzip2": (bz2.compress(docker_archive(SMALL)), "packed with bzip2"),
    "damaged within": (corrupt(gzip.compress(docker_archive(NOISE))), "damaged"),
    "layer damaged within": (docker_archive(NOISE, packed=lambda one: corrupt(gzip.compress(one))), "damaged"),
    "words": (b"hello" * 1000, "no tar file"),
    "cut off": (docker_archive(NOISE)[:-1_000_000], "ends too early"),
    "cut off gz": (gzip.compress(docker_archive(NOISE))[:-1000], "ends too early"),
    "damaged gz": (b"\x1f\x8b" + RUBBISH, "damaged"),
    "damaged zst": (b"\x28\xb5\x2f\xfd" + RUBBISH, "damaged"),
    "no image": (tar_of(File("a", b"b")), "neither manifest.json"),
    "climbs": (docker_archive(SMALL, extra=[File("../../etc/passwd", b"x")]), "leaves it"),
    "absolute": (docker_archive(SMALL, extra=[File("/etc/passwd", b"x")]), "leaves it"),
    "link that leaves": (docker_archive(SMALL, extra=[File("a", b"", tarfile.SYMTYPE, "../../x")]), "leaves it"),
    "link to /": (docker_archive(SMALL, extra=[File("a", b"", tarfile.SYMTYPE, "/etc/passwd")]), "leaves it"),
    "hard link": (docker_archive(SMALL, extra=[File("a", b"", tarfile.LNKTYPE, "../x")]), "leaves it"),
    "circle": (docker_archive(names=["a"], config=config_of(SMALL), extra=[File("a", b"", tarfile.SYMTYPE, "b"),
                              File("b", b"", tarfile.SYMTYPE, "a")]), "lacks 'a'"),
    "device": (docker_archive(SMALL, extra=[File("sda", b"", tarfile.BLKTYPE)]), "device"),
    "pipe": (docker_archive(SMALL, extra=[File("pipe", b"", tarfile.FIFOTYPE)]), "device"),
    "twice": (docker_archive(SMALL, extra=[File("0/layer.tar", b"x")]), "twice"),
    "lacks a layer": (docker_archive(SMALL, names=["5/layer.tar"]), "lacks"),
    "other layer": (docker_archive(SMALL, config=config_of(NOISE)), "digest"),
    "layers missing": (docker_archive(SMALL, config=config_of(SMALL, NOISE)), "has 1 layers"),
    "one file as two": (
        docker_archive(SMALL, config=config_of(SMALL, NOISE), names=["0/layer.tar"] * 2), "as two layers",
    ),
    "no layers": (docker_archive(), "0 layers"),
    "bad config": (docker_archive(SMALL, config=b"{"), "cannot be read"),
    "deep config": (docker_archive(SMALL, config=b"[" * 100_000), "cannot be read"),
    "list as config": (docker_archive(SMALL, config=b"[]"), "does not say"),
    "windows": (docker_archive(SMALL, config=config_of(SMALL, os="windows")), "not for Linux"),
    "steps for others": (docker_archive(SMALL, config=config_of(SMALL, config={"OnBuild": ["USER root"]})), "ONBUILD"),
    "bomb": (gzip.compress(PADDED, 1), "fill disks"),
    "zstd bomb": (zstandard.compress(PADDED, 1), "fill disks"),
    "bomb in a layer": (docker_archive(BOMB, config=config_of(SMALL)), "fill disks"),
    "bomb in oci": (oci_archive(SMALL, blob=BOMB), "fill disks"),
    "oci digest": (oci_archive(NOISE, digest="sha256:" + "0" * 64), "digest"),
    "oci size": (oci_archive(NOISE, size=7), "another size"),
    "oci two": (oci_archive(NOISE, platforms=["amd64", "arm64"]), "2 images (linux/amd64, linux/arm64)"),
    "oci two within": (oci_archive(NOISE, platforms=["amd64", "arm64"], nested=True), "2 images (linux/amd64, linux/a"),
    "oci none": (oci_archive(NOISE, platforms=[], elsewhere=["amd64"]), "lacks 'blobs/sha256/"),
    "other configuration": (docker_archive(SMALL, named="0" * 64 + ".json"), "digest"),
    "key twice": (docker_archive(SMALL, config=b'{"os": "linux", ' + config_of(SMALL)[1:]), "cannot be read"),
    "key in another case": (docker_archive(SMALL, config=config_of(SMALL, config={"onBuild": ["RUN x"]})), "another c"),
    "endless manifest": (tar_of(File("manifest.json", b"[" + b" " * (5 << 20) + b"]")), "more than 4 MiB"),
    "many layers": (docker_archive(*[SMALL] * 501), "501 layers"),
    "layer is no gz": (docker_archive(SMALL, packed=lambda content: b"\x1f\x8b" + content), "damaged"),
    "layer cut off": (docker_archive(NOISE, packed=lambda content: gzip.compress(content)[:-99]), "ends too early"),
    "two images": (tar_of(File("manifest.json", json.dumps([{}, {}]).encode())), "2 images"),
    "manifest of numbers": (tar_of(File("manifest.json", b"[7]")), "cannot be read"),
    "index of numbers": (tar_of(File("oci-layout", b"{}"), File("index.json", b'{"manifests": [7]}')), "without a sha"),
    "many entries": (tar_of(*[File(f"f{n}") for n in range(11_000)]), "more than 10000 entries"),
    "many extended headers": (header_of(tarfile.XHDTYPE, b"6 a=b\n") * 11_000, "more than 10000 entries"),
    "many global headers": (header_of(tarfile.XGLTYPE, b"6 a=b\n") * 11_000, "more than 10000 entries"),
    "many long names": (gzip.compress(header_of(tarfile.GNUTYPE_LONGNAME, b"a") * 11_000), "more than 10000 entries"),
    "long header": (header_of(tarfile.XHDTYPE, b"6 a=b\n" * 20_000), "more than 64 KiB"),
    "endless number": (header_of(tarfile.XHDTYPE, b"1" * 5000 + b" a=b\n"), "damaged header"),
    "endless size": (header_of(tarfile.XHDTYPE, b"5012 size=" + b"1" * 5001 + b"\n") + SMALL, "impossible size"),
    "odd size": (header_of(tarfile.XHDTYPE, "11 size=²\n".encode()) + SMALL, "impossible size"),
    "layer climbs": (docker_archive(SMALL, tar_of(File("../../etc/passwd", b"x"))), "climbs out"),
    "packed layer climbs": (docker_archive(tar_of(File("a/../../b", b"x")), packed=gzip.compress), "climbs out"),
    "endless name": (header_of(tarfile.GNUTYPE_LONGNAME, b"a" * 5000) + SMALL, "endless name"),
    "terminal": (docker_archive(SMALL, extra=[File("../\x1b[31m", b"")]), "leaves it"),
}  # fmt: skip


@pytest.mark.parametrize("group", range(GROUPS))
async def test_archives_that_are_refused(
    house: House, alice: Caller, admin: Caller, tmp_path: Path, group: int
) -> None:
    """Each with a sentence and an event, and nothing of it stays: no object, no image, no blob half-way."""
    cases = list(REFUSED)[group::GROUPS]
    for case in cases:
        content, sentence = REFUSED[case]
        row = await house.sent(alice, "model_v1.tar", content)
        assert (row.state, sentence in row.reason) == (ArchiveState.FAILED, True), (case, row.reason)
        assert "\x1b" not in row.reason
        assert await house.objects() == []
        assert await house.facts() == []
        assert list((tmp_path / "registry").rglob("_uploads/*/data")) == [], case
        for view in await house.images.list(alice):
            assert (view.state, view.is_usable) == (ImageState.FAILED, False), case
    events = await house.audit.search(admin, action="archive.failed")
    assert sorted(event.detail["reason"] for event in events) == sorted(row.reason for row in await house.rows())
    again = await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    assert again.state is ArchiveState.READY


async def test_layers_together_are_limited(house: House, alice: Caller) -> None:
    """None of them is too large by itself; one that the image has twice is there twice where it runs."""
    house.settings = ImageSettings(archive_gib=10 / 1024)
    six = [layer_of(bytes([n]) * (6 << 20)) for n in range(2)]
    twice = {"config": config_of(six[0], six[0]), "names": ["0/layer.tar"] * 2}
    for content in (
        docker_archive(*six, packed=gzip.compress), docker_archive(*six, packed=zstandard.compress),
        docker_archive(six[0], packed=gzip.compress, **twice),
    ):  # fmt: skip
        row = await house.sent(alice, "model_v1.tar", content)
        assert (row.state, "GiB together" in row.reason) == (ArchiveState.FAILED, True), row.reason
    row = await house.sent(alice, "model_v1.tar", docker_archive(six[0], packed=gzip.compress))
    assert row.state is ArchiveState.READY


async def test_a_disk_that_fills_up_meanwhile(house: House, alice: Caller, tmp_path: Path) -> None:
    """A zstd layer is kept unpacked, and only its end tells how much that is: it stops before the disk is full."""
    house.free = 10 << 20
    content = docker_archive(layer_of(bytes(60 << 20)), packed=zstandard.compress)
    with pytest.raises(Unavailable, match="became full"):
        await house.sent(alice, "model_v1.tar", content)
    assert list((tmp_path / "registry").rglob("_uploads/*/data")) == []
    house.free = None
    await house.work()
    assert (await house.rows())[0].state is ArchiveState.READY
