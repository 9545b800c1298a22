"""Which line leads to a Docker host of the settings."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from backends.compute.docker.lines import Line, TcpLine, UnixLine
from backends.compute.docker.ssh_line import SOCKET, Login, SshLine
from backends.compute.docker.tls_line import Certificates, TlsLine
from backends.settings import DockerHostSettings


def line_to(host: DockerHostSettings) -> Line:
    """The line that its URL means; nothing is opened yet."""
    parts = urlsplit(host.url)
    name = parts.hostname or ""
    if parts.scheme == "unix":
        return UnixLine(parts.path)
    if parts.scheme == "ssh":
        login = Login(unquote(parts.username or ""), name, parts.port or 22, host.key_file, host.host_key)
        return SshLine(login, parts.path if parts.path not in ("", "/") else SOCKET)
    if host.insecure:
        return TcpLine(name, parts.port or 2375)
    return TlsLine(name, parts.port or 2376, Certificates(host.ca_file, host.cert_file, host.key_file))
