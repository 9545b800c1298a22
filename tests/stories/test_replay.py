"""Terminals are recorded as asciicast v2: played by `ssh gw record play`, by `ashore replay`, and by asciinema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stories.clients import Environment, Gateway, Terminal, eventually, run


@pytest.fixture
def recording(environment: Environment) -> dict[str, Any]:
    """A finished recording of a shell that said `what was said`, in 60 by 20."""
    gateway = environment.gateway
    before = {row["id"] for row in gateway.json("alice", "record", "list")}
    with Terminal(gateway.client(environment.login), columns=60, rows=20) as terminal:
        terminal.wait_for_prompt()
        terminal.send("echo what was sa''id; printf '\\346\\226\\207\\n'\r")
        terminal.expect("what was said\r\n文")
        terminal.resize(80, 25)
        terminal.send("exit\r")
        terminal.wait()

    def finished() -> dict[str, Any] | None:
        rows = gateway.json("alice", "record", "list")
        new = [row for row in rows if row["id"] not in before and row["environment"] == environment.name]
        return new[0] if new and new[0]["sha256"] else None

    row: dict[str, Any] = eventually(finished)
    return row


def file_of(gateway: Gateway, recording: dict[str, Any]) -> Path:
    (path,) = gateway.data.rglob(f"{recording['id']}.cast")
    return path


def test_the_file_is_asciicast_2(environment: Environment, recording: dict[str, Any]) -> None:
    lines = file_of(environment.gateway, recording).read_text().splitlines()
    header, events = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
    assert (header["version"], header["width"], header["height"]) == (2, 60, 20)
    assert [time for time, _, _ in events] == sorted(time for time, _, _ in events)
    assert "what was said" in "".join(text for _, kind, text in events if kind == "o")
    assert [text for _, kind, text in events if kind == "r"] == ["80x25"]


def test_asciinema_plays_it(environment: Environment, recording: dict[str, Any]) -> None:
    player = ["asciinema", "play", "-s", "1000", file_of(environment.gateway, recording)]
    with Terminal(["env", "LANG=C.UTF-8", f"HOME={environment.gateway.home}", *player]) as terminal:
        terminal.expect("what was said\r\n文")
        assert terminal.wait() == 0


def test_ashore_replay_plays_it(environment: Environment, recording: dict[str, Any]) -> None:
    played = environment.gateway.operate("replay", recording["id"], "--speed", "1000").stdout.decode()
    assert "what was said\r\n文" in played


def test_its_owner_plays_it_through_the_gateway(environment: Environment, recording: dict[str, Any]) -> None:
    command = ["record", "play", recording["id"], "--speed", "1000"]
    with Terminal([*environment.gateway.client("alice", options=["-t"]), *command]) as terminal:
        terminal.expect("what was said\r\n文")
        assert terminal.wait() == 0


def test_nobody_else_does(environment: Environment, recording: dict[str, Any]) -> None:
    done = environment.gateway.ssh("bob", "record", "play", recording["id"], check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_its_hash_is_in_the_trail(environment: Environment, recording: dict[str, Any]) -> None:
    sums = run(["sha256sum", file_of(environment.gateway, recording)]).stdout.split()[0].decode()
    events = environment.gateway.audit(action="record.finish")
    assert sums in {event["detail"]["sha256"] for event in events}


def test_commands_without_a_terminal_are_facts_not_recordings(environment: Environment) -> None:
    before = environment.gateway.json("alice", "record", "list")
    environment.ssh("echo fact")
    assert environment.gateway.json("alice", "record", "list") == before
    events = environment.gateway.audit(action="session.begin", thing=environment.name)
    assert any(event["detail"].get("detail") == "echo fact" for event in events)
