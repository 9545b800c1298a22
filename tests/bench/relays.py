"""`ssh alice+env cat`, both ways at once, against `ssh -J` through OpenSSH to an sshd in the same container."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from tests.bench.bed import Bed
from tests.bench.measure import Comparison, Result, interleaved, seconds

MIB = 100


def results(bed: Bed) -> Iterator[Result]:
    ours, theirs = [*bed.ours("alice+box"), "cat"], [*bed.through_openssh, "cat"]
    pairs = interleaved(lambda: _cat(ours), lambda: _cat(theirs))
    yield Comparison("`cat` in the environment", "MiB/s", pairs, "ssh -J through OpenSSH", 0.6)
    pairs = interleaved(lambda: _out(ours[:-1]), lambda: _out(theirs[:-1]))
    yield Comparison("output of a command", "MiB/s", pairs, "ssh -J through OpenSSH", 0.6)


def _cat(arguments: list[str]) -> float:
    data = bytes(MIB << 20)

    def transfer() -> None:
        done = subprocess.run(arguments, input=data, stdout=subprocess.PIPE, timeout=120, check=True)
        assert done.stdout == data

    return MIB / seconds(transfer)


def _out(arguments: list[str]) -> float:
    command = [*arguments, f"head -c {MIB << 20} /dev/zero"]

    def transfer() -> None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120, check=True)
        assert len(done.stdout) == MIB << 20

    return MIB / seconds(transfer)
