"""Addresses that fail too often stay outside for longer each time."""

from __future__ import annotations

from gateway.bans import Bans


def test_the_last_allowed_failure_bans_and_the_ban_ends() -> None:
    bans = Bans(failures=3, seconds=60)
    assert [bans.failed("a", now) for now in (0, 1, 2)] == [False, False, True]
    assert bans.is_banned("a", 61)
    assert not bans.is_banned("a", 63)
    assert not bans.is_banned("b", 3)


def test_failures_are_forgotten_with_time_and_with_a_login() -> None:
    bans = Bans(failures=2, seconds=60)
    assert not bans.failed("a", 0)
    assert not bans.failed("a", 100)
    bans.succeeded("a")
    assert not bans.failed("a", 101)


def test_the_second_ban_is_twice_as_long() -> None:
    bans = Bans(failures=1, seconds=60)
    bans.failed("a", 0)
    bans.failed("a", 100)
    assert bans.is_banned("a", 219)
    assert not bans.is_banned("a", 221)
