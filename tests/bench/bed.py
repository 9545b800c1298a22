"""What the benches run against: a gateway with an environment, and a stock OpenSSH beside it.

Fairness: both sides serve on loopback from the same machine with their defaults, asked by the same `ssh` program.
Defaults differ: OpenSSH picks a post-quantum key exchange and ChaCha20, the gateway Curve25519 and AES, which costs
less. So what depends on it is measured a second time with OpenSSH held to the gateway's algorithms.

The OpenSSH jump host has Debian's defaults (`UsePAM yes`) because that is what people run. It is a process of its own
with its own keys, never the machine's service, and its logins have an empty home, so that nobody's shell start-up
files are measured. The sshd "in the environment" is the very binary that Ashore brings there.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.stories.clients import BIN, Gateway, eventually, run
from tests.stories.conftest import served

GUEST = "/opt/ashore/guest"
INNER_PORT = 22022
SOURCE_PORT = 22023

# Sends 1 MiB blocks or swallows what comes, as the first byte says; the same program for both sides.
_SOURCE = f"""
use IO::Socket::INET; $SIG{{CHLD}} = 'IGNORE';
my $l = IO::Socket::INET->new(LocalPort => {SOURCE_PORT}, Listen => 16, ReuseAddr => 1) or die; $| = 1; print "up\\n";
while (my $c = $l->accept) {{
  next if fork; sysread $c, my $way, 4;
  if ($way =~ /r(\\d+)/) {{ my $b = "x" x 1048576; for (1..$1) {{ syswrite $c, $b }} shutdown $c, 1 }}
  else {{ my $n = 0; while (my $r = sysread $c, my $d, 1048576) {{ $n += $r }} syswrite $c, "$n\\n" }}
  exit;
}}
"""


@dataclass(frozen=True)
class Bed:
    """Everything that a bench needs."""

    gateway: Gateway
    directory: Path
    address: str
    """Of the environment's container, as the machine reaches it."""
    openssh: list[str]
    """`ssh` to the OpenSSH jump host, without a command."""
    openssh_alike: list[str]
    """The same, held to the algorithms that `ssh` and the gateway agree on."""
    through_openssh: list[str]
    """`ssh -J` through the jump host to an sshd in the same container, without a command."""
    rclone_port: int

    def ours(self, login: str, *options: str) -> list[str]:
        return self.gateway.client(login, options=options)


@contextmanager
def made(directory: Path) -> Iterator[Bed]:
    """A bed in `directory`; everything is ended afterwards."""
    with ExitStack() as stack:
        gateway = stack.enter_context(served(directory))
        gateway.ssh("alice", "env", "create", "box", "--compute", "docker", "--wait", timeout=120)
        address = _address(gateway)
        jump_port = stack.enter_context(_openssh(directory))
        stack.enter_context(_inner_openssh(gateway))
        stack.enter_context(_held(gateway.client("alice+box") + ["perl", "-"], input=_SOURCE.encode()))
        rclone_port = stack.enter_context(_rclone(gateway, directory))
        user = gateway.ssh("alice+box", "id -un").stdout.decode().strip()
        config = _client_config(gateway, directory, jump_port, address, user)
        ssh = ["ssh", "-F", str(config)]
        shown = run([*ssh, "jump", "echo $HOME"]).stdout.decode().strip()
        assert shown == str(directory / "openssh" / "home"), f"the jump host's logins start in {shown}"
        for port in (INNER_PORT, SOURCE_PORT):
            eventually(lambda port=port: _answers(address, port))
        alike = [*ssh, *_agreed(gateway), "jump"]
        yield Bed(gateway, directory, address, [*ssh, "jump"], alike, [*ssh, "-J", "jump", "inner"], rclone_port)


def _address(gateway: Gateway) -> str:
    (row,) = gateway.json("alice", "env", "list")
    container = run(["docker", "ps", "-q", "--filter", f"label=ashore={row['id']}"]).stdout.decode().strip()
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    return run(["docker", "inspect", "-f", template, container]).stdout.decode().split()[0]


