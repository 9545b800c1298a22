"""Uploads over bad links, with the programs that people use: each ends in equal bytes or in a clear sentence.

The parts are 5 MiB here, so that small files have several. What broke off is never seen under its name by anybody but
its owner, who sees the size that is safely stored and goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.stories.clients import BIN, Gateway, eventually, run
from tests.stories.conftest import served
from tests.stories.links import Link, bad_link
from tests.stories.test_transfers import Rclone, lftp, names_in, sftp

MIB = 1024 * 1024
PART = 5 * MIB
SENT = 13 * MIB
"""What a client gets through before its link breaks: two whole parts and a piece."""
OLD = 1_600_000_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("resume"), settings="[objects]\npart_mib = 5\n") as gateway:
        yield gateway


@pytest.fixture
def top(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[str]:
    """A version to write into, `/datasets/<test>/v1`; gone afterwards."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")[:44].strip("-")
    sftp(gateway, "alice", f"mkdir /datasets/{name}", f"mkdir /datasets/{name}/v1")
    yield f"/datasets/{name}/v1"
    gateway.ssh("alice", "dataset", "delete", name, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """23 MB that are no multiple of anything."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(23_000_001))
    os.utime(path, (OLD, OLD))
    return path


# ---- programs --------------------------------------------------------------------------------------------------


class Person:
    """Alice's programs; each sends `source` to `target`, going on where it broke off."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self.gateway = gateway
        self.directory = directory

    def reput(self, source: Path, target: str) -> None:
        sftp(self.gateway, "alice", f"reput {source} {target}")

    def put_a(self, source: Path, target: str) -> None:
        sftp(self.gateway, "alice", f"put -a {source} {target}")

    def lftp(self, source: Path, target: str) -> None:
        lftp(self.gateway, "alice", f"put -c {source} -o {target}")

    def psftp(self, source: Path, target: str) -> None:
        key, batch = self.directory / "alice.ppk", self.directory / "batch"
        run(["puttygen", self.gateway.home / "alice", "-O", "private", "-o", key])
        batch.write_text(f"reput {source} {target}\n")
        seen = run(["ssh-keyscan", "-p", str(self.gateway.port), "127.0.0.1"]).stdout.decode()
        line = next(line for line in seen.splitlines() if "ssh-ed25519" in line)
        (self.directory / "host.pub").write_text(" ".join(line.split()[1:]) + "\n")
        fingerprint = run(["ssh-keygen", "-lf", self.directory / "host.pub"]).stdout.decode().split()[1]
        run(
            ["env", f"HOME={self.directory}", "psftp", "-batch", "-be", "-hostkey", fingerprint, "-i", key,
             "-P", str(self.gateway.port), "-b", batch, "alice@127.0.0.1"], timeout=120,
        )  # fmt: skip

    def curl(self, source: Path, target: str) -> None:
        key = self.gateway.home / "alice"
        url = f"sftp://127.0.0.1:{self.gateway.port}{target}"
        keys = ["--key", key, "--pubkey", f"{key}.pub", "-u", "alice:", "--insecure"]
        run(["curl", "-sS", *keys, "-C", "-", "-T", source, url], timeout=120)


@pytest.fixture
def alice(gateway: Gateway, tmp_path: Path) -> Person:
    return Person(gateway, tmp_path)


def started(gateway: Gateway, link: Link, source: Path, target: str, *, verb: str = "put") -> subprocess.Popen[bytes]:
    """`sftp` that puts `source` over `link`; interactive, as far as it can tell."""
    arguments = [*gateway.client("alice", program="sftp", options=["-P", str(link.port)]), "alice@gw"]
    client = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    assert client.stdin is not None
    client.stdin.write(f"{verb} {source} {target}\n".encode())
    client.stdin.flush()
    return client


def ended(client: subprocess.Popen[bytes]) -> str:
    """What a client that is at its end had to say."""
    try:
        return client.communicate(timeout=60)[1].decode(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(gateway: Gateway, target: str) -> str:
    """The SHA-256 that the gateway tells, made sure of by reading the file with another account."""
    told = gateway.ssh("alice", shlex.join(["sha256sum", target])).stdout.decode().split()[0].lstrip("\\")
    back = gateway.home / "back"
    sftp(gateway, "bob", f'get "{target}" {back}')
    assert digest(back) == told
    back.unlink()
    return told


def uploads(gateway: Gateway, path: str) -> list[dict[str, object]]:
    return [row for row in gateway.json("alice", "upload", "list") if row["path"] == path]


def parked(gateway: Gateway, path: str) -> int:
    """The bytes that are safely stored of an upload that broke off."""
    rows = eventually(lambda: [row for row in uploads(gateway, path) if row["state"] == "parked"])
    size = rows[0]["bytes"]
    assert isinstance(size, int)
    return size


def size_for(gateway: Gateway, person: str, path: str) -> int | None:
    """What `ls -l` says of a file; None: it is not there."""
    listing = sftp(gateway, person, f"ls -ln {path.rpartition('/')[0]}")
    found = re.search(
        rf"\s(\d+) \w+ +\d+ +[\d:]+ (?:\S*/)?{re.escape(path.rpartition('/')[2])}$", listing, re.MULTILINE
    )
    return int(found[1]) if found else None


# ---- what breaks off -------------------------------------------------------------------------------------------


def killed_client(gateway: Gateway, link: Link, client: subprocess.Popen[bytes]) -> None:
    os.killpg(client.pid, signal.SIGKILL)


def cut_link(gateway: Gateway, link: Link, client: subprocess.Popen[bytes]) -> None:
    link.cut()


def killed_gateway(gateway: Gateway, link: Link, client: subprocess.Popen[bytes]) -> None:
    gateway.stop(how=signal.SIGKILL)
    gateway.start()


def stopped_gateway(gateway: Gateway, link: Link, client: subprocess.Popen[bytes]) -> None:
    gateway.stop()
    gateway.start()


Break = Callable[[Gateway, Link, subprocess.Popen[bytes]], None]
PROGRAMS = ("reput", "put_a", "lftp", "psftp", "curl")


@pytest.mark.parametrize(
    ("breaks", "program"),
    [*[(cut_link, program) for program in PROGRAMS], (killed_client, "reput"), (killed_gateway, "reput"),
     (killed_gateway, "lftp"), (stopped_gateway, "reput")],
)  # fmt: skip
def test_a_broken_upload_goes_on(
    gateway: Gateway, alice: Person, source: Path, top: str, breaks: Break, program: str
) -> None:
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        eventually(lambda: uploads(gateway, target) and uploads(gateway, target)[0]["bytes"])
        breaks(gateway, link, client)
        ended(client)
    safe = parked(gateway, target)
    assert safe in (PART, 2 * PART)
    assert size_for(gateway, "alice", target) == safe
    assert size_for(gateway, "bob", target) is None
    getattr(alice, program)(source, target)
    assert stored(gateway, target) == digest(source)
    assert uploads(gateway, target) == []


def test_a_broken_replacement_leaves_the_old_file_and_goes_on(
    gateway: Gateway, alice: Person, source: Path, top: str, tmp_path: Path
) -> None:
    """Until all of the new file is there, everybody reads the old one."""
    (tmp_path / "old").write_bytes(b"old")
    target = f"{top}/file"
    sftp(gateway, "alice", f"put {tmp_path}/old {target}")
    with bad_link(gateway.port, allowance=SENT) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        assert stored(gateway, target) == digest(tmp_path / "old")
        link.cut()
        ended(client)
    parked(gateway, target)
    assert stored(gateway, target) == digest(tmp_path / "old")
    alice.reput(source, target)
    assert stored(gateway, target) == digest(source)


def test_ctrl_c_in_openssh_is_told_and_goes_on(gateway: Gateway, alice: Person, source: Path, top: str) -> None:
    """OpenSSH closes the file as if it were complete; nobody can tell it from a whole one, so everybody is told."""
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        os.kill(client.pid, signal.SIGINT)
        link.release()
        said = ended(client)
    assert "ended as an interrupted upload does" in said
    begun = size_for(gateway, "alice", target)
    assert begun is not None
    assert begun < source.stat().st_size
    alice.reput(source, target)
    assert stored(gateway, target) == digest(source)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_lftp_goes_on(gateway: Gateway, alice: Person, source: Path, top: str, how: int) -> None:
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        program = f"ssh -a -x -F {gateway.config('alice')} -p {link.port}"
        script = f"set sftp:connect-program '{program}'; open -u alice, sftp://gw; put {source} -o {target}"
        client = subprocess.Popen(
            ["env", f"HOME={gateway.home}", "lftp", "--norc", "-c", script], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        link.wait_until_held()
        os.killpg(client.pid, how)
        link.release()
        ended(client)
    assert size_for(gateway, "bob", target) is None
    alice.lftp(source, target)
    assert stored(gateway, target) == digest(source)


def test_an_interrupted_scp_is_sent_again(gateway: Gateway, source: Path, top: str) -> None:
    """`scp` opens without truncating, and begins anew all the same."""
    target = f"{top}/file"
    base = gateway.client("alice", program="scp", options=["-q"])
    with bad_link(gateway.port, allowance=SENT) as link:
        client = subprocess.Popen(
            [*base, "-P", str(link.port), source, f"alice@gw:{target}"], stderr=subprocess.PIPE, start_new_session=True
        )
        link.wait_until_held()
        link.cut()
        ended(client)
    run([*base, source, f"alice@gw:{target}"])
    assert stored(gateway, target) == digest(source)
    source.write_bytes(os.urandom(17_000_000))  # shorter than what is there now
    run([*base, source, f"alice@gw:{target}"])
    assert stored(gateway, target) == digest(source)


def test_another_file_is_put_where_one_broke_off(gateway: Gateway, source: Path, top: str, tmp_path: Path) -> None:
    """`put` begins anew; what was stored of the first file is no part of the second."""
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        link.cut()
        ended(client)
    parked(gateway, target)
    other = tmp_path / "other"
    other.write_bytes(os.urandom(6_000_000))
    sftp(gateway, "alice", f"put {other} {target}")
    assert stored(gateway, target) == digest(other)
    assert uploads(gateway, target) == []


def test_what_broke_off_is_removed_or_aborted(gateway: Gateway, source: Path, top: str) -> None:
    for way in ("rm", "abort"):
        target = f"{top}/{way}"
        with bad_link(gateway.port, allowance=SENT) as link:
            client = started(gateway, link, source, target)
            link.wait_until_held()
            link.cut()
            ended(client)
        parked(gateway, target)
        if way == "rm":
            sftp(gateway, "alice", f"rm {target}")
        else:
            gateway.ssh("alice", "upload", "abort", str(uploads(gateway, target)[0]["id"]))
        assert size_for(gateway, "alice", target) is None
        assert uploads(gateway, target) == []


def test_an_upload_that_is_ended_tells_its_client(gateway: Gateway, source: Path, top: str) -> None:
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        upload = eventually(lambda: uploads(gateway, target))[0]["id"]
        gateway.ssh("carol", "upload", "abort", str(upload))
        link.release()
        said = ended(client)
    assert "upload" in said
    assert size_for(gateway, "alice", target) is None
    assert size_for(gateway, "bob", target) is None


# ---- temporary names -------------------------------------------------------------------------------------------


async def test_winscp_sends_breaks_off_goes_on_and_renames(gateway: Gateway, source: Path, top: str) -> None:
    """`.filepart`, opened again without truncating; CLOSE and SETSTAT in one go; REMOVE of the target, and RENAME."""
    data, target = source.read_bytes(), f"{top}/file"
    part = f"{target}.filepart"
    with bad_link(gateway.port, allowance=SENT) as link:
        async with _connected(gateway, link.port) as connection, connection.start_sftp_client() as client:
            file = await client.open(
                part, asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC,
                attrs=asyncssh.SFTPAttrs(size=len(data)), encoding=None,
            )  # fmt: skip
            for at in range(0, 12 * MIB, 32768):
                await file.write(data[at : at + 32768], at)
            link.cut()
    safe = parked(gateway, part)
    async with _connected(gateway, gateway.port) as connection, connection.start_sftp_client() as client:
        assert (await client.stat(part)).size == safe
        file = await client.open(part, asyncssh.FXF_WRITE | asyncssh.FXF_CREAT, encoding=None)
        for at in range(safe, len(data), 32768):
            await file.write(data[at : at + 32768], at)
        await file.close()
        await client.setstat(part, asyncssh.SFTPAttrs(atime=OLD, mtime=OLD))
        assert size_for(gateway, "bob", target) is None
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            await client.remove(target)
        await client.rename(part, target)
        assert (await client.stat(target)).mtime == OLD
    assert stored(gateway, target) == digest(source)
    assert names_in(gateway, "alice", top) == ["file"]


@contextlib.asynccontextmanager
async def _connected(gateway: Gateway, port: int):  # type: ignore[no-untyped-def]
    try:
        async with asyncssh.connect(
            "127.0.0.1",
            port,
            username="alice",
            client_keys=[str(gateway.home / "alice")],
            known_hosts=None,
            config=None,
        ) as connection:
            yield connection
    except asyncssh.ConnectionLost:
        pass


def rclones() -> list[Path]:
    """The present one, and Debian's, whose WRITE packets are longer than they say."""
    return [BIN / "rclone", Path("/usr/bin/rclone")]


@pytest.mark.parametrize("program", rclones(), ids=["present", "debian"])
def test_rclone_is_killed_and_copies_again(
    gateway: Gateway, source: Path, top: str, tmp_path: Path, program: Path
) -> None:
    target = f"{top}/source"
    rclone = Rclone(gateway, "alice", tmp_path, program=program)
    with bad_link(gateway.port, allowance=SENT) as link:
        client = subprocess.Popen(
            [*rclone.arguments(port=link.port), "copyto", source, f"gw:{target}"], stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        link.wait_until_held()
        os.killpg(client.pid, signal.SIGKILL)
        ended(client)
    assert size_for(gateway, "bob", target) is None
    rclone("copyto", source, f"gw:{target}")
    assert stored(gateway, target) == digest(source)
    assert names_in(gateway, "bob", top) == ["source"]
    assert "Copied" not in rclone("copyto", "-v", source, f"gw:{target}")


# ---- sizes, names, crowds --------------------------------------------------------------------------------------

SIZES = (0, 1, PART - 1, PART, PART + 1, 2 * PART)
NAMES = ("with space", "a+b", "100%", "50%25", "数据", "u\u0308ber", "\u00fcber", "#hash?", "semi;colon&", "'quote'")


def test_sizes_around_parts(gateway: Gateway, top: str, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    for size in SIZES:
        (folder / str(size)).write_bytes(os.urandom(size))
    sftp(gateway, "alice", f"put -r {folder}/. {top}/", f"get -r {top} {tmp_path / 'back'}")
    for size in SIZES:
        assert digest(tmp_path / "back" / str(size)) == digest(folder / str(size)), size


@pytest.mark.parametrize("size", [PART, 2 * PART])
def test_a_whole_number_of_parts_breaks_off_before_its_end(
    gateway: Gateway, alice: Person, top: str, tmp_path: Path, size: int
) -> None:
    source, target = tmp_path / "source", f"{top}/file"
    source.write_bytes(os.urandom(size))
    with bad_link(gateway.port, allowance=size - 1000) as link:
        client = started(gateway, link, source, target)
        link.wait_until_held()
        link.cut()
        ended(client)
    assert size_for(gateway, "bob", target) is None
    if size > PART:
        parked(gateway, target)
        alice.reput(source, target)
    else:
        sftp(gateway, "alice", f"put {source} {target}")
    assert stored(gateway, target) == digest(source)


def test_names(gateway: Gateway, top: str, tmp_path: Path) -> None:
    """NFC and NFD are two names, as on any Linux disk."""
    folder = tmp_path / "names"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / name).write_text(name)
    lftp(gateway, "alice", f"mirror -R {folder} {top}")
    assert sorted(names_in(gateway, "bob", top)) == sorted(NAMES)
    lftp(gateway, "alice", f"mirror {top} {tmp_path / 'back'}")
    for name in NAMES:
        assert (tmp_path / "back" / name / name).read_text() == name
    for name in NAMES:
        sftp(gateway, "alice", f'rename "{top}/{name}/{name}" "{top}/{name}/new {name}"')
    said = gateway.ssh("alice", shlex.join(["sha256sum", *[f"{top}/{name}/new {name}" for name in NAMES]])).stdout
    told = [line.lstrip("\\").split()[0] for line in said.decode().splitlines()]
    assert told == [hashlib.sha256(name.encode()).hexdigest() for name in NAMES]


def test_two_writers_on_one_path(gateway: Gateway, source: Path, top: str, tmp_path: Path) -> None:
    """Whoever is told that it went well and was the last: that one's bytes, whole."""
    target, other = f"{top}/file", tmp_path / "other"
    other.write_bytes(os.urandom(12_000_000))
    with bad_link(gateway.port, allowance=SENT) as link:
        slow = started(gateway, link, source, target)
        link.wait_until_held()
        quick = run([*gateway.client("alice", program="sftp"), "-b", "-", "alice@gw"],
                    input=f"put {other} {target}\n".encode(), check=False)  # fmt: skip
        if quick.returncode == 0:
            assert stored(gateway, target) == digest(other)
        else:
            assert b"/file" in quick.stderr
        link.release()
        said = ended(slow)
    assert stored(gateway, target) in (digest(source), digest(other)), said


def test_mirror_sends_nothing_the_second_time(gateway: Gateway, top: str, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for number in range(2000):
        path = folder / f"{number % 20:02}" / f"{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(4, "big") * 8)
        os.utime(path, (OLD + number, OLD + number))
    command = f"mirror -R --only-newer -P 8 -v {folder} {top}"
    assert lftp(gateway, "alice", command).count("Transferring file") == 2000
    assert "Transferring" not in lftp(gateway, "alice", command)
