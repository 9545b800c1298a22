"""The screen of hosts: for administrators, live, harmless, in both languages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from textual.widgets import Button, Input, Select

from storage.access import Caller
from storage.clock import now
from storage.records import Environment, Gpu, Host
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text

GIB = 1024**3
EVIL = "x[/oops][@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp"


async def add(house: House, name: str, **values: object) -> None:
    facts: dict[str, object] = {"is_up": True, "cpus": 8.0, "memory": 16 * GIB, "last_heartbeat": now()}
    async with house.database.writing() as tx:
        tx.add(Host(name=name, compute="docker", **(facts | values)))
    house.changes.tell("host", name)


async def test_a_host_is_drained_and_resumed(menu: Menu, house: House, alice: Caller, admin: Caller) -> None:
    await add(house, "gpu1")
    await add(house, "gpu2", is_up=False, reason="its SSH server does not answer", last_heartbeat=now() - timedelta(1))
    async with house.database.writing() as tx:
        tx.add(Environment(
            owner_id=alice.user_id, owner_name=alice.name, workspace_id=alice.workspace_id, name="train",
            compute="docker", host="gpu1", reserves=True, cpus=2, memory=4 * GIB, created=now(),
        ))  # fmt: skip
    app = menu(caller=admin)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("h")
        await shows(
            pilot, "gpu1", "online", "2 / 32", "4 GiB / 64 GiB", "train (alice)", "0 copies", "offline", "2 hosts"
        )
        await pilot.press("d")
        await shows(pilot, "Let nothing new start on gpu1.")
        await pilot.press(*"cards", "enter")
        await shows(pilot, "maintenance", "cards", "Nothing new starts on gpu1")
        await pilot.press("r")
        await shows(pilot, "Environments may start on gpu1 again.", "online")
        await pilot.press("down")
        await shows(pilot, "its SSH server does not answer", "No environment is on it.")
        await pilot.press("escape")
        await shows(pilot, "Environments")


async def test_a_host_is_given_up_with_its_environments(menu: Menu, house: House, alice: Caller, admin: Caller) -> None:
    """After a question that names them, and the host's name typed; their owner is told in the menu."""
    await add(house, "gpu1", is_up=False, reason="it does not answer")
    async with house.database.writing() as tx:
        tx.add(Environment(
            owner_id=alice.user_id, owner_name=alice.name, workspace_id=alice.workspace_id, name="train",
            compute="docker", host="gpu1", reserves=True, cpus=2, memory=4 * GIB, created=now(),
        ))  # fmt: skip
    app = menu(caller=admin)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("h")
        await shows(pilot, "train (alice)")
        await pilot.press("f")
        await shows(pilot, "Is gpu1 gone for ever?", "their homes are lost: train (alice)")
        await pilot.press("escape")
        assert len(await house.environments.list(alice)) == 1
        await pilot.press("f")
        await shows(pilot, "Is gpu1 gone for ever?", "Type gpu1 to confirm.")
        assert app.screen.query_one("#yes", Button).disabled
        await pilot.press(*"gpu", "enter")
        await shows(pilot, "Is gpu1 gone for ever?")
        await pilot.press("1", "enter")
        await shows(pilot, "gpu1 is forgotten.", "0 hosts")
    assert await house.environments.list(alice) == []
    app = menu("zh")
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "「train」已随主机 gpu1 丢失")


async def test_the_form_and_the_list_tell_where(menu: Menu, house: House, alice: Caller) -> None:
    """With several hosts, defaults and refusals are those of the host that would be chosen."""
    house.computes |= {"docker/gpu1": house.compute, "docker/gpu2": house.compute}
    await add(house, "gpu1", memory=12 * GIB)
    await add(house, "gpu2", is_drained=True, drain_reason="cards")
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Host: gpu1", "3 GiB")
        await pilot.press("f2")
        await shows(pilot, "dev", "requested", "on gpu1")
        await house.hosts.drain_by_operator("gpu1")
        await pilot.press("n")
        await shows(pilot, "no available host (gpu1: in maintenance; gpu2: in maintenance, cards)")


