"""A machine for the compute kind `ssh`: a container with an OpenSSH server of its own, an account, and nothing of ours.

It is published on a port of loopback, so that it can go away and come back under the same address.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IMAGE = "debian:bookworm"
ACCOUNT = "trainer"
# The image has no sshd: this machine's own is lent to it, at the path where every machine has one. As on any machine
# the limit of sessions is OpenSSH's own: 10 on each connection.
_SETUP = """
set -e
useradd -m -p '*' -s /bin/bash trainer
printf '#!/bin/sh\\nexec /opt/lent/ld.so --library-path /opt/lent/lib /opt/lent/sshd "$@"\\n' > /usr/sbin/sshd
chmod 755 /usr/sbin/sshd
mkdir -p /run/sshd
useradd -r -d /run/sshd -s /usr/sbin/nologin sshd
mkdir -p /etc/ssh
mkdir -m 700 /home/trainer/.ssh
cp /keys/host_* /etc/ssh/ && chmod 600 /etc/ssh/host_*
cp /keys/login.pub /home/trainer/.ssh/authorized_keys && chown -R trainer: /home/trainer/.ssh
echo 'HostKey /etc/ssh/host_ed25519
UsePAM no
PasswordAuthentication no
AllowTcpForwarding no
MaxStartups 100
Subsystem sftp internal-sftp' > /etc/ssh/sshd_config
"""
_SERVE = "/usr/sbin/sshd -D -e -r -f /etc/ssh/sshd_config"


@dataclass
class Machine:
    """One running container. `key_file`: what the gateway logs in with; `host_key`: a line to be pinned."""

    container: str
    port: int
    host_key: str
    key_file: Path
    address: str = "127.0.0.1"

    def run(self, *words: str, user: str = "root", check: bool = True) -> str:
        """A program's output, by a way that is not SSH."""
        return docker("exec", "-u", user, self.container, *words, check=check)

    @property
    def inner_address(self) -> str:
        """Its own, where every port of it can be reached."""
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return docker("inspect", "-f", template, self.container).split()[0]

    def folder(self, environment_id: str) -> str:
        return f"/home/{ACCOUNT}/.ashore/{environment_id}"

    def leave(self) -> None:
        """Stand still, as a machine does whose cable was pulled."""
        docker("pause", self.container)

    def come_back(self) -> None:
        docker("unpause", self.container)

    def hang_up(self) -> None:
        """End every connection that there is."""
        self.run("sh", "-c", "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline) in"
                 f" /opt/lent/*'sshd: {ACCOUNT}'*) kill -9 ${{p#/proc/}};; esac; done 2>/dev/null; true")  # fmt: skip

    def settings(self, name: str, *more: str) -> str:
        """The table of the settings file."""
        lines = [f"[backends.machines.{name}]", f'address = "{self.address}"', f"port = {self.port}"]
        lines += [f'user = "{ACCOUNT}"', f'host_key = "{self.host_key}"', f'key_file = "{self.key_file}"', *more]
        return "\n".join(lines) + "\n"


@contextmanager
def served(directory: Path, tree: Path) -> Iterator[Machine]:
    """A machine that takes connections. `tree` is a guest's tree; `directory` gets the keys."""
    keys = directory / "machine-keys"
    keys.mkdir(mode=0o700)
    for name in ("host_ed25519", "login"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(keys / name)], check=True)
    container = docker(
        "run", "-d", "--init", "--hostname", "gpu7", "-p", "127.0.0.1::22", "-v", f"{tree}:/opt/lent:ro",
        "-v", f"{keys}:/keys:ro", IMAGE, "/bin/sh", "-c", f"{_SETUP}exec {_SERVE}",
    )  # fmt: skip
    try:
        port = int(docker("port", container, "22/tcp").split(":")[-1])
        host_key = " ".join((keys / "host_ed25519.pub").read_text().split()[:2])
        _wait_for_banner(port, container)
        yield Machine(container, port, host_key, keys / "login")
    finally:
        docker("rm", "-f", "-v", container)


def _wait_for_banner(port: int, container: str) -> None:
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), 0.2) as connection:
                if connection.recv(100).startswith(b"SSH-"):
                    return
        except OSError:
            pass
        time.sleep(0.1)  # Docker's own proxy listens before anything inside does
    raise AssertionError(f"the machine does not serve: {docker('logs', container)}")


def docker(*words: str, check: bool = True) -> str:
    """The Docker client's answer."""
    done = subprocess.run(["docker", *words], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or not check, f"docker {words[0]}: {done.stderr}"
    return (done.stdout + (done.stderr if words[0] == "logs" else "")).strip()
