"""`whoami`, `key`, `user`, `invite`, `session`, `record`, `audit`, `version`."""

from __future__ import annotations

import asyncio
import base64
import json
import os

import pytest
from sqlalchemy import update

from storage.access import Caller
from storage.keys import parse_public_key
from storage.records import AuditEvent
from tests.gateway.commands.conftest import Desk


def new_key(comment: str = "me@laptop") -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + os.urandom(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


async def test_whoami(desk: Desk, alice: Caller) -> None:
    assert json.loads((await desk.run(alice, "whoami --json")).out) == {
        "user": "alice", "workspace": "team", "administrator": False, "address": "127.0.0.1", "connection": "c0",
    }  # fmt: skip
    assert (await desk.run(alice, "whoami")).out.splitlines()[0].split() == ["user", "alice"]


async def test_version(desk: Desk, alice: Caller) -> None:
    assert (await desk.run(alice, "version")).out.startswith("ashore ")
    assert set(json.loads((await desk.run(alice, "version --json")).out)) == {"version"}


# ---- keys --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by_argument", [True, False])
async def test_a_key_comes_and_goes(desk: Desk, alice: Caller, by_argument: bool) -> None:
    text = new_key()
    if by_argument:
        added = await desk.run(alice, f"key add {text} --json")
    else:
        added = await desk.run(alice, "key add --json", stdin=text.encode() + b"\n")
    row = json.loads(added.out)
    assert (row["fingerprint"], row["title"]) == (parse_public_key(text).fingerprint, "me@laptop")
    assert row in json.loads((await desk.run(alice, "key list --json")).out)
    assert (await desk.run(alice, f"key remove {row['fingerprint'][:20]}")).status == 0
    assert row["fingerprint"] not in (await desk.run(alice, "key list")).out


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\nxx", b"\xff\xfe", b"x" * 20000]
)
async def test_what_is_no_key(desk: Desk, alice: Caller, text: bytes) -> None:
    answer = await desk.run(alice, "key add", stdin=text)
    assert (answer.status, answer.out) == (2, "")


async def test_the_last_key_stays(desk: Desk, alice: Caller) -> None:
    answer = await desk.run(alice, "key remove SHA256:alice")
    assert (answer.status, "only key" in answer.err) == (1, True)


# ---- users and invitations ---------------------------------------------------------------------------------------
async def test_administrators_manage_users(desk: Desk, admin: Caller) -> None:
    text = new_key()
    assert (await desk.run(admin, "user add carol", stdin=text.encode())).status == 0
    rows = {row["name"]: row for row in json.loads((await desk.run(admin, "user list --json")).out)}
    assert (rows["carol"]["administrator"], rows["carol"]["disabled"]) == (False, False)
    assert (await desk.run(admin, "user disable carol")).status == 0
    assert await desk.services.accounts.keys_of("carol") == {}
    assert (await desk.run(admin, "user enable carol")).status == 0
    assert len(await desk.services.accounts.keys_of("carol")) == 1
    assert (await desk.run(admin, f"user disable {admin.name}")).status == 1
    assert (await desk.run(admin, "user disable nobody")).status == 1


async def test_an_invitation_can_be_redeemed(desk: Desk, admin: Caller) -> None:
    row = json.loads((await desk.run(admin, "invite create dave --json")).out)
    assert row["command"] == f"ssh -p 2022 {row['login']}@gw.example.org"
    key = parse_public_key(new_key())
    caller = await desk.services.accounts.redeem(row["login"], key, address="127.0.0.1", connection="c1")
    assert (caller.name, caller.is_admin) == ("dave", False)
    assert row["login"] not in str(await desk.services.audit.search(admin, limit=1000))


@pytest.mark.parametrize(
    "command",
    ["user list", "user add eve", "user disable bob", "user enable bob", "invite create eve --admin",
     "audit search", "audit verify", "session list --all", "record list --all"],
)  # fmt: skip
async def test_only_administrators(desk: Desk, alice: Caller, command: str) -> None:
    answer = await desk.run(alice, command, stdin=new_key().encode())
    assert (answer.status, answer.out) == (77, "")
    assert [user.name for user in await desk.services.accounts.all_users()] == ["alice"]