@pytest.mark.parametrize(("language", "label"), [("en", "any that has room"), ("zh", "任何有空余的主机")])
async def test_the_form_offers_hosts_where_there_are_several(
    menu: Menu, house: House, alice: Caller, language: str, label: str
) -> None:
    house.computes |= {"docker/gpu1": house.compute, "docker/gpu2": house.compute}
    await add(house, "gpu1", cpus=64.0)
    await add(house, "gpu2")
    app = menu(language)
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("n")
        await shows(pilot, label, "gpu1")
        app.screen.query_one("#host", Select).value = "gpu2"
        await shows(pilot, ": gpu2" if language == "en" else "gpu2")
        await pilot.press("f2")
        rows: Sequence[Environment] = ()
        async with asyncio.timeout(60):
            while not rows:  # the form shows its name too
                await pilot.pause(0.05)
                rows = await house.environments.list(alice)
        assert [row.host for row in rows] == ["gpu2"]


async def test_one_host_is_no_choice(menu: Menu, house: House) -> None:
    house.computes |= {"docker/gpu1": house.compute}
    await add(house, "gpu1")
    app = menu()
    async with app.run_test(size=(110, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Compute")
        assert not app.screen.query_one("#host-field").display


async def test_a_host_is_forgotten(menu: Menu, house: House, admin: Caller) -> None:
    await add(house, "gpu1")
    await add(house, "gpu2", is_up=False, reason="it does not answer")
    app = menu(caller=admin)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("h")
        await shows(pilot, "gpu2", "2 hosts")
        await pilot.press("down", "f")
        await shows(pilot, "Forget gpu2?")
        app.screen.query_one("#yes", Button).press()
        await shows(pilot, "gpu2 is forgotten.", "1 host")


async def test_gpus_in_the_form_the_details_and_the_list_of_hosts(
    menu: Menu, house: House, alice: Caller, admin: Caller
) -> None:
    house.computes |= {"docker/gpu1": house.compute}
    await add(house, "gpu1")
    async with house.database.writing() as tx:
        for number in (1, 2):
            tx.add(Gpu(uuid=f"GPU-{number}", host="gpu1", model="NVIDIA A100", memory=80 * GIB, is_present=True))
    app = menu(caller=alice)
    async with app.run_test(size=(110, 34), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "GPU model", "exclusive")
        app.screen.query_one("#gpus", Input).value = "x"
        await shows(pilot, "'x' is not a number of GPUs: write for example 1")
        app.screen.query_one("#gpus", Input).value = "3"
        await shows(pilot, "it has 2 GPUs, 3 needed")
        app.screen.query_one("#gpus", Input).value = ""
        app.screen.query_one("#gpu-model", Input).value = "a100"
        await shows(pilot, "GPUs: NVIDIA A100")
        await pilot.press("f2")
        await shows(pilot, "dev", "requested", "1 GPU (exclusive): NVIDIA A100")
    app = menu(caller=admin)
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("h")
        await shows(pilot, "1 / 2", "NVIDIA A100  80 GiB  GPU-1  exclusive: dev (alice)", "GPU-2")


async def test_others_are_not_shown_it(menu: Menu, house: House) -> None:
    await add(house, "gpu1")
    app = menu()
    async with app.run_test(size=(110, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("h")
        await pilot.press("colon", *"hosts", "enter")
        await shows(pilot, "only administrators may do this")
        assert "gpu1" not in text(app)


@pytest.mark.parametrize("size", [(80, 24), (40, 10)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_at_every_size(
    menu: Menu, house: House, admin: Caller, size: tuple[int, int], language: str
) -> None:
    await add(house, "gpu1", is_drained=True, drain_reason=EVIL)
    async with house.database.writing() as tx:
        tx.add(Gpu(uuid=f"GPU-{EVIL}", host="gpu1", model=EVIL, memory=GIB, is_present=False))
    await add(house, "g" * 48, is_up=False, reason="数据" * 60)
    app = menu(language, caller=admin)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("h")
        await shows(pilot, "gpu1")
        for keys in (("down",), ("d",), ("escape",), ("r",)):
            await pilot.press(*keys)
            await pilot.pause(0.1)
            assert_harmless(app)
        assert_fits(app)
