"""Jupyter and a desktop by the real `ssh -N -L`, and published ports by `curl`, as people use them."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served

PORTS = (31871, 31873)
"""Below those that systems give out by themselves."""
SETTINGS = f"""
[backends.environments]
reconcile_seconds = 1.0

[backends.ports]
first = {PORTS[0]}
last = {PORTS[1]}
connections = 2

[backends.applications.absent]
title = "Absent"
argv = ["no-such-program", "--port={{port}}"]
port = 7000
install = "apt install it"
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("applications"), settings=SETTINGS) as gateway:
        yield gateway


def create(gateway: Gateway, name: str, *options: str) -> None:
    gateway.ssh("alice", "env", "create", name, "--compute", "local", *options, "--wait", timeout=120)


def access(gateway: Gateway, name: str, application: str) -> dict[str, Any]:
    """The application's row, once it runs or is known not to."""
    return eventually(lambda: _settled(gateway, name, application), seconds=120)  # type: ignore[no-any-return]


def _settled(gateway: Gateway, name: str, application: str) -> dict[str, Any] | None:
    (row,) = gateway.json("alice", "env", "access", name, "--app", application)
    return row if row["state"] in ("running", "missing") else None


@contextmanager
def forward(gateway: Gateway, row: dict[str, Any], name: str) -> Iterator[int]:
    """The line of `env access`, run as it stands but for where the test's key and the gateway are."""
    words = row["ssh"].split()
    assert words[:3] == ["ssh", "-N", "-L"]
    assert words[3] == f"{row['local_port']}:127.0.0.1:{row['port']}"
    assert words[4].startswith(f"alice+{name}@")
    client = subprocess.Popen(gateway.client(f"alice+{name}", options=("-N", "-L", words[3])))
    try:
        eventually(lambda: connects(row["local_port"]))
        yield row["local_port"]
    finally:
        client.terminate()
        client.wait()


def connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


def status_of(url: str) -> str:
    return run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url], check=False).stdout.decode()


def programs(gateway: Gateway, name: str) -> list[str]:
    """Process ids of Jupyter's servers inside."""
    script = 'for p in /proc/[0-9]*; do grep -qz "/jupyter-notebook$" $p/cmdline && echo ${p#/proc/}; done; true'
    return sorted(gateway.ssh(f"alice+{name}", script).stdout.decode().split())


def test_jupyter(house: Gateway) -> None:
    """The token lets in and nothing else does; the program outlives the gateway and comes back when it is killed."""
    create(house, "lab", "--app", "jupyter")
    row = access(house, "lab", "jupyter")
    assert (row["state"], row["port"]) == ("running", 8888)
    api = "http://127.0.0.1:{}/api/contents"
    with forward(house, row, "lab") as port:
        assert status_of(api.format(port) + f"?token={row['token']}") == "200"
        assert status_of(api.format(port)) == "403"
        assert status_of(row["address"]) in ("200", "302")
    (kept,) = programs(house, "lab")
    everything = house.ssh("alice+lab", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout.decode()
    assert row["token"] not in everything

    house.stop(how=signal.SIGKILL)
    house.start()
    again = access(house, "lab", "jupyter")
    assert again["token"] == row["token"]
    assert programs(house, "lab") == [kept]
    house.ssh("alice+lab", f"kill -KILL {kept}")
    eventually(lambda: programs(house, "lab") not in ([], [kept]), seconds=120)

    (fresh,) = house.json("alice", "env", "access", "lab", "--new-secret", "--wait")
    assert fresh["token"] != row["token"]
    with forward(house, fresh, "lab") as port:
        eventually(lambda: status_of(api.format(port) + f"?token={fresh['token']}") == "200", seconds=120)
        assert status_of(api.format(port) + f"?token={row['token']}") == "403"
    trail = house.ssh("carol", "audit", "search", "--limit", "1000", "--json").stdout.decode()
    assert house.audit(action="application.access", thing="lab")
    for text in (trail, house.log.read_text(), house.ssh("alice", "env", "show", "lab", "--json").stdout.decode()):
        assert row["token"] not in text
        assert fresh["token"] not in text


def test_nobody_else_gets_the_secret(house: Gateway) -> None:
    """Attack: an administrator, who may see and stop everybody's environments, asks for what opens one."""
    refused = house.ssh("carol", "env", "access", "lab.alice", check=False)
    assert (refused.returncode, refused.stdout) == (77, b"")
    refused = house.ssh("bob", "env", "access", "lab.alice", check=False)
    assert b"there is no environment" in refused.stderr


def test_a_desktop_by_vnc(house: Gateway) -> None:
    create(house, "desk", "--app", "vnc")
    row = access(house, "desk", "vnc")
    assert row["state"] == "running"
    assert len(row["password"]) == 8
    with forward(house, row, "desk") as port:
        assert login(port, row["password"]) == 0
        assert login(port, "wrongone") == 1
    house.ssh("alice", "env", "restart", "desk", "--wait", timeout=120)
    assert access(house, "desk", "vnc")["password"] == row["password"]


def login(port: int, password: str) -> int:
    """The result of a VNC handshake (RFB 3.8, security type 2): 0 is welcome."""
    with socket.create_connection(("127.0.0.1", port), 30) as line, line.makefile("rwb") as server:
        assert server.read(12) == b"RFB 003.008\n"
        server.write(b"RFB 003.008\n")
        server.flush()
        assert 2 in server.read(server.read(1)[0])
        server.write(b"\x02")
        server.flush()
        challenge = server.read(16)
        key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode())
        cipher = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
        server.write(cipher.update(challenge))
        server.flush()
        return int.from_bytes(server.read(4), "big")


