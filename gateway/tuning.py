"""Settings of asyncssh that all ports share, and the places where its behaviour is bent, each with its reason.

Uses private names of asyncssh: the version is pinned in pyproject.toml, and the tests of the gateway watch over it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncssh
from asyncssh import channel, connection
from asyncssh.packet import SSHPacket

from gateway.settings import Settings

_MSG_IGNORE = 2
_MOST_VARIABLES = 64
_MOST_VARIABLE_BYTES = 64 * 1024
_MOST_PIECES = 1024

# OpenSSH's client says "nobody reads my output any more" (eow@openssh.com, PROTOCOL §2.1) only to servers whose name
# begins so; without it `ssh env cat big | head` would never end.
VERSION = "OpenSSH_Ashore"

# No chacha20: OpenSSH clients put it first, and AES-GCM is two to three times cheaper here.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
# Post-quantum first (ML-KEM), for clients that know it; then the curve that everybody knows.
KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "diffie-hellman-group14-sha256",
)
# Without SHA-1 and DSA, which asyncssh would still name to clients (server-sig-algs, RFC 8308 §3.1).
SIGNATURES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)


def options(settings: Settings, host_keys: list[asyncssh.SSHKey]) -> dict[str, Any]:
    """What outer and inner servers share, as keyword arguments of asyncssh."""
    gateway = settings.gateway
    return {
        "server_host_keys": host_keys,
        "server_version": VERSION,
        "encryption_algs": CIPHERS,
        "kex_algs": KEX,
        "mac_algs": MACS,
        "signature_algs": SIGNATURES,
        "compression_algs": None,
        "encoding": None,
        "line_editor": False,
        "x11_forwarding": False,
        "agent_forwarding": True,
        "allow_scp": False,
        "gss_host": None,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "login_timeout": gateway.login_grace_seconds,
        "keepalive_interval": gateway.keepalive_seconds,
        "keepalive_count_max": gateway.keepalive_count,
    }


def install() -> None:
    """Teach asyncssh the end-of-write request and to prefer GCM, and keep it from sending MSG_IGNORE.

    It sends an empty one before every packet: a defence for CBC ciphers (RFC 4251 §9.3.1), which are not offered, that
    costs a fifth to a third of a download's CPU time.
    """
    original = connection.SSHConnection.send_packet
    if getattr(original, "is_ashore", False):
        return
    setattr(connection.SSHConnection, "_send_kexinit", _prefer_gcm(connection.SSHConnection._send_kexinit))  # noqa: B010
    limited = _limited(channel.SSHServerChannel._process_env_request)
    setattr(channel.SSHServerChannel, "_process_env_request", limited)  # noqa: B010
    setattr(channel.SSHChannel, "_accept_data", _joined(channel.SSHChannel._accept_data))  # noqa: B010
    setattr(channel.SSHServerChannel, "_process_eow_at_openssh_dot_com_request", _process_eow)  # noqa: B010

    def send_packet(self: connection.SSHConnection, pkttype: int, *args: bytes, handler: Any = None) -> None:
        if pkttype != _MSG_IGNORE:
            original(self, pkttype, *args, handler=handler)

    send_packet.is_ashore = True  # type: ignore[attr-defined]
    setattr(connection.SSHConnection, "send_packet", send_packet)  # noqa: B010


def on_failed_attempt(conn: asyncssh.SSHServerConnection, callback: Callable[[], None]) -> None:
    """Call `callback` before each "authentication failed" that `conn` sends; asyncssh does not count them."""
    original = conn.send_userauth_failure

    def send_userauth_failure(partial_success: bool) -> None:
        callback()
        original(partial_success)

    setattr(conn, "send_userauth_failure", send_userauth_failure)  # noqa: B010


def acknowledge_at_once(conn: asyncssh.SSHServerConnection) -> None:
    """Acknowledge each segment of a login as it comes (tcp(7), TCP_QUICKACK).

    A client holds back its second small packet until the first is acknowledged (Nagle), and an acknowledgement that
    waits for an answer to ride on takes 40 ms: twice in every OpenSSH login.
    """
    connected = conn.get_extra_info("socket")
    if connected is None or not hasattr(socket, "TCP_QUICKACK"):
        return
    original = conn.data_received

    def data_received(data: bytes, datatype: asyncssh.DataType = None) -> None:
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        original(data, datatype)

    setattr(conn, "data_received", data_received)  # noqa: B010


def acknowledge_as_usual(conn: asyncssh.SSHServerConnection) -> None:
    """The login is over: from here on the kernel decides."""
    vars(conn).pop("data_received", None)


def send_end_of_write(upstream: asyncssh.SSHClientChannel[bytes]) -> None:
    """Tell the server of `upstream` that its output is not read any more; its program gets SIGPIPE."""
    upstream._send_request(b"eow@openssh.com")


def _limited(
    original: Callable[[channel.SSHServerChannel[bytes], SSHPacket], bool],
) -> Callable[[channel.SSHServerChannel[bytes], SSHPacket], bool]:
    """Keep a bounded number of a client's variables: no window holds back requests."""

    def process_env(self: channel.SSHServerChannel[bytes], packet: SSHPacket) -> bool:
        kept = self._env
        size = sum(len(name) + len(value) for name, value in kept.items())
        if len(kept) >= _MOST_VARIABLES or size >= _MOST_VARIABLE_BYTES:
            return False
        return original(self, packet)

    return process_env


def _joined(original: Callable[..., None]) -> Callable[..., None]:
    """Join the small pieces that a paused channel keeps: its window counts bytes, while each piece costs a hundred."""

    def accept_data(self: channel.SSHChannel[bytes], data: bytes, datatype: asyncssh.DataType = None) -> None:
        original(self, data, datatype)
        kept = self._recv_buf
        if len(kept) >= _MOST_PIECES and all(kind is None for _, kind in kept):
            self._recv_buf = [(b"".join(piece for piece, _ in kept), None)]

    return accept_data


def _prefer_gcm(original: Callable[[connection.SSHConnection], None]) -> Callable[[connection.SSHConnection], None]:
    """Offer OpenSSH's clients GCM alone: they all have it (since 6.2), but put CTR, which costs a third more, first."""

    def send_kexinit(self: connection.SSHConnection) -> None:
        if self.is_server() and self._client_version.startswith(b"SSH-2.0-OpenSSH_"):
            self._enc_algs = [name for name in self._enc_algs if name.endswith(b"-gcm@openssh.com")]
        original(self)

    return send_kexinit


def _process_eow(server_channel: channel.SSHServerChannel[bytes], packet: SSHPacket) -> bool:
    packet.check_end()
    listener = getattr(server_channel._session, "eow_received", None)
    if listener is not None:
        listener()
    return True
