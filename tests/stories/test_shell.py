"""`ssh alice+env@gw`: commands and terminals in an environment behave as on a machine with OpenSSH."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time

import pytest

from tests.stories.clients import Environment, Terminal, eventually, run


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status_is_the_commands_own(environment: Environment, status: int) -> None:
    assert environment.ssh(f"exit {status}", check=False).returncode == status


def test_a_signal_that_ends_a_command_is_a_failure(environment: Environment) -> None:
    assert environment.ssh("kill -KILL $$", check=False).returncode != 0


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("echo a; echo b", "a\nb\n"),
        ("true & wait; echo 'a & b'", "a & b\n"),
        ("printf 'x\\ny\\n' | wc -l | tr -d ' '", "2\n"),
        ('cat < /dev/null; echo "<$((1 + 1))>"', "<2>\n"),
        ('echo hidden > /dev/null; echo "it\'s $(echo fine)"', "it's fine\n"),
        ("sh -c 'echo \"$0 $1\"' 'a  b' \"c'd\"", "a  b c'd\n"),
        ("echo '*' \\$HOME ~nobody-such \"a\tb\"", "* $HOME ~nobody-such a\tb\n"),
        ("echo 'grüße 你好'", "grüße 你好\n"),
    ],
)
def test_command_strings_arrive_unchanged(environment: Environment, command: str, answer: str) -> None:
    assert environment.ssh(command).stdout.decode() == answer


def test_a_megabyte_of_input_then_an_exit_status(environment: Environment) -> None:
    data = os.urandom(1_000_000)
    done = environment.ssh("sha256sum; exit 7", input=data, check=False)
    assert (done.returncode, done.stdout.split()[0].decode()) == (7, hashlib.sha256(data).hexdigest())


def test_input_that_nobody_reads_does_no_harm(environment: Environment) -> None:
    assert environment.ssh("exit 3", input=bytes(4_000_000), check=False).returncode == 3


def test_a_hundred_megabytes_of_output_are_whole(environment: Environment) -> None:
    command = "seq 1 20000000 | head -c 100000000"
    here = run(["sh", "-c", f"{command} | sha256sum"]).stdout
    arguments = [*environment.gateway.client(environment.login), command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as ssh:
        assert ssh.stdout is not None
        digest, size = hashlib.sha256(), 0
        while piece := ssh.stdout.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    assert (ssh.returncode, size, digest.hexdigest()) == (0, 100_000_000, here.split()[0].decode())


def test_stderr_stays_apart(environment: Environment) -> None:
    done = environment.ssh("echo out; echo err >&2; exit 5", check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 5)


def test_output_that_comes_after_the_end_of_input(environment: Environment) -> None:
    """Half-close: the end of input is passed on by itself, and what comes later still arrives."""
    done = environment.ssh("sort; sleep 1; echo later; exit 9", input=b"b\na\n", check=False)
    assert (done.stdout, done.returncode) == (b"a\nb\nlater\n", 9)


def test_output_that_ends_before_input(environment: Environment) -> None:
    """The other half: a command that closed its output still reads what is sent."""
    done = environment.ssh("exec 1>&- 2>&-; cat > half; exit 4", input=b"still read", check=False)
    assert done.returncode == 4
    assert environment.ssh("cat half; rm half").stdout == b"still read"


def test_a_login_shell_on_a_terminal(environment: Environment) -> None:
    with Terminal([*environment.gateway.client(environment.login)], columns=133, rows=37) as terminal:
        terminal.wait_for_prompt()
        terminal.send("stty size; tty; shopt -q login_shell && echo log''in\r")
        terminal.expect(r"37 133\r\n/dev/pts/\d+\r\nlogin\r\n")
        terminal.resize(90, 50)
        time.sleep(0.5)
        terminal.send("stty size\r")
        terminal.expect(r"50 90\r\n")
        terminal.send("exit 42\r")
        assert terminal.wait() == 42


def test_a_resize_reaches_the_program_that_runs(environment: Environment) -> None:
    program = "trap 'stty size; exit 6' WINCH; echo set; while :; do sleep 0.2; done"
    with Terminal(environment.gateway.client(environment.login, options=["-tt"]) + [program]) as terminal:
        terminal.expect("set")
        terminal.resize(71, 23)
        terminal.expect("23 71")
        assert terminal.wait() == 6


def test_control_c_interrupts_and_the_shell_lives_on(environment: Environment) -> None:
    with Terminal([*environment.gateway.client(environment.login)]) as terminal:
        terminal.wait_for_prompt()
        terminal.send("sleep 1000; echo st''atus $?\r")
        eventually(lambda: "sleep 1000" in environment.processes())
        terminal.send(b"\x03")
        terminal.send("echo al''ive\r")
        terminal.expect("alive")
        terminal.send("exit\r")
        terminal.wait()


def test_control_p_is_only_a_byte(environment: Environment) -> None:
    """Docker's own exec swallows ^P as the first half of its detach keys."""
    program = "stty raw -echo; echo ready; head -c 4 | od -An -tx1"
    with Terminal(environment.gateway.client(environment.login, options=["-tt"]) + [program]) as terminal:
        terminal.expect("ready")
        terminal.send(b"\x10\x11\x10a")
        terminal.expect("10 11 10 61")
        assert terminal.wait() == 0


def test_a_killed_client_leaves_nothing_of_its_terminal_behind(environment: Environment) -> None:
    with Terminal([*environment.gateway.client(environment.login)]) as terminal:
        terminal.wait_for_prompt()
        terminal.send("sleep 86399\r")
        eventually(lambda: "sleep 86399" in environment.processes())
        terminal.kill()
        eventually(lambda: "sleep 86399" not in environment.processes())


def test_many_commands_over_one_connection(environment: Environment) -> None:
    """ControlMaster: twenty channels on one connection, each with its own status."""
    gateway = environment.gateway
    control = gateway.home / "control"
    options = ["-o", f"ControlPath={control}", "-o", "ControlMaster=auto", "-o", "ControlPersist=30"]
    arguments = gateway.client(environment.login, options=options)
    run([*arguments, "true"], stdout=subprocess.DEVNULL)
    try:
        started = [
            subprocess.Popen([*arguments, f"cat; exit {n}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for n in range(20)
        ]
        assert [process.wait(60) for process in started] == list(range(20))
    finally:
        run([*arguments[:-1], "-O", "exit", arguments[-1]], check=False)