# ---- sessions ----------------------------------------------------------------------------------------------------
async def test_sessions_are_listed_and_killed_by_their_owner(desk: Desk, alice: Caller, bob: Caller) -> None:
    session = await desk.services.sessions.begin(alice, "exec", environment="train", detail="echo \x1b[2J")
    (row,) = json.loads((await desk.run(alice, "session list --json")).out)
    assert (row["id"], row["kind"], row["environment"]) == (session.id, "exec", "train")
    assert "\x1b" not in (await desk.run(alice, "session list")).out
    assert json.loads((await desk.run(bob, "session list --json")).out) == []
    assert (await desk.run(bob, f"session kill {session.id}")).status == 1
    assert await desk.services.sessions.wanted_ends() == {}
    assert (await desk.run(alice, f"session kill {session.id}")).status == 0
    assert list(await desk.services.sessions.wanted_ends()) == [session.id]


async def test_administrators_kill_anybodys(desk: Desk, alice: Caller, admin: Caller) -> None:
    session = await desk.services.sessions.begin(alice, "menu")
    assert session.id in (await desk.run(admin, "session list --all")).out
    assert (await desk.run(admin, f"session kill {session.id}")).status == 0


# ---- recordings --------------------------------------------------------------------------------------------------
async def test_a_recording_is_listed_played_and_taken_home(desk: Desk, alice: Caller, bob: Caller) -> None:
    recordings = desk.services.recordings
    recording = await recordings.begin(alice, await desk.services.sessions.begin(alice, "shell", environment="train"))
    text = '{"version": 2, "width": 80, "height": 24}\n[0.5, "o", "hello\\r\\n"]\n[3000, "o", "bye\\r\\n"]\n'
    await asyncio.to_thread(recordings.path(recording.id).write_text, text)
    await recordings.finish(recording.id, seconds=3000, size=len(text), sha256="ab" * 32)
    (row,) = json.loads((await desk.run(alice, "record list --json")).out)
    assert (row["id"], row["environment"], row["size"]) == (recording.id, "train", len(text))
    assert (await desk.run(alice, f"record play {recording.id} --speed 100 --idle-limit 0.1")).out == "hello\r\nbye\r\n"
    assert (await desk.run(alice, f"record play {recording.id} --json")).out == text
    answer = await desk.run(bob, f"record play {recording.id}")
    assert (answer.status, answer.out) == (1, "")


@pytest.mark.parametrize("options", ["--speed 0", "--speed nan", "--speed inf", "--idle-limit -1"])
async def test_speeds_that_make_no_sense(desk: Desk, alice: Caller, options: str) -> None:
    assert (await desk.run(alice, f"record play x {options}")).status == 2


# ---- audit -------------------------------------------------------------------------------------------------------
async def test_the_trail_is_searched(desk: Desk, alice: Caller, admin: Caller) -> None:
    await desk.run(alice, "whoami")
    rows = json.loads((await desk.run(admin, "audit search --actor alice --action command. --since 1h --json")).out)
    assert [row["thing"] for row in rows] == ["whoami"]
    assert "whoami" in (await desk.run(admin, "audit search --limit 5")).out
    assert json.loads((await desk.run(admin, "audit search --since 2999-01-01 --json")).out) == []
    assert (await desk.run(admin, "audit search --since yesterday")).status == 2


async def test_a_changed_event_is_found(desk: Desk, admin: Caller) -> None:
    whole = json.loads((await desk.run(admin, "audit verify --json")).out)
    assert (whole["whole"], whole["broken_at"]) == (True, None)
    async with desk.services.database.writing() as tx:
        await tx.execute(update(AuditEvent).where(AuditEvent.seq == 1).values(actor="somebody-else"))
    answer = await desk.run(admin, "audit verify --json")
    assert (answer.status, json.loads(answer.out)["broken_at"]) == (1, 1)
