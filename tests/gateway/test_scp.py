"""The old scp protocol with OpenSSH's `scp -O`, and with a client that means harm."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from gateway.scp import parse
from storage.audit import AuditTrail
from storage.errors import BadInput
from tests.gateway.data_tree import House, MemoryTree, served


@pytest.fixture
async def house(audit: AuditTrail, tmp_path: Path) -> AsyncIterator[House]:
    async with served(MemoryTree(), audit, tmp_path) as house:
        yield house


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "folder"
    (top / "sub").mkdir(parents=True)
    for name, size in {"a": 5, "empty": 0, "sub/数据 x": 1_000_003}.items():
        (top / name).write_bytes(os.urandom(size))
        os.utime(top / name, (1_600_000_000, 1_600_000_000))
    return top


async def test_a_folder_there_and_back(house: House, folder: Path, tmp_path: Path) -> None:
    await house.scp("-rp", folder, ":/d/new")
    assert house.tree.files["/d/new/sub/数据 x"] == ((folder / "sub/数据 x").read_bytes(), 1_600_000_000)
    await house.scp("-rp", folder, ":/d")
    assert "/d/folder/empty" in house.tree.files
    await house.scp("-rp", ":/d/new", tmp_path / "back")
    for name in ("a", "empty", "sub/数据 x"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
        assert int((tmp_path / "back" / name).stat().st_mtime) == 1_600_000_000


async def test_wildcards(house: House, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.bin"):
        house.tree.put(f"/d/{name}", name.encode())
    (tmp_path / "back").mkdir()
    await house.scp(":/d/*.txt", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a.txt", "b.txt"]


async def test_refusals_have_words_and_a_status(house: House, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is published and cannot be changed"):
        await house.scp(folder / "a", ":/sealed/a")
    with pytest.raises(AssertionError, match="there is no '/d/missing'"):
        await house.scp(":/d/missing", tmp_path / "x")
    with pytest.raises(AssertionError, match="is a directory: use -r"):
        await house.scp(":/d", tmp_path / "x")
    events = await house.events()
    assert {event.outcome for event in events} == {"refused", "failed"}


async def test_a_full_store_is_told_and_the_rest_still_comes(house: House, folder: Path) -> None:
    house.tree.limit = 500_000
    said = await house.scp("-r", folder, ":/d/new", check=False)
    assert "the store is full" in said
    assert sorted(house.tree.files) == ["/d/new/a", "/d/new/empty"]


async def test_a_killed_client_leaves_no_file(house: House, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"")
    os.truncate(source, 300_000_000)
    process = await asyncio.create_subprocess_exec(
        "scp", "-O", "-l", "80000", *house.options, "-P", str(house.port), str(source), "alice@127.0.0.1:/d/x",
        start_new_session=True,
    )  # fmt: skip
    await asyncio.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    (event,) = await house.events()
    assert (event.action, event.outcome) == ("data.write", "failed")
    assert "/d/x" not in house.tree.files
    assert house.tree.parked["/d/x"]


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ".", "a\x1b[2J", ""])
async def test_names_that_lead_elsewhere_are_refused(house: House, name: str) -> None:
    async with asyncssh.connect("127.0.0.1", house.port, username="alice", known_hosts=None, config=None) as conn:
        process = await conn.create_process("scp -r -t /d", encoding=None)
        assert await process.stdout.readexactly(1) == b"\0"
        process.stdin.write(f"C0644 3 {name}\n".encode())
        assert await process.stdout.readexactly(1) == b"\1"
        assert b"cannot be the name" in await process.stdout.readline()
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 1
    assert not house.tree.files


async def test_what_is_no_scp_ends_it(house: House) -> None:
    async with asyncssh.connect("127.0.0.1", house.port, username="alice", known_hosts=None, config=None) as conn:
        done = await conn.run("scp -t /d", input=b"GET / HTTP/1.0\n" + b"x" * 100_000, encoding=None)
        assert done.exit_status == 1
        done = await conn.run("scp -t /d", input=b"C" * 100_000, encoding=None)
        assert done.exit_status == 1


def test_command_lines() -> None:
    assert parse(["scp", "-r", "-p", "-d", "-t", "--", "/a b"]).paths == ["/a b"]
    assert parse(["scp", "-t", "/a", "b"]).paths == ["/a b"]
    assert parse(["scp", "-f", "/a", "/b"]).paths == ["/a", "/b"]
    assert parse(["scp", "-prf", "x"]).recursive
    for words in (["scp", "x"], ["scp", "-tf", "x"], ["scp", "-t", "-S", "x"]):
        with pytest.raises(BadInput):
            parse(words)
