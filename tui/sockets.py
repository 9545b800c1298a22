"""Unix sockets between the gateway and its TUI workers: only our own user may connect, however long the
path is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 100


@contextmanager
def _address_of(path: Path) -> Iterator[str]:
    """`path` for bind and connect, which take 107 bytes at most: longer ones lead through an open
    directory.
    """
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` with mode 0600; a leftover is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = _new()
    mask = os.umask(0o177)
    try:
        with _address_of(path) as address:
            listener.bind(address)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(512)
    return listener


async def connect(path: Path) -> socket.socket:
    """A connected socket. OSError when nobody listens."""
    connection = _new()
    try:
        with _address_of(path) as address:
            await asyncio.get_running_loop().sock_connect(connection, address)
    except OSError:
        connection.close()
        raise
    return connection


def _new() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
