"""Environments on an existing machine, with real clients: the gateway reaches it over SSH, people notice nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import machines
from tests.stories.clients import Environment, Gateway, Terminal, eventually, run
from tests.stories.conftest import served
from tests.stories.test_jump import jump


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machines.Machine]:
    directory = tmp_path_factory.mktemp("machine")
    built = Gateway(directory / "data", directory / "home").operate("guest", "build")
    with machines.served(directory, Path(built.stdout.decode().strip())) as machine:
        yield machine


@contextmanager
def house(directory: Path, machine: machines.Machine) -> Iterator[Gateway]:
    with served(directory, settings=machine.settings("box", 'users = ["alice"]')) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, machine: machines.Machine) -> Iterator[Gateway]:
    with house(tmp_path_factory.mktemp("gateway"), machine) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def environment(gateway: Gateway) -> Environment:
    variables = ["--env", "COLOUR=blue", "--env", "HOME=/tmp"]  # the second is no way out of one's folder
    gateway.ssh("alice", "env", "create", "train", "--compute", "box", *variables, "--wait", timeout=120)
    return Environment(gateway, "train", "box")


def test_who_may_come_and_what_it_takes(gateway: Gateway) -> None:
    plan = gateway.ssh("bob", "env", "create", "train", "--compute", "box", "--dry-run", "--json", check=False)
    assert plan.returncode == 1
    assert b"'box' is not open to you" in plan.stdout
    refused = gateway.ssh("alice", "env", "create", "big", "--compute", "box", "--cpu", "4", check=False)
    assert (refused.returncode, b"'box' cannot limit cores and memory" in refused.stderr) == (2, True)
    refused = gateway.ssh("alice", "env", "create", "big", "--compute", "box", "--data", "mnist:v1", check=False)
    assert b"'box' takes no data sets and models yet" in refused.stderr


def test_what_is_shown_of_it(environment: Environment) -> None:
    row = environment.gateway.json("alice", "env", "show", "train")
    assert (row["compute"], row["image"], row["state"], row["cpus"]) == ("box", "", "running", 0)
    assert b"no limit" in environment.gateway.ssh("alice", "env", "show", "train").stdout
    assert b"train is up" in environment.gateway.ssh("alice", "env", "logs", "train").stdout
    findings = doctor(environment.gateway)
    assert findings["compute box"]["ok"]
    assert findings["compute box"]["detail"].endswith("as trainer")
    inside = doctor(environment.gateway, "train")
    assert inside["home writable"]["ok"]
    assert inside["home writable"]["detail"].endswith(f"{environment_id(environment)}/home")


def test_commands_start_in_the_home(environment: Environment, machine: machines.Machine) -> None:
    done = environment.ssh('pwd; id -un; hostname; echo "$COLOUR" >&2; exit 42', check=False)
    assert done.returncode == 42
    assert done.stdout.decode().split() == [machine.folder(environment_id(environment)) + "/home", "trainer", "gpu7"]
    assert done.stderr == b"blue\n"
    assert environment.ssh("sort; echo later", input=b"b\na\n").stdout == b"a\nb\nlater\n"


def doctor(gateway: Gateway, *words: str) -> dict[str, Any]:
    """What `doctor` finds, by name; bad findings included."""
    said = gateway.ssh("alice", "doctor", *words, "--json", check=False).stdout
    return {one["name"]: one for one in json.loads(said)}


def environment_id(environment: Environment) -> str:
    return str(environment.gateway.json("alice", "env", "show", environment.name)["id"])


def test_a_login_shell_on_a_terminal(environment: Environment) -> None:
    with Terminal([*environment.gateway.client(environment.login)], columns=133, rows=37) as terminal:
        terminal.wait_for_prompt()
        terminal.send("stty size; pwd; shopt -q login_shell && echo log''in\r")
        terminal.expect(r"37 133\r\n/home/trainer/.ashore/[0-9a-f-]+/home\r\nlogin\r\n")
        terminal.send("sleep 1000; echo st''atus $?\r")
        eventually(lambda: "sleep 1000" in environment.processes())
        terminal.send(b"\x03")
        terminal.send("exit 42\r")
        assert terminal.wait() == 42


def test_a_killed_client_leaves_nothing_of_its_terminal_behind(environment: Environment) -> None:
    with Terminal([*environment.gateway.client(environment.login)]) as terminal:
        terminal.wait_for_prompt()
        terminal.send("sleep 86398\r")
        eventually(lambda: "sleep 86398" in environment.processes())
        terminal.kill()
        eventually(lambda: "sleep 86398" not in environment.processes())


def test_files_by_sftp_scp_rsync_and_the_data_tree(environment: Environment, tmp_path: Path) -> None:
    gateway, data = environment.gateway, os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(data)
    batch = f"put {tmp_path}/up by-sftp\nls\n".encode()
    run([*gateway.client("alice", program="sftp"), "-b", "-", "alice+train@gw"], input=batch)
    run([*gateway.client("alice", program="scp"), tmp_path / "up", "alice+train@gw:by-scp"])
    run([*gateway.client("alice", program="scp"), tmp_path / "up", "alice+train@gw:~/by-tilde"])
    run([*gateway.client("alice", program="scp"), "-O", tmp_path / "up", "alice+train@gw:by-old-scp"])
    shell = " ".join(gateway.client("alice"))
    run(["rsync", "-e", shell.removesuffix(" alice@gw"), tmp_path / "up", "alice+train@gw:by-rsync"])
    listed = environment.ssh("sha256sum by-* | cut -c -64 | uniq -c; ls").stdout.decode().split()
    assert listed[0] == "5"
    assert {"by-sftp", "by-scp", "by-tilde", "by-old-scp", "by-rsync"} <= set(listed)
    run([*gateway.client("alice", program="scp"), "alice@gw:/envs/train/by-scp", tmp_path / "down"])
    assert (tmp_path / "down").read_bytes() == data


def test_by_way_of_proxyjump(environment: Environment, tmp_path: Path) -> None:
    gateway = environment.gateway
    done = run([*jump(gateway, "train"), "cat > jumped; cat jumped; exit 7"], input=b"through", check=False)
    assert (done.stdout, done.returncode) == (b"through", 7)
    run([*jump(gateway, "train", "-q", program="scp"), "train:jumped", tmp_path / "jumped"])
    assert (tmp_path / "jumped").read_bytes() == b"through"


def test_forwards_lead_to_the_machines_loopback(environment: Environment) -> None:
    """Also where the machine's own SSH server allows no forwarding at all, as here."""
    program = (
        "use IO::Socket; $s = IO::Socket::INET->new(LocalAddr => q(127.0.0.1), LocalPort => 8123, Listen => 5,"
        " ReuseAddr => 1) or die; $c = $s->accept; print $c qq(hello\\n); close $c"
    )
    environment.ssh(f"nohup perl -e '{program}' >/dev/null 2>&1 </dev/null &")
    eventually(lambda: ":1FBB " in environment.ssh("cat /proc/net/tcp").stdout.decode())
    done = run(environment.gateway.client(environment.login, options=["-W", "127.0.0.1:8123"]))
    assert done.stdout == b"hello\n"


