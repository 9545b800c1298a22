"""What VS Code Remote-SSH does: a script on stdin, a server on the far loopback, HTTP and a WebSocket through SOCKS."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.stories.clients import Environment, eventually

# The server's half of RFC 6455 in plain perl, as far as an editor's first message needs it.
_SERVER = r"""
use strict; use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 16) or die;
$| = 1; print $listener->sockport, "\n";
$SIG{CHLD} = 'IGNORE';
while (my $peer = $listener->accept) {
  next if fork; $peer->autoflush(1);
  my ($request, $line) = ('');
  while (defined($line = <$peer>)) { last if $line =~ /^\r?\n$/; $request .= $line }
  if ($request =~ /^Sec-WebSocket-Key: (\S+?)\r?$/mi) {
    my $hex = (split ' ', qx(printf %s '${1}258EAFA5-E914-47DA-95CA-C5AB0DC85B11' | sha1sum))[0];
    my $accept = substr pack('u', pack 'H*', $hex), 1, 27;
    $accept =~ tr|` -_|AA-Za-z0-9+/|;
    print $peer "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
      "Sec-WebSocket-Accept: $accept=\r\n\r\n";
    while (read($peer, my $head, 2) == 2) {
      my $length = ord(substr $head, 1) & 127;
      if ($length == 126) { read $peer, my $more, 2; $length = unpack 'n', $more }
      read $peer, my $mask, 4; read $peer, my $data, $length;
      $data ^= substr($mask x ($length / 4 + 1), 0, $length);
      print $peer "\x82", $length < 126 ? chr $length : "\x7e" . pack('n', $length), $data;
    }
  } else { print $peer "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nserver" }
  exit;
}
"""

# Shaped like the script that the editor sends: a mark, progress, key==value== lines, an end mark; then it stays.
_SCRIPT = f"""
echo 7f3c: running
mkdir -p ~/.editor-server && cat > ~/.editor-server/server.pl <<'SERVER'
{_SERVER}
SERVER
echo 7f3c: start
coproc perl ~/.editor-server/server.pl
read -r port <&"${{COPROC[0]}}"
echo "listeningOn==127.0.0.1:$port=="
echo osReleaseId==debian==
echo 7f3c: end
"""


class Window:
    """One editor window: its ssh, the SOCKS port, and the far server's port."""

    def __init__(self, process: subprocess.Popen[bytes], socks: int) -> None:
        self._process = process
        self.socks = socks
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_SCRIPT.encode())
        process.stdin.flush()
        lines = list(iter(process.stdout.readline, b"7f3c: end\n"))
        self.lines = [line.decode() for line in lines]
        found = re.search(r"listeningOn==127\.0\.0\.1:(\d+)==", "".join(self.lines))
        assert found, self.lines
        self.port = int(found[1])

    def connect(self) -> socket.socket:
        """A connection to the far server through SOCKS5."""
        connection = eventually(self._try_socks)
        connection.settimeout(30)
        connection.sendall(b"\x05\x01\x00")
        assert _receive(connection, 2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack(">H", self.port))
        assert _receive(connection, 10)[:2] == b"\x05\x00"
        return connection

    def _try_socks(self) -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", self.socks), timeout=5)
        except ConnectionRefusedError:
            return None


@contextmanager
def window(arguments: list[str], host: list[str]) -> Iterator[Window]:
    """`ssh -T -D PORT HOST bash`, its stdin kept open as the editor does."""
    socks = _free_port()
    with subprocess.Popen(
        [*arguments, "-T", "-D", f"127.0.0.1:{socks}", *host, "bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Window(process, socks)
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(params=["jump", "direct"])
def route(request: pytest.FixtureRequest, environment: Environment) -> tuple[list[str], list[str]]:
    """`ssh` with its options, and the host, for both ways in."""
    config = ["ssh", "-F", str(environment.gateway.config("alice"))]
    if request.param == "jump":
        return [*config, "-o", "User=alice", "-o", "ProxyJump=alice@gw"], [environment.name]
    return config, [f"{environment.login}@gw"]


def test_two_windows(route: tuple[list[str], list[str]]) -> None:
    with window(*route) as first:
        assert first.lines[:2] == ["7f3c: running\n", "7f3c: start\n"]
        assert _http(first) == b"server"
        with first.connect() as socket_of_first:
            _upgrade(socket_of_first)
            assert _echo(socket_of_first, b"hello") == b"hello"
            with window(*route) as second:
                assert second.port != first.port
                assert _http(second) == b"server"
                with second.connect() as socket_of_second:
                    _upgrade(socket_of_second)
                    assert _echo(socket_of_second, os.urandom(60_000)) is not None
            assert _echo(socket_of_first, b"still here") == b"still here"


def test_sixty_thousand_bytes_come_back_as_they_went(route: tuple[list[str], list[str]]) -> None:
    with window(*route) as opened, opened.connect() as connection:
        _upgrade(connection)
        for _ in range(20):
            message = os.urandom(60_000)
            assert _echo(connection, message) == message


def test_forwards_reach_the_environments_own_loopback_only(route: tuple[list[str], list[str]]) -> None:
    with window(*route) as opened:
        with eventually(opened._try_socks) as connection:
            connection.settimeout(30)
            connection.sendall(b"\x05\x01\x00")
            assert _receive(connection, 2) == b"\x05\x00"
            connection.sendall(b"\x05\x01\x00\x01" + socket.inet_aton("169.254.169.254") + struct.pack(">H", 80))
            assert connection.recv(2)[1:2] != b"\x00"
        assert _http(opened) == b"server"


def test_forwards_are_in_the_trail(environment: Environment) -> None:
    host = [f"{environment.login}@gw"]
    with window(["ssh", "-F", str(environment.gateway.config("alice"))], host) as opened:
        _http(opened)
        port = str(opened.port)
    time.sleep(0.5)
    events = environment.gateway.audit(actor="alice", thing=environment.name)
    assert any(port in str(event["detail"]) for event in events)


def _http(opened: Window) -> bytes:
    with opened.connect() as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    return answer.partition(b"\r\n\r\n")[2]


def _upgrade(connection: socket.socket) -> None:
    key = base64.b64encode(os.urandom(16))
    connection.sendall(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += _receive(connection, 1)
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert b"Sec-WebSocket-Accept: " + base64.b64encode(digest) in answer


def _echo(connection: socket.socket, message: bytes) -> bytes:
    """Send a masked binary message and read the answer."""
    mask = os.urandom(4)
    size = bytes([0x80 | len(message)]) if len(message) < 126 else b"\xfe" + struct.pack(">H", len(message))
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(message))
    connection.sendall(b"\x82" + size + mask + masked)
    head = _receive(connection, 2)
    length = head[1] if head[1] < 126 else struct.unpack(">H", _receive(connection, 2))[0]
    return _receive(connection, length)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, f"closed after {len(data)} of {size} bytes"
        data += piece
    return data


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
