"""A bad link: a TCP relay that lets so many bytes of a client through, holds the rest back, and can be cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_PIECE = 64 * 1024


class Link:
    """One address that leads to a port of this machine. Every connection has the same allowance, until `release`."""

    def __init__(self, port: int, *, allowance: int) -> None:
        self._port = port
        self._allowance = allowance
        self._free = threading.Event()
        self._held = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    def wait_until_held(self, *, seconds: float = 60.0) -> None:
        """Until a client has used up what it may send."""
        assert self._held.wait(seconds), "the client has not sent enough"

    def release(self) -> None:
        """Let everything through from now on."""
        self._free.set()

    def cut(self) -> None:
        """Both ends learn at once that the connection is gone, as after a reset."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # A thread that waits in recv would keep the socket open.
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()
        self._free.set()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the gateway is away just now
                    client.close()
                    continue
                for one in (client, server):
                    # curl waits for answers to small packets; so would the kernel.
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                for source, target, limited in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(source, target, limited), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, limited: bool) -> None:
        left = self._allowance
        with contextlib.suppress(OSError):
            while True:
                if limited and left <= 0 and not self._free.is_set():
                    self._held.set()
                    self._free.wait()
                piece = source.recv(_PIECE if self._free.is_set() or not limited else min(_PIECE, left))
                if not piece:
                    break
                left -= len(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def bad_link(port: int, *, allowance: int) -> Iterator[Link]:
    link = Link(port, allowance=allowance)
    try:
        yield link
    finally:
        link.close()
