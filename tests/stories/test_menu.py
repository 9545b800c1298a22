"""The menu as a person in front of tmux sees it: create, connect, exit, back in the menu, quit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.clients import Gateway, Tmux


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    with Tmux(tmp_path) as opened:
        yield opened


def open_menu(tmux: Tmux, gateway: Gateway, person: str) -> None:
    command = shlex.join(gateway.client(person))
    tmux.type(f"clear; {command}; echo left with $?")
    tmux.press("Enter")
    tmux.wait_for("Environments")


def quit_menu(tmux: Tmux) -> None:
    """Leave; the terminal is as it was: the main screen, the shell's prompt, echo, no mouse reports."""
    tmux.press("q")
    tmux.wait_for(r"left with 0")
    assert not tmux.in_alternate_screen
    tmux.type("stty -a; echo sh''own")
    tmux.press("Enter")
    settings = tmux.wait_for("shown")
    assert " echo " in settings
    assert " icanon" in settings
    assert not tmux.reports_mouse


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_create_connect_exit_quit(gateway: Gateway, tmux: Tmux, compute: str) -> None:
    # The name says neither compute: `choose_compute` looks for both words on the screen.
    name = {"local": "menu-one", "docker": "menu-two"}[compute]
    open_menu(tmux, gateway, "bob")
    try:
        tmux.press("n")
        tmux.wait_for("New environment")
        tmux.press("C-u", name)
        tmux.wait_for(rf"New environment[\s\S]*{name}")
        choose_compute(tmux, compute)
        tmux.press("F2")
        tmux.wait_for(rf"{name}\s+running", seconds=90)
        tmux.press("Enter")
        tmux.wait_for(r"[$#] ?$|[$#] *\n")
        tmux.type("echo in''side; stty size")
        tmux.press("Enter")
        tmux.wait_for(r"inside\s+36 110")
        tmux.type("exit")
        tmux.press("Enter")
        tmux.wait_for(rf"{name}\s+running")
        quit_menu(tmux)
    finally:
        gateway.ssh("bob", "env", "delete", name, "--wait", check=False)


def choose_compute(tmux: Tmux, compute: str) -> None:
    """The second field is a list of both computes; open it and go to the first or the last."""
    other = {"local": "docker", "docker": "local"}[compute]
    tmux.press("Tab", "Enter")
    screen = tmux.wait_for(r"docker[\s\S]*local|local[\s\S]*docker")
    tmux.press("Home" if screen.rindex(compute) < screen.rindex(other) else "End")
    tmux.press("Enter")
    tmux.wait_for(compute)


def test_the_menu_follows_the_size_of_the_terminal(gateway: Gateway, tmux: Tmux) -> None:
    open_menu(tmux, gateway, "alice")
    tmux.resize(70, 20)
    tmux.wait_for("Environments")
    tmux.resize(140, 45)
    tmux.wait_for("Environments")
    quit_menu(tmux)


def test_two_people_at_once(gateway: Gateway, tmp_path: Path) -> None:
    """Each sees their own things and name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Tmux(tmp_path / "a") as first, Tmux(tmp_path / "b") as second:
        gateway.ssh("alice", "env", "create", "only-alice", "--compute", "local", "--wait", timeout=120)
        try:
            open_menu(first, gateway, "alice")
            open_menu(second, gateway, "bob")
            assert "only-alice" in first.wait_for("only-alice")
            assert "only-alice" not in second.screen
            gateway.ssh("alice", "env", "stop", "only-alice", "--wait")
            first.wait_for(r"only-alice\s+stopped")
            quit_menu(first)
            second.wait_for("Environments")
            quit_menu(second)
        finally:
            gateway.ssh("alice", "env", "delete", "only-alice", "--wait", check=False)


def test_a_closed_terminal_ends_the_menu(gateway: Gateway, tmp_path: Path) -> None:
    with Tmux(tmp_path) as tmux:
        open_menu(tmux, gateway, "alice")
    rows = gateway.json("carol", "session", "list", "--all")
    assert [row for row in rows if row["kind"] == "menu" and row["user"] == "alice"] == []