def test_a_program_that_is_not_there(house: Gateway) -> None:
    create(house, "bare", "--app", "absent")
    row = access(house, "bare", "absent")
    words = "'absent' is not in this environment: apt install it; it starts by itself then"
    assert (row["state"], row["reason"]) == ("missing", words)
    assert house.ssh("alice+bare", "echo usable").stdout == b"usable\n"
    install = "mkdir -p .local/bin && printf '#!/bin/sh\\nexec python3 -m http.server --bind 127.0.0.1 7000\\n'"
    house.ssh("alice+bare", f"{install} > .local/bin/no-such-program && chmod +x .local/bin/no-such-program")
    eventually(lambda: house.json("alice", "env", "access", "bare")[0]["state"] == "running", seconds=120)
    refused = house.ssh("alice", "env", "create", "no", "--compute", "local", "--app", "moon", check=False)
    assert b"there is no application 'moon' (offered: absent, jupyter, vnc)" in refused.stderr


def test_a_published_port(house: Gateway) -> None:
    create(house, "web", "--publish", "8000")
    house.ssh("alice+web", "mkdir -p site; echo hello > site/index.html; cd site; "
              "setsid python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 </dev/null &")  # fmt: skip
    (row,) = house.json("alice", "env", "ports", "web")
    assert (row["port"], row["external_port"]) == (8000, PORTS[0])
    url = f"http://127.0.0.1:{PORTS[0]}/"
    eventually(lambda: status_of(url) == "200")
    assert run(["curl", "-s", url]).stdout == b"hello\n"
    event = eventually(lambda: house.audit(action="environment.published-connection", thing="web", outcome="ok"))[0]
    assert event["detail"]["bytes_out"] > 0

    house.stop()
    house.start()
    eventually(lambda: status_of(url) == "200")

    with socket.create_connection(("127.0.0.1", PORTS[0])), socket.create_connection(("127.0.0.1", PORTS[0])):
        eventually(lambda: status_of(url) == "000")  # two at once are allowed
    with socket.create_connection(("127.0.0.1", PORTS[0])) as held:
        held.settimeout(60)
        house.ssh("alice", "env", "stop", "web", "--wait", timeout=120)
        with suppress(ConnectionResetError):
            assert held.recv(1) == b""
    eventually(lambda: not connects(PORTS[0]))
    assert house.json("alice", "env", "show", "web")["state"] == "stopped"  # nothing was woken
    house.ssh("alice", "env", "start", "web", "--wait", timeout=120)
    eventually(lambda: connects(PORTS[0]))
    house.ssh("alice", "env", "set", "web", "--unpublish", "8000")
    eventually(lambda: not connects(PORTS[0]))
    assert house.json("alice", "env", "ports") == []
    house.ssh("alice", "env", "set", "web", "--publish", "9000")
    house.ssh("alice", "env", "delete", "web", "--wait", timeout=120)
    create(house, "next", "--publish", "8000")
    assert house.json("alice", "env", "ports", "next")[0]["external_port"] == PORTS[0]


def test_ports_are_not_offered_unless_the_operator_says_so(gateway: Gateway) -> None:
    refused = gateway.ssh("alice", "env", "create", "open", "--publish", "8000", check=False)
    assert refused.returncode == 2
    assert b"this gateway publishes no ports" in refused.stderr
