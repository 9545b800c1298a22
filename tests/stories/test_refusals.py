"""What must not work: other people's things, paths that climb, hostile names, keys that were never proven.

Each attack is refused with a sentence, is in the trail, and learns nothing: what you may not see does not exist.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.stories.clients import Environment, Gateway, Terminal, run
from tests.stories.test_transfers import sftp

NO_SUCH = "no environment"


def test_a_refusal_is_in_the_language_of_the_terminal_and_for_scripts_in_english(gateway: Gateway) -> None:
    chinese = ("-o", "SetEnv=LANG=zh_CN.UTF-8")
    with Terminal([*gateway.client("alice+never-was", options=("-tt", *chinese))]) as terminal:
        terminal.expect("ashore: 没有名为「never-was」的环境")
    script = gateway.ssh("alice+never-was", "true", options=chinese, check=False)
    assert script.stderr.decode() == "ashore: there is no environment 'never-was'\n"
    command = gateway.ssh("alice", "env", "show", "never-was", options=("-tt", *chinese), check=False)
    assert "there is no environment 'never-was'" in command.stdout.decode()


# ---- somebody else's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["cat /etc/hostname", "", "exit 0"])
def test_a_command_in_somebody_elses_environment(environment: Environment, command: str) -> None:
    """bob+box is bob's own name space: alice's environment is not in it, and its name is not confirmed."""
    gateway = environment.gateway
    mine = gateway.ssh(f"bob+{environment.name}", command, check=False)
    never = gateway.ssh("bob+never-was", command, check=False)
    assert (mine.returncode, mine.stdout) == (255, b"")
    assert mine.stderr.decode().replace(environment.name, "X") == never.stderr.decode().replace("never-was", "X")
    assert NO_SUCH in mine.stderr.decode()


@pytest.mark.parametrize("who", ["bob", "carol"])
def test_the_owners_name_does_not_help(environment: Environment, who: str) -> None:
    """Not even an administrator gets a shell in somebody's environment."""
    done = environment.gateway.ssh(f"{who}+{environment.name}.alice", "id", check=False)
    assert (done.returncode, done.stdout) == (255, b"")
    events = environment.gateway.audit(actor=who)
    assert any(event["outcome"] == "refused" for event in events)


def test_a_jump_into_somebody_elses_environment(environment: Environment) -> None:
    gateway = environment.gateway
    for host in (environment.name, f"{environment.name}.alice"):
        done = run(["ssh", "-F", gateway.config("bob"), "-l", "bob", "-J", "bob@gw", host, "id"], check=False)
        assert (done.returncode, done.stdout) == (255, b"")


def test_a_forward_into_somebody_elses_environment(environment: Environment) -> None:
    done = environment.gateway.ssh(f"bob+{environment.name}.alice", options=["-W", "127.0.0.1:22"], check=False)
    assert (done.returncode, done.stdout) == (255, b"")


@pytest.mark.parametrize("verb", ["show", "start", "stop", "delete", "logs", "stats", "exec-log"])
def test_managing_somebody_elses_environment(environment: Environment, verb: str) -> None:
    done = environment.gateway.ssh("bob", "env", verb, f"{environment.name}.alice", check=False)
    assert done.returncode in (1, 2, 77)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert environment.ssh("echo ok").stdout == b"ok\n"


def test_files_of_somebody_elses_environment(environment: Environment, tmp_path: Path) -> None:
    paths = [f"/envs/{environment.name}/etc/hostname", f"/envs/{environment.name}.alice/etc/hostname"]
    for path in paths:
        sftp(environment.gateway, "bob", f"-get {path} {tmp_path}/stolen")
        assert not (tmp_path / "stolen").exists()
    assert environment.name not in sftp(environment.gateway, "bob", "ls -1 /envs").partition("ls -1 /envs")[2]


@pytest.mark.parametrize("command", [("audit", "search"), ("session", "list", "--all"), ("env", "list", "--all")])
def test_only_administrators_see_everybody(gateway: Gateway, command: tuple[str, ...]) -> None:
    done = gateway.ssh("bob", *command, check=False)
    assert (done.returncode, done.stdout) == (77, b"")


# ---- paths that climb ------------------------------------------------------------------------------------------

CLIMBING = ["../../../../etc/passwd", "/datasets/../../etc/passwd", "/datasets/x/../../../../etc/passwd", "/etc/passwd"]


