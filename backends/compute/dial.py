"""Opens TCP connections inside a workload's network namespace, when it runs on this machine and we may enter it.

A thread of its own joins the namespace, connects and comes back, so that a failure half-way can never leave the event
loop's thread in the wrong place. `os.setns` exists from Python 3.12 only, hence ctypes. See setns(2).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from threading import Thread
from typing import Protocol, runtime_checkable

from storage.errors import Unavailable

_CLONE_NEWNET = 0x40000000
_CONNECT_SECONDS = 10.0


@runtime_checkable
class HasNamespace(Protocol):
    """An optional power of a compute: its workloads' network namespaces can be entered from here."""

    async def network_namespace(self, handle: str) -> int | None:
        """The running workload's namespace as an open descriptor, which the caller owns.

        None when it does not run or this process may not enter it. To be opened *before* it is checked whose process
        it is: a process id may pass to somebody else at any time, what an open descriptor means does not change.
        """
        ...


def open_namespace(pid: int) -> int:
    """The network namespace of a process, whoever that is by now. OSError: there is none, or it is not for us."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


async def dial(namespace: int, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to `host`:`port` (loopback names only) inside `namespace`, which is closed.

    ConnectionRefusedError: nothing listens there. Unavailable: the namespace cannot be entered.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[socket.socket] = loop.create_future()

    def work() -> None:
        try:
            connected = _connect_inside(namespace, host, port)
        except (OSError, Unavailable) as error:
            loop.call_soon_threadsafe(_fail, answer, error)
        else:
            loop.call_soon_threadsafe(_succeed, answer, connected)

    # The thread ends with the dial: one that could not come back from the namespace takes its place with it.
    Thread(target=work, name=f"dial {host}:{port}", daemon=True).start()
    return await answer


def _connect_inside(inside: int, host: str, port: int) -> socket.socket:
    try:
        if os.fstat(inside).st_ino == os.stat("/proc/self/ns/net").st_ino:
            raise Unavailable("the environment has no network of its own")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(inside, _CLONE_NEWNET) != 0:
            raise Unavailable("the environment's network cannot be entered")
    finally:
        os.close(inside)
    return _connect(_addresses(host), port)


def _connect(addresses: list[str], port: int) -> socket.socket:
    refusal: OSError = ConnectionRefusedError(f"nothing listens on port {port}")
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect((address, port))
        except OSError as error:
            connection.close()
            refusal = error
        else:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    raise refusal


def _addresses(host: str) -> list[str]:
    # Names are not looked up: the resolver of this process knows the gateway's names, not the environment's.
    return ["127.0.0.1", "::1"] if host.lower().startswith(("localhost", "ip6-")) else [host.strip("[]")]


def _succeed(answer: asyncio.Future[socket.socket], connected: socket.socket) -> None:
    if answer.cancelled():
        connected.close()
    else:
        answer.set_result(connected)


def _fail(answer: asyncio.Future[socket.socket], error: Exception) -> None:
    if not answer.cancelled():
        answer.set_exception(error)
