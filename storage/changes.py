"""Hints that something changed: they wake loops and screens at once, in every process of this machine.

A hint carries no data, only a topic and a key; whoever wakes reads the database. A lost hint costs a delay (polling
is the safety net), never a wrong state, so delivery is by datagram and nobody waits for anybody. Tell *after* commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)
_LARGEST = 1024


@dataclass(frozen=True)
class Change:
    """`topic` is a kind of thing (environment, dataset, upload, session, key); `key` its id, or empty for any."""

    topic: str
    key: str = ""


@dataclass(eq=False)
class _Watcher:
    topics: frozenset[str]
    queue: asyncio.Queue[Change] = field(default_factory=lambda: asyncio.Queue(256))

    def offer(self, change: Change) -> None:
        # A full queue means that its reader is awake already and will look at everything.
        if change.topic in self.topics and not self.queue.full():
            self.queue.put_nowait(change)


class Changes:
    """The hints of one process, joined with those of its neighbours through datagram sockets in one directory."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._watchers: set[_Watcher] = set()
        self._socket: socket.socket | None = None
        self._address: Path | None = None

    async def start(self) -> None:
        """Begin to hear other processes; without a directory there are none."""
        if self._directory is None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Short, since the whole path may have no more than 107 letters.
        self._address = self._directory / secrets.token_hex(4)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(str(self._address))
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear)

    async def close(self) -> None:
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._address is not None:
            self._address.unlink(missing_ok=True)

    def tell(self, topic: str, key: str = "") -> None:
        """Say that `topic` changed, here and to the neighbours."""
        self._deliver(Change(topic, key))
        if self._directory is None:
            return
        message = f"{topic} {key}".encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            for address in self._directory.glob("*"):
                if address != self._address:
                    _send(sender, message, address)

    async def watch(self, *topics: str) -> AsyncIterator[Change]:
        """Every change of these topics from now on."""
        with self.subscribe(*topics) as queue:
            while True:
                yield await queue.get()

    def listen(self, *topics: str) -> asyncio.Queue[Change]:
        """A queue like that of `subscribe`, for somebody who lives as long as this process."""
        watcher = _Watcher(frozenset(topics))
        self._watchers.add(watcher)
        return watcher.queue

    @contextlib.contextmanager
    def subscribe(self, *topics: str) -> Iterator[asyncio.Queue[Change]]:
        """A queue of changes of these topics, filled from the moment of the call."""
        watcher = _Watcher(frozenset(topics))
        self._watchers.add(watcher)
        try:
            yield watcher.queue
        finally:
            self._watchers.discard(watcher)

    def _deliver(self, change: Change) -> None:
        for watcher in tuple(self._watchers):
            watcher.offer(change)

    def _hear(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self._socket.recv(_LARGEST).decode("utf-8", "replace")
                topic, _, key = message.partition(" ")
                self._deliver(Change(topic, key))


def _send(sender: socket.socket, message: bytes, address: Path) -> None:
    try:
        sender.sendto(message, str(address))
    except (ConnectionRefusedError, FileNotFoundError):
        address.unlink(missing_ok=True)  # its process died
    except OSError:
        log.debug("hint not delivered to %s", address.name)
