"""`ashore …` from outside: real processes on a data directory, beside each other."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.composition import HouseSettings
from gateway.__main__ import _parser, main
from gateway.operator import house
from gateway.settings import Settings
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.records import Environment, Host, User, Workspace

ROOT = Path(__file__).parents[2]


def ashore(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *(str(a) for a in arguments)],
        capture_output=True, text=True, input=stdin, cwd=ROOT, timeout=50, check=False,
    )  # fmt: skip


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@laptop", "-f", file], check=True)
    return file.with_suffix(".pub")


def test_version_imports_next_to_nothing() -> None:
    code = (
        "import sys; from gateway.__main__ import main; main(['version']);"
        "print([name for name in ('asyncio', 'textual', 'sqlalchemy', 'pydantic', 'asyncssh') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("ashore ")
    assert second == "[]"


@pytest.mark.parametrize(
    "command",
    ["", "serve", "init", "check", "migrate", "doctor", "user add", "user list", "user disable", "user enable",
     "invite", "quota show", "quota set", "quota clear",
     "host list", "host drain", "host resume", "host forget", "guest build", "replay", "audit verify", "version"],
)  # fmt: skip
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: ashore" in printed
    assert command in ("",) or "--data" in printed


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["user"], ["serve", "--port", "x"], ["user", "add", "a"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_data_directory_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` serves `./data`, and Docker mounts from absolute paths only."""
    monkeypatch.chdir(tmp_path)
    assert _parser().parse_args(["serve", "--data", "./data"]).data == tmp_path / "data"


def test_a_house_is_made_and_people_come_in(tmp_path: Path, key: Path) -> None:
    data = tmp_path / "new" / "data"
    done = ashore("user", "add", "alice", "--key", key, "--admin", "--data", data)
    assert (done.returncode, "alice@" in done.stdout) == (0, True)
    assert data.stat().st_mode & 0o077 == 0
    rows = json.loads(ashore("user", "list", "--json", "--data", data).stdout)
    assert rows == [{"name": "alice", "administrator": True, "disabled": False}]
    invitation = ashore("invite", "bob", "--data", data)
    assert re.fullmatch(r"ssh -p 2022 invite-[0-9a-f]{24}@\S+\n", invitation.stdout)
    again = ashore("user", "add", "carol", "--key", "-", "--data", data, stdin=key.read_text())
    assert (again.returncode, again.stdout, again.stderr) == (1, "", "ashore: this key is in use already\n")
    assert ashore("user", "disable", "alice", "--data", data).returncode == 0
    assert ashore("user", "disable", "nobody", "--data", data).returncode == 1
    verified = ashore("audit", "verify", "--data", data)
    assert (verified.returncode, verified.stdout) == (0, "3 events, nothing changed or missing\n")


@pytest.mark.parametrize(
    "command", [["user", "list"], ["audit", "verify"], ["doctor"], ["check"], ["user", "disable", "x"]]
)
def test_a_misspelt_directory_is_not_made(tmp_path: Path, command: list[str]) -> None:
    data = tmp_path / "nothing"
    done = ashore(*command, "--data", data)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(data) in done.stderr
    assert not data.exists()


