"""A forwarded TCP connection into the environment, against OpenSSH as the jump host (`ssh -W` on both sides)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from tests.bench.bed import SOURCE_PORT, Bed
from tests.bench.measure import Comparison, Result, interleaved, seconds

MIB = 200


def results(bed: Bed) -> Iterator[Result]:
    ours = bed.ours("alice+box", "-W", f"127.0.0.1:{SOURCE_PORT}")
    for host, other in ((bed.openssh, "OpenSSH"), (bed.openssh_alike, "OpenSSH, our algorithms")):
        theirs = [*host[:-1], "-W", f"{bed.address}:{SOURCE_PORT}", host[-1]]
        for way, name in ((_receive, "direct-tcpip, to the client"), (_send, "direct-tcpip, from the client")):
            pairs = interleaved(lambda way=way: way(ours), lambda way=way, theirs=theirs: way(theirs))
            yield Comparison(name, "MiB/s", pairs, other, 0.9)


def _receive(arguments: list[str]) -> float:
    def transfer() -> None:
        done = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert done.stdin is not None
        assert done.stdout is not None
        done.stdin.write(f"r{MIB:03}".encode())
        done.stdin.flush()
        size = 0
        while size < MIB << 20 and (piece := done.stdout.read1(1 << 20)):
            size += len(piece)
        done.stdin.close()
        done.stdout.close()
        done.wait(30)
        assert size == MIB << 20, size

    return MIB / seconds(transfer)


def _send(arguments: list[str]) -> float:
    data = b"wwww" + bytes(MIB << 20)

    def transfer() -> None:
        done = subprocess.run(arguments, input=data, stdout=subprocess.PIPE, timeout=120, check=True)
        assert int(done.stdout) == MIB << 20, done.stdout

    return MIB / seconds(transfer)
