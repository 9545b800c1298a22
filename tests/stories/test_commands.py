"""`ssh gw <command>`: for scripts, with stable JSON and exit statuses."""

from __future__ import annotations

import subprocess

import pytest

from tests.stories.clients import Environment, Gateway, run


def test_whoami(gateway: Gateway) -> None:
    assert gateway.json("alice", "whoami")["user"] == "alice"
    assert b"alice" in gateway.ssh("alice", "whoami").stdout


def test_the_list_of_environments(environment: Environment) -> None:
    rows = {row["name"]: row for row in environment.gateway.json("alice", "env", "list")}
    assert rows[environment.name]["state"] == "running"
    assert rows[environment.name]["compute"] == environment.compute
    table = environment.gateway.ssh("alice", "env", "list").stdout.decode()
    assert environment.name in table


def test_stop_start_and_wake_on_connect(environment: Environment) -> None:
    gateway, name = environment.gateway, environment.name
    environment.ssh("echo kept > ~/kept-over-stop")
    gateway.ssh("alice", "env", "stop", name, "--wait")
    assert gateway.json("alice", "env", "show", name)["state"] == "stopped"
    # Nobody starts it: the connection does.
    done = environment.ssh("cat ~/kept-over-stop; rm ~/kept-over-stop", timeout=120)
    assert done.stdout == b"kept\n"
    gateway.ssh("alice", "env", "restart", name, "--wait")
    assert environment.ssh("echo up").stdout == b"up\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [("env list --nonsense", 2), ("frobnicate", 2), ("env show never-was", 1), ("audit search", 77), ("env", 2)],
)
def test_exit_statuses_of_refusals(gateway: Gateway, command: str, status: int) -> None:
    done = gateway.ssh("alice", command, check=False)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr


@pytest.mark.parametrize("command", ["help", "env --help", "env create --help", "dataset --help"])
def test_help_everywhere(gateway: Gateway, command: str) -> None:
    assert b"usage" in gateway.ssh("alice", command).stdout.lower()


def test_a_dry_run_changes_nothing(gateway: Gateway) -> None:
    gateway.ssh("alice", "env", "create", "dry", "--compute", "local", "--dry-run")
    assert "dry" not in {row["name"] for row in gateway.json("alice", "env", "list")}


def test_a_new_key_opens_the_door_and_a_removed_one_closes_it(gateway: Gateway) -> None:
    key = gateway.make_key("second")
    gateway.ssh("alice", "key", "add", input=(gateway.home / "second.pub").read_bytes())
    with_second = ["-o", f"IdentityFile={key}"]
    config = gateway.config("alice").read_text().replace(f"IdentityFile {gateway.home / 'alice'}", "IdentitiesOnly yes")
    (gateway.home / "second.config").write_text(config)
    arguments = ["-F", str(gateway.home / "second.config"), *with_second]
    assert gateway.ssh("alice", "whoami", options=arguments).returncode == 0
    (row,) = [row for row in gateway.json("alice", "key", "list") if "second" in str(row)]
    gateway.ssh("alice", "key", "remove", row["fingerprint"])
    assert gateway.ssh("alice", "whoami", options=arguments, check=False).returncode == 255


def test_an_invitation_without_a_terminal(gateway: Gateway) -> None:
    """The key is bound, the line says how to come back, and the connection does not wait for forwards."""
    login = gateway.ssh("carol", "invite", "create", "dora").stdout.decode().split()[-1].partition("@")[0]
    gateway.make_key("dora")
    done = run([*gateway.client("dora")[:-1], "-l", login, "gw"])
    assert b"your key is known from now on: ssh -p" in done.stderr
    assert b"dora@" in done.stderr
    assert gateway.json("dora", "whoami")["user"] == "dora"


def test_a_held_connection(gateway: Gateway) -> None:
    """No terminal and no command: the connection is held until the client ends it; one line on stderr says so."""
    with subprocess.Popen(
        gateway.client("alice", options=["-T"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as held:
        assert held.stderr is not None
        assert held.stdout is not None
        assert b"held" in held.stderr.readline()
        assert held.poll() is None
        held.terminate()
        assert held.stdout.read() == b""
