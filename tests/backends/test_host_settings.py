"""What may be written about a Docker host, and which line it means."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from backends.compute.docker.hosts import line_to
from backends.compute.docker.lines import TcpLine, UnixLine
from backends.compute.docker.ssh_line import SshLine
from backends.compute.docker.tls_line import TlsLine
from backends.settings import DockerHostSettings, DockerSettings

SSH = {"host_key": "ssh-ed25519 AAAA", "key_file": "/k"}
TLS = {"cert_file": "/c", "key_file": "/k"}


@pytest.mark.parametrize(
    ("url", "more", "kind", "address", "is_here"),
    [
        ("unix:///var/run/docker.sock", {}, UnixLine, "unix:///var/run/docker.sock", True),
        ("ssh://ops@gpu1", SSH, SshLine, "ssh://ops@gpu1", False),
        ("ssh://ops@gpu1:2200/run/user/1000/docker.sock", SSH, SshLine, "ssh://ops@gpu1:2200", False),
        ("tcp://gpu1:2377", TLS, TlsLine, "tcp://gpu1:2377", False),
        ("tcp://gpu1", TLS, TlsLine, "tcp://gpu1:2376", False),
        ("tcp://[::1]:2375", {"insecure": True}, TcpLine, "tcp://::1:2375", False),
    ],
)
def test_lines(url: str, more: dict[str, object], kind: type, address: str, is_here: bool) -> None:
    line = line_to(DockerHostSettings(url=url, **more))  # type: ignore[arg-type]
    assert isinstance(line, kind)
    assert (line.address, line.is_here) == (address, is_here)


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("", {}), ("http://gpu1", {}), ("/var/run/docker.sock", {}), ("unix://var/run/docker.sock", {}),
        ("ssh://gpu1", SSH), ("ssh://ops@gpu1", {}), ("ssh://ops@gpu1", {"key_file": "/k"}),
        ("ssh://ops:secret@gpu1", SSH), ("tcp://", TLS), ("tcp://gpu1:99999", TLS), ("tcp://gpu1:x", TLS),
        ("tcp://gpu1:2375", {}), ("tcp://gpu1:2375", {"ca_file": "/ca"}),
    ],
)  # fmt: skip
def test_what_is_incomplete_or_open_to_everybody_is_refused(url: str, more: dict[str, object]) -> None:
    """Plain TCP gives root to whoever reaches the port, so it has to be asked for in words."""
    with pytest.raises(ValidationError):
        DockerHostSettings(url=url, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "UP", "a/b", "a b", "x" * 49])
def test_names_of_hosts(name: str) -> None:
    with pytest.raises(ValidationError):
        DockerSettings(hosts={name: DockerHostSettings(url="unix:///s")})
