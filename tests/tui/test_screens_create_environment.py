"""The form for a new environment: live refusals, and what it asks for."""

from __future__ import annotations

import pytest
from textual.widgets import Button, Input, Select

from backends.planning import Request
from storage.access import Caller
from storage.errors import Unavailable
from storage.quota_limits import Resource
from storage.records import Holder, Lifecycle
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text, until
from tui.app import AshoreApp
from tui.texts.hints import OF_FIELDS

GIB = 1024**3


def can_create(app: AshoreApp) -> bool:
    return not app.screen.query_one("#create", Button).disabled


async def test_enter_takes_what_is_proposed(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "dev", "debian:bookworm")
        await until(pilot, lambda: can_create(app))
        assert_fits(app)
        await pilot.press("enter")
        await shows(pilot, "Ashore  Environments", "dev", "requested")
        made = await house.environments.show(alice, "dev")
        limits = house.environments.planner.limits
        assert (made.compute, made.image) == ("docker", "debian:bookworm")
        assert (made.cpus, made.memory) == (limits.default_cpus, limits.default_memory)


async def test_the_field_that_is_filled_in_is_explained(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, OF_FIELDS["name"])
        await pilot.press("tab")
        await shows(pilot, "docker: a container made from an image.")
        fields = {str(one.id) for one in app.screen.query("#form Input, #form Select")}
        assert set(OF_FIELDS) - fields <= {"ports"}
        assert_fits(app)


async def test_refusals_are_seen_while_typing(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        app.screen.query_one("#name", Input).value = "train"
        await shows(pilot, "you have an environment 'train' already")
        assert not can_create(app)
        app.screen.query_one("#name", Input).value = "x/y"
        await shows(pilot, "'x/y' is no possible environment name")
        app.screen.query_one("#name", Input).value = "fine"
        app.screen.query_one("#memory", Input).value = "lots"
        await shows(pilot, "'lots' is not a size")
        app.screen.query_one("#memory", Input).value = "1k"
        await shows(pilot, "memory must be at least 64MiB")
        app.screen.query_one("#memory", Input).value = "2GiB"
        app.screen.query_one("#cpus", Input).value = "a"
        await shows(pilot, "'a' is not a number of processors")
        app.screen.query_one("#cpus", Input).value = "1.5"
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "fine", "requested")
        made = await house.environments.show(alice, "fine")
        assert (made.cpus, made.memory) == (1.5, 2 * GIB)


@pytest.mark.parametrize(
    ("language", "used", "refused"),
    [
        (
            "en",
            "In use: environments 1 of 20   memory 6 GiB of 8 GiB",
            "your quota of memory is 8GiB, with 6GiB in use",
        ),
        ("zh", "已用：环境 1/20   内存 6 GiB/8 GiB", "您的内存配额为 8GiB，已用 6GiB"),
    ],
)
async def test_quotas_are_seen_while_typing(
    menu: Menu, house: House, alice: Caller, language: str, used: str, refused: str
) -> None:
    await house.quotas.set_by_operator(Holder.USER, "alice", {Resource.MEMORY: 8 * GIB})
    await house.environments.create(alice, Request("train", "docker", memory=6 * GIB))
    app = menu(language)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "train")
        await pilot.press("n")
        await shows(pilot, used)
        app.screen.query_one("#memory", Input).value = "3GiB"
        await shows(pilot, refused)
        assert not can_create(app)
        app.screen.query_one("#memory", Input).value = "2GiB"
        await until(pilot, lambda: can_create(app))


