"""`ssh -J alice@gw env`: the gateway answers for the environment, and everything works as on the direct way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.stories.clients import Environment, Gateway, Terminal, run


def jump(gateway: Gateway, host: str, *options: str, program: str = "ssh") -> list[str]:
    """`ssh -J alice@gw host`, without the host for other programs."""
    base = [program, "-F", str(gateway.config("alice")), "-o", "User=alice", "-J", "alice@gw", *options]
    return [*base, host] if program == "ssh" else base


def test_commands_and_exit_statuses(environment: Environment) -> None:
    done = run([*jump(environment.gateway, environment.name), "echo out; echo err >&2; exit 42"], check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 42)


def test_it_is_the_same_place_as_the_direct_way(environment: Environment) -> None:
    run([*jump(environment.gateway, environment.name), "cat > from-jump"], input=b"through")
    assert environment.ssh("cat from-jump; rm from-jump").stdout == b"through"


def test_the_name_may_carry_the_owner(environment: Environment) -> None:
    done = run([*jump(environment.gateway, f"{environment.name}.alice"), "echo ok"])
    assert done.stdout == b"ok\n"


def test_a_terminal(environment: Environment) -> None:
    with Terminal(jump(environment.gateway, environment.name), columns=99, rows=31) as terminal:
        terminal.wait_for_prompt()
        terminal.send("stty size; exit 3\r")
        terminal.expect("31 99")
        assert terminal.wait() == 3


def test_sftp_and_scp(environment: Environment, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(data)
    base = jump(environment.gateway, environment.name, "-q", program="scp")
    run([*base, tmp_path / "up", f"{environment.name}:jumped"])
    run([*base, "-O", f"{environment.name}:jumped", tmp_path / "down"])
    assert (tmp_path / "down").read_bytes() == data


def test_the_printed_configuration_is_enough(environment: Environment, tmp_path: Path) -> None:
    """What `ssh gw config` prints goes into ~/.ssh/config: then `ssh <environment>` needs nothing else."""
    gateway = environment.gateway
    printed = gateway.ssh("alice", "config").stdout.decode()
    assert printed == gateway.ssh("alice", "config").stdout.decode()
    assert environment.name in printed
    assert "ProxyJump" in printed


def test_the_host_key_survives_a_rebuild(environment: Environment, tmp_path: Path) -> None:
    """Same name, new environment: the same host key, so no alarm in anybody's editor."""
    gateway, compute = environment.gateway, environment.compute
    name = f"again-{compute}"
    create = ("env", "create", name, "--compute", compute, "--wait")
    known = tmp_path / "known"
    first = ["-o", f"UserKnownHostsFile={known}"]
    gateway.ssh("alice", *create, timeout=120)
    try:
        run([*jump(gateway, name, *first), "true"])
        gateway.ssh("alice", "env", "delete", name, "--wait")
        gateway.ssh("alice", *create, timeout=120)
        run([*jump(gateway, name, *first, "-o", "StrictHostKeyChecking=yes"), "true"])
    finally:
        gateway.ssh("alice", "env", "delete", name, "--wait", check=False)


@pytest.mark.parametrize("target", ["127.0.0.1:22", "169.254.169.254:80", "example.org:22", "localhost:2022"])
def test_only_environments_can_be_reached(gateway: Gateway, target: str) -> None:
    """A gateway is no open proxy: not to itself, not to the cloud's metadata, not to the world."""
    done = gateway.ssh("alice", options=["-W", target], check=False)
    assert done.returncode != 0
    assert b"SSH-2.0" not in done.stdout


def test_only_port_22_of_an_environment(environment: Environment) -> None:
    done = environment.gateway.ssh("alice", options=["-W", f"{environment.name}:8080"], check=False)
    assert done.returncode != 0
