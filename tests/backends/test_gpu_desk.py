"""A GPU driver that hangs: a stand-in whose calls do not come back costs one thread, and nobody waits for long."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import gpu_desk
from backends.compute.docker.driver import DockerCompute
from backends.compute.places import GpuLoad
from backends.gpu_desk import SILENT, GpuDesk
from backends.settings import DockerSettings
from storage.errors import Unavailable

_GENEROUS = 60.0


class Driver:
    """NVML's place: it answers, raises, or hangs until it is let go, as it is told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.calls: list[str] = []

    def loads(self) -> str:
        return self._call("loads")

    def version(self) -> str:
        return self._call("version")

    def broken(self) -> str:
        raise Unavailable("the GPU driver cannot be asked (broken)")

    def _call(self, name: str) -> str:
        self.calls.append(name)
        self.entered.set()
        self.gate.wait()
        return name


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.gate.set()


def threads() -> int:
    return sum(thread.name == "GPU driver" for thread in threading.enumerate())


async def test_a_driver_that_hangs_costs_one_thread(driver: Driver) -> None:
    """However often it is asked, and whatever; later questions are turned away, and it is asked again afterwards."""
    before = threads()
    desk = GpuDesk(patience=0.3)
    driver.gate.clear()
    first = [asyncio.create_task(desk.ask(question)) for question in (driver.loads, driver.loads, driver.version)]
    for answer in await asyncio.gather(*first, return_exceptions=True):
        assert isinstance(answer, Unavailable)
        assert answer.message == SILENT
    for _ in range(20):
        with pytest.raises(Unavailable, match=SILENT):
            await desk.ask(driver.version)
    assert threads() - before == 1
    assert driver.calls == ["loads"]
    driver.gate.set()
    answered = ""
    async with asyncio.timeout(_GENEROUS):
        while not answered:
            await asyncio.sleep(0.02)
            try:
                answered = await desk.ask(driver.version)
            except Unavailable:
                continue
    left = 1
    async with asyncio.timeout(_GENEROUS):
        while left:
            await asyncio.sleep(0.02)
            left = threads() - before


async def test_the_same_question_is_asked_once_for_all(driver: Driver) -> None:
    """Whoever gives up leaves it to the others."""
    desk = GpuDesk(patience=_GENEROUS)
    driver.gate.clear()
    asked = [asyncio.create_task(desk.ask(driver.loads)) for _ in range(5)]
    assert await asyncio.to_thread(driver.entered.wait, _GENEROUS)
    asked[0].cancel()
    await asyncio.sleep(0.05)
    driver.gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["loads"] * 4
    assert driver.calls == ["loads"]
    with pytest.raises(Unavailable, match="broken"):
        await desk.ask(driver.broken)
    assert await desk.ask(driver.version) == "version"


async def test_the_last_figures_are_shown_with_their_age(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the driver of Docker, on the gateway's machine."""
    monkeypatch.setattr(gpu_desk, "HERE", GpuDesk(patience=0.3))
    monkeypatch.setattr("backends.compute.docker.driver.card_loads", driver.loads)
    compute = DockerCompute(tmp_path, DockerSettings())
    driver.gate.clear()
    try:
        with pytest.raises(Unavailable, match=SILENT):
            await compute.gpu_loads()
        compute._loads_seen = [GpuLoad("GPU-1", 97, 1, 2)]
        compute._loads_at = asyncio.get_running_loop().time() - 100
        (load,) = await compute.gpu_loads()
        assert (load.uuid, load.utilization) == ("GPU-1", 97)
        assert load.age >= 100
    finally:
        await compute.close()


def test_a_process_ends_although_its_driver_hangs() -> None:
    """A thread of the usual pool would be waited for, for ever."""
    program = (
        "import asyncio, threading\n"
        "from backends.gpu_desk import GpuDesk\n"
        "from storage.errors import Unavailable\n"
        "async def main():\n"
        "    try:\n"
        "        await GpuDesk(patience=0.1).ask(threading.Event().wait)\n"
        "    except Unavailable as error:\n"
        "        print(error.message)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{SILENT}\n", "")