async def test_the_image_is_asked_only_where_it_is_used(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Image")
        app.screen.query_one("#image", Input).value = "python:3.12"
        app.screen.query_one("#compute", Select).value = "local"
        await until(pilot, lambda: "Image" not in text(app) and can_create(app))
        await pilot.press("f2")
        await shows(pilot, "local")
        assert (await house.environments.show(alice, "dev")).image == ""


async def test_a_refusal_at_the_end_keeps_the_form(menu: Menu, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(caller: Caller, request: Request) -> None:
        raise Unavailable("the database is busy or away, please try again")

    monkeypatch.setattr(house.environments, "create", away)
    app = menu()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        await pilot.press("enter")
        await shows(pilot, "the database is busy", "New environment")
        await until(pilot, lambda: can_create(app))


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_at_every_size(menu: Menu, size: tuple[int, int], language: str) -> None:
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        app.screen.query_one("#image", Input).value = "x[/oops]\u202e"
        app.screen.query_one("#name", Input).value = "x[/oops]\x1b]52;c;aGk=\x07"
        await until(pilot, lambda: not can_create(app))
        await pilot.pause(0.4)
        assert "[/oops]" in text(app)
        await pilot.press("escape", "n")
        await until(pilot, lambda: can_create(app))
        assert_fits(app)
        assert_harmless(app)


async def test_data_sets_and_models_are_planned_while_typing(menu: Menu, house: House, alice: Caller) -> None:
    await house.datasets.create(alice, "mnist")
    await house.datasets.create_version(alice, "mnist", "v1")
    await house.models.create(alice, "bert")
    await house.models.create_version(alice, "bert", "base")
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Data", "Models", "none, or NAME:VERSION")
        field = app.screen.query_one("#datasets", Input)
        field.value = "nothing"
        await shows(pilot, "there is no data set 'nothing'")
        assert not can_create(app)
        field.value = ""
        field.focus()
        await pilot.press("m", "n")
        await until(pilot, lambda: "mnist:v1" in text(app))
        await pilot.press("right")
        await until(pilot, lambda: field.value == "mnist:v1")
        app.screen.query_one("#models", Input).value = "bert:base, bert"
        await shows(pilot, "'bert:base' was chosen twice")
        app.screen.query_one("#models", Input).value = "bert"
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "dev", "requested")
        made = await house.environments.show(alice, "dev")
        mounts = (await house.environments.mounts(alice, [made]))[made.id]
        assert [(one.path, one.reference(alice.workspace)) for one in mounts] == [
            ("/gemini/data-1", "mnist:v1"), ("/gemini/pretrain1", "bert:base"),
        ]  # fmt: skip


async def test_refusals_of_data_in_chinese(menu: Menu) -> None:
    app = menu("zh")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause(0.3)
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        app.screen.query_one("#datasets", Input).value = "nothing"
        await shows(pilot, "没有名为「nothing」的数据集")


@pytest.mark.parametrize(
    ("language", "labels", "refused", "zone"),
    [
        ("en", ("Starts at", "Time zone"), "'soon' is no cron expression", "there is no time zone 'Moon'"),
        ("zh", ("启动时间", "时区"), "「soon」不是 cron 表达式", "没有时区「Moon」"),
    ],
)
async def test_a_schedule_is_planned_while_typing(
    menu: Menu, house: House, alice: Caller, language: str, labels: tuple[str, str], refused: str, zone: str
) -> None:
    app = menu(language)
    async with app.run_test(size=(80, 36)) as pilot:
        await pilot.pause(0.3)
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        assert labels[0] not in text(app)
        app.screen.query_one("#lifecycle", Select).value = "scheduled"
        await shows(pilot, *labels)
        await until(pilot, lambda: not can_create(app))
        app.screen.query_one("#scheduled-start-at", Input).value = "soon"
        await shows(pilot, refused)
        app.screen.query_one("#scheduled-start-at", Input).value = "0 8 * * MON-FRI"
        app.screen.query_one("#scheduled-timezone", Input).value = "Moon"
        await shows(pilot, zone)
        app.screen.query_one("#scheduled-timezone", Input).value = "Asia/Shanghai"
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "dev")
        made = await house.environments.show(alice, "dev")
        assert (made.lifecycle, made.start_at, made.timezone) == (
            Lifecycle.SCHEDULED, "0 8 * * MON-FRI", "Asia/Shanghai",
        )  # fmt: skip


async def test_a_time_of_idleness_is_asked_only_where_it_is_used(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 36)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        assert "Idle for" not in text(app)
        app.screen.query_one("#lifecycle", Select).value = "on-demand"
        await shows(pilot, "Idle for")
        app.screen.query_one("#on_demand-idle", Input).value = "long"
        await shows(pilot, "'long' is no length of time")
        app.screen.query_one("#on_demand-idle", Input).value = "1h30m"
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "dev")
        made = await house.environments.show(alice, "dev")
        assert (made.lifecycle, made.idle_seconds) == (Lifecycle.ON_DEMAND, 5400)


async def test_a_machine_asks_for_a_name_only(menu: Menu, house: House, bob: Caller) -> None:
    """What it cannot limit or show is not asked for; what was typed for another compute before does not count."""
    app = menu(caller=bob)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await until(pilot, lambda: can_create(app))
        app.screen.query_one("#cpus", Input).value = "2"
        app.screen.query_one("#compute", Select).value = "box"
        await until(pilot, lambda: not app.screen.query_one("#memory-field").display)
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "dev", "requested")
        made = await house.environments.show(bob, "dev")
        assert (made.compute, made.cpus, made.memory) == ("box", 0, 0)


async def test_a_machine_of_others_is_not_offered(menu: Menu, house: House, alice: Caller) -> None:
    assert list(house.environments.planner.offered(alice)) == ["docker", "local"]


async def test_the_output_can_be_kept(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(80, 40)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Keep output", "no, or days after its deletion")
        app.screen.query_one("#lifecycle", Select).value = Lifecycle.EPHEMERAL.value
        await shows(pilot, "14 days, then gone")
        app.screen.query_one("#keep-output", Input).value = "ever"
        await shows(pilot, "is no number of days")
        assert not can_create(app)
        app.screen.query_one("#keep-output", Input).value = "30"
        await until(pilot, lambda: can_create(app))
        await pilot.press("f2")
        await shows(pilot, "requested")
        assert (await house.environments.show(alice, "dev")).keep_output_days == 30