def test_quotas_beside_the_gateway(tmp_path: Path, key: Path) -> None:
    data = tmp_path / "data"
    ashore("user", "add", "alice", "--key", key, "--data", data)
    other = tmp_path / "other.toml"
    other.write_text("[quotas]\nuser_memory_mib = 2048\n")
    rows = json.loads(ashore("quota", "show", "--user", "alice", "--json", "--data", data, "--config", other).stdout)
    assert {row["resource"]: row["allowed"] for row in rows}["memory"] == 2 * 1024**3
    done = ashore(
        "quota", "set", "--user", "alice", "--memory", "8GiB", "--cpus", "unlimited", "--gpus", "2", "--data", data
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["user", "alice", "memory", "0B", "8GiB", "8GiB", "operator"] in lines
    assert ["user", "alice", "gpus", "0", "2", "2", "operator"] in lines
    assert "alice" in ashore("quota", "show", "--data", data).stdout
    cleared = ashore("quota", "clear", "--user", "alice", "--data", data)
    assert (cleared.returncode, ashore("quota", "show", "--data", data).stdout) == (0, "")
    for arguments in (["set", "--user", "alice"], ["set", "--cpus", "1"], ["set", "--user", "alice", "--cpus", "x"]):
        wrong = ashore("quota", *arguments, "--data", data)
        assert (wrong.returncode, wrong.stdout) == (2, "")
    assert ashore("quota", "show", "--user", "nobody", "--data", data).returncode == 1


async def test_hosts_beside_the_gateway(data_dir: Path, database: Database) -> None:
    async with database.writing() as tx:
        tx.add(Host(name="gpu1", compute="docker", is_up=True, cpus=8.0, memory=16 * 1024**3))
    drained = ashore("host", "drain", "gpu1", "--reason", "cards", "--json", "--data", data_dir)
    assert drained.returncode == 0, drained.stderr
    (row,) = json.loads(drained.stdout)
    assert (row["state"], row["reason"], row["placed"]) == ("maintenance", "cards", [])
    assert ashore("host", "resume", "gpu1", "--data", data_dir).stdout.splitlines()[1].split()[:2] == ["gpu1", "online"]
    missing = ashore("host", "drain", "moon", "--data", data_dir)
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", "ashore: there is no host 'moon'\n")
    gone = ashore("host", "forget", "gpu1", "--data", data_dir)
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, "the host gpu1 is forgotten\n", "")
    assert ashore("host", "list", "--data", data_dir).stdout == ""


async def test_a_host_is_given_up_beside_the_gateway(data_dir: Path, database: Database) -> None:
    async with database.writing() as tx:
        tx.add(Host(name="gpu1", compute="docker", is_up=True))
    up = ashore("host", "forget", "gpu1", "--with-environments", "--data", data_dir)
    assert (up.returncode, up.stdout) == (1, "")
    async with database.writing() as tx:
        tx.add(Workspace(id="w1", name="team", created=now()))
        await tx.flush()
        tx.add(User(id="u1", name="alice", workspace_id="w1", created=now()))
        tx.add(Host(name="gpu9", compute="docker", is_up=False))
        await tx.flush()
        tx.add(Environment(
            owner_id="u1", owner_name="alice", workspace_id="w1", name="train", compute="docker", host="gpu9",
            created=now(),
        ))  # fmt: skip
    alone = ashore("host", "forget", "gpu9", "--dry-run", "--data", data_dir)
    assert (alone.returncode, alone.stdout) == (2, "")
    assert "--dry-run goes with --with-environments" in alone.stderr
    for options in (("--with-environments", "--dry-run"), ("--with-environments",)):
        lost = ashore("host", "forget", "gpu9", *options, "--data", data_dir)
        assert lost.returncode == 0, lost.stderr
        assert lost.stdout.splitlines()[1].split()[:2] == ["train", "alice"]
        assert "lost: their homes" in lost.stderr
        assert ("the host gpu9 is forgotten" in lost.stderr) is ("--dry-run" not in options)
    async with database.writing() as tx:
        tx.add(Host(name="gpu8", compute="docker", is_up=False))
    empty = ashore("host", "forget", "gpu8", "--with-environments", "--data", data_dir)
    assert (empty.returncode, empty.stdout) == (0, "")
    assert empty.stderr == "no environment has its home there\nthe host gpu8 is forgotten\n"


