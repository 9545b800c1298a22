"""The SFTP door with real clients: OpenSSH, lftp, PuTTY's psftp, rclone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.audit import AuditTrail
from tests.gateway.data_tree import House, MemoryTree, run, served

BIN = Path(sys.executable).parent


@pytest.fixture
async def house(audit: AuditTrail, tmp_path: Path) -> AsyncIterator[House]:
    async with served(MemoryTree(), audit, tmp_path) as house:
        yield house


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that is no multiple of any block, with an old time."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(9_000_001))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


async def test_put_and_get_keep_every_byte_and_the_time(house: House, big: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    await house.sftp(f"put -p {big} /d/big", f"get -p /d/big {back}")
    assert house.tree.files["/d/big"] == (big.read_bytes(), 1_600_000_000)
    assert back.read_bytes() == big.read_bytes()
    assert int(back.stat().st_mtime) == 1_600_000_000


async def test_one_event_tells_of_each_handle(house: House, big: Path, tmp_path: Path) -> None:
    import hashlib

    await house.sftp(f"put {big} /d/big", f"get /d/big {tmp_path / 'back'}")
    read, write = (event for event in await house.events() if event.action != "data.list")
    assert (write.action, write.thing, write.outcome) == ("data.write", "/d/big", "ok")
    assert write.detail == {
        "bytes": 9_000_001,
        "ranges": "0-9000001",
        "sha256": hashlib.sha256(big.read_bytes()).hexdigest(),
    }
    assert (read.action, read.outcome, read.detail["ranges"]) == ("data.read", "ok", "0-9000001")


async def test_directories_and_names(house: House, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    for name in ("a", "with space", "数据", "sub/b"):
        (tmp_path / "tree" / name).write_text(name)
    said = await house.sftp(f"put -r {tmp_path / 'tree'} /d/tree", "ls -l /d/tree", "rmdir /d/tree/sub", check=False)
    assert sorted(house.tree.files) == ["/d/tree/a", "/d/tree/sub/b", "/d/tree/with space", "/d/tree/数据"]
    assert "with space" in said
    assert "'/d/tree/sub' is not empty" in said
    await house.sftp("rm /d/tree/sub/b", "rmdir /d/tree/sub", f"get -r /d/tree {tmp_path / 'back'}")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a", "with space", "数据"]


async def test_the_sentence_reaches_people(house: House, big: Path) -> None:
    said = await house.sftp(f"put {big} /sealed/x", check=False)
    assert "'v1' is published and cannot be changed" in said
    assert "Permission denied" in said
    (event,) = await house.events()
    assert (event.action, event.outcome, event.thing) == ("data.write", "refused", "/sealed/x")


async def test_put_replaces_and_rename_does_not(house: House, big: Path) -> None:
    house.tree.put("/d/big", b"old")
    house.tree.put("/d/other", b"other")
    await house.sftp(f"put {big} /d/big")
    assert house.tree.files["/d/big"][0] == big.read_bytes()
    assert "exists already" in await house.sftp("rename -l /d/big /d/other", check=False)
    await house.sftp("rename /d/big /d/other")
    assert house.tree.files["/d/other"][0] == big.read_bytes()


async def test_a_killed_client_leaves_no_file_and_reput_goes_on(house: House, big: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(b"")
    os.truncate(slow, 200_000_000)
    arguments = ["sftp", *house.options, "-P", str(house.port), "-l", "80000", "alice@127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(f"put {slow} /d/big\n".encode())
    await asyncio.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    (event,) = await house.events()
    assert event.outcome == "failed"
    assert "/d/big" not in house.tree.files
    stored = len(house.tree.parked["/d/big"])
    assert 0 < stored < 200_000_000
    house.tree.parked["/d/big"] = big.read_bytes()[:stored]
    if stored >= 9_000_001:
        house.tree.parked["/d/big"] = big.read_bytes()[:5_000_000]
    await house.sftp(f"reput {big} /d/big")
    assert house.tree.files["/d/big"][0] == big.read_bytes()


async def test_slow_storage_closes_the_window(house: House, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"")
    os.truncate(source, 60_000_000)
    house.tree.gate.clear()
    upload = asyncio.create_task(house.sftp(f"put {source} /d/x"))
    async with asyncio.timeout(60):
        while not house.pauses:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    house.tree.gate.set()
    await upload
    assert len(house.tree.files["/d/x"][0]) == 60_000_000


async def test_full_store_is_an_error_at_the_client(house: House, big: Path) -> None:
    house.tree.limit = 5_000_000
    said = await house.sftp(f"put {big} /d/big", check=False)
    assert "the store is full" in said


async def test_an_error_of_ours_does_not_take_the_channel(house: House) -> None:
    house.tree.put("/broken", b"x")
    said = await house.sftp("-rename /broken /d/y", "ls /d", "pwd")
    assert "/broken" in said
    assert "Remote working directory: /" in said


async def test_df_and_long_listings(house: House) -> None:
    for number in range(1000):
        house.tree.put(f"/d/file-{number:04}", b"x" * number)
    assert "1048576" in await house.sftp("df /d")
    listed = (await house.sftp("ls -1 /d")).splitlines()
    assert sum("/d/file-" in line for line in listed) == 1000


async def test_names_that_a_terminal_would_obey(house: House) -> None:
    house.tree.put("/d/\x1b[2Jevil", b"")
    house.tree.put("/d/ok", b"")
    listed = await house.lftp("ls /d", "cls /d")
    assert "\x1b" not in listed
    assert "ok" in listed


async def test_lftp_mirror_sends_only_what_is_new(house: House, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (top / name).write_bytes(os.urandom(300_000))
        os.utime(top / name, (1_500_000_000, 1_500_000_000))
    await house.lftp(f"mirror -R {top} /d/top")
    assert house.tree.files["/d/top/sub/c"] == ((top / "sub/c").read_bytes(), 1_500_000_000)
    before = await house.writes()
    await house.lftp(f"mirror -R {top} /d/top")
    assert await house.writes() == before == 3
    await house.lftp(f"mirror /d/top {tmp_path / 'back'}")
    assert (tmp_path / "back/sub/c").read_bytes() == (top / "sub/c").read_bytes()


async def test_an_interrupted_put_is_told_once(house: House, tmp_path: Path) -> None:
    """Ctrl-C in OpenSSH's client ends in an ordinary CLOSE; its last piece is as large as all the others."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(60_000_000))
    arguments = ["sftp", *house.options, "-P", str(house.port), "-l", "80000", "alice@127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(f"put {source} /d/big\n".encode())
    await asyncio.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate(b"pwd\n")
    size = len(house.tree.files["/d/big"][0])
    assert 0 < size < 60_000_000
    assert errors.decode().count("ended as an interrupted upload does") == 1
    assert f"'/d/big' has {size} bytes" in errors.decode()
    assert house.tree.doubted == ["/d/big"]
    await house.sftp(f"reput {source} /d/big", f"put {source} /d/whole")
    assert house.tree.files["/d/big"][0] == source.read_bytes()
    assert house.tree.doubted == ["/d/big"]


async def test_copies_on_the_server(house: House, big: Path) -> None:
    """`cp` of OpenSSH's client is `copy-data`."""
    await house.sftp(f"put {big} /d/big", "cp /d/big /d/copy")
    assert house.tree.files["/d/copy"][0] == big.read_bytes()
    assert house.tree.doubted == []


async def test_hidden_files_are_shown_to_those_who_ask(house: House) -> None:
    house.tree.put("/d/.hidden", b"x")
    assert " .hidden\n" in await house.sftp("ls -la /d")
    assert ".hidden" in await house.lftp("cls -a /d")


async def test_psftp_puts_and_goes_on(house: House, big: Path, tmp_path: Path) -> None:
    """PuTTY's client writes 4 KiB at a time and resumes with OPEN(WRITE) and FSTAT."""
    house.tree.parked["/d/resumed"] = big.read_bytes()[:4_000_000]
    batch = tmp_path / "batch"
    batch.write_text(f"put {big} /d/big\nreput {big} /d/resumed\nget /d/big {tmp_path / 'back'}\nput {big} /sealed/x\n")
    key = await run("ssh-keyscan", "-p", str(house.port), "127.0.0.1")
    host_key = next(line.split() for line in key.splitlines() if "ssh-ed25519" in line)
    fingerprint = tmp_path / "host.pub"
    fingerprint.write_text(" ".join(host_key[1:3]) + "\n")
    shown = await run("ssh-keygen", "-lf", fingerprint)
    said = await run(
        "env", f"HOME={tmp_path}", "psftp", "-batch", "-be", "-hostkey", shown.split()[1], "-P", str(house.port),
        "-b", batch, "alice@127.0.0.1", check=False,
    )  # fmt: skip
    assert house.tree.files["/d/big"][0] == big.read_bytes(), said
    assert house.tree.files["/d/resumed"][0] == big.read_bytes(), said
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert "/sealed/x: open for write: permission denied" in said


async def test_rclone_copies_and_checks(house: House, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    for name in ("a", "sub/b c"):
        (top / name).write_bytes(os.urandom(400_000))
    key = tmp_path / "key"
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    remote = f":sftp,host=127.0.0.1,port={house.port},user=alice,key_file={key}:/d/top"
    rclone = [BIN / "rclone", "--config", "/dev/null", "-v"]
    await run(*rclone, "copy", top, remote)
    assert house.tree.files["/d/top/sub/b c"][0] == (top / "sub/b c").read_bytes()
    await run(*rclone, "check", top, remote)
    again = await run(*rclone, "copy", top, remote)
    assert "Copied" not in again
