"""Who becomes the administrator of a new house."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gateway.first_start import first_start
from storage.access import Caller
from storage.accounts import Accounts, PublicKey


def keys_in(home: Path, *names: str) -> None:
    (home / ".ssh").mkdir()
    for name in names:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh" / name], check=True)


async def test_the_operators_own_keys(accounts: Accounts, tmp_path: Path) -> None:
    keys_in(tmp_path, "id_ed25519", "other")
    (tmp_path / ".ssh" / "copy.pub").write_bytes((tmp_path / ".ssh" / "other.pub").read_bytes())
    (tmp_path / ".ssh" / "broken.pub").write_text("not a key")
    (tmp_path / ".ssh" / "binary.pub").write_bytes(b"\xff\xfe")
    (tmp_path / ".ssh" / "folder.pub").mkdir()
    lines = await first_start(accounts, home=tmp_path, user="Ann", host="gw", port=2200)
    assert lines[-1] == "Log in with: ssh -p 2200 ann@gw"
    assert len(await accounts.keys_of("ann")) == 2
    (user,) = await accounts.all_users()
    assert user.is_admin
    assert await first_start(accounts, home=tmp_path, user="ann") == []


async def test_an_invitation_where_there_are_none(accounts: Accounts, tmp_path: Path) -> None:
    lines = await first_start(accounts, home=tmp_path, user="Ann Smith")
    match = re.fullmatch(r"ssh -p 2022 (invite-[0-9a-f]+)@localhost", lines[-1])
    assert match is not None
    caller = await accounts.redeem(match[1], PublicKey("ssh-ed25519 AAAA", "SHA256:x"), address="", connection="")
    assert (caller.name, caller.is_admin) == ("admin", True)


async def test_nothing_happens_where_there_are_people(accounts: Accounts, alice: Caller, tmp_path: Path) -> None:
    keys_in(tmp_path, "id_ed25519")
    assert await first_start(accounts, home=tmp_path, user="ann") == []
    assert [user.name for user in await accounts.all_users()] == ["alice"]
