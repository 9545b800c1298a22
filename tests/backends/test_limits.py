"""What an environment gets when it names nothing, and the most that it may have: shares of a machine, or settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.limits import Limits, Machine
from backends.settings import EnvironmentSettings

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("machine", "cpus", "memory", "most_cpus", "most_memory"),
    [
        (Machine(1, 1 * GIB), 1, 512 * MIB, 1, 896 * MIB),
        (Machine(2, 8 * GIB), 2, 2 * GIB, 2, 7360 * MIB),
        (Machine(64, 512 * GIB), 32, 128 * GIB, 64, 471808 * MIB),
    ],
)
def test_shares_of_a_machine(machine: Machine, cpus: float, memory: int, most_cpus: float, most_memory: int) -> None:
    assert Limits.of(EnvironmentSettings(), machine) == Limits(cpus, memory, most_cpus, most_memory)


@given(st.integers(1, 1024), st.integers(128 * MIB, 1 << 45))
def test_no_machine_gives_nothing_or_all_of_it(cpus: int, memory: int) -> None:
    limits = Limits.of(EnvironmentSettings(), Machine(cpus, memory))
    assert 1 <= limits.default_cpus <= limits.most_cpus == cpus
    assert 64 * MIB <= limits.default_memory <= limits.most_memory < memory
    assert limits.refusals(*limits.filled(0, 0)) == []


def test_settings_win_and_no_default_passes_the_most() -> None:
    settings = EnvironmentSettings(default_cpus=8, default_memory_mib=4096, most_cpus=4, most_memory_mib=2048)
    limits = Limits.of(settings, Machine(2, GIB))
    assert limits == Limits(4, 2 * GIB, 4, 2 * GIB)
    assert limits.filled(0.5, GIB) == (0.5, GIB)
    assert limits.refusals(4.5, GIB) == ["cpus must be between 0 (the default) and 4"]
    assert limits.refusals(1, 2 * GIB + 1) == ["memory must be at most 2GiB"]


def test_this_machine() -> None:
    here = Machine.here()
    assert here.cpus >= 1
    assert here.memory > 64 * MIB