def _agreed(gateway: Gateway) -> list[str]:
    """Options that hold `ssh` to what it and the gateway agree on."""
    told = gateway.ssh("alice", "whoami", options=["-v", "-o", "LogLevel=DEBUG"]).stderr.decode()
    exchange = re.search(r"kex: algorithm: (\S+)", told)
    cipher = re.search(r"kex: server->client cipher: (\S+) MAC: (\S+)", told)
    assert exchange, told
    assert cipher, told
    options = {"KexAlgorithms": exchange[1], "Ciphers": cipher[1], "MACs": cipher[2]}
    return [f"-o{name}={value}" for name, value in options.items() if value != "<implicit>"]


@contextmanager
def _openssh(directory: Path) -> Iterator[int]:
    """A stock sshd on a free port of loopback, with a configuration of its own."""
    port, folder = free_port(), directory / "openssh"
    folder.mkdir(mode=0o700)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key"])
    # bash reads ~/.bashrc for every command over ssh. What this machine's owner has put there (a version manager can
    # cost more than the login) is no part of OpenSSH.
    home = folder / "home"
    home.mkdir()
    keys = folder / "authorized_keys"
    keys.write_bytes((directory / "home" / "alice.pub").read_bytes())
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {keys}\n"
        "PermitRootLogin prohibit-password\nUsePAM yes\nKbdInteractiveAuthentication no\nX11Forwarding yes\n"
        "PrintMotd no\nAcceptEnv LANG LC_*\nSubsystem sftp /usr/lib/openssh/sftp-server\nStrictModes no\n"
        f"PidFile none\nMaxStartups 100:30:200\nSetEnv HOME={home}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with _held(["/usr/sbin/sshd", "-D", "-e", "-f", config], errors=folder / "log"):
        eventually(lambda: _answers("127.0.0.1", port))
        yield port


@contextmanager
def _inner_openssh(gateway: Gateway) -> Iterator[None]:
    """The guest's own sshd as an ordinary listening server in the container."""
    key = (gateway.home / "alice.pub").read_text()
    host_key = gateway.make_key("inner-host-key").read_text()
    script = f"""
umask 077; mkdir -p ~/inner; cd ~/inner
cat > keys <<'X'
{key}X
cat > host_key <<'X'
{host_key}X
cat > config <<X
Port {INNER_PORT}
HostKey $PWD/host_key
AuthorizedKeysFile $PWD/keys
StrictModes no
PidFile none
X
exec {GUEST}/ld.so --library-path {GUEST}/lib {GUEST}/sshd -D -e -r -f $PWD/config
"""
    with _held([*gateway.client("alice+box"), "sh", "-s"], input=script.encode(), errors=gateway.home / "inner.log"):
        yield


@contextmanager
def _rclone(gateway: Gateway, directory: Path) -> Iterator[int]:
    """`rclone serve sftp` on the gateway's own object store, writing through as the gateway does."""
    store = json.loads((gateway.data / "objects" / "store.json").read_text())
    config = directory / "rclone.conf"
    config.write_text(
        "[store]\ntype = s3\nprovider = SeaweedFS\nno_check_bucket = true\n"
        f"access_key_id = {store['access_key']}\nsecret_access_key = {store['secret_key']}\n"
        f"endpoint = http://127.0.0.1:{store['ports']['s3']}\n"
    )
    config.chmod(0o600)
    port = free_port()
    keys = directory / "home" / "alice.pub"
    arguments = [
        BIN / "rclone",
        "--config",
        config,
        "serve",
        "sftp",
        "store:ashore/bench",
        "--addr",
        f"127.0.0.1:{port}",
    ]
    with _held([*arguments, "--authorized-keys", keys, "--user", "alice"], errors=directory / "rclone.log"):
        eventually(lambda: _answers("127.0.0.1", port))
        yield port


def _client_config(gateway: Gateway, directory: Path, port: int, address: str, user: str) -> Path:
    path = directory / "bench.config"
    common = gateway.config("alice").read_text().partition("Host *")[2]
    path.write_text(
        f"Host jump\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"Host inner\n  HostName {address}\n  Port {INNER_PORT}\n  User {user}\nHost *{common}"
    )
    return path


@contextmanager
def _held(arguments: list[str | Path] | list[str], *, input: bytes = b"", errors: Path | None = None) -> Iterator[None]:
    """A program that runs until the block ends."""
    with open(errors or "/dev/null", "ab") as log:
        process = subprocess.Popen(
            [str(a) for a in arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
        )
    try:
        assert process.stdin is not None
        process.stdin.write(input)
        process.stdin.close()
        yield
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False