def test_many_commands_over_one_connection(environment: Environment) -> None:
    """The machine's own limit of 10 sessions for a connection is none of ours."""
    gateway = environment.gateway
    control = gateway.home / "control"
    options = ["-o", f"ControlPath={control}", "-o", "ControlMaster=auto", "-o", "ControlPersist=30"]
    arguments = gateway.client(environment.login, options=options)
    run([*arguments, "true"], stdout=-3)
    try:
        done = run(["sh", "-c", 'for n in $(seq 25); do "$@" "cat; echo $n" </dev/null & done; wait', "sh", *arguments])
        assert sorted(done.stdout.decode().split(), key=int) == [str(number) for number in range(1, 26)]
    finally:
        run([*arguments[:-1], "-O", "exit", arguments[-1]], check=False)


def test_stop_start_and_delete(gateway: Gateway, machine: machines.Machine) -> None:
    gateway.ssh("alice", "env", "create", "short", "--compute", "box", "--wait", timeout=120)
    short = Environment(gateway, "short", "box")
    folder = machine.folder(environment_id(short))
    short.ssh("echo kept > file; nohup setsid sleep 98765 >/dev/null 2>&1 </dev/null &")
    gateway.ssh("alice", "env", "stop", "short", "--wait", timeout=120)
    assert "sleep 98765" not in machine.run("ps", "-eo", "args")
    assert short.ssh("cat file", timeout=120).stdout == b"kept\n"  # a login wakes it
    gateway.ssh("alice", "env", "delete", "short", "--wait", timeout=120)
    assert machine.run("find", "/home/trainer", "-path", f"{folder}*") == ""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_starts_again_finds_it(environment: Environment, how: int) -> None:
    gateway = environment.gateway
    environment.ssh("echo kept > ~/kept; nohup setsid sleep 87654 >/dev/null 2>&1 </dev/null &")
    gateway.stop(how=how)
    gateway.start()
    eventually(lambda: gateway.json("alice", "env", "show", "train")["state"] == "running")
    assert eventually(lambda: environment.ssh("cat ~/kept", check=False).stdout) == b"kept\n"
    assert "sleep 87654" in environment.processes()
    environment.ssh("pkill -f '^sleep 87654'")


def test_the_machine_goes_away_and_comes_back(environment: Environment, machine: machines.Machine) -> None:
    """Connections that end and a machine that stands still: said in words, and over when it is back."""
    gateway = environment.gateway
    machine.hang_up()
    assert eventually(lambda: environment.ssh("echo back", check=False).stdout) == b"back\n"
    machine.leave()
    try:
        eventually(lambda: not doctor(gateway)["compute box"]["ok"], seconds=90)
    finally:
        machine.come_back()
    assert eventually(lambda: environment.ssh("echo back", check=False).stdout, seconds=90) == b"back\n"
    assert gateway.json("alice", "env", "show", "train")["state"] == "running"


def test_another_host_key_and_nothing_is_sent(gateway: Gateway, machine: machines.Machine, tmp_path: Path) -> None:
    """The machine was replaced, or somebody answers in its place: no login, one plain sentence, an error in the log."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"])
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    settings = machine.settings("box", 'users = ["alice"]').replace(machine.host_key, other)
    config = tmp_path / "ashore.toml"
    config.write_text(settings)
    done = gateway.operate("doctor", "--config", str(config), "--json", check=False)
    assert b"the machine 'box' shows another host key than the one in the settings" in done.stdout
    assert b"it was installed anew, or somebody stands in between" in done.stderr