@pytest.mark.parametrize("path", CLIMBING)
def test_reading_outside_the_tree(gateway: Gateway, path: str, tmp_path: Path) -> None:
    sftp(gateway, "bob", f"-get {path} {tmp_path}/stolen")
    assert not (tmp_path / "stolen").exists()
    for program in ("sha256sum", "md5sum", "sha1sum"):
        done = gateway.ssh("bob", f"{program} {path}", check=False)
        assert done.returncode != 0
        assert b"root:" not in done.stdout + done.stderr


@pytest.mark.parametrize("path", ["../../../../tmp/ashore-was-here", "/datasets/../../tmp/ashore-was-here"])
def test_writing_outside_the_tree(gateway: Gateway, path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    scp = gateway.client("bob", program="scp")
    sftp(gateway, "bob", f"-put {tmp_path / 'file'} {path}", f"-mkdir {path}", f"-rename /README.txt {path}")
    for options in ([], ["-O"]):
        assert run([*scp, *options, tmp_path / "file", f"bob@gw:{path}"], check=False).returncode != 0
    assert not Path("/tmp/ashore-was-here").exists()


def test_the_old_protocol_cannot_name_other_files(gateway: Gateway) -> None:
    """CVE-2019-6111 the other way round: a client that sends a path where a name belongs."""
    for name in ("../evil", "/evil", "..", "a/b", "evil\x1b[2J"):
        data = f"C0644 4 {name}\n".encode() + b"evil\0"
        done = gateway.ssh("bob", "scp -t /datasets", input=data, check=False)
        assert done.returncode != 0
    assert "evil" not in sftp(gateway, "bob", "ls -1 /datasets")


@pytest.mark.parametrize(
    "command",
    [
        ("env", "show", "../alice"),
        ("env", "create", "../../x", "--compute", "local"),
        ("env", "delete", ".."),
        ("dataset", "show", "../../records"),
        ("dataset", "files", "x:../../.."),
        ("dataset", "create", ".."),
        ("record", "play", "../../ashore.db"),
        ("record", "play", "/etc/passwd"),
        ("session", "kill", "../1"),
        ("key", "remove", "../../host_key"),
    ],
    ids=" ".join,
)
def test_names_that_climb(gateway: Gateway, command: tuple[str, ...]) -> None:
    done = gateway.ssh("bob", *command, check=False)
    assert done.returncode in (1, 2, 77)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


# ---- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["nobody-here", "root", "..", "alice+", "+box", "alice+a+b", "alice@x", "a" * 200])
def test_unknown_names(gateway: Gateway, login: str) -> None:
    """A proven key of alice does not open any other door, and a refusal does not say whether the name exists."""
    done = _attack(gateway, "127.0.0.11", "-o", f"User={login}", "-i", str(gateway.home / "alice"))
    assert done.returncode == 255
    assert done.stdout == b""


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "\u202egpj", "a\nb", "a\x9b2J", "x" * 500])
def test_control_characters_in_names_never_reach_a_terminal(gateway: Gateway, name: str) -> None:
    for login, command in (
        (f"alice+{name}", ["true"]),
        ("alice", ["env", "show", f"'{name}'"]),
        ("alice", ["dataset", "create", f"'{name}'"]),
        ("alice", [f"'{name}'"]),
    ):
        options = ["-o", "LogLevel=INFO"]
        arguments = ["ssh", "-F", str(gateway.config("alice")), *options, "-l", login, "gw", *command]
        done = run(arguments, check=False)
        assert done.returncode != 0
        said = (done.stdout + done.stderr).decode()
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said), said
        assert len(said) < 2000
    shown = gateway.ssh("carol", "audit", "search").stdout.decode()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)


# ---- identity --------------------------------------------------------------------------------------------------


def test_an_offered_key_is_not_an_identity(gateway: Gateway) -> None:
    """CVE-2024-45337: offer alice's public key without its private half, then prove bob's. Nobody gets in as alice."""
    public_only = gateway.home / "alice-public-only"
    public_only.mkdir(exist_ok=True)
    (public_only / "id.pub").write_bytes((gateway.home / "alice.pub").read_bytes())
    identities = ["-i", str(public_only / "id.pub"), "-i", str(gateway.home / "bob")]
    done = _attack(gateway, "127.0.0.12", "-o", "User=alice", *identities, command=["whoami"])
    assert (done.returncode, done.stdout) == (255, b"")
    done = _attack(gateway, "127.0.0.12", "-o", "User=bob", *identities, command=["whoami", "--json"])
    assert b"alice" not in done.stdout
    assert done.returncode == 0
    refused = [event for event in gateway.audit(address="127.0.0.12") if event["outcome"] == "refused"]
    assert refused


