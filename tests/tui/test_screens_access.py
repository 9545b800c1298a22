"""The card of an environment's applications, and the form's fields for them."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select, update
from textual.widgets import Input

from backends.planning import Request
from storage.access import Action, Caller
from storage.clock import now
from storage.records import Application, ApplicationState, AuditEvent, EnvironmentState
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_harmless, shows, text, until


async def test_the_card_has_the_line_the_address_and_the_secret(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("lab", "docker", applications=("jupyter", "vnc"), ports=(8000,)))
    await house.becomes("lab", state=EnvironmentState.RUNNING, started=now())
    async with house.database.writing() as tx:
        reason = "it ended with status 1\x1b[2J"
        await tx.execute(update(Application).values(state=ApplicationState.FAILED, reason=reason, seen=now()))
    _, (jupyter, vnc) = await house.applications.access(alice, "lab")
    app = menu()
    async with app.run_test(size=(140, 40)) as pilot:
        await shows(pilot, "lab")
        await pilot.press("a")
        await shows(
            pilot, "Jupyter: failed", f"-L {jupyter.local_port}:127.0.0.1:8888 alice+lab@gpu.example.org -p 2022"
        )
        await shows(
            pilot, f"token={jupyter.secret}", f"Password:  {vnc.secret}", "open to everybody at gpu.example.org:30001"
        )
        assert_harmless(app)
        await pilot.press("N")
        await shows(pilot, "Jupyter: starting")
        _, (renewed, _) = await house.applications.access(alice, "lab")
        assert renewed.secret != jupyter.secret
        await shows(pilot, f"token={renewed.secret}")


async def test_the_state_is_watched_and_the_secrets_are_looked_at_once(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("lab", "docker", applications=("jupyter",)))
    app = menu()
    async with app.run_test(size=(120, 30)) as pilot:
        await shows(pilot, "lab")
        await pilot.press("a")
        await shows(pilot, "Jupyter: waiting")
        await house.becomes("lab", state=EnvironmentState.RUNNING, started=now())
        await shows(pilot, "Jupyter: starting")
        async with house.database.writing() as tx:
            await tx.execute(update(Application).values(state=ApplicationState.RUNNING, seen=now()))
        house.changes.tell("environment")
        await shows(pilot, "Jupyter: running")
    async with house.database.reading() as tx:
        looks = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == Action.APPLICATION_ACCESS))).all()
    assert len(looks) == 1


async def test_programs_are_added_and_ended_there(menu: Menu, house: House, alice: Caller) -> None:
    environment = await house.environments.create(alice, Request("lab", "docker", applications=("jupyter",)))
    app = menu()
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "lab")
        await pilot.press("a")
        await shows(pilot, "Jupyter: waiting")
        await pilot.press("p")
        await shows(pilot, "Programs that are kept running (jupyter, rdp, vnc):", "jupyter")
        app.screen.query_one("#answer", Input).value = "vnc moon"
        await pilot.press("enter")
        await shows(pilot, "there is no application 'moon'")
        await pilot.press("p")
        app.screen.query_one("#answer", Input).value = "vnc, rdp"
        await pilot.press("enter")
        await shows(pilot, "Desktop (RDP): waiting", "Desktop (VNC): waiting")
    assert [one.name for one in await house.applications.wanted(environment.id)] == ["rdp", "vnc"]
    assert await house.applications.unwanted(environment.id) == ["jupyter"]


async def test_a_program_that_is_added_again_has_its_new_secret(menu: Menu, house: House, alice: Caller) -> None:
    """Trap: what the screen knew of it is of the one that was removed, here or elsewhere."""
    environment = await house.environments.create(alice, Request("lab", "docker", applications=("jupyter", "vnc")))
    _, (old, _) = await house.applications.access(alice, "lab")

    async def ended() -> None:
        async with house.database.writing() as tx:
            await tx.execute(delete(Application).where(Application.state == ApplicationState.ENDING))

    app = menu()
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "lab")
        await pilot.press("a")
        await shows(pilot, f"token={old.secret}")
        for answer, shown in (("vnc", 1), ("vnc jupyter", 2)):
            await pilot.press("p")
            await shows(pilot, "Programs that are kept running")
            app.screen.query_one("#answer", Input).value = answer
            await pilot.press("enter")
            await until(pilot, lambda shown=shown: text(app).count(": waiting") == shown)
            await ended()
        _, (new, _) = await house.applications.access(alice, "lab")
        assert new.secret != old.secret
        await shows(pilot, f"token={new.secret}")
        await house.applications.change(alice, "lab", remove=["jupyter"])
        await until(pilot, lambda: text(app).count(": waiting") == 1)
        await ended()
        await house.applications.change(alice, "lab", add=["jupyter"])
        _, (newest, _) = await house.applications.access(alice, "lab")
        assert newest.secret != new.secret
        await shows(pilot, f"token={newest.secret}")
    assert [one.name for one in await house.applications.wanted(environment.id)] == ["jupyter", "vnc"]


async def test_each_line_can_be_copied(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("lab", "docker", applications=("jupyter", "vnc"), ports=(8000,)))
    _, (jupyter, vnc) = await house.applications.access(alice, "lab")
    app = menu()
    async with app.run_test(size=(140, 40), notifications=True) as pilot:
        await shows(pilot, "lab")
        await pilot.press("a")
        await shows(pilot, "Jupyter: waiting")
        for words in (f"{jupyter.local_port}:127.0.0.1:8888", f"{vnc.local_port}:127.0.0.1:5900", ":30001"):
            await pilot.press("y")
            await shows(pilot, "Copied:")
            await until(pilot, lambda words=words: words in app.clipboard)


@pytest.mark.parametrize(("language", "words"), [("en", "Jupyter: not installed"), ("zh", "Jupyter: 未安装")])
async def test_the_details_at_home_show_them(
    menu: Menu, house: House, alice: Caller, language: str, words: str
) -> None:
    await house.environments.create(alice, Request("lab", "docker", applications=("jupyter",), ports=(8000,)))
    await house.becomes("lab", state=EnvironmentState.RUNNING, started=now())
    async with house.database.writing() as tx:
        await tx.execute(update(Application).values(state=ApplicationState.MISSING, seen=now()))
    app = menu(language)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, words, "8000", "gpu.example.org:30001", "ssh -J alice@gpu.example.org:2022 lab")


async def test_the_card_of_a_desktop_by_rdp_has_the_user(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("desk", "docker", applications=("rdp",)))
    _, (rdp,) = await house.applications.access(alice, "desk")
    app = menu()
    async with app.run_test(size=(120, 30)) as pilot:
        await shows(pilot, "desk")
        await pilot.press("a")
        await shows(pilot, "Desktop (RDP): waiting", "User:  developer", f"Password:  {rdp.secret}")


async def test_without_applications_it_says_so(menu: Menu, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("plain", "docker"))
    app = menu()
    async with app.run_test(size=(120, 30)) as pilot:
        await shows(pilot, "plain")
        await pilot.press("a")
        await shows(pilot, "has no programs and publishes no ports")


async def test_the_form_asks_for_applications_and_ports(menu: Menu, house: House, alice: Caller) -> None:
    app = menu()
    async with app.run_test(size=(120, 50)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("n")
        await shows(pilot, "Programs", "none, or jupyter, rdp, vnc", "Ports")
        app.screen.query_one("#apps", Input).value = "jupyter, moon"
        await shows(pilot, "there is no application 'moon' (offered: jupyter, rdp, vnc)")
        app.screen.query_one("#apps", Input).value = "jupyter"
        app.screen.query_one("#ports", Input).value = "8000"
        await pilot.press("f2")
        await shows(pilot, "dev")
        environment = await house.environments.show(alice, "dev")
        (condition,) = (await house.applications.of(alice, [environment]))[environment.id]
        assert (condition.name, condition.state) == ("jupyter", ApplicationState.WAITING)
        (port,) = (await house.published.of(alice, [environment]))[environment.id]
        assert (port.port, port.external_port) == (8000, 30001)
