"""`sftp`, `scp`, `rsync`, `lftp` and `rclone` with an environment and with the data tree."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.clients import BIN, Environment, Gateway, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tree: sizes around packet and part borders, an empty file, names that need quoting, an old mtime."""
    top = tmp_path / "folder"
    (top / "deep" / "er").mkdir(parents=True)
    for name, size in {"empty": 0, "small.txt": 5, "packet": 32768, "with space": 100_001, "数据": 70_000}.items():
        (top / name).write_bytes(os.urandom(size))
    (top / "deep" / "er" / "big").write_bytes(os.urandom(9_000_000))
    for path in top.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return top


def contents(top: Path) -> dict[str, str]:
    """Relative path → hash of every file."""
    files = sorted(path for path in top.rglob("*") if path.is_file())
    return {str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sftp(gateway: Gateway, login: str, *lines: str, check: bool = True) -> str:
    """`sftp -b -`: what it printed, errors included."""
    batch = "".join(f"{line}\n" for line in lines)
    arguments = [*gateway.client(login, program="sftp"), "-b", "-", f"{login}@gw"]
    done = run(arguments, input=batch.encode(), check=check, timeout=150)
    return (done.stdout + done.stderr).decode()


def lftp(gateway: Gateway, login: str, *commands: str) -> str:
    program = " ".join(["ssh", "-a", "-x", "-F", str(gateway.config(login.partition("+")[0]))])
    settings = f"set sftp:connect-program '{program}'; set net:max-retries 1; set cmd:fail-exit yes"
    script = "; ".join([settings, f"open -u {login}, sftp://gw", *commands, "bye"])
    environment = ["env", f"HOME={gateway.home}", "LANG=C.UTF-8"]
    done = run([*environment, "lftp", "--norc", "-c", script], timeout=150)
    return (done.stdout + done.stderr).decode()


@pytest.fixture
def dataset(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[str]:
    """A data set of alice that is gone afterwards; the name only, uploads make it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")[:40].strip("-")
    yield name
    gateway.ssh("alice", "dataset", "delete", name, check=False)


# ---- an environment --------------------------------------------------------------------------------------------


def test_sftp_in_an_environment(environment: Environment, folder: Path, tmp_path: Path) -> None:
    gateway, login = environment.gateway, environment.login
    sftp(gateway, login, f"put -rp {folder} sftp-up", "ls -l sftp-up", f"get -rp sftp-up {tmp_path / 'back'}")
    assert contents(tmp_path / "back") == contents(folder)
    assert environment.ssh("stat -c %Y sftp-up/packet; rm -r sftp-up").stdout == b"1600000000\n"


@pytest.mark.parametrize("options", [[], ["-O"]], ids=["sftp", "legacy"])
def test_scp_in_an_environment(environment: Environment, folder: Path, tmp_path: Path, options: list[str]) -> None:
    base = [*environment.gateway.client(environment.login, program="scp"), "-rpq", *options]
    run([*base, folder, f"{environment.login}@gw:scp-up"])
    run([*base, f"{environment.login}@gw:scp-up", tmp_path / "back"])
    assert contents(tmp_path / "back") == contents(folder)
    environment.ssh("rm -r scp-up")


def test_rsync_in_an_environment(environment: Environment, folder: Path, tmp_path: Path) -> None:
    shell = " ".join(["ssh", "-F", str(environment.gateway.config("alice"))])
    base = ["rsync", "-a", "--stats", "-e", shell]
    remote = f"{environment.login}@gw:rsync-up/"
    run([*base, f"{folder}/", remote])
    again = run([*base, f"{folder}/", remote]).stdout.decode()
    assert "Number of regular files transferred: 0" in again
    run([*base, remote, f"{tmp_path / 'back'}/"])
    assert contents(tmp_path / "back") == contents(folder)
    environment.ssh("rm -r rsync-up")


def test_lftp_mirror_into_an_environment_sends_nothing_twice(environment: Environment, folder: Path) -> None:
    lftp(environment.gateway, environment.login, f"mirror -R {folder} lftp-up")
    again = lftp(environment.gateway, environment.login, f"mirror -R -v {folder} lftp-up")
    assert "Transferring" not in again
    environment.ssh("rm -r lftp-up")


def test_rclone_in_an_environment(environment: Environment, folder: Path, tmp_path: Path) -> None:
    rclone = Rclone(environment.gateway, environment.login, tmp_path)
    rclone("sync", folder, "gw:rclone-up")
    assert "0 differences found" in rclone("check", folder, "gw:rclone-up")
    rclone("sync", "gw:rclone-up", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    environment.ssh("rm -r rclone-up")


# ---- the data tree ---------------------------------------------------------------------------------------------


def test_the_tree_says_what_it_is(gateway: Gateway, tmp_path: Path) -> None:
    listing = sftp(gateway, "alice", "ls -1 /", f"get /README.txt {tmp_path}/")
    assert "datasets" in listing
    assert "datasets" in (tmp_path / "README.txt").read_text()


def test_sftp_into_a_data_set(gateway: Gateway, folder: Path, tmp_path: Path, dataset: str) -> None:
    top = f"/datasets/{dataset}"
    sftp(gateway, "alice", f"mkdir {top}", f"mkdir {top}/v1", f"put -rp {folder}/. {top}/v1")
    listing = sftp(gateway, "alice", f"ls -ln {top}/v1", f"get -rp {top}/v1 {tmp_path / 'back'}")
    assert contents(tmp_path / "back") == contents(folder)
    assert re.search(r"32768 Sep 13\s+2020 .*packet", listing)


@pytest.mark.parametrize("options", [[], ["-O"]], ids=["sftp", "legacy"])
def test_scp_into_a_data_set(gateway: Gateway, folder: Path, tmp_path: Path, dataset: str, options: list[str]) -> None:
    base = [*gateway.client("alice", program="scp"), "-rpq", *options]
    sftp(gateway, "alice", f"mkdir /datasets/{dataset}")
    run([*base, folder, f"alice@gw:/datasets/{dataset}/v1"])
    run([*base, f"alice@gw:/datasets/{dataset}/v1", tmp_path / "back"])
    assert contents(tmp_path / "back") == contents(folder)


def test_lftp_mirror_makes_the_data_set_and_sends_nothing_twice(
    gateway: Gateway, folder: Path, tmp_path: Path, dataset: str
) -> None:
    lftp(gateway, "alice", f"mirror -R {folder} /datasets/{dataset}/v1")
    again = lftp(gateway, "alice", f"mirror -R -v {folder} /datasets/{dataset}/v1")
    assert "Transferring" not in again
    lftp(gateway, "alice", f"mirror /datasets/{dataset}/v1 {tmp_path / 'back'}")
    assert contents(tmp_path / "back") == contents(folder)


def test_rclone_with_a_data_set(gateway: Gateway, folder: Path, tmp_path: Path, dataset: str) -> None:
    rclone = Rclone(gateway, "alice", tmp_path)
    rclone("sync", folder, f"gw:/datasets/{dataset}/v1")
    assert "0 differences found" in rclone("check", folder, f"gw:/datasets/{dataset}/v1")
    assert "There was nothing to transfer" in rclone("sync", "-v", folder, f"gw:/datasets/{dataset}/v1")
    rclone("sync", f"gw:/datasets/{dataset}/v1", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_publish_closes_a_version(gateway: Gateway, tmp_path: Path, dataset: str) -> None:
    (tmp_path / "row").write_text("1,2,3\n")
    top = f"/datasets/{dataset}"
    sftp(gateway, "alice", f"mkdir {top}", f"mkdir {top}/v1", f"put {tmp_path / 'row'} {top}/v1/row")
    gateway.ssh("alice", "dataset", "publish", f"{dataset}:v1")
    for line in (f"put {tmp_path / 'row'} {top}/v1/other", f"put {tmp_path / 'row'} {top}/v1/row", f"rm {top}/v1/row",
                 f"rename {top}/v1/row {top}/v1/other", f"mkdir {top}/v1/dir", f"rmdir {top}/v1"):  # fmt: skip
        assert "published" in sftp(gateway, "alice", line, check=False), line
    for options in ([], ["-O"]):
        base = [*gateway.client("alice", program="scp"), "-q", *options]
        done = run([*base, tmp_path / "row", f"alice@gw:{top}/v1/other"], check=False)
        assert done.returncode != 0
        assert b"published" in done.stderr
    assert sftp(gateway, "alice", f"ls -1 {top}/v1").splitlines()[-1].endswith("row")
    (row,) = gateway.json("alice", "dataset", "show", dataset)["versions"]
    assert (row["state"], row["files"], row["bytes"]) == ("ready", 1, 6)


def test_a_private_data_set_is_seen_by_nobody_else(gateway: Gateway, tmp_path: Path, dataset: str) -> None:
    (tmp_path / "row").write_text("secret\n")
    path = f"/datasets/{dataset}/v1/row"
    gateway.ssh("alice", "dataset", "create", f"{dataset}:v1", "--visibility", "private")
    sftp(gateway, "alice", f"put {tmp_path / 'row'} {path}")
    assert dataset not in sftp(gateway, "bob", "ls -1 /datasets")
    assert "not found" in sftp(gateway, "bob", f"get {path} {tmp_path / 'got'}", check=False).lower()
    assert not (tmp_path / "got").exists()
    assert gateway.ssh("bob", "dataset", "files", f"{dataset}:v1", check=False).returncode == 1
    gateway.ssh("alice", "dataset", "set", dataset, "--visibility", "workspace")
    sftp(gateway, "bob", f"get {path} {tmp_path / 'got'}")
    assert (tmp_path / "got").read_text() == "secret\n"


def test_an_environments_files_in_the_tree(environment: Environment, tmp_path: Path) -> None:
    """/envs/<environment>/… is the home directory in the running environment, seen from the data tree."""
    environment.ssh("echo inside > ~/seen-from-the-tree")
    path = f"/envs/{environment.name}/seen-from-the-tree"
    sftp(environment.gateway, "alice", f"get {path} {tmp_path}/got", f"rm {path}")
    assert (tmp_path / "got").read_text() == "inside\n"


def test_a_cut_upload_never_appears_and_is_sent_again(gateway: Gateway, tmp_path: Path, dataset: str) -> None:
    data = os.urandom(40_000_000)
    (tmp_path / "big").write_bytes(data)
    top = f"/datasets/{dataset}"
    sftp(gateway, "alice", f"mkdir {top}", f"mkdir {top}/v1")
    cut_upload(gateway, tmp_path / "big", f"{top}/v1/big")
    assert names_in(gateway, "bob", f"{top}/v1") == []
    assert names_in(gateway, "alice", f"{top}/v1") in (["big"], [])  # only its sender sees what can be gone on with
    sftp(gateway, "alice", f"put {tmp_path / 'big'} {top}/v1/big", f"get {top}/v1/big {tmp_path / 'back'}")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_cut_replacement_leaves_the_old_file(gateway: Gateway, tmp_path: Path, dataset: str) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(os.urandom(40_000_000))
    top = f"/datasets/{dataset}"
    sftp(gateway, "alice", f"mkdir {top}", f"mkdir {top}/v1", f"put {tmp_path / 'old'} {top}/v1/file")
    cut_upload(gateway, tmp_path / "new", f"{top}/v1/file")
    sftp(gateway, "bob", f"get {top}/v1/file {tmp_path / 'back'}")
    assert (tmp_path / "back").read_bytes() == b"old"


def names_in(gateway: Gateway, person: str, path: str) -> list[str]:
    """What `ls` shows of a directory, without the echo of the command."""
    return [line.rpartition("/")[2] for line in sftp(gateway, person, f"ls -1 {path}").splitlines()[1:]]


def cut_upload(gateway: Gateway, source: Path, target: str) -> None:
    """Start a slow upload and kill the client in the middle."""
    arguments = [*gateway.client("alice", program="sftp", options=["-l", "80000"]), "-b", "-", "alice@gw"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdin is not None
        client.stdin.write(f"put {source} {target}\n".encode())
        client.stdin.flush()
        time.sleep(2)
        client.kill()


@pytest.mark.timeout(400)
def test_two_gibibytes_need_little_memory(gateway: Gateway, tmp_path: Path, dataset: str) -> None:
    """The gateway grows by less than 200 MiB, and every byte is there."""
    block = os.urandom(16 << 20)
    digest = hashlib.sha256()
    with (tmp_path / "two-gib").open("wb") as file:
        for index in range(128):
            piece = index.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            file.write(piece)
    top = f"/datasets/{dataset}"
    sftp(gateway, "alice", f"mkdir {top}", f"mkdir {top}/v1")
    before, done, highest = gateway.memory(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.1):
            highest[0] = max(highest[0], gateway.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        arguments = [*gateway.client("alice", program="sftp"), "-b", "-", "alice@gw"]
        run(arguments, input=f"put {tmp_path / 'two-gib'} {top}/v1/two-gib\n".encode(), timeout=300)
    finally:
        done.set()
        watcher.join()
    (tmp_path / "two-gib").unlink()
    answer = gateway.ssh("alice", f"sha256sum {top}/v1/two-gib", timeout=200).stdout.decode()
    assert answer.split()[0] == digest.hexdigest()
    assert highest[0] - before < 200 << 20


class Rclone:
    """rclone with one remote, `gw`, that is the gateway by SFTP."""

    def __init__(self, gateway: Gateway, login: str, directory: Path, *, program: Path = BIN / "rclone") -> None:
        self._gateway = gateway
        self._login = login
        self._directory = directory
        self._program = program
        # rclone has its own SSH client, so it needs the host key from somewhere: OpenSSH learns it first.
        gateway.ssh(login, "true" if "+" in login else "whoami")

    def __call__(self, *arguments: str | Path) -> str:
        done = run([*self.arguments(), "--retries", "1", *arguments], timeout=150)
        return (done.stdout + done.stderr).decode()

    def arguments(self, *, port: int = 0) -> list[str | Path]:
        """The program with its configuration; `port` leads to the gateway by another way."""
        person, port = self._login.partition("+")[0], port or self._gateway.port
        known = self._directory / f"{port}.known"
        lines = (self._gateway.home / f"{person}.known").read_text()
        known.write_text(lines.replace(f":{self._gateway.port} ", f":{port} "))
        config = self._directory / f"{port}.conf"
        config.write_text(
            f"[gw]\ntype = sftp\nhost = 127.0.0.1\nport = {port}\nuser = {self._login}\n"
            f"key_file = {self._gateway.home / person}\nknown_hosts_file = {known}\nshell_type = unix\n"
        )
        return [self._program, "--config", config]
