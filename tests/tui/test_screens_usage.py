"""The screen of what environments take: only those that run, with the cores of the last moment."""

from __future__ import annotations

import pytest

from backends.compute.contract import Usage
from backends.compute.places import GpuLoad, GpuShare, ProcessLoad
from storage.access import Caller
from storage.records import EnvironmentState
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, shows, text
from tests.tui.test_screens_environments import make

GIB = 1024**3


@pytest.fixture
async def running(house: House, alice: Caller) -> str:
    await make(house, alice, "train", state=EnvironmentState.RUNNING, handle="h", cpus=4.0, memory=16 * GIB)
    await make(house, alice, "asleep", state=EnvironmentState.STOPPED, handle="i")
    return "train"


@pytest.mark.parametrize(("language", "words"), [("", "1 environment runs"), ("zh", "1 个环境在运行")])
async def test_what_runs_is_measured(menu: Menu, house: House, running: str, language: str, words: str) -> None:
    house.compute.used = Usage(cpu=10.0, memory=4 * GIB, processes=12)
    app = menu(language) if language else menu()
    async with app.run_test(size=(110, 24)) as pilot:
        await shows(pilot, running)
        await pilot.press("w")
        await shows(pilot, running, "4 GiB", "##........  16 GiB", "12", words)
        assert "asleep" not in text(app)
        house.compute.used = Usage(cpu=1_000_000.0, memory=5 * GIB, processes=12)
        await shows(pilot, "##########  4", "5 GiB")
        assert_fits(app)
        await pilot.press("escape")
        await shows(pilot, "asleep")


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", ("process 4711", "90 % 30 GiB on card 1")), ("zh", ("进程 4711", "90 % 30 GiB（第 1 块卡）"))],
)
async def test_gpus_have_figures_and_others_a_dash(
    menu: Menu,
    house: House,
    running: str,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    words: tuple[str, str],
) -> None:
    async def loads(compute: object) -> list[GpuLoad]:
        share = GpuShare(90, 30 * GIB, (ProcessLoad(4711, 90, 30 * GIB), ProcessLoad(4712, None, 0)))
        return [GpuLoad("GPU-1", 97, 40 * GIB, 80 * GIB, {"h": share}), GpuLoad("MIG-2", None, GIB, 10 * GIB)]

    house.compute.used = Usage(cpu=10.0, memory=4 * GIB, processes=12)
    await make(house, alice, "plain", state=EnvironmentState.RUNNING, handle="j")
    await house.becomes(running, gpus=2, reserves=True, cards={"GPU-1": "H100", "MIG-2": "H100"})
    monkeypatch.setattr(type(house.compute), "gpu_loads", loads, raising=False)
    app = menu(language)
    async with app.run_test(size=(140, 24)) as pilot:
        await shows(pilot, running)
        await pilot.press("w")
        await shows(pilot, "97 % 40 GiB/80 GiB, - 1 GiB/10 GiB", *words, "4712")
        (line,) = [line for line in text(app).splitlines() if "plain" in line]
        assert line.rstrip().endswith("-")
        assert_fits(app)


async def test_a_small_screen_keeps_the_gpus(
    menu: Menu, house: House, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: without their column the lines of processes are bare numbers."""

    async def loads(compute: object) -> list[GpuLoad]:
        share = GpuShare(90, 30 * GIB, (ProcessLoad(4711, 90, 30 * GIB),))
        return [GpuLoad(f"GPU-{n}", 97, 40 * GIB, 80 * GIB, {"h": share}) for n in range(8)]

    house.compute.used = Usage(cpu=10.0, memory=4 * GIB, processes=12)
    await house.becomes(running, gpus=8, reserves=True, cards={f"GPU-{n}": "H100" for n in range(8)})
    monkeypatch.setattr(type(house.compute), "gpu_loads", loads, raising=False)
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, running)
        await pilot.press("w")
        await shows(pilot, "97 % 40 GiB/80 GiB", "process 4711", "90 % 30 GiB on card 8")
        assert_fits(app)


async def test_nothing_runs(menu: Menu, house: House) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("colon", *"usage", "enter")
        await shows(pilot, "Nothing runs that could be measured.")
        assert "Everybody's" not in text(app)


async def test_administrators_see_everybodys(menu: Menu, house: House, admin: Caller, running: str) -> None:
    app = menu(caller=admin)
    async with app.run_test(size=(120, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("w")
        await shows(pilot, "Nothing runs", "Everybody's")
        await pilot.press("a")
        await shows(pilot, running, "alice")
