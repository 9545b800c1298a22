"""Environments that sleep, wake and go by themselves, with the real `ssh`, on clocks made short by the settings."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stories.clients import Gateway, Terminal, eventually
from tests.stories.conftest import served

SETTINGS = """
[backends.lifecycle]
idle_minutes = 0.4
ephemeral_minutes = 0.05
warn_minutes = 0.2
look_seconds = 0.5
write_seconds = 0.5
traffic_kib = 16.0
"""
"""Asleep after 24 s, warned 12 s before."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("quick"), settings=SETTINGS) as gateway:
        yield gateway


def create(gateway: Gateway, name: str, *options: str) -> str:
    """Make alice's environment `name`, running; what was said on the way."""
    arguments = ("env", "create", name, "--compute", "local", *options, "--wait")
    return gateway.ssh("alice", *arguments).stderr.decode()


def row(gateway: Gateway, name: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.json("alice", "env", "show", name)
    return found


def names(gateway: Gateway) -> list[str]:
    return [one["name"] for one in gateway.json("alice", "env", "list")]


def test_it_is_warned_sleeps_and_wakes_at_the_next_login(quick: Gateway) -> None:
    create(quick, "nap", "--lifecycle", "on-demand")
    quick.ssh("alice+nap", "echo kept > file")
    with Terminal([*quick.client("alice+nap", options=("-tt",))]) as terminal:
        terminal.wait_for_prompt()
        terminal.expect(
            r"ashore: nap sleeps in [0-9]+ s, at [0-9:]+ UTC\. Any sign of life keeps it awake\.", seconds=60
        )
        terminal.wait(seconds=90)
    eventually(lambda: row(quick, "nap")["state"] == "stopped", seconds=60)
    asleep = row(quick, "nap")
    assert (asleep["wish_reason"], asleep["lifecycle"]) == ("no sign of life for 24 s", "on-demand")
    assert "no sign of life" in quick.ssh("alice", "env", "list").stdout.decode()
    (event,) = quick.audit(action="environment.sleep", thing="nap")
    assert (event["actor"], event["detail"]["reason"]) == ("system", "no sign of life for 24 s")
    assert quick.ssh("alice+nap", "cat file").stdout == b"kept\n"
    awake = row(quick, "nap")
    assert (awake["state"], awake["wish_reason"]) == ("running", "")


def test_who_types_stays(quick: Gateway) -> None:
    """The warnings are in the language of the terminal, here Chinese."""
    create(quick, "desk", "--lifecycle", "on-demand")
    options = ("-tt", "-o", "SetEnv=LANG=zh_CN.UTF-8")
    with Terminal([*quick.client("alice+desk", options=options)]) as terminal:
        terminal.wait_for_prompt()
        terminal.expect("ashore: desk 将在 [0-9]+ 秒后（[0-9:]+ UTC）休眠。任何活动都会让它保持运行。", seconds=60)
        terminal.send("true\r")
        terminal.expect("ashore: desk 继续运行，停止提醒已撤销。", seconds=30)
        terminal.send("echo $((20 + 22))\r")
        terminal.expect("42")
    assert row(quick, "desk")["state"] == "running"


def test_an_open_forward_with_heartbeats_lets_it_sleep(quick: Gateway) -> None:
    """An editor's window that was left open, and a browser on a forward: small things, all the time. They keep it
    awake neither while they come, nor by coming to one that sleeps."""
    create(quick, "editor", "--lifecycle", "on-demand")
    quick.ssh("alice+editor", "setsid python3 -m http.server 8000 --bind 127.0.0.1 > /dev/null 2>&1 < /dev/null &")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("-N", "-L", f"127.0.0.1:{port}:127.0.0.1:8000")
    with subprocess.Popen(quick.client("alice+editor", options=options), stderr=subprocess.DEVNULL) as ssh:
        try:
            eventually(lambda: _asked(port))
            started = time.monotonic()
            while row(quick, "editor")["state"] == "running":
                _asked(port)
                assert time.monotonic() - started < 120, "it does not sleep"
                time.sleep(1)
            eventually(lambda: row(quick, "editor")["state"] == "stopped", seconds=60)
            for _ in range(5):
                assert not _asked(port)
                time.sleep(0.5)
            assert row(quick, "editor")["wish"] == "stopped"
        finally:
            ssh.kill()
    assert quick.ssh("alice+editor", "echo awake").stdout == b"awake\n"


def _asked(port: int) -> bool:
    """Whether a small request got an answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return bool(connection.recv(100))
    except OSError:
        return False


def test_ephemeral_goes_after_its_last_session(quick: Gateway) -> None:
    said = create(quick, "trial", "--lifecycle", "ephemeral")
    assert "'trial' is deleted 3 s after your last session there ended, with everything in it" in said
    with Terminal([*quick.client("alice+trial", options=("-tt",))]) as terminal:
        terminal.wait_for_prompt()
        time.sleep(8)  # longer than it would live without this terminal
        terminal.send("echo still $((40 + 2))\r")
        terminal.expect("still 42")
        terminal.send("exit\r")
        assert terminal.wait() == 0
    eventually(lambda: "trial" not in names(quick), seconds=60)
    (event,) = quick.audit(action="environment.delete", thing="trial")
    assert (event["actor"], event["detail"]["reason"]) == ("system", "its last session ended 3 s ago")


def test_the_results_of_an_ephemeral_one_are_kept(quick: Gateway, tmp_path: Path) -> None:
    said = create(quick, "brief", "--lifecycle", "ephemeral")
    assert "but /gemini/output, which is kept for 14 days" in said
    quick.ssh(
        "alice+brief", "cd /gemini/output && mkdir run && echo 0.25 > run/loss && ln -s run/loss last && echo x > ~/y"
    )
    eventually(lambda: "brief" not in names(quick), seconds=60)
    (left,) = [one for one in quick.json("alice", "artifact", "list") if one["environment"] == "brief"]
    assert (left["state"], left["files"], left["bytes"]) == ("ready", 1, 5)
    target = tmp_path / "results"
    subprocess.run(
        [*quick.client("alice", program="scp", options=("-r",)), f"alice@gw:{left['path']}", str(target)],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    assert (target / "run" / "loss").read_text() == "0.25\n"
    shown = quick.json("alice", "artifact", "show", left["name"])
    assert shown["remarks"] == ["last -> run/loss: left out, it is a symbolic link"]
    quick.ssh("alice", "artifact", "delete", left["name"])
    assert left["name"] not in [one["name"] for one in quick.json("alice", "artifact", "list")]
    assert [event["actor"] for event in quick.audit(action="artifact.delete", thing=left["name"])] == ["alice"]


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_a_deletion_by_hand_keeps_what_was_asked_for(quick: Gateway, compute: str) -> None:
    quick.ssh("alice", "env", "create", f"by-{compute}", "--compute", compute, "--keep-output", "no", "--wait")
    quick.ssh(f"alice+by-{compute}", "head -c 20000000 /dev/urandom | tee /gemini/output/model | sha256sum > ~/sum")
    wanted = quick.ssh(f"alice+by-{compute}", "cat ~/sum").stdout.split()[0]
    assert row(quick, f"by-{compute}")["keep_output_days"] == 0
    quick.ssh("alice", "env", "set", f"by-{compute}", "--keep-output", "2")
    quick.ssh("alice", "env", "delete", f"by-{compute}", "--wait")
    (left,) = [one for one in quick.json("alice", "artifact", "list") if one["environment"] == f"by-{compute}"]
    found = quick.ssh("alice", "sha256sum", f"{left['path']}/model").stdout.split()[0]
    assert found == wanted


def test_signs_of_life_survive_a_restart(tmp_path: Path) -> None:
    with served(tmp_path, settings="[backends.lifecycle]\nwrite_seconds = 3600.0\n") as gateway:
        create(gateway, "train", "--lifecycle", "on-demand", "--idle", "90m")
        gateway.ssh("alice+train", "true")
        gateway.stop()
        gateway.start()
        kept = row(gateway, "train")
        assert kept["last_active"] is not None
        assert kept["last_used"] is not None
        assert (kept["idle_seconds"], kept["next_step"]) == (5400, "sleep")


def test_schedules_are_checked_shown_and_changed(quick: Gateway) -> None:
    options = ("--lifecycle", "scheduled", "--start-at", "'0 8 * * MON-FRI'", "--stop-at")
    dry = quick.ssh(
        "alice",
        "env",
        "create",
        "office",
        *options,
        "soon",
        "--timezone",
        "Moon/Base",
        "--dry-run",
        "--json",
        check=False,
    )
    assert dry.returncode == 1
    assert json.loads(dry.stdout)["refusals"] == [
        "'soon' is no cron expression: write minute, hour, day of month, month and day of week, "
        "such as '0 8 * * MON-FRI'",
        "there is no time zone 'Moon/Base': write it like Europe/Berlin",
    ]
    create(quick, "office", *options, "'0 20 * * *'", "--timezone", "Asia/Shanghai")
    made = row(quick, "office")
    assert (made["lifecycle"], made["stop_at"], made["timezone"]) == ("scheduled", "0 20 * * *", "Asia/Shanghai")
    assert made["next_step"] == "stop"
    assert "T12:00:00" in made["next_at"]
    quick.ssh("alice", "env", "set", "office", "--lifecycle", "persistent")
    made = row(quick, "office")
    assert (made["lifecycle"], made["stop_at"], made["next_step"]) == ("persistent", "", None)
