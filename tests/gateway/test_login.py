"""Identity comes from the proven key alone.

Four gateways and one library of this kind took an *offered* key for an identity (CVE-2023-43660, CVE-2023-43652,
CVE-2026-24058, CVE-2024-45337), and one kept what a former user name had proven (CVE-2023-48712).
"""

from __future__ import annotations

import asyncssh
import pytest

from gateway.login import Login
from gateway.target import Target
from storage.accounts import Accounts
from storage.errors import NotAllowed
from storage.keys import parse_public_key


def new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


async def add(accounts: Accounts, name: str, key: asyncssh.SSHKey) -> None:
    line = parse_public_key(key.export_public_key().decode())
    await accounts.add_user(name, [line], is_admin=False, actor="operator")


@pytest.fixture
def login(accounts: Accounts) -> Login:
    return Login(accounts, address="192.0.2.7", connection="c1")


async def test_a_known_key_signs_in(accounts: Accounts, login: Login) -> None:
    key = new_key()
    await add(accounts, "alice", key)
    await login.begin("alice+train")
    assert login.accepts(key)
    caller = await login.complete()
    assert (caller.name, caller.address, caller.connection) == ("alice", "192.0.2.7", "c1")
    assert login.target == Target("alice", "train")


async def test_the_last_checked_key_is_the_identity_and_not_one_that_was_offered_before(
    accounts: Accounts, login: Login
) -> None:
    hers, other = new_key(), new_key()
    await add(accounts, "alice", hers)
    await login.begin("alice")
    assert login.accepts(hers)
    assert not login.accepts(other)
    with pytest.raises(NotAllowed):
        await login.complete()


async def test_nothing_survives_a_change_of_the_user_name(accounts: Accounts, login: Login) -> None:
    hers, his = new_key(), new_key()
    await add(accounts, "alice", hers)
    await add(accounts, "bob", his)
    await login.begin("alice")
    assert login.accepts(hers)
    await login.begin("bob")
    with pytest.raises(NotAllowed):
        await login.complete()
    assert not login.accepts(hers)
    assert login.accepts(his)
    assert (await login.complete()).name == "bob"


@pytest.mark.parametrize("name", ["nobody", "../alice", "alice\x00", "", "invite-" + "0" * 24, "x" * 5000])
async def test_strangers_have_no_key_that_would_do(accounts: Accounts, login: Login, name: str) -> None:
    await add(accounts, "alice", new_key())
    await login.begin(name)
    assert not login.accepts(new_key())
    with pytest.raises(NotAllowed):
        await login.complete()


async def test_a_key_that_was_removed_meanwhile_does_not_sign_in(accounts: Accounts, login: Login) -> None:
    first, second = new_key(), new_key()
    await add(accounts, "alice", first)
    await login.begin("alice")
    assert login.accepts(first)
    caller = await login.complete()
    await accounts.add_key(caller, parse_public_key(second.export_public_key().decode()))
    await login.begin("alice")
    assert login.accepts(first)
    await accounts.remove_key(caller, first.get_fingerprint())
    with pytest.raises(NotAllowed):
        await login.complete()


async def test_a_disabled_user_is_a_stranger(accounts: Accounts, login: Login) -> None:
    key = new_key()
    await add(accounts, "alice", key)
    await accounts.set_disabled("alice", disabled=True, actor="operator")
    await login.begin("alice")
    assert not login.accepts(key)


async def test_an_invitation_binds_the_first_proven_key_once(accounts: Accounts, login: Login) -> None:
    name = await accounts.invite("carol", is_admin=True, actor="operator")
    key = new_key()
    await login.begin(name)
    assert login.accepts(key)
    caller = await login.complete()
    assert (caller.name, caller.is_admin) == ("carol", True)
    assert login.target == Target("carol", is_invite=True)
    again = Login(accounts, address="", connection="c2")
    await again.begin(name)
    assert not again.accepts(new_key())


async def test_an_invitation_does_not_open_a_locked_account(accounts: Accounts) -> None:
    """Bob was invited for a second key and never used it; locked out, he comes with it and a fresh key."""
    await add(accounts, "bob", new_key())
    name = await accounts.invite("bob", is_admin=False, actor="operator")
    await accounts.set_disabled("bob", disabled=True, actor="operator")
    login = Login(accounts, address="", connection="c1")
    await login.begin(name)
    assert login.accepts(new_key())
    with pytest.raises(NotAllowed, match="locked"):
        await login.complete()


async def test_logins_go_stale_with_the_key_and_with_the_account(accounts: Accounts) -> None:
    first, second = new_key(), new_key()
    await add(accounts, "alice", first)
    alice = await accounts.sign_in("alice", first.get_fingerprint(), address="", connection="c1")
    await accounts.add_key(alice, parse_public_key(second.export_public_key().decode()))
    pairs = {(alice.user_id, key.get_fingerprint()) for key in (first, second)}
    stranger = ("somebody-else", first.get_fingerprint())
    assert await accounts.stale(pairs) == set()
    assert await accounts.stale({stranger}) == {stranger}
    await accounts.remove_key(alice, second.get_fingerprint())
    assert await accounts.stale(pairs) == {(alice.user_id, second.get_fingerprint())}
    await accounts.set_disabled("alice", disabled=True, actor="operator")
    assert await accounts.stale(pairs) == pairs
