"""Jupyter and desktops by the real `ssh -N -L`, and published ports by `curl`, wherever they run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from tests.conformance.docker_hosts import ENGINE, Sshd
from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served
from tests.stories.programs_image import image_with

pytestmark = pytest.mark.timeout(900)
PORTS = (31871, 31873)
"""Below those that systems give out by themselves."""
SETTINGS = """
[backends.environments]
reconcile_seconds = 1.0

[backends.placement]
memory_overcommit = 4.0

[backends.ports]
first = {first}
last = {last}
connections = 2

[backends.applications.absent]
title = "Absent"
argv = ["no-such-program", "--port={{port}}"]
port = 7000
install = "apt install it"

[backends.applications.web]
title = "Files"
argv = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "{{port}}"]
port = 7001

[backends.docker.hosts.here]
url = "unix://{engine}"

[backends.docker.hosts.far]
url = "ssh://root@127.0.0.1:{ssh_port}"
host_key = "{host_key}"
key_file = "{key_file}"
"""
PACKAGES = ("jupyter-notebook", "tigervnc-standalone-server", "xvfb", "freerdp2-shadow-x11")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with two Docker hosts: this machine's engine, and the same through an SSH server."""
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    try:
        settings = SETTINGS.format(
            first=PORTS[0], last=PORTS[1], engine=ENGINE, ssh_port=sshd.port, key_file=sshd.directory / "client",
            host_key=(sshd.directory / "host.pub").read_text().strip(),
        )  # fmt: skip
        with served(tmp_path_factory.mktemp("applications"), settings=settings) as gateway:
            yield gateway
        for volume in run(["docker", "volume", "ls", "-q", "--filter", "label=ashore.guest"]).stdout.decode().split():
            run(["docker", "volume", "rm", volume], check=False)
    finally:
        sshd.stop()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with image_with(PACKAGES, f"ashore-programs-{os.getpid()}:1") as name:
        yield name


@dataclass(frozen=True)
class Place:
    """Where environments of a test are made."""

    house: Gateway
    name: str
    options: Sequence[str]

    def create(self, name: str, *options: str) -> str:
        """The name of a new environment that runs."""
        name = f"{name}-{self.name}"
        self.house.ssh("alice", "env", "create", name, *self.options, *options, "--wait", timeout=200)
        return name

    def delete(self, name: str) -> None:
        self.house.ssh("alice", "env", "delete", name, "--wait", timeout=120)


@pytest.fixture(params=["local", "here", "far"])
def place(request: pytest.FixtureRequest, house: Gateway) -> Place:
    """The sandbox, a Docker engine whose networks can be entered from here, and one behind SSH, where they cannot."""
    if request.param == "local":
        return Place(house, "local", ("--compute", "local"))
    image: str = request.getfixturevalue("image")
    limits = ("--cpu", "1", "--memory", "1GiB")
    return Place(house, request.param, ("--compute", "docker", "--host", request.param, "--image", image, *limits))


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


