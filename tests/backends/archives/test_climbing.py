"""Paths of layers that climb, in every way that tar can write a path; and honest layers, however they are cut up."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from backends.archives.climbing import Climbing
from storage.errors import BadInput

LONG = "a" * 150


def layer(*names: str, format: int = tarfile.PAX_FORMAT, size: int = 700) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO((b"../x" * (size // 4 + 1))[:size]))
    return buffer.getvalue()


def see(content: bytes, most: int = 100_000) -> None:
    climbing, at, dice = Climbing(), 0, random.Random(20261130)
    while at < len(content):
        step = dice.randint(1, most)
        climbing.see(content[at : at + step])
        at += step


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/..", f"{'d' * 90}/../{'e' * 60}"])
@pytest.mark.parametrize("most", [7, 100_000])
def test_a_path_that_climbs(name: str, format: int, most: int) -> None:
    content = layer("honest", name, "honest/too", format=format)
    with pytest.raises(BadInput, match="climbs out"):
        see(content, most)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_path_that_climbs(format: int) -> None:
    with pytest.raises(BadInput, match="climbs out"):
        see(layer(f"{LONG}/../../{LONG}", format=format), 600)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_honest_layers(format: int) -> None:
    names = ("etc/passwd", "/absolute", "a..b", "...", ".wh..wh..opq", "..data/file", f"{'d' * 90}/{'e' * 60}")
    for size in (0, 4, 512, 513, 5000):
        see(layer(*names, format=format, size=size), 300)


def test_a_sparse_file_is_passed_over(tmp_path: Path) -> None:
    """GNU tar writes a map behind the header, and content that is shorter than the file."""
    with (tmp_path / "sparse").open("wb") as file:
        for piece in range(40):
            file.seek(piece * 1_000_000)
            file.write(b"../" * 2000)
    (tmp_path / "behind").write_bytes(b"x")
    for format in ("gnu", "posix"):
        archive = ["tar", "-C", str(tmp_path), "-S", f"--format={format}", "-c", "sparse", "behind"]
        honest = subprocess.run(archive, check=True, capture_output=True).stdout
        see(honest)
        evil = ["tar", "-C", str(tmp_path), "-S", f"--format={format}", "-P", "--transform", "s|behind|../behind|"]
        content = subprocess.run([*evil, "-c", "sparse", "behind"], check=True, capture_output=True).stdout
        with pytest.raises(BadInput, match="behind"):
            see(content)


def test_what_cannot_be_read_is_left_to_engines() -> None:
    see(b"no tar at all" * 1000)
    see(bytes(10_000))
