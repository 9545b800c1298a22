"""The card of an environment's applications, and the form's fields for them."""

from __future__ import annotations

from sqlalchemy import update
from textual.widgets import Input

from backends.planning import Request
from storage.access import Caller
from storage.clock import now
from storage.records import Application, ApplicationState, EnvironmentState
from tests.tui.conftest import Menu
from tests.tui.house import House
from tests.tui.screen_text import assert_harmless, shows


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
        await shows(pilot, "made without applications")


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
