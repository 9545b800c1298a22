"""SSH keys, open sessions, help."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from sqlalchemy import update
from textual.widgets import Button, TextArea

from storage.access import Caller
from storage.keys import parse_public_key
from storage.records import SshKey, SshSession
from tests.tui.conftest import Menu
from tests.tui.house import House, with_connection
from tests.tui.screen_text import assert_fits, assert_harmless, shows, text, until
from tui.widgets.table import Table

EVIL = "x[/oops][@click=app.quit]\x1b]52;c;aGk=\x07\x9b2J\u202egnp"


@pytest.fixture
def key_line(tmp_path: Path) -> str:
    path = tmp_path / "new"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


async def test_a_key_is_pasted_judged_and_added(menu: Menu, house: House, alice: Caller, key_line: str) -> None:
    key = parse_public_key(key_line)
    app = menu()
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("k")
        await shows(pilot, "SHA256:alice", "1 key")
        await pilot.press("n")
        await shows(pilot, "Paste a public key")
        area = app.screen.query_one(TextArea)
        area.text = "-----BEGIN OPENSSH PRIVATE KEY-----"
        await shows(pilot, "this is a PRIVATE key")
        assert app.screen.query_one("#yes", Button).disabled
        area.text = key_line
        await shows(pilot, key.fingerprint)
        await pilot.press("tab", "enter")
        await shows(pilot, "This key may log in from now on", "laptop", "2 keys", "never")
        assert len(await house.accounts.keys(alice)) == 2


async def test_the_last_key_stays(menu: Menu, house: House, alice: Caller, key_line: str) -> None:
    app = menu()
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("k")
        await shows(pilot, "SHA256:alice")
        await pilot.press("d")
        await shows(pilot, "Remove this key?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "this is your only key")
        await house.accounts.add_key(alice, parse_public_key(key_line))
        await shows(pilot, "laptop")
        await pilot.press("d", "shift+tab", "enter")
        await shows(pilot, "The key was removed.", "1 key")
        assert [key.title for key in await house.accounts.keys(alice)] == ["laptop"]


async def test_sessions_are_listed_and_ended(menu: Menu, house: House, alice: Caller, bob: Caller) -> None:
    here = with_connection(alice, "here")
    await house.sessions.begin(here, "menu")
    shell = await house.sessions.begin(with_connection(alice, "there"), "shell", environment="train")
    await house.sessions.begin(bob, "shell", environment="secret")
    app = menu(caller=here)
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("o")
        await shows(pilot, "127.0.0.1 (here)", "train", "2 open sessions")
        assert "secret" not in text(app)
        await pilot.press("down", "d")
        await shows(pilot, "End this session?")
        await pilot.press("shift+tab", "enter")
        await shows(pilot, "The session was asked to end.", "ending")
        assert await house.sessions.wanted_ends() == {shell.id: "ended by alice"}
        await house.sessions.end(alice, shell, exit_status=None, bytes_in=0, bytes_out=0)
        await shows(pilot, "1 open session")


async def test_help_has_lines_to_copy(menu: Menu) -> None:
    app = menu()
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("question_mark")
        await shows(
            pilot,
            "ssh -p 2022 alice+dev@gpu.example.org",
            "ssh -J alice@gpu.example.org:2022 dev",
            "ssh -L 8888:localhost:8888 -p 2022 alice+dev@gpu.example.org",
            "sftp -P 2022 alice@gpu.example.org:/datasets",
            "hold Shift",
        )
        await pilot.press("down", "y")
        await until(pilot, lambda: app.clipboard.endswith("nvidia-smi"))
        await pilot.press("question_mark")
        await shows(pilot, "Environments")


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (120, 36)])
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_hostile_words_at_every_size(
    menu: Menu, house: House, alice: Caller, size: tuple[int, int], language: str
) -> None:
    await house.sessions.begin(alice, "shell", environment="train")
    async with house.database.writing() as tx:
        await tx.execute(update(SshKey).values(title=EVIL))
        await tx.execute(update(SshSession).values(kind=EVIL[:16], environment=EVIL, detail=EVIL, address=EVIL))
    app = menu(language)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.3)
        for key in ("k", "o"):
            await pilot.press(key)
            await shows(pilot, "x[/oops]")
            assert_fits(app)
            await pilot.press("d")
            await pilot.pause(0.1)
            assert_harmless(app)
            await pilot.press("escape", "escape")
        await pilot.press("question_mark")
        await shows(pilot, "ssh")
        assert_fits(app)
        await pilot.press("escape", "k", "n")
        await until(pilot, lambda: bool(app.screen.query("#paste")))
        app.screen.query_one(TextArea).text = EVIL
        await pilot.pause(0.2)
        assert_harmless(app)
        assert app.screen.query_one("#yes", Button).disabled


async def test_the_cursor_of_an_empty_table_is_nowhere(menu: Menu) -> None:
    app = menu()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Welcome")
        await pilot.press("o", "down", "up", "enter", "d", "pagedown", "end")
        assert app.screen.query_one(Table).key is None
