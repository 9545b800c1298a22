"""`ashore serve` is killed with SIGKILL in the middle of work. What it was trusted with is still true afterwards."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.clients import Gateway, Terminal, eventually
from tests.stories.conftest import served
from tests.stories.test_transfers import names_in, sftp


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of this story's own, to be killed."""
    with served(tmp_path) as gateway:
        yield gateway


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_killed_while_three_sessions_and_an_upload_run(gateway: Gateway, compute: str, tmp_path: Path) -> None:
    gateway.ssh("alice", "env", "create", "box", "--compute", compute, "--wait", timeout=120)
    gateway.ssh("alice+box", "echo kept > ~/kept")
    data = os.urandom(60_000_000)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "small").write_bytes(b"small")
    sftp(gateway, "alice", "mkdir /datasets/d", "mkdir /datasets/d/v1", f"put {tmp_path}/small /datasets/d/v1/small")
    upload = [*gateway.client("alice", program="sftp", options=["-l", "100000"]), "-b", "-", "alice@gw"]
    with (
        Terminal(gateway.client("alice+box")) as first,
        Terminal(gateway.client("alice+box")) as second,
        Terminal(gateway.client("alice")),
        subprocess.Popen(upload, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client,
    ):
        for terminal in (first, second):
            terminal.wait_for_prompt()
            terminal.send("echo he''re\r")
            terminal.expect("here")
        assert client.stdin is not None
        client.stdin.write(f"put {tmp_path}/big /datasets/d/v1/big\n".encode())
        client.stdin.flush()
        time.sleep(2)
        sessions = gateway.json("carol", "session", "list", "--all")
        assert {row["kind"] for row in sessions} >= {"menu", "shell"}
        gateway.stop(how=signal.SIGKILL)
        client.wait(30)
    gateway.start()

    listed = gateway.json("alice", "env", "list")
    assert [(row["name"], row["state"]) for row in listed] == [("box", "running")]
    assert gateway.ssh("alice+box", "cat ~/kept; exit 5", check=False).stdout == b"kept\n"

    still_open = {row["id"] for row in gateway.json("carol", "session", "list", "--all")}
    assert not still_open & {row["id"] for row in sessions}
    closed = {row["detail"]["session"] for row in gateway.audit(action="session.end", outcome="failed")}
    assert {row["id"] for row in sessions if row["kind"] in ("menu", "shell")} <= closed

    # No half object under a final name, though its sender sees what can be gone on with; what was finished is there.
    assert names_in(gateway, "bob", "/datasets/d/v1") == ["small"]
    assert names_in(gateway, "alice", "/datasets/d/v1") in (["big", "small"], ["small"])
    sftp(gateway, "alice", f"put {tmp_path}/big /datasets/d/v1/big", f"get /datasets/d/v1/big {tmp_path}/back")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()
    assert gateway.operate("audit", "verify").returncode == 0


def test_a_polite_stop_ends_with_status_zero_and_starts_again(gateway: Gateway) -> None:
    with Terminal(gateway.client("alice")) as terminal:
        eventually(lambda: gateway.json("carol", "session", "list", "--all"))
        assert gateway.stop() == 0
        terminal.wait()
    gateway.start()
    assert b"alice" in gateway.ssh("alice", "whoami").stdout