def test_jupyter(place: Place) -> None:
    """The token lets in and nothing else does; the program outlives the gateway and comes back when it is killed."""
    house, lab = place.house, place.create("lab", "--app", "jupyter")
    row = access(house, lab, "jupyter")
    assert (row["state"], row["port"]) == ("running", 8888)
    api = "http://127.0.0.1:{}/api/contents"
    with forward(house, row, lab) as port:
        assert status_of(api.format(port) + f"?token={row['token']}") == "200"
        assert status_of(api.format(port)) == "403"
        assert status_of(row["address"]) in ("200", "302")
    (kept,) = programs(house, lab)
    everything = house.ssh(f"alice+{lab}", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout.decode()
    assert row["token"] not in everything

    house.stop(how=signal.SIGKILL)
    house.start()
    again = access(house, lab, "jupyter")
    assert again["token"] == row["token"]
    assert programs(house, lab) == [kept]
    house.ssh(f"alice+{lab}", f"kill -KILL {kept}")
    eventually(lambda: programs(house, lab) not in ([], [kept]), seconds=120)

    (fresh,) = house.json("alice", "env", "access", lab, "--new-secret", "--wait")
    assert fresh["token"] != row["token"]
    with forward(house, fresh, lab) as port:
        eventually(lambda: status_of(api.format(port) + f"?token={fresh['token']}") == "200", seconds=120)
        assert status_of(api.format(port) + f"?token={row['token']}") == "403"
    trail = house.ssh("carol", "audit", "search", "--limit", "1000", "--json").stdout.decode()
    assert house.audit(action="application.access", thing=lab)
    for text in (trail, house.log.read_text(), house.ssh("alice", "env", "show", lab, "--json").stdout.decode()):
        assert row["token"] not in text
        assert fresh["token"] not in text
    nobody_else_gets_the_secret(house, lab)
    place.delete(lab)


def nobody_else_gets_the_secret(house: Gateway, name: str) -> None:
    """Attack: an administrator, who may see and stop everybody's environments, asks for what opens one."""
    refused = house.ssh("carol", "env", "access", f"{name}.alice", check=False)
    assert (refused.returncode, refused.stdout) == (77, b"")
    refused = house.ssh("bob", "env", "access", f"{name}.alice", check=False)
    assert b"there is no environment" in refused.stderr


def test_other_programs_while_it_runs(place: Place) -> None:
    house, lab = place.house, place.create("other")
    refused = house.ssh("alice", "env", "access", lab, check=False)
    assert f"'{lab}' has no applications: env set {lab} --app jupyter".encode() in refused.stderr
    house.ssh("alice", "env", "set", lab, "--app", "web")
    row = access(house, lab, "web")
    with forward(house, row, lab) as port:
        assert status_of(f"http://127.0.0.1:{port}/") == "200"
        house.ssh("alice", "env", "set", lab, "--no-app", "web")
        eventually(lambda: status_of(f"http://127.0.0.1:{port}/") == "000")
    eventually(lambda: not house.ssh(f"alice+{lab}", "ls .ashore/apps").stdout)
    house.ssh("alice", "env", "set", lab, "--app", "web")
    assert access(house, lab, "web")["token"] != row["token"]
    assert [event["action"] for event in house.audit(thing=lab) if event["action"] in ("application.add",
            "application.remove")] == ["application.add", "application.remove", "application.add"]  # fmt: skip
    place.delete(lab)


def test_a_desktop_by_vnc(place: Place) -> None:
    house, desk = place.house, place.create("desk", "--app", "vnc")
    row = access(house, desk, "vnc")
    assert row["state"] == "running"
    assert len(row["password"]) == 8
    with forward(house, row, desk) as port:
        assert login(port, row["password"]) == 0
        assert login(port, "wrongone") == 1
    house.ssh("alice", "env", "restart", desk, "--wait", timeout=120)
    assert access(house, desk, "vnc")["password"] == row["password"]
    place.delete(desk)


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


def test_a_desktop_by_rdp(place: Place, display: Sequence[str], tmp_path: Path) -> None:
    """Attack: a wrong password, another name, none at all, and older kinds of security that ask for nothing."""
    house, desk = place.house, place.create("remote", "--app", "rdp", "--app", "vnc")
    row = access(house, desk, "rdp")
    assert (row["state"], row["user"], len(row["password"])) == ("running", "developer", 8)
    assert row["address"] == f"127.0.0.1:{row['local_port']}"
    with forward(house, row, desk) as port:
        assert rdp(display, port, "developer", row["password"])
        assert not rdp(display, port, "developer", "wrongone")
        assert not rdp(display, port, "developer", "")
        assert not rdp(display, port, "alice", row["password"])
        for security in ("tls", "rdp"):
            assert not rdp(display, port, "developer", row["password"], f"/sec:{security}")
        assert picture(display, port, row["password"], tmp_path / "log")
    assert access(house, desk, "vnc")["state"] == "running"  # each has a display of its own
    everything = house.ssh(f"alice+{desk}", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout.decode()
    assert "freerdp-shadow-cli" in everything
    assert row["password"] not in everything
    place.delete(desk)


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[str]]:
    """What comes before a client, so that it has an X display and a home of its own."""
    reading, writing = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writing), "-nolisten", "tcp"], pass_fds=[writing],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(writing)
    try:
        with os.fdopen(reading) as said:
            yield ("env", f"DISPLAY=:{said.readline().strip()}", f"HOME={tmp_path_factory.mktemp('client')}")
    finally:
        server.terminate()
        server.wait()


def rdp(display: Sequence[str], port: int, user: str, password: str, *options: str) -> bool:
    """Whether `xfreerdp` is let in."""
    return run([*xfreerdp(display, port, user, password), "+auth-only", *options], check=False).returncode == 0


def picture(display: Sequence[str], port: int, password: str, log: Path) -> bool:
    """Whether a client gets to see a desktop."""
    with log.open("wb") as output:
        client = subprocess.Popen(xfreerdp(display, port, "developer", password), stdout=output, stderr=output)
    try:
        return bool(eventually(lambda: client.poll() is None and b"framebuffer format" in log.read_bytes()))
    finally:
        client.terminate()
        client.wait()


