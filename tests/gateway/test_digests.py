"""`md5sum` and its kin, as rclone and lftp ask for them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.audit import AuditTrail
from tests.gateway.data_tree import House, MemoryTree, served

CONTENT = bytes(range(256)) * 10_000


@pytest.fixture
async def house(audit: AuditTrail, tmp_path: Path) -> AsyncIterator[House]:
    async with served(MemoryTree(), audit, tmp_path) as house:
        house.tree.put("/d/a b", CONTENT)
        house.tree.put("/d/back\\slash", b"x")
        yield house


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
async def test_digest_of_a_file(house: House, algorithm: str) -> None:
    said = await house.ssh(f"{algorithm}sum '/d/a b'")
    assert said == f"{hashlib.new(algorithm, CONTENT).hexdigest()}  /d/a b\n"


async def test_digest_of_stdin(house: House) -> None:
    """rclone learns so whether md5sum is there."""
    assert await house.ssh("md5sum") == "d41d8cd98f00b204e9800998ecf8427e  -\n"
    assert (await house.ssh("sha256sum -b -", input=CONTENT)).startswith(hashlib.sha256(CONTENT).hexdigest())


async def test_odd_names_and_missing_files(house: House) -> None:
    said = await house.ssh("md5sum '/d/back\\slash' /d/missing", check=False)
    assert said.startswith(f"\\{hashlib.md5(b'x').hexdigest()}  /d/back\\\\slash\n")
    assert "md5sum: there is no '/d/missing'" in said


async def test_df_and_echo(house: House) -> None:
    header, line = (await house.ssh("df -k /d")).splitlines()
    assert header.startswith("Filesystem")
    assert line.split()[1:4] == ["1048576", "1024", "1047552"]
    assert await house.ssh("echo '${ShellId}%ComSpec%'") == "%ComSpec%\n"


async def test_what_is_not_offered(house: House) -> None:
    with pytest.raises(AssertionError, match="ended with 2"):
        await house.ssh("md5sum -c x")
    with pytest.raises(AssertionError, match="ended with 127"):
        await house.ssh("rm -rf /")


async def test_what_is_known_is_not_read(house: House) -> None:
    house.tree.digests["/d/a b", "md5"] = "0" * 32
    assert await house.ssh("md5sum '/d/a b'") == f"{'0' * 32}  /d/a b\n"
    assert (await house.ssh("sha1sum '/d/a b'")).startswith(hashlib.sha1(CONTENT).hexdigest())


async def test_every_hash_is_an_event(house: House) -> None:
    house.tree.digests["/d/a b", "sha256"] = "0" * 64
    await house.ssh("sha256sum '/d/a b' /d/missing", check=False)
    await house.ssh("md5sum '/d/a b'")
    await house.ssh("md5sum")
    told = [(e.action, e.thing, e.outcome, e.detail.get("source", "")) for e in reversed(await house.events())]
    assert told == [
        ("data.digest", "/d/a b", "ok", "records"),
        ("data.digest", "/d/missing", "failed", ""),
        ("data.digest", "/d/a b", "ok", "file"),
    ]
