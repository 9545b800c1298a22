"""Connections into another network namespace, and never into our own by mistake."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from backends.compute.dial import dial, open_namespace
from backends.compute.docker.driver import _namespace_of
from storage.errors import Unavailable

# Brings its loopback up, listens on 7001 (IPv4) and speaks first.
_SERVER = """
use strict; use Socket; use IO::Socket::INET;
system("ip link set lo up") == 0 or die;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 7001, Listen => 5) or die $!;
$| = 1; print "ready\\n";
while (my $c = $s->accept) { print $c "inside\\n"; close $c }
"""
_IS_ROOT = os.geteuid() == 0


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens in a network namespace of its own."""
    flags = ["--net"] if _IS_ROOT else ["--net", "--user", "--map-root-user"]
    with subprocess.Popen(["unshare", *flags, "perl", "-e", _SERVER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.fixture
def namespace(server: subprocess.Popen[bytes]) -> int:
    """The server's network namespace; `dial` closes it."""
    return open_namespace(server.pid)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_what_listens_inside_is_reached(namespace: int, host: str) -> None:
    if not _IS_ROOT:
        with pytest.raises(Unavailable):
            await dial(namespace, host, 7001)
        return
    reader, writer = await asyncio.open_connection(sock=await dial(namespace, host, 7001))
    assert await reader.read() == b"inside\n"
    writer.close()
    await writer.wait_closed()


async def test_a_port_where_nothing_listens_is_refused(namespace: int) -> None:
    with pytest.raises(ConnectionRefusedError if _IS_ROOT else Unavailable):
        await dial(namespace, "::1" if _IS_ROOT else "127.0.0.1", 7002)


async def test_our_own_network_is_never_dialled() -> None:
    with pytest.raises(Unavailable):
        await dial(open_namespace(os.getpid()), "127.0.0.1", 22)


async def test_a_process_number_that_passes_to_another_leads_nowhere_else(
    server: subprocess.Popen[bytes], namespace: int
) -> None:
    """An environment that ends between the question and the dial: its process id may then be another environment's.

    What was opened goes on meaning the old namespace, where nobody listens any more.
    """
    server.kill()
    server.wait()
    with pytest.raises(ConnectionRefusedError if _IS_ROOT else Unavailable):
        await dial(namespace, "127.0.0.1", 7001)


def test_a_process_that_is_no_container_is_not_entered(server: subprocess.Popen[bytes]) -> None:
    """The engine names a process id, which by now is somebody else's: its control group tells."""
    before = len(os.listdir("/proc/self/fd"))
    assert _namespace_of(server.pid, "0123456789abcdef" * 4) is None
    assert _namespace_of(0, "") is None
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_threads_of_this_process_stay_at_home(namespace: int) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    if _IS_ROOT:
        (await dial(namespace, "127.0.0.1", 7001)).close()
    # Python says that a thread has ended a moment before the kernel does.
    deadline = time.monotonic() + 20
    while strays := _threads_outside(before):
        assert time.monotonic() < deadline, strays
        await asyncio.sleep(0.01)


def _threads_outside(home: int) -> list[int]:
    """The threads of this process whose network namespace is another than `home`."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.stat(f"/proc/self/task/{task}/ns/net").st_ino != home:
                found.append(int(task))
    return found