def xfreerdp(display: Sequence[str], port: int, user: str, password: str) -> list[str]:
    who = [f"/u:{user}", f"/p:{password}"]
    # It says nothing before it ends if its output is a file.
    return [*display, "stdbuf", "-oL", "xfreerdp", f"/v:127.0.0.1:{port}", *who, "/cert:ignore"]


def test_a_program_that_is_not_there(place: Place) -> None:
    house, bare = place.house, place.create("bare", "--app", "absent")
    row = access(house, bare, "absent")
    words = "'absent' is not in this environment: apt install it; it starts by itself then"
    assert (row["state"], row["reason"]) == ("missing", words)
    assert house.ssh(f"alice+{bare}", "echo usable").stdout == b"usable\n"
    install = "mkdir -p .local/bin && printf '#!/bin/sh\\nexec python3 -m http.server --bind 127.0.0.1 7000\\n'"
    house.ssh(f"alice+{bare}", f"{install} > .local/bin/no-such-program && chmod +x .local/bin/no-such-program")
    eventually(lambda: house.json("alice", "env", "access", bare)[0]["state"] == "running", seconds=120)
    place.delete(bare)


def test_what_a_bare_image_lacks(house: Gateway) -> None:
    """Each says which Debian packages it wants."""
    wanted = ("--app", "jupyter", "--app", "vnc", "--app", "rdp")
    house.ssh("alice", "env", "create", "bare", "--compute", "docker", "--host", "here", *wanted, "--wait", timeout=120)
    for name, package in (("jupyter", "jupyterlab"), ("vnc", "tigervnc-standalone-server"), ("rdp", "freerdp2-shadow")):
        row = access(house, "bare", name)
        assert (row["state"], package in row["reason"]) == ("missing", True)
    refused = house.ssh("alice", "env", "create", "no", "--compute", "local", "--app", "moon", check=False)
    assert b"there is no application 'moon' (offered: absent, jupyter, rdp, vnc, web)" in refused.stderr


def test_a_published_port(place: Place) -> None:
    house, web = place.house, place.create("web", "--publish", "8000")
    house.ssh(f"alice+{web}", "mkdir -p site; echo hello > site/index.html; cd site; "
              "setsid python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 </dev/null &")  # fmt: skip
    (row,) = house.json("alice", "env", "ports", web)
    assert (row["port"], row["external_port"]) == (8000, PORTS[0])
    url = f"http://127.0.0.1:{PORTS[0]}/"
    eventually(lambda: status_of(url) == "200")
    assert run(["curl", "-s", url]).stdout == b"hello\n"
    event = eventually(lambda: house.audit(action="environment.published-connection", thing=web, outcome="ok"))[0]
    assert event["detail"]["bytes_out"] > 0

    house.stop()
    house.start()
    eventually(lambda: status_of(url) == "200")

    with ExitStack() as stack:

        def is_full() -> bool:
            """One more, and then no other: those before count until their far ends are gone, too."""
            stack.enter_context(socket.create_connection(("127.0.0.1", PORTS[0])))
            return status_of(url) == "000"

        eventually(is_full)
    eventually(lambda: status_of(url) == "200")
    with socket.create_connection(("127.0.0.1", PORTS[0])) as held:
        held.settimeout(60)
        house.ssh("alice", "env", "stop", web, "--wait", timeout=120)
        with suppress(ConnectionResetError):
            assert held.recv(1) == b""
    eventually(lambda: not connects(PORTS[0]))
    assert house.json("alice", "env", "show", web)["state"] == "stopped"  # nothing was woken
    house.ssh("alice", "env", "start", web, "--wait", timeout=120)
    eventually(lambda: connects(PORTS[0]))
    house.ssh("alice", "env", "set", web, "--unpublish", "8000")
    eventually(lambda: not connects(PORTS[0]))
    assert house.json("alice", "env", "ports") == []
    house.ssh("alice", "env", "set", web, "--publish", "9000")
    place.delete(web)
    following = place.create("next", "--publish", "8000")
    assert house.json("alice", "env", "ports", following)[0]["external_port"] == PORTS[0]
    place.delete(following)


def test_ports_are_not_offered_unless_the_operator_says_so(gateway: Gateway) -> None:
    refused = gateway.ssh("alice", "env", "create", "open", "--publish", "8000", check=False)
    assert refused.returncode == 2
    assert b"this gateway publishes no ports" in refused.stderr
