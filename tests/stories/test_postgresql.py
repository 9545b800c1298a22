"""A gateway whose records are in PostgreSQL: work, a kill, and a database that goes away and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.postgresql import PostgreSql
from tests.stories.clients import Gateway, Terminal, eventually
from tests.stories.conftest import served
from tests.stories.test_transfers import sftp


@pytest.fixture
def server() -> Iterator[PostgreSql]:
    server = PostgreSql()
    yield server
    server.remove()


@pytest.fixture
def gateway(tmp_path: Path, server: PostgreSql, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setenv("ASHORE_DATABASE__URL", server.url(server.create()))
    with served(tmp_path) as gateway:
        yield gateway


def test_the_records_are_in_postgresql(gateway: Gateway, server: PostgreSql, tmp_path: Path) -> None:
    assert not (gateway.data / "ashore.sqlite3").exists()
    gateway.ssh("carol", "quota", "set", "--user", "alice", "--environments", "2")
    with ThreadPoolExecutor(4) as clients:
        create = ("env", "create", "--compute", "local", "--memory", "3GiB", "--wait")
        done = list(clients.map(lambda n: gateway.ssh("alice", *create, f"box{n}", check=False).returncode, range(4)))
    assert sorted(done) == [0, 0, 1, 1], "two fit the quota, whoever asks at the same moment"
    (name, _) = sorted(row["name"] for row in gateway.json("alice", "env", "list"))
    gateway.ssh(f"alice+{name}", "echo kept > ~/kept")
    (tmp_path / "big").write_bytes(os.urandom(20_000_000))
    sftp(gateway, "alice", "mkdir /datasets/d", "mkdir /datasets/d/v1", f"put {tmp_path}/big /datasets/d/v1/big")
    gateway.stop(how=signal.SIGKILL)
    gateway.start()
    assert gateway.ssh(f"alice+{name}", "cat ~/kept").stdout == b"kept\n"
    sftp(gateway, "alice", f"get /datasets/d/v1/big {tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert b"postgresql" in gateway.operate("doctor", check=False).stdout
    gateway.operate("audit", "verify")


def test_a_database_that_goes_away_and_comes_back(gateway: Gateway, server: PostgreSql) -> None:
    gateway.ssh("alice", "env", "create", "box", "--compute", "local", "--wait")
    with Terminal(gateway.client("alice+box")) as terminal:
        terminal.wait_for_prompt()
        server.stop()
        terminal.send("echo st''ill\r")
        terminal.expect("still")
        refused = gateway.ssh("alice", "env", "list", check=False)
        assert refused.returncode != 0
        assert b"Traceback" not in refused.stderr
        server.start()
        assert eventually(lambda: gateway.ssh("alice", "env", "list", check=False).returncode == 0)
        terminal.send("echo on''ce more\r")
        terminal.expect("once more")
    assert gateway.ssh("alice+box", "exit 7", check=False).returncode == 7
    gateway.operate("audit", "verify")