def test_init_writes_settings_that_are_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = ashore("init", "--data", data)
    assert done.stdout == f"ashore serve --data {data}\n"
    settings = data / "ashore.toml"
    settings.write_text(settings.read_text().replace("# port = 2022", "port = 4242"))
    assert ashore("init", "--data", data).returncode == 0
    assert "port = 4242" in settings.read_text()
    assert "ssh -p 4242 invite-" in ashore("invite", "bob", "--data", data).stdout
    other = tmp_path / "other.toml"
    other.write_text('[gateway]\nport = 4343\npublic_name = "gw.example.org"\n')
    assert "@gw.example.org" in ashore("invite", "bob", "--data", data, "--config", other).stdout
    other.write_text("[gateway]\nprot = 1\n")
    done = ashore("invite", "bob", "--data", data, "--config", other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gateway.prot" in done.stderr


async def test_it_works_beside_a_running_house(
    data_dir: Path, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, key: Path
) -> None:
    """The records are shared, and the running process hears of the change at once."""
    with changes.subscribe("user") as queue:
        done = await asyncio.to_thread(ashore, "user", "add", "alice", "--key", key, "--data", data_dir)
        assert done.returncode == 0, done.stderr
        async with asyncio.timeout(60):
            assert (await queue.get()).topic == "user"
    assert len(await accounts.keys_of("alice")) == 1
    assert (await audit.verify()).broken_at is None


def test_check_and_doctor(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert ashore("init", "--data", data).returncode == 0
    checked = ashore("check", "--json", "--data", data)
    findings = {row["name"]: row for row in json.loads(checked.stdout)}
    assert checked.returncode == 0, checked.stdout
    assert set(findings) >= {"settings", "database", "object store", "compute local", "disk"}
    examined = ashore("doctor", "--json", "--data", data)
    findings = {row["name"]: row for row in json.loads(examined.stdout)}
    assert (examined.returncode, findings["gateway"]["ok"]) == (1, False)


def test_check_finds_a_store_that_is_not_there(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ashore("init", "--data", data)
    settings = data / "ashore.toml"
    settings.write_text('[objects]\nendpoint = "http://127.0.0.1:1"\naccess_key = "a"\nsecret_key = "hunter2"\n')
    done = ashore("check", "--data", data)
    assert (done.returncode, "BAD  store: endpoint" in done.stdout) == (1, True)
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("url", ["postgresql+nodriver://a:geheim@h/x", "geheim", "mysql+asyncmy://a:geheim@h/x"])
def test_a_database_that_cannot_be_used_is_one_sentence(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASHORE_DATABASE__URL", url)
    done = ashore("user", "list", "--data", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ashore: 'database.url' ")
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr


def test_a_data_directory_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    done = ashore("serve", "--data", tmp_path / ("x" * 300))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert "cannot be read: File name too long" in done.stderr


def test_guest_build(tmp_path: Path) -> None:
    done = ashore("guest", "build", "--data", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "manifest.json").is_file()


def test_replay_of_a_file_and_of_an_id(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ashore("init", "--data", data)
    file = data / "recordings" / "0123456789abcdef.cast"
    file.parent.mkdir()
    file.write_text('{"version": 2, "width": 80, "height": 24}\n[1000, "o", "hello\\r\\n"]\n')
    for name in (file, "0123456789abcdef"):
        done = ashore("replay", name, "--idle-limit", "0.1", "--data", data)
        assert (done.returncode, done.stdout.encode()) in ((0, b"hello\n"), (0, b"hello\r\n"))
    for arguments in (["nothing"], ["../ashore"], [file, "--speed", "0"], [file, "--idle-limit", "nan"]):
        done = ashore("replay", *arguments, "--data", data)
        assert done.returncode in (1, 2)
        assert done.stdout == ""


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "a.cast"
    file.write_text('{"version": 2}\n' + '[0, "o", "x"]\n' * 50000)
    command = f"{sys.executable} -m gateway replay {file} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_port_of_a_running_house(tmp_path: Path) -> None:
    """What `serve` leaves behind counts only as long as somebody serves."""
    run = tmp_path / "run"
    run.mkdir()
    HouseSettings(public_host="gw.example.org", public_port=4444).save(run / "house.json")
    (run / "serve.lock").touch()
    assert not house.is_served(tmp_path)
    assert house.address(Settings(), tmp_path)[1] == 2022
    with subprocess.Popen(["flock", run / "serve.lock", "sh", "-c", "echo; cat"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # fmt: skip
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        assert house.is_served(tmp_path)
        assert house.address(Settings(), tmp_path) == ("gw.example.org", 4444)
        holder.stdin.close()