def test_seven_bad_attempts(gateway: Gateway) -> None:
    """The connection ends with the sixth failure; the good key that would be the seventh never gets its turn."""
    bad = [gateway.make_key(f"bad-{n}") for n in range(6)]
    identities = [part for key in [*bad, gateway.home / "alice"] for part in ("-i", str(key))]
    done = _attack(gateway, "127.0.0.13", "-o", "User=alice", *identities)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"too many authentication failures" in done.stderr.lower()
    assert [event for event in gateway.audit(address="127.0.0.13") if event["outcome"] == "refused"]


def test_an_address_that_keeps_failing_is_kept_out(gateway: Gateway) -> None:
    """Ten failures from one address: for a while not even a good key from there. Others are not concerned."""
    stranger = gateway.make_key("stranger")
    for _ in range(11):
        _attack(gateway, "127.0.0.14", "-o", "User=alice", "-i", str(stranger))
    assert _attack(gateway, "127.0.0.14", "-o", "User=alice", "-i", str(gateway.home / "alice")).returncode == 255
    assert gateway.ssh("alice", "whoami").returncode == 0


def test_somebody_who_never_logs_in_does_not_stop_others(gateway: Gateway) -> None:
    quiet = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(20)]
    try:
        assert gateway.ssh("alice", "whoami").returncode == 0
    finally:
        for connection in quiet:
            connection.close()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 40_000, b"SSH-1.5-old\r\n", b"SSH-2.0-x\r\n" + b"\xff" * 40_000]
)
def test_garbage_is_dropped(gateway: Gateway, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        try:
            connection.sendall(garbage)
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    assert gateway.ssh("alice", "whoami").returncode == 0


def test_the_server_offers_strict_key_exchange(gateway: Gateway) -> None:
    """Terrapin, CVE-2023-48795."""
    done = run(["ssh", "-vv", "-F", gateway.config("alice"), "alice@gw", "whoami"])
    assert b"kex-strict-s-v00@openssh.com" in done.stderr or b"strict KEX ordering" in done.stderr


def test_agents_and_remote_forwards_are_refused(environment: Environment) -> None:
    done = environment.ssh("true", options=["-R", "0:127.0.0.1:22", "-o", "ExitOnForwardFailure=yes"], check=False)
    assert done.returncode != 0


def test_variables_that_change_programs_do_not_pass(environment: Environment) -> None:
    options = ["-o", "SetEnv=LD_PRELOAD=/tmp/x.so LC_TIME=C.UTF-8 BASH_ENV=/tmp/x"]
    answer = environment.ssh('echo "$LD_PRELOAD|$LC_TIME|$BASH_ENV"', options=options)
    assert answer.stdout == b"|C.UTF-8|\n"


# ---- nothing leaked --------------------------------------------------------------------------------------------


def test_the_trail_holds_together_and_has_no_secrets(gateway: Gateway) -> None:
    assert gateway.operate("audit", "verify").returncode == 0
    everything = b"".join(path.read_bytes() for path in (gateway.log,) if path.exists())
    everything += gateway.ssh("carol", "audit", "search", "--json", "--limit", "1000").stdout
    for secret in (b"PRIVATE KEY", b"secret_key", b"Traceback"):
        assert secret not in everything


def test_what_the_gateway_keeps_is_its_own(gateway: Gateway) -> None:
    """Nobody else on the machine may read keys, records or recordings."""
    assert gateway.data.stat().st_mode & 0o077 == 0 or not _readable_by_others(gateway.data)


def _readable_by_others(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file() and path.stat().st_mode & 0o044]


def _attack(
    gateway: Gateway, address: str, *options: str, command: list[str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """`ssh` from another loopback address, so that its bans concern nobody else; no configuration's keys."""
    base = [
        "ssh", "-F", "/dev/null", "-p", str(gateway.port), "-b", address, "-o", "BatchMode=yes",
        "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "PreferredAuthentications=publickey",
    ]  # fmt: skip
    return run([*base, *options, "127.0.0.1", *(command or ["whoami"])], check=False)
